"""Policies played in the true patient simulator, or in a world model: the same patients and luck under every one.

A patient begins at the first recorded decision and is treated every 4 h until ICU exit or `MAX_STEPS`. In the true
simulator all random numbers are those of its cohort, so the policy that made it plays its record again, another policy
plays the individual counterfactuals, and the differences between policies are paired.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from rich.progress import Progress

from sepsis_jax.clinical.actions import ALL_ACTIONS, ActionBins
from sepsis_jax.clinical.reward import PUBLISHED, Reward
from sepsis_jax.data.episodes import EXIT_TRUNCATED, Episodes
from sepsis_jax.dynamics.patient.cohort import MAX_STEPS
from sepsis_jax.dynamics.patient.truth import Truth
from sepsis_jax.dynamics.protocol import History, history_at, step_keys, step_noise, trajectory_key
from sepsis_jax.evaluation.oracle import oracle
from sepsis_jax.simulation.course import Course, Moment, World, advance, finish, start


@struct.dataclass
class Decision:
    """B patients at the decision about the same step.

    Attributes:
      history: History with leading B: all that is on record; rows from `length` on are zero.
      state: of the dynamics, with leading B; of the true simulator it is what no record shows.
      key: key[B] for a random choice.
      active: bool[B] still in the ICU; what is chosen for the others has no effect.
    """

    history: History
    state: Any
    key: Any
    active: Any


Chances = Callable[[Decision], Any]
"""Probabilities f32[B,25] of what the patients get."""


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


@dataclasses.dataclass(frozen=True)
class Stage:
    """Where policies are played.

    Attributes:
      world: dynamics, bins and reward. params: of the dynamics. seed: key of the luck.
    """

    world: World
    params: Any
    seed: jax.Array


def true_stage(truth: Truth, episodes: Episodes, bins: ActionBins, reward: Reward = PUBLISHED) -> Stage:
    """The simulator that `episodes` come from, with the luck that they had. InputError if `truth` is another's."""
    dynamics, params = oracle(truth, episodes, bins)
    return Stage(World(dynamics, bins, reward), params, jax.random.key(truth.seed))


def play(chances: Chances, episodes: Episodes, stage: Stage, *, batch_size: int = 1024, title: str = "") -> Played:
    """Treat the patients of `episodes`, from their first decisions, as `chances` says.

    Patient i belongs to member i mod M of the dynamics.

    Args:
      episodes: ascending stay_id; nothing after the first decision is read.
      batch_size: patients at once; bounds the memory and changes no figure.
      title: of the progress bar.
    """
    total, dynamics = episodes.num_stays, stage.world.dynamics
    parts, order = [], []
    with Progress(transient=True) as progress:
        task = progress.add_task(title, total=total)
        for member in range(dynamics.members):
            params = dynamics.member(stage.params, member)
            own = np.arange(member, total, dynamics.members)
            size = min(batch_size, math.ceil(total / dynamics.members))
            for first in range(0, own.size, size):
                number = min(size, own.size - first)
                rows = own[first + np.minimum(np.arange(size), number - 1)]  # one shape: the last patient fills up
                histories = _admitted(history_at(episodes, rows, np.zeros(size, int)))
                real = np.arange(size) < number
                played = _play(stage.world, params, chances, histories, real, stage.seed)
                parts.append(jax.tree.map(lambda leaf: leaf[:number], played))  # noqa: B023
                order.append(rows[:number])
                progress.update(task, advance=number)
    back = np.argsort(np.concatenate(order))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[back], *parts)


def _admitted(histories: History) -> History:
    """Without what was recorded after the first decision."""

    def first(leaf: Any) -> np.ndarray:
        out = np.zeros((len(leaf), MAX_STEPS, *leaf.shape[2:]), leaf.dtype)
        out[:, 0] = leaf[:, 0]
        return out

    known = {name: first(getattr(histories, name)) for name in ("obs", "mask", "ventilated")}
    return dataclasses.replace(histories, **known, action=np.zeros_like(first(histories.action)))


def _play(
    world: World,
    params: Any,
    chances: Chances,
    histories: History,
    real: np.ndarray,
    seed: jax.Array,
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
        probs = np.asarray(chances(Decision(now, course.state, keys, active)))
        action = ALL_ACTIONS[np.asarray(_draw(keys, probs))]
        course, moment = _advance(world, params, course, action, seed, histories.stay_id, step)
        histories.action[active, step] = action[active]
        if step + 1 < MAX_STEPS:
            staying = active & (np.asarray(course.exit) == EXIT_TRUNCATED)
            histories.obs[staying, step + 1] = np.asarray(course.obs)[staying]
            histories.mask[staying, step + 1] = np.asarray(course.mask)[staying]
            histories.ventilated[staying, step + 1] = np.asarray(moment.vent_prob)[staying] > 0.5
        length += active
    death_90d, value = _finish(world, params, course)
    histories = dataclasses.replace(histories, length=length)
    return jax.tree.map(np.asarray, Played(death_90d, value, course.exit, histories))


@partial(jax.jit, static_argnums=0)
def _start(world: World, params: Any, histories: History) -> Course:
    return jax.vmap(partial(start, world, params, None))(histories)


@partial(jax.jit, static_argnums=0)
def _advance(
    world: World, params: Any, course: Course, action: Any, seed: jax.Array, stay_id: Any, step: Any
) -> tuple[Course, Moment]:
    def one(course: Course, action: Any, stay: Any) -> tuple[Course, Moment]:
        noise = step_noise(world.dynamics, trajectory_key(seed, stay, 0, 0), step)
        return advance(world, params, None, course, action, noise, step)

    return jax.vmap(one)(course, action, stay_id)


@partial(jax.jit, static_argnums=0)
def _finish(world: World, params: Any, course: Course) -> tuple[jax.Array, jax.Array]:
    return jax.vmap(partial(finish, world, params))(course)


@jax.jit
def _choice_keys(seed: jax.Array, stay_id: Any, step: Any) -> jax.Array:
    return jax.vmap(lambda stay: step_keys(trajectory_key(seed, stay, 0, 0), step).action)(stay_id)


_draw = jax.jit(jax.vmap(lambda key, probs: jax.random.categorical(key, jnp.log(probs))))
