"""What worlds expect of decisions: sums over a table of values, and a world that knows better shows who was fooled."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from factories import make_episodes
from toy import toy_params, toy_world

from sepsis_jax.curriculum import rewards
from sepsis_jax.dynamics.protocol import history_at
from sepsis_jax.evaluation import foreseen
from sepsis_jax.policies.planner import PlannerSettings, recommend

EPISODES = make_episodes(8, 5, seed=3)
MODEL = rewards.Model(toy_world(), toy_params(), None)
SIZES = {"samples": 16, "horizon": 2, "draws": 200, "seed": 4}


def always(action):
    return np.broadcast_to(np.eye(25, dtype=np.float32)[action], (8, EPISODES.obs.shape[1], 25))


@pytest.fixture(scope="module")
def found():
    policies = {"nothing": always(0), "again": always(0), "much": always(13)}
    return foreseen.gains({"toy": MODEL}, policies, EPISODES, **SIZES).set_index("policy")


def test_gains_are_means_over_decisions(found):
    rows, steps = np.nonzero(EPISODES.valid)
    plain = PlannerSettings(samples=16, horizon=2, caution=9)  # no caution in what is expected
    luck = jax.random.fold_in(jax.random.key(4), foreseen._FORESEEN)
    seen = recommend(MODEL.world, MODEL.params, None, history_at(EPISODES, rows, steps), luck, plain)
    value = np.asarray(seen.returns.value, float)
    worth = value - np.array([row[usual] for row, usual in zip(value, seen.usual, strict=True)])[:, None]
    assert found.loc["nothing", "gain"] == pytest.approx(worth[:, 0].mean())
    assert found.loc["much", "more"] == pytest.approx((worth[:, 13] - worth[:, 0]).mean())
    assert found.loc["much", "more_low"] <= found.loc["much", "more"] <= found.loc["much", "more_high"]


def test_who_does_the_same_gains_nothing(found):
    assert np.isnan(found.loc["nothing", "more"])
    assert tuple(found.loc["again", ["more", "more_low", "more_high"]]) == (0, 0, 0)


def test_it_is_shown_for_people(found):
    shown = foreseen.wide(found.reset_index())
    assert list(shown.index) == ["nothing", "again", "much"] and list(shown.columns) == ["toy"]
    assert ";" not in shown.loc["nothing", "toy"] and "; +0.000 [+0.000, +0.000]" in shown.loc["again", "toy"]
