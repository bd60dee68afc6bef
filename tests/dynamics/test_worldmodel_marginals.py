"""The bent normal score: both directions, density and probability against numbers, and the copula against SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from sepsis_jax.dynamics.worldmodel import copula, marginals
from sepsis_jax.dynamics.worldmodel.marginals import SLOPES, Interval, Marginals

_value, _score, _log_prob = (jax.jit(f) for f in (marginals.value, marginals.score, marginals.log_prob))


def make_marginals(seed, n=3, slopes=SLOPES, spread=1.0):
    rng = np.random.default_rng(seed)
    log_slope = np.float32(rng.normal(size=(slopes, n)) * spread)
    return Marginals(jnp.float32(rng.normal(size=n)), jnp.asarray(log_slope))


def between(low, high):
    low, high = jnp.broadcast_arrays(jnp.float32(low), jnp.float32(high))
    return Interval(low, high, low == high)


@settings(deadline=None)
@given(st.integers(0, 1000), hnp.arrays(np.float32, 3, elements=st.floats(-4, 4, width=32)))
def test_score_inverts_value(seed, score):
    values = make_marginals(seed)
    np.testing.assert_allclose(_score(values, _value(values, score)), score, atol=2e-3)


@settings(deadline=None)
@given(st.integers(0, 1000), st.floats(-4, 4), st.floats(0.01, 3))
def test_a_larger_score_is_a_larger_value(seed, score, more):
    values = make_marginals(seed)
    low, high = (_value(values, jnp.full(3, s, jnp.float32)) for s in (score, score + more))
    assert (high > low).all()


def test_center_is_the_median_and_one_slope_is_a_gaussian():
    bent, gaussian = make_marginals(0), make_marginals(1, slopes=1)
    np.testing.assert_array_equal(_value(bent, jnp.zeros(3)), bent.center)
    np.testing.assert_allclose(_score(bent, bent.center), 0, atol=1e-6)
    z, sigma = np.float32([-1, 0, 2]), np.exp(gaussian.log_slope[0])
    expected = stats.norm.logpdf(z, gaussian.center, sigma)
    np.testing.assert_allclose(_log_prob(gaussian, between(z, z)), expected, rtol=1e-4)
    expected = np.log(stats.norm.cdf(z, gaussian.center, sigma))
    np.testing.assert_allclose(_log_prob(gaussian, between(np.full(3, -np.inf), z)), expected, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_density_and_ends_add_up_to_one(seed):
    values = make_marginals(seed, n=1, spread=0.7)
    low, high = _value(values, jnp.float32([-1.3])), _value(values, jnp.float32([2.0]))
    grid = np.linspace(low[0], high[0], 20001)
    middle = 0.5 * (grid[1:] + grid[:-1])
    wide = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(middle), *leaf.shape)), values)
    inside = np.exp(_log_prob(wide, between(middle[:, None], middle[:, None]))).sum() * (grid[1] - grid[0])
    ends = [between([-np.inf], low), between(high, [np.inf])]
    total = inside + sum(float(np.exp(_log_prob(values, end))[0]) for end in ends)
    np.testing.assert_allclose(total, 1, atol=2e-3)
    np.testing.assert_allclose(inside, stats.norm.cdf(2.0) - stats.norm.cdf(-1.3), atol=2e-3)


@pytest.mark.parametrize("seed", range(4))
def test_the_gradient_of_the_likelihood_is_its_slope(seed):
    """Values on all sides of every knot; a density with steps would have another derivative than its gradient."""
    values = make_marginals(seed, n=1, spread=0.7)
    z = jax.vmap(_value, (None, 0))(values, jnp.linspace(-4, 4, 4001)[:, None])
    observed = between(z, z)

    def mean(values):
        return jax.vmap(marginals.log_prob, (None, 0))(values, observed).mean()

    gradient, step = jax.jit(jax.grad(mean))(values), 0.02
    moved = [mean(values.replace(center=values.center + shift)) for shift in (-step, step)]
    np.testing.assert_allclose(gradient.center[0], (moved[1] - moved[0]) / (2 * step), rtol=0.05, atol=0.01)
    for i in range(SLOPES):
        moved = [mean(values.replace(log_slope=values.log_slope.at[i].add(shift))) for shift in (-step, step)]
        np.testing.assert_allclose(gradient.log_slope[i, 0], (moved[1] - moved[0]) / (2 * step), rtol=0.05, atol=0.01)


def test_a_hurdle_moves_mass_of_the_last_value_to_the_low_end():
    values = make_marginals(0).replace(zero_logit=jnp.float32(-0.4))
    share, low = jax.nn.sigmoid(-0.4), values.center - 1
    score = jax.random.normal(jax.random.key(0), (100_000, 3))
    drawn = jax.vmap(_value, (None, 0))(values, score)
    fallen = drawn[:, -1] < -100
    np.testing.assert_allclose(fallen.mean(), share, atol=5e-3)
    np.testing.assert_array_equal(fallen, score[:, -1] < stats.norm.ppf(share))
    plain = make_marginals(0)
    np.testing.assert_array_equal(drawn[:, :-1], jax.vmap(_value, (None, 0))(plain, score)[:, :-1])
    back = jax.vmap(_score, (None, 0))(values, drawn)
    np.testing.assert_allclose(back[~fallen], score[~fallen], atol=2e-3)
    probability = np.exp(_log_prob(values, between(np.full(3, -np.inf), low)))
    np.testing.assert_allclose(probability, (drawn <= low[None]).mean(axis=0), atol=5e-3)
    at, there = between(low, low), jnp.log(1 - share)
    np.testing.assert_allclose(_log_prob(values, at)[-1], _log_prob(plain, at)[-1] + there, rtol=1e-5)


def test_gradients_are_finite_far_out():
    values = make_marginals(0)
    for observed in (between([-60.0, 0, 60], [-60.0, 0, 60]), between([-np.inf] * 3, [-60.0, 0, 60])):
        gradient = jax.grad(lambda v: marginals.log_prob(v, observed).sum())(values)  # noqa: B023
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_loadings_leave_something_to_each_value():
    free = jnp.float32(np.random.default_rng(0).normal(size=(6, 3)) * 100)
    assert ((copula.loadings(free) ** 2).sum(axis=-1) < 1).all()


def test_copula_density_is_that_of_the_measured_subset():
    rng = np.random.default_rng(1)
    loading = copula.loadings(jnp.float32(rng.normal(size=(6, 2))))
    score, counts = rng.normal(size=6), np.array([1, 0, 1, 1, 0, 1], bool)
    correlation = np.asarray(loading @ loading.T, np.float64)
    np.fill_diagonal(correlation, 1)
    joint = stats.multivariate_normal(cov=correlation[np.ix_(counts, counts)], allow_singular=True).logpdf(
        score[counts]
    )
    expected = joint - stats.norm.logpdf(score[counts]).sum()
    np.testing.assert_allclose(copula.log_density(loading, jnp.float32(score), counts), expected, rtol=1e-3)


def test_correlated_scores_have_the_copulas_correlation():
    loading = copula.loadings(jnp.float32(np.random.default_rng(2).normal(size=(4, 2))))
    keys = jax.random.split(jax.random.key(0), 2)
    factors, own = (jax.random.normal(k, (40000, n)) for k, n in zip(keys, (2, 4), strict=True))
    scores = jax.vmap(copula.correlate, (None, 0, 0))(loading, factors, own)
    expected = np.array(loading @ loading.T)
    np.fill_diagonal(expected, 1)
    np.testing.assert_allclose(np.cov(np.asarray(scores).T), expected, atol=0.03)
