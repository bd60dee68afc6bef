"""Sampled courses: the random numbers of `simulate`, the weights of those who stay, any batch size."""

from __future__ import annotations

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from factories import make_episodes
from toy import MAP, ToyDynamics, toy_params, toy_world

from sepsis_jax.dynamics.protocol import history_at
from sepsis_jax.evaluation.courses import (
    Courses,
    Decisions,
    draw_decisions,
    history_of,
    mean_death,
    over_decisions,
    sample_courses,
    weights_of_staying,
)
from sepsis_jax.simulation.batch import simulate
from sepsis_jax.simulation.record import Trajectories

EPISODES = make_episodes(12, 6, seed=1)


@dataclasses.dataclass(frozen=True)
class _Pair(ToyDynamics):
    """Two members: the second one's MAP never moves by itself."""

    members: int = 2
    precision: str = "float32"

    def member(self, params: Any, index: Any) -> Any:
        return dataclasses.replace(params, noise_map=jnp.where(index == 0, params.noise_map, 0.0))


@dataclasses.dataclass(frozen=True)
class _Values:
    dynamics: Any

    def __call__(self, params, episode, step):
        plan = jnp.stack([episode.action[step]] * 3)
        courses = sample_courses(self.dynamics, params, history_of(episode, step), plan, jax.random.key(3), samples=7)
        return courses.steps.value, courses.exit_hazard


def test_courses_are_those_of_simulate_until_the_exit():
    rows, steps = np.array([0, 3, 5]), np.array([0, 1, 1])
    params = dataclasses.replace(toy_params(), death=jnp.float32(0), discharge=jnp.float32(0))
    world = dataclasses.replace(toy_world(), dynamics=_Pair())
    plans = np.repeat(EPISODES.action[rows, steps][:, None, None], 3, axis=2)
    kept = simulate(
        world, params, None, history_at(EPISODES, rows, steps), plans, jax.random.key(3), record=Trajectories(),
        samples=7, horizon=3,
    )  # fmt: skip
    value, _ = over_decisions(_Values(_Pair()), params, EPISODES, Decisions(rows, steps), batch_size=2, title="")
    np.testing.assert_allclose(value, kept.steps.obs[:, 0], rtol=1e-6)
    spread = value[:, :, 0, MAP].round(3)
    assert all(np.unique(row[1::2]).size == 1 and np.unique(row[::2]).size == 4 for row in spread)


def test_batches_change_nothing():
    decisions = draw_decisions(EPISODES, 20, ahead=1, seed=0)
    whole, part = (
        over_decisions(_Values(ToyDynamics()), toy_params(), EPISODES, decisions, batch_size=size, title="")
        for size in (100, 3)
    )
    chex.assert_trees_all_close(whole, part, rtol=1e-6)


def test_drawn_decisions_have_what_they_need_ahead():
    every = draw_decisions(EPISODES, 10_000, ahead=2, seed=0)
    expected = {(b, t) for b in range(12) for t in range(EPISODES.length[b] - 2)}
    assert set(zip(every.rows, every.steps, strict=True)) == expected and len(every.rows) == len(expected)
    some = draw_decisions(EPISODES, 5, ahead=2, seed=0)
    assert len(some.rows) == 5 and set(zip(*some, strict=True)) < expected
    assert set(zip(*draw_decisions(EPISODES, 5, ahead=2, seed=1), strict=True)) != set(zip(*some, strict=True))


def test_weights_and_deaths_equal_loops():
    hazard = np.random.default_rng(0).uniform(0, 0.4, (5, 3, 2))
    weight = np.asarray(weights_of_staying(jnp.asarray(hazard, jnp.float32)))
    stays = np.array([[np.prod(1 - hazard[s, : h + 1]) for h in range(3)] for s in range(5)])
    np.testing.assert_allclose(weight, stays / stays.sum(axis=0), rtol=1e-5)
    outcome = np.linspace(0.1, 0.9, 5)
    alive = np.prod(1 - hazard[:, :, 0], axis=1)
    found = mean_death(Courses(None, jnp.asarray(hazard, jnp.float32), jnp.asarray(outcome, jnp.float32)))
    assert float(found) == pytest.approx(np.mean(1 - alive + alive * outcome), rel=1e-5)
    sure = jnp.asarray(np.where(np.arange(5)[:, None, None] == 0, 1.0, hazard), jnp.float32)
    assert np.isfinite(weights_of_staying(sure)).all() and weights_of_staying(sure)[0, 0] < 1e-5
