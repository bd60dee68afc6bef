"""Policies played in the true patient simulator: the same patients and the same luck under every one of them.

A patient begins at the first decision of a simulated cohort and is treated every 4 h until ICU exit or `MAX_STEPS`.
All random numbers are those of the cohort, so the policy that made it plays its record again, another policy plays the
individual counterfactuals, and the differences between policies are paired. A chooser sees the record; only those that
say so read the true state, which stands beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from rich.progress import Progress

from sepsis_jax.clinical.actions import ALL_ACTIONS
from sepsis_jax.clinical.reward import PUBLISHED, Reward
from sepsis_jax.data.episodes import EXIT_TRUNCATED, Episodes
from sepsis_jax.dynamics.patient.behaviour import propensities
from sepsis_jax.dynamics.patient.cohort import MAX_STEPS
from sepsis_jax.dynamics.patient.dynamics import Params, PatientDynamics, PatientState
from sepsis_jax.dynamics.patient.parameters import Knobs
from sepsis_jax.dynamics.patient.truth import Truth
from sepsis_jax.dynamics.protocol import History, history_at, step_keys, step_noise, trajectory_key
from sepsis_jax.evaluation.oracle import oracle
from sepsis_jax.policies.planner import PlannerSettings, recommend
from sepsis_jax.simulation.course import Course, World, advance, finish, start
from sepsis_jax.simulation.policy import Policy, previous_action, probs_at


@struct.dataclass
class Decision:
    """B patients at the decision about the same step.

    Attributes:
      history: History with leading B: all that is on record; rows from `length` on are zero.
      truth: PatientState with leading B: what no record shows.
      key: key[B] for a random choice.
      active: bool[B] still in the ICU; what is chosen for the others has no effect.
    """

    history: History
    truth: PatientState
    key: Any
    active: Any


Chooser = Callable[[Decision], Any]
"""Levels int8[B,2] that the patients get."""


@struct.dataclass
class Played:
    """What became of B patients.

    Attributes:
      death_90d: f32[B] true probability of death within 90 days at the ICU exit; 1 for a death in the ICU.
      value: f32[B] return, with the outcome's expected reward.
      exit: int8[B] 0 in the ICU after `MAX_STEPS`, 1 died, 2 discharged.
      history: History with leading B: what was recorded and given; `length` counts the treated steps.
    """

    death_90d: Any
    value: Any
    exit: Any
    history: History


def play(
    choose: Chooser,
    episodes: Episodes,
    truth: Truth,
    dynamics: PatientDynamics,
    *,
    reward: Reward = PUBLISHED,
    batch_size: int = 1024,
    title: str = "",
) -> Played:
    """Treat the patients of `episodes`, from their first decisions, as `choose` says.

    Args:
      episodes: ascending stay_id; nothing after the first observations is read.
      truth: of that cohort; InputError if it is another's.
      reward: of `Played.value`.
      batch_size: patients at once; bounds the memory and changes no figure.
      title: of the progress bar.
    """
    dynamics, params = oracle(truth, episodes, dynamics.bins)
    world, seed = World(dynamics, dynamics.bins, reward), jax.random.key(truth.seed)
    total = episodes.num_stays
    size = min(batch_size, total)
    parts = []
    with Progress(transient=True) as progress:
        task = progress.add_task(title, total=total)
        for first in range(0, total, size):
            number = min(size, total - first)
            rows = first + np.minimum(np.arange(size), number - 1)  # one shape: the last patient fills the last batch
            histories = _admitted(history_at(episodes, rows, np.zeros(size, int)))
            real = np.arange(size) < number
            played = _play(world, params, choose, histories, real, seed)
            parts.append(jax.tree.map(lambda leaf: leaf[:number], played))  # noqa: B023
            progress.update(task, advance=number)
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def _admitted(histories: History) -> History:
    """Without what was recorded after the first decision."""

    def first(leaf: Any) -> np.ndarray:
        out = np.zeros((len(leaf), MAX_STEPS, *leaf.shape[2:]), leaf.dtype)
        out[:, 0] = leaf[:, 0]
        return out

    action = np.zeros_like(first(histories.action))
    return dataclasses.replace(histories, obs=first(histories.obs), mask=first(histories.mask), action=action)


def _play(
    world: World, params: Params, choose: Chooser, histories: History, real: np.ndarray, seed: jax.Array
) -> Played:
    """One batch; `real` bool[B] leaves out who only fills it."""
    course = _start(world, params, histories)
    length = np.zeros(len(real), np.int32)
    for step in range(MAX_STEPS):
        active = real & (np.asarray(course.exit) == EXIT_TRUNCATED)
        if not active.any():
            break
        now = dataclasses.replace(histories, length=np.full(len(real), step + 1, np.int32))
        keys = _choice_keys(seed, histories.stay_id, step)
        action = np.asarray(choose(Decision(now, course.state, keys, active)), np.int8)
        course = _advance(world, params, course, action, seed, histories.stay_id, step)
        histories.action[active, step] = action[active]
        if step + 1 < MAX_STEPS:
            staying = active & (np.asarray(course.exit) == EXIT_TRUNCATED)
            histories.obs[staying, step + 1] = np.asarray(course.obs)[staying]
            histories.mask[staying, step + 1] = np.asarray(course.mask)[staying]
        length += active
    death_90d, value = _finish(world, params, course)
    histories = dataclasses.replace(histories, length=length)
    return jax.tree.map(np.asarray, Played(death_90d, value, course.exit, histories))


@partial(jax.jit, static_argnums=0)
def _start(world: World, params: Params, histories: History) -> Course:
    return jax.vmap(lambda history: start(world, params, None, history))(histories)


@partial(jax.jit, static_argnums=0)
def _advance(
    world: World, params: Params, course: Course, action: Any, seed: jax.Array, stay_id: Any, step: Any
) -> Course:
    def one(course: Course, action: Any, stay: Any) -> Course:
        noise = step_noise(world.dynamics, trajectory_key(seed, stay, 0, 0), step)
        return advance(world, params, None, course, action, noise, step)[0]

    return jax.vmap(one)(course, action, stay_id)


@partial(jax.jit, static_argnums=0)
def _finish(world: World, params: Params, course: Course) -> tuple[jax.Array, jax.Array]:
    return jax.vmap(partial(finish, world, params))(course)


@jax.jit
def _choice_keys(seed: jax.Array, stay_id: Any, step: Any) -> jax.Array:
    return jax.vmap(lambda stay: step_keys(trajectory_key(seed, stay, 0, 0), step).action)(stay_id)


_draw = jax.jit(jax.vmap(lambda key, probs: jax.random.categorical(key, jnp.log(probs))))


def follow(policy: Policy, params: Any) -> Chooser:
    """Draw from a policy that sees the record."""

    def choose(decision: Decision) -> np.ndarray:
        return ALL_ACTIONS[np.asarray(_draw(decision.key, probs_at(policy, params, decision.history)))]

    return choose


def clinicians(dynamics: PatientDynamics, knobs: Knobs) -> Chooser:
    """The policy that made the cohort. Knows each patient's clinician's taste, and what the knobs hide."""

    def choose(decision: Decision) -> np.ndarray:
        probs = _propensities(dynamics, knobs, decision.history, decision.truth)
        return ALL_ACTIONS[np.asarray(_draw(decision.key, probs))]

    return choose


@partial(jax.jit, static_argnums=0)
def _propensities(dynamics: PatientDynamics, knobs: Knobs, histories: History, states: PatientState) -> jax.Array:
    def one(history: History, state: PatientState) -> jax.Array:
        patient, past = state.patient, jnp.arange(len(history.action)) < history.length - 1
        fluid = jax.vmap(lambda action: dynamics.doses(patient, action)[1])(history.action)
        given = jnp.where(past, fluid, 0.0).sum() / 1000.0
        hidden = knobs.unmeasured * patient.frailty
        return propensities(state.obs, previous_action(history), state.hours, given, patient.style, hidden)

    return jax.vmap(one)(histories, states)


def plan(world: World, params: Any, policy_params: Any, settings: PlannerSettings, seed: int) -> Chooser:
    """Plan with a model that reads the record, see `policies.planner`."""

    def choose(decision: Decision) -> np.ndarray:
        return _recommended(world, params, policy_params, settings, seed, decision)

    return choose


def plan_with_truth(world: World, knobs: Knobs, policy_params: Any, settings: PlannerSettings, seed: int) -> Chooser:
    """Plan with the simulator from the true state: what a planner with a perfect model would do.

    It knows the patient, not the luck: its futures are drawn with other random numbers than the one that comes.
    """

    def choose(decision: Decision) -> np.ndarray:
        params = Params(knobs, _truth_at(decision, knobs))
        return _recommended(world, params, policy_params, settings, seed, decision)

    return choose


def _recommended(
    world: World, params: Any, policy_params: Any, settings: PlannerSettings, seed: int, decision: Decision
) -> np.ndarray:
    histories = jax.tree.map(lambda leaf: leaf[decision.active], decision.history)
    action = np.zeros((len(decision.active), 2), np.int8)
    # The simulator's luck follows from its cohort's seed alone; the planner must not think with the same numbers.
    key = jax.random.fold_in(jax.random.key(seed), _THOUGHTS)
    action[decision.active] = recommend(world, params, policy_params, histories, key, settings).action
    return action


_THOUGHTS = 2_000_000


def _truth_at(decision: Decision, knobs: Knobs) -> Truth:
    """A truth from which `PatientDynamics.encode` restores the states of this decision, and no others."""
    states, history = jax.tree.map(np.asarray, decision.truth), decision.history

    def at_every_step(leaf: np.ndarray) -> np.ndarray:
        return np.broadcast_to(leaf[:, None], (len(leaf), MAX_STEPS, *leaf.shape[1:]))

    nothing = np.zeros(0, np.float32)
    return Truth(
        seed=0,
        knobs=knobs,
        stay_id=history.stay_id,
        length=history.length,
        patient=states.patient,
        latent=jax.tree.map(at_every_step, states.latent),
        since=at_every_step(states.since),
        propensity=nothing,
        death_90d=nothing,
    )
