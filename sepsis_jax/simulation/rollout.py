"""Rolling a patient forward: one function for plans and for policies, and its batched face `simulate`.

Random numbers follow `dynamics.protocol.trajectory_key`: the noise of step i of sample s of a stay is the same for
every candidate (common random numbers), so differences between candidates are effects, not luck.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from sepsis_jax.clinical import actions, sofa
from sepsis_jax.clinical.actions import ActionBins
from sepsis_jax.clinical.features import INDEX, URINE
from sepsis_jax.clinical.reward import Reward
from sepsis_jax.data.episodes import EXIT_DEATH, EXIT_TRUNCATED
from sepsis_jax.dynamics.protocol import Dynamics, History, StepKeys, sample_exit, step_keys, trajectory_key
from sepsis_jax.simulation.policy import Policy


@struct.dataclass
class Trajectory:
    """One simulated future of H steps (leading axes are added by batching).

    Attributes:
      obs: f32[H,F] (clinical units) at the end of each step; frozen after the ICU exit.
      mask: bool[H,38] newly measured.
      action: int8[H,2] what was given.
      vent_prob: f32[H] probability of invasive ventilation.
      sofa: f32[H] `proper` SOFA.
      reward: f32[H] step rewards, 0 from the step of the exit on.
      exit: int8[H] 0 in the ICU at the end of the step, 1 died, 2 discharged, in this step or before.
      death_90d: f32[] probability of death within 90 days, given all of this.
      value: f32[] return: discounted step rewards and the expected terminal reward.
    """

    obs: Any
    mask: Any
    action: Any
    vent_prob: Any
    sofa: Any
    reward: Any
    exit: Any
    death_90d: Any
    value: Any


@dataclasses.dataclass(frozen=True)
class World:
    """The static half of a simulation: what is the same for every patient, candidate and sample (hashable).

    Attributes:
      dynamics: model of patients.
      bins: doses behind the levels (vasopressor dose enters SOFA).
      reward: what a trajectory is worth.
      policy: continues where a plan ends; None when plans cover the horizon.
    """

    dynamics: Dynamics
    bins: ActionBins
    reward: Reward
    policy: Policy | None = None


@struct.dataclass
class _Carry:
    state: Any
    memory: Any
    obs: Any
    mask: Any
    action: Any
    urine: Any  # f32[6] (mL/4h) the last day, NaN where not covered
    sofa: Any
    exit: Any


def rollout(
    world: World,
    params: Any,
    policy_params: Any,
    history: History,
    state: Any,
    plan: jax.Array,
    key: jax.Array,
    *,
    horizon: int,
) -> Trajectory:
    """One trajectory: follow `plan`, then the policy.

    Args:
      world: dynamics, action bins, reward, policy.
      params: of the dynamics. policy_params: of the policy, or None.
      history: what is known at the decision (one patient).
      state: `world.dynamics.encode(params, history)`.
      plan: int8[P,2] levels of the first P steps, P from 0 to horizon; the policy draws the rest.
      key: of this trajectory; consumed.
      horizon: H, 4-h steps.
    """
    planned = plan.shape[0]
    if planned < horizon and world.policy is None:
        raise ValueError(f"the plan covers {planned} of {horizon} steps and there is no policy to go on with")
    padded = jnp.zeros((horizon, 2), jnp.int8).at[: min(planned, horizon)].set(plan[:horizon].astype(jnp.int8))

    def advance(carry: _Carry, index: jax.Array) -> tuple[_Carry, dict[str, jax.Array]]:
        keys = step_keys(key, index)
        action, memory = padded[index], carry.memory
        if world.policy is not None and planned < horizon:
            probs, memory = world.policy.probs(policy_params, memory, carry.obs, carry.mask, carry.action)
            drawn = actions.decode(jax.random.categorical(keys.action, jnp.log(probs)))
            action = jnp.where(index < planned, action, drawn)
        return _advance(world, params, carry, memory, action, keys)

    start = _start(world, policy_params, history, state)
    last, trace = jax.lax.scan(advance, start, jnp.arange(horizon))
    death_90d = jnp.where(last.exit == EXIT_DEATH, 1.0, world.dynamics.outcome(params, last.state))
    discount = world.reward.gamma ** jnp.arange(horizon + 1, dtype=jnp.float32)
    steps = (trace["exit_before"] == EXIT_TRUNCATED).sum()  # the terminal reward falls at the exit, not at the horizon
    value = jnp.sum(discount[:-1] * trace["reward"]) + discount[steps - 1] * world.reward.terminal(death_90d)
    del trace["exit_before"]
    return Trajectory(**trace, death_90d=death_90d, value=value)


def _start(world: World, policy_params: Any, history: History, state: Any) -> _Carry:
    last = history.length - 1
    window = last - jnp.arange(sofa.STEPS_PER_DAY - 1, -1, -1)
    urine = jnp.where(window >= 0, history.obs[jnp.maximum(window, 0), URINE], jnp.nan)
    obs, mask = history.obs[last], history.mask[last]
    action = jnp.where(last > 0, history.action[jnp.maximum(last - 1, 0)], history.prior_action)
    # Ventilation at the decision is not part of a history; the first step's reward is exact up to that.
    score = _sofa(world, obs, jnp.asarray(False), action, urine)
    memory = None if world.policy is None else world.policy.init(policy_params, history)
    return _Carry(state, memory, obs, mask, action, urine, score, jnp.int8(EXIT_TRUNCATED))


def _advance(
    world: World, params: Any, carry: _Carry, memory: Any, action: jax.Array, keys: StepKeys
) -> tuple[_Carry, dict[str, jax.Array]]:
    """One 4-h step; a patient who has left keeps the last state and earns nothing."""
    state, step = world.dynamics.step(params, carry.state, action, keys.noise)
    urine = jnp.append(carry.urine[1:], step.obs[URINE])
    score = _sofa(world, step.obs, step.vent_prob > 0.5, action, urine)
    lactate = INDEX["lactate"]
    reward = world.reward.step(carry.sofa, score, carry.obs[lactate], step.obs[lactate])
    there = carry.exit == EXIT_TRUNCATED
    exit = jnp.where(there, sample_exit(step.exit_hazard, keys.exit), carry.exit)
    lived = _Carry(state, memory, step.obs, step.mask, action, urine, score, exit)
    new = jax.tree.map(partial(_select, there), lived, carry)
    trace = {
        "obs": new.obs,
        "mask": step.mask & there,
        "action": action,
        "vent_prob": step.vent_prob,
        "sofa": new.sofa,
        # As in `Reward.episode`, the step of the exit earns the outcome alone.
        "reward": jnp.where(exit == EXIT_TRUNCATED, reward, 0.0),
        "exit": exit,
        "exit_before": carry.exit,
    }
    return new, trace


def _select(condition: jax.Array, new: Any, old: Any) -> Any:
    return jax.lax.select(jnp.broadcast_to(condition, jnp.shape(new)), jnp.asarray(new), jnp.asarray(old))


def _sofa(world: World, obs: jax.Array, ventilated: jax.Array, action: jax.Array, urine: jax.Array) -> jax.Array:
    if world.reward.sofa == "published":
        return sofa.published(obs, action[0], jnp.nansum(urine), ventilated)
    return sofa.proper(obs, ventilated, world.bins.doses(action)[0], urine.sum())


def _interleave(samples: int, leaf: jax.Array) -> jax.Array:
    """[M,K,N,...] -> [K,S,...] in the order of the sample's number."""
    candidates, rest = leaf.shape[1], leaf.shape[3:]
    return jnp.moveaxis(leaf, 0, 2).reshape(candidates, -1, *rest)[:, :samples]


