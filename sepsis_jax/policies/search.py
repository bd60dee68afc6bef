"""Whole plans by the cross-entropy method (Rubinstein & Kroese 2004; de Boer et al. 2005, section 3).

A plan is drawn from independent categorical distributions, one a step; those are moved to the frequencies of the best
plans, again and again. Candidates and iterations share their random numbers, so that a plan is better by its effect.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from sepsis_jax.clinical import actions
from sepsis_jax.dynamics.protocol import History, trajectory_key
from sepsis_jax.errors import InputError, check_range
from sepsis_jax.policies.planner import PlannerSettings, keeps_guideline
from sepsis_jax.simulation.batch import simulate
from sepsis_jax.simulation.course import World
from sepsis_jax.simulation.record import RETURNS


@dataclasses.dataclass(frozen=True)
class SearchSettings:
    """How plans are searched.

    Attributes:
      steps: P, length of a plan; the policy goes on after it.
      plans: N, drawn in an iteration. elite: how many of them teach the next one.
      iterations: of drawing and learning.
      smoothing: share of the old distribution that stays.
    """

    steps: int = 6
    plans: int = 64
    elite: int = 8
    iterations: int = 5
    smoothing: float = 0.3

    def __post_init__(self) -> None:
        check_range(self, "search", steps=(1, 1000), plans=(2, 100_000), iterations=(1, 1000), smoothing=(0, 0.99))
        if not 1 <= self.elite <= self.plans:
            raise InputError("search", field="elite", expected=f"1 to {self.plans} (plans)", found=self.elite)


@struct.dataclass
class Found:
    """The best plan that was simulated for each of B patients.

    Attributes:
      plan: int8[B,P,2] levels. value: f32[B] its expected return. history: f32[iterations,B] best value so far.
    """

    plan: Any
    value: Any
    history: Any


def search(
    world: World,
    params: Any,
    policy_params: Any,
    histories: History,
    seed: jax.Array,
    planner: PlannerSettings,
    settings: SearchSettings,
) -> Found:
    """The best plan for each of B histories. Deterministic given `seed` (key), whatever the batch.

    With `planner.shield` no plan begins with an action that breaks the guideline rules; later steps are states that
    nobody has seen yet. `planner.caution` is not used, and the value of the best of many plans on the same samples is
    too high: judge it with another seed.

    Raises:
      InputError: plans longer than the horizon that judges them.
    """
    if not np.size(histories.length):
        raise InputError("histories", expected="at least one", found="none")
    if settings.steps > planner.horizon:
        expected = f"at most planner.horizon, {planner.horizon}"
        raise InputError("search", field="steps", expected=expected, found=settings.steps)
    allowed = jnp.asarray(keeps_guideline(histories) | (not planner.shield))
    batch = allowed.shape[0]
    probs = jnp.full((batch, settings.steps, actions.NUM_ACTIONS), 1 / actions.NUM_ACTIONS)
    first = jnp.where(allowed, probs[:, 0], 0.0)
    probs = probs.at[:, 0].set(first / first.sum(axis=-1, keepdims=True))
    best, value, history = np.zeros((batch, settings.steps), np.int32), np.full(batch, -np.inf, np.float32), []
    draw_seed = jax.random.fold_in(seed, _DRAWS)
    for iteration in range(settings.iterations):
        drawn = np.array(_draw(settings, draw_seed, probs, histories, iteration))
        drawn[:, 0] = np.where(np.isfinite(value)[:, None], best, drawn[:, 0])  # the best so far competes again
        found = simulate(
            world,
            params,
            policy_params,
            histories,
            np.asarray(actions.decode(drawn)),
            seed,
            record=RETURNS,
            samples=planner.samples,
            horizon=planner.horizon,
            block=planner.block,
        ).value
        order = np.argsort(-found, axis=1, kind="stable")
        top = np.take_along_axis(found, order[:, :1], axis=1)[:, 0]
        best = np.where((top > value)[:, None], np.take_along_axis(drawn, order[:, :1, None], axis=1)[:, 0], best)
        value = np.maximum(value, top)
        history.append(value)
        elite = np.take_along_axis(drawn, order[:, : settings.elite, None], axis=1)
        frequency = jax.nn.one_hot(elite, actions.NUM_ACTIONS).mean(axis=1)
        probs = settings.smoothing * probs + (1 - settings.smoothing) * frequency
    return Found(np.asarray(actions.decode(best)), value, np.stack(history))


_DRAWS = 1  # plans must not be drawn with the numbers they are judged by


@partial(jax.jit, static_argnums=0)
def _draw(settings: SearchSettings, seed: jax.Array, probs: jax.Array, histories: History, iteration: Any) -> jax.Array:
    """Action ids i32[B,N,P]."""

    def one(probs: jax.Array, stay: jax.Array, last: jax.Array) -> jax.Array:
        key = trajectory_key(seed, stay, last, iteration)
        return jax.random.categorical(key, jnp.log(probs), shape=(settings.plans, settings.steps))

    return jax.vmap(one)(probs, jnp.asarray(histories.stay_id), jnp.asarray(histories.length) - 1)
