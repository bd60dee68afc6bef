"""Scores of samples against double loops and closed forms."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from factories import fit_scaler, make_episodes

from sepsis_jax.evaluation import sample_scores
from sepsis_jax.evaluation.sample_scores import compare, crps, energy, pit, score, weighted_median

SCALER = fit_scaler(make_episodes(30, 5, seed=0))


def draws(seed, samples=17, features=4):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(samples, features)).astype(np.float32)
    x[: samples // 3, 0] = x[0, 0]  # ties
    weight = rng.dirichlet(np.ones(samples)).astype(np.float32)
    return x, weight, rng.normal(size=features).astype(np.float32)


def crps_of(x, weight, y):
    return crps(x, weight, compare(x, weight)[1], y)


@pytest.mark.parametrize("seed", range(2))
def test_crps_and_energy_equal_double_loops(seed):
    x, w, y = draws(seed)
    fair = 1 - (w**2).sum()
    pairs = [(i, j) for i in range(len(x)) for j in range(len(x)) if i != j]
    found = jax.jit(lambda: crps_of(jnp.asarray(x), jnp.asarray(w), jnp.asarray(y)))()
    for f in range(x.shape[1]):
        expected = (w * abs(x[:, f] - y[f])).sum()
        expected -= 0.5 * sum(w[i] * w[j] * abs(x[i, f] - x[j, f]) for i, j in pairs) / fair
        np.testing.assert_allclose(found[f], expected, atol=2e-6)
    expected = sum(w[i] * np.linalg.norm(x[i] - y) for i in range(len(x)))
    expected -= 0.5 * sum(w[i] * w[j] * np.linalg.norm(x[i] - x[j]) for i, j in pairs) / fair
    np.testing.assert_allclose(jax.jit(energy)(x - y, w), expected, atol=1e-5)


def test_crps_of_a_gaussian_is_the_closed_form_for_any_number_of_samples():
    """Gneiting & Raftery 2007: σ [z (2 Φ(z) - 1) + 2 φ(z) - 1/√π]; the fair estimator has no bias even with S = 3."""
    from scipy.stats import norm

    rng, y, sd = np.random.default_rng(0), 0.7, 1.5
    z = y / sd
    expected = sd * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / np.sqrt(np.pi))
    for samples, columns in ((3, 9_000), (20, 1_000)):
        x = jnp.asarray(rng.normal(size=(samples, columns)) * sd, jnp.float32)
        weight = jnp.full(samples, 1 / samples)
        found = crps_of(x, weight, jnp.full(columns, y))
        assert float(found.mean()) == pytest.approx(expected, abs=4 * float(found.std()) / np.sqrt(columns))


def test_weighted_median():
    x = jnp.array([[3.0], [1.0], [2.0], [4.0]])

    def median(*weight):
        return float(weighted_median(x, compare(x, jnp.array(weight))[0])[0])

    assert median(0.25, 0.25, 0.25, 0.25) == 2.5
    assert median(0.6, 0.2, 0.1, 0.1) == 3.0
    assert median(0.1, 0.7, 0.1, 0.1) == 1.0


def ranks(spread, ties=False):
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(25, 4000)) * spread, rng.normal(size=4000)
    if ties:
        x, y = np.maximum(x, 0.5), np.maximum(y, 0.5)
    weight = jnp.full(25, 1 / 25)
    return np.asarray(pit(jnp.asarray(x, jnp.float32), weight, jnp.asarray(y, jnp.float32), jax.random.key(0)))


@pytest.mark.parametrize("ties", [False, True])
def test_ranks_are_uniform_if_calibrated_and_only_then(ties):
    for level in sample_scores.LEVELS:
        calibrated, overconfident = ((np.abs(ranks(s, ties) - 0.5) <= level / 2).mean() for s in (1.0, 0.4))
        assert calibrated == pytest.approx(level, abs=0.03)
        assert overconfident < level - 0.03
    assert np.histogram(ranks(1.0, ties), 10, (0, 1))[0].std() < 30


def test_score_is_in_z_scores_and_only_measured_values_enter_the_energy():
    rng = np.random.default_rng(2)
    z, obs = rng.normal(size=(40, 39)).astype(np.float32), rng.normal(size=39).astype(np.float32)
    weight, measured = jnp.full(40, 1 / 40), jnp.arange(39) < 5
    value, seen = SCALER.denormalize(z), SCALER.denormalize(obs)
    found = jax.jit(score)(value, weight, seen, measured, SCALER, jax.random.key(0))
    np.testing.assert_allclose(found.error, abs(np.median(z, axis=0) - obs), atol=1e-3)
    np.testing.assert_allclose(found.bias, z.mean(axis=0) - obs, atol=1e-3)
    np.testing.assert_allclose(found.energy, energy(jnp.asarray(z - obs)[:, :5], weight), atol=1e-3)
    np.testing.assert_allclose(found.crps, crps_of(jnp.asarray(z), weight, jnp.asarray(obs)), atol=1e-3)
