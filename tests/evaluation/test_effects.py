"""Counterfactual accuracy of models whose effects are known."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from factories import make_episodes
from toy import ToyDynamics, toy_params

from sepsis_jax.clinical.actions import AI_CLINICIAN_BINS, ALL_ACTIONS
from sepsis_jax.dynamics.patient.cohort import simulate_cohort
from sepsis_jax.evaluation import effects, oracle, rows
from sepsis_jax.evaluation.courses import draw_decisions
from sepsis_jax.evaluation.effects import NAMES, compare
from sepsis_jax.evaluation.effects import effects as effects_of
from sepsis_jax.ope.bootstrap import patient_counts

EPISODES = make_episodes(15, 5, seed=4)
DECISIONS = draw_decisions(EPISODES, 20, ahead=0, seed=0)
EVERY = np.ones((20, 25), bool)


def figures(predicted, true, kept=EVERY, decisions=DECISIONS, stays=15):
    counts = patient_counts(np.arange(stays), draws=100, seed=0)
    found = rows.effect_rows(compare(predicted, true, kept, decisions.rows, stays), counts)
    return {row["metric"]: row for row in found}


@pytest.fixture(scope="module")
def toy():
    return effects_of(ToyDynamics(), toy_params(), EPISODES, DECISIONS, samples=8)


def test_effects_of_a_linear_world_are_its_coefficients(toy):
    """MAP rises by 3 mmHg a level and step, the same for everyone and every draw."""
    for hours in (4, 12, 24):
        expected = 3.0 * ALL_ACTIONS[:, 0] * (hours // 4)
        np.testing.assert_allclose(toy[..., NAMES.index(f"map_{hours}h")], np.tile(expected, (20, 1)), atol=1e-3)
    assert (toy[:, 1:, NAMES.index("mortality")].std() > 0) and not toy[:, 0].any()


def test_a_model_with_half_the_effects_has_slope_two_and_correlation_one(toy):
    weak = effects_of(ToyDynamics(), dataclasses.replace(toy_params(), pressor=jnp.float32(1.5)), EPISODES, DECISIONS,
                      samples=8)  # fmt: skip
    found = figures(weak, toy)
    assert found["effect_corr_map_12h"]["value"] == pytest.approx(1, abs=1e-5)
    assert found["effect_slope_map_12h"]["value"] == pytest.approx(2, abs=1e-4)
    assert found["effect_corr_constants_map_4h"]["value"] == pytest.approx(1, abs=1e-5)
    same = found["effect_corr_within_map_4h"]  # everyone has the same effect
    assert np.isnan(same["value"]) and same["reason"] == "no effect varies"


def test_figures_equal_numpy_on_the_kept_pairs():
    rng = np.random.default_rng(0)
    true, noise = rng.normal(size=(20, 25, len(NAMES))), rng.normal(size=(20, 25, len(NAMES)))
    true += 2 * rng.normal(size=(1, 25, 1))
    predicted, kept = true + 0.5 * noise, rng.random((20, 25)) < 0.6
    found = figures(predicted, true, kept)
    kept = kept & (np.arange(25) > 0)
    x, y = predicted[..., 0], true[..., 0]
    actions = [[column[kept[:, a], a] for a in range(1, 25)] for column in (x, y)]
    means = [np.array([0] + [part.mean() for part in column]) for column in actions]
    expected = {
        "effect_corr": np.corrcoef(x[kept], y[kept])[0, 1],
        "effect_slope": np.polyfit(x[kept], y[kept], 1)[0],
        "effect_corr_within": np.corrcoef((x - means[0])[kept], (y - means[1])[kept])[0, 1],
        "effect_corr_constants": np.corrcoef(np.broadcast_to(means[1], y.shape)[kept], y[kept])[0, 1],
    }
    for name, value in expected.items():
        row = found[f"{name}_map_4h"]
        assert row["value"] == pytest.approx(value, abs=1e-6) and row["low"] <= row["value"] <= row["high"]
        assert row["n"] == kept.sum()


def test_no_likely_action_is_said():
    nothing = np.zeros((20, 25, len(NAMES)))
    row = figures(nothing, nothing, np.zeros((20, 25), bool))["effect_corr_mortality"]
    assert np.isnan(row["value"]) and row["reason"] == "no such action"


@pytest.mark.slow
def test_the_simulator_predicts_itself():
    """Other random numbers, the same states: correlation and slope near 1; the oracle is calibrated."""
    episodes, truth = simulate_cohort(60, seed=1)
    dynamics, params = oracle.oracle(truth, episodes, AI_CLINICIAN_BINS)
    decisions = draw_decisions(episodes, 40, ahead=0, seed=0)
    first, second = (effects.effects(dynamics, params, episodes, decisions, samples=128, seed=seed) for seed in (0, 1))
    found = figures(first, second, np.ones((40, 25), bool), decisions, 60)
    for outcome in ("map_4h", "lactate_24h", "pf_12h", "mortality"):
        assert found[f"effect_corr_{outcome}"]["value"] > 0.97
        assert found[f"effect_slope_{outcome}"]["value"] == pytest.approx(1, abs=0.1)
    labelled = oracle.mortality(dynamics, params, episodes).labelled["mortality"]
    # Frailty is integrated out, and the step after the last decision is not known yet.
    assert np.corrcoef(labelled.chance, truth.death_90d)[0, 1] > 0.7
    assert labelled.chance.mean() == pytest.approx(truth.death_90d.mean(), abs=0.05)