Record = Callable[[Trajectory, History], Any]
"""Turns the S samples of one candidate (Trajectory with leading S) into what is kept of them."""


def trajectories(samples: Trajectory, history: History) -> Trajectory:
    """Record that keeps everything."""
    return samples


@partial(jax.jit, static_argnames=("world", "record", "samples", "horizon", "batch_size"))
def simulate(
    world: World,
    params: Any,
    policy_params: Any,
    histories: History,
    plans: jax.Array,
    seed: jax.Array,
    *,
    record: Record,
    samples: int,
    horizon: int,
    batch_size: int = 1,
) -> Any:
    """All candidates of all patients under common random numbers.

    Args:
      world, params, policy_params: see `rollout`.
      histories: History with leading B; rows of length 0 are padding, skipped where batch_size is 1.
      plans: int8[B,K,P,2]; K candidates a patient.
      seed: key of the run (threefry).
      record: what to keep of the S samples of one candidate, e.g. `statistics.Summarize()`.
      samples: S. horizon: H, 4-h steps.
      batch_size: patients simulated at once; bounds the memory. One fills a CPU; more fill an accelerator.

    Returns:
      What `record` returns, with leading [B,K].
    """

    members = world.dynamics.members
    numbers = jnp.arange(-(-samples // members) * members).reshape(-1, members)  # sample s belongs to member s mod M

    def patient(arguments: tuple[History, jax.Array]) -> Any:
        history, candidates = arguments
        key = partial(trajectory_key, seed, history.stay_id, history.length - 1)

        def courses(index: jax.Array) -> Trajectory:
            own = world.dynamics.member(params, index)
            state, keys = world.dynamics.encode(own, history), jax.vmap(key)(numbers[:, index])
            run = partial(rollout, world, own, policy_params, history, state, horizon=horizon)
            return jax.vmap(jax.vmap(run, (None, 0)), (0, None))(candidates, keys)

        by_member = jax.lax.map(courses, jnp.arange(members))  # one at a time: weights are read once
        together = jax.tree.map(partial(_interleave, samples), by_member)
        return jax.vmap(record, (0, None))(together, history)

    def nobody(arguments: tuple[History, jax.Array]) -> Any:
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(patient, arguments))

    def patient_or_nobody(arguments: tuple[History, jax.Array]) -> Any:
        return jax.lax.cond(arguments[0].length > 0, patient, nobody, arguments)

    return jax.lax.map(patient_or_nobody, (histories, plans), batch_size=batch_size if batch_size > 1 else None)
