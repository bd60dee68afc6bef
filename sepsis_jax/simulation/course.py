"""One simulated patient under way: `start`, `advance` by 4 h, `finish`. All that happens in a step happens here."""

from __future__ import annotations

import dataclasses
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
from sepsis_jax.dynamics.protocol import Dynamics, History, StepNoise, sample_exit
from sepsis_jax.simulation.policy import Policy, previous_action

ASK_POLICY = -1
"""Level in a plan that leaves a step to the policy."""


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
class Course:
    """A trajectory after some steps; nothing changes after the ICU exit.

    Attributes:
      state: of the dynamics. memory: of the policy.
      obs: f32[F] (clinical units), mask: bool[38], action: int8[2] levels given before.
      urine: f32[6] (mL/4h) the last day, NaN where not covered.
      sofa: f32[]. exit: int8[] 0 in the ICU, 1 died, 2 discharged.
      value: f32[] discounted step rewards so far. discount: f32[] of the last step that was lived.
    """

    state: Any
    memory: Any
    obs: Any
    mask: Any
    action: Any
    urine: Any
    sofa: Any
    exit: Any
    value: Any
    discount: Any


@struct.dataclass
class Moment:
    """What one step of one trajectory leaves behind.

    Attributes:
      obs: f32[F] (clinical units) at the end of the step; frozen after the ICU exit.
      value: f32[F] (clinical units) every feature as it would read then if it were measured; after the exit nothing.
      mask: bool[38] newly measured.
      action: int8[2] what was given; nothing after the exit.
      vent_prob: f32[] probability of invasive ventilation; 0 after the exit.
      sofa: f32[] of the version that the reward names.
      reward: f32[] of the step, 0 from the step of the exit on.
      exit: int8[] 0 in the ICU at the end of the step, 1 died, 2 discharged, in this step or before.
    """

    obs: Any
    value: Any
    mask: Any
    action: Any
    vent_prob: Any
    sofa: Any
    reward: Any
    exit: Any


def start(world: World, params: Any, policy_params: Any, history: History) -> Course:
    """The course at the decision about step `history.length - 1` of one patient."""
    last = history.length - 1
    window = last - jnp.arange(sofa.STEPS_PER_DAY - 1, -1, -1)
    urine = jnp.where(window >= 0, history.obs[jnp.maximum(window, 0), URINE], jnp.nan)
    obs, mask = history.obs[last], history.mask[last]
    action = previous_action(history)
    score = _sofa(world, obs, jnp.asarray(history.ventilated)[last], action, urine)
    memory = None if world.policy is None else world.policy.init(policy_params, history)
    state = world.dynamics.encode(params, history)
    none = jnp.int8(EXIT_TRUNCATED)
    return Course(state, memory, obs, mask, action, urine, score, none, jnp.float32(0), jnp.float32(1))


def advance(
    world: World,
    params: Any,
    policy_params: Any,
    course: Course,
    planned: jax.Array,
    noise: StepNoise,
    index: Any,
    shared: Any = None,
) -> tuple[Course, Moment]:
    """One 4-h step.

    Args:
      params: of one member of the dynamics. policy_params: of the policy, or None.
      planned: int8[2] levels, or `ASK_POLICY`.
      noise: of the step, see `dynamics.protocol.step_noise`.
      index: i32[] number of the step, from 0.
      shared: what `Dynamics.shared` gives for `course.state`, where it is known.
    """
    action, memory = planned.astype(jnp.int8), course.memory
    if world.policy is not None:
        probs, memory = world.policy.probs(policy_params, memory, course.obs, course.mask, course.action)
        drawn = actions.decode((noise.action >= jnp.cumsum(probs)[:-1]).sum())
        action = jnp.where(planned[0] == ASK_POLICY, drawn, action)
    state, step = world.dynamics.step(params, course.state, action, noise.dynamics, shared)
    urine = jnp.append(course.urine[1:], step.obs[URINE])
    score = _sofa(world, step.obs, step.vent_prob > 0.5, action, urine)
    lactate = INDEX["lactate"]
    reward = world.reward.step(course.sofa, score, course.obs[lactate], step.obs[lactate])
    there = course.exit == EXIT_TRUNCATED
    exit = jnp.where(there, sample_exit(step.exit_hazard, noise.exit), course.exit)
    before, after = step.present
    # The step of the exit earns the outcome (`Reward.episode`).
    reward = jnp.where(exit == EXIT_TRUNCATED, after * reward, 0.0)
    if world.reward.guideline:
        reward += jnp.where(there, before * world.reward.penalty(course.obs, course.action[0], action), 0.0)
    discount = jnp.float32(world.reward.gamma) ** index
    value = course.value + discount * reward
    lived = Course(state, memory, step.obs, step.mask, action, urine, score, exit, value, discount)
    new = jax.tree.map(partial(_select, there), lived, course)
    given, vent_prob = jnp.where(there, action, jnp.int8(0)), jnp.where(there, step.vent_prob, 0.0)
    return new, Moment(new.obs, step.value, step.mask & there, given, vent_prob, new.sofa, reward, exit)


def finish(world: World, params: Any, course: Course) -> tuple[jax.Array, jax.Array]:
    """f32[] probability of death within 90 days given all of this, and f32[] return.

    The terminal reward falls at the exit, or at the horizon for who is still there.
    """
    death_90d = jnp.where(course.exit == EXIT_DEATH, 1.0, world.dynamics.outcome(params, course.state))
    return death_90d, course.value + course.discount * world.reward.terminal(death_90d)


def _select(condition: jax.Array, new: Any, old: Any) -> Any:
    return jax.lax.select(jnp.broadcast_to(condition, jnp.shape(new)), jnp.asarray(new), jnp.asarray(old))


def _sofa(world: World, obs: jax.Array, ventilated: jax.Array, action: jax.Array, urine: jax.Array) -> jax.Array:
    if world.reward.sofa == "published":
        return sofa.published(obs, action[0], jnp.nansum(urine), ventilated)
    return sofa.proper(obs, ventilated, world.bins.doses(action)[0], urine.sum())
