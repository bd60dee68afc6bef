"""Draws, bounds and the point forecast."""

import jax
import jax.numpy as jnp
import numpy as np
from factories import fit_scaler, make_episodes
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sepsis_jax.clinical.features import GCS, HIGH, INDEX, LOW, NUM_FEATURES, NUM_MASKED, URINE
from sepsis_jax.dynamics.worldmodel.bounds import confine
from sepsis_jax.dynamics.worldmodel.prediction import Prediction, draw, log_prob, median

SYS, DIA, MEAN = INDEX["sysbp"], INDEX["diabp"], INDEX["meanbp"]
GCS_COLUMNS = [INDEX[name] for name in GCS]
_confine = jax.jit(confine)


def make_prediction(rng, *, mask_logit=0.0):
    return Prediction(
        mean=jnp.float32(rng.normal(size=NUM_FEATURES)),
        log_sigma=jnp.float32(rng.normal(size=NUM_FEATURES) * 0.3 - 1),
        mask_logit=None if mask_logit is None else jnp.full(NUM_MASKED, mask_logit),
        vent_logit=jnp.float32(0),
        exit_logit=None,
    )


def check_possible(obs):
    assert np.isfinite(obs).all()
    assert (obs >= LOW).all() and (obs <= HIGH).all()
    assert (obs[..., DIA] < obs[..., MEAN]).all() and (obs[..., MEAN] < obs[..., SYS]).all()


@settings(max_examples=200, deadline=None)
@given(
    hnp.arrays(np.float32, NUM_FEATURES, elements=st.floats(-1e6, 1e6, width=32)),
    hnp.arrays(bool, NUM_FEATURES),
)
def test_confined_observations_are_possible(obs, measured):
    confined = np.asarray(_confine(obs, measured))
    check_possible(confined)
    points = confined[GCS_COLUMNS][measured[GCS_COLUMNS]]
    np.testing.assert_array_equal(points, np.round(points))
    np.testing.assert_array_equal(confined, _confine(confined, measured))


@settings(max_examples=200, deadline=None)
@given(st.floats(20, 100), st.floats(2, 60), st.floats(2, 60), st.floats(-50, 400), st.integers(0, 6))
def test_a_drawn_pressure_gives_way_to_carried_ones(dia, to_mean, to_sys, value, which):
    obs = ((LOW + HIGH) / 2).astype(np.float32)
    obs[[DIA, MEAN, SYS]] = carried = np.float32([dia, dia + to_mean, dia + to_mean + to_sys])
    measured = np.zeros(NUM_FEATURES, bool)
    measured[[DIA, MEAN, SYS]] = drawn = np.array([which & 1, which & 2, which & 4], bool)
    obs[[DIA, MEAN, SYS]] = np.where(drawn, value, carried)
    confined = np.asarray(_confine(obs, measured))
    check_possible(confined)
    np.testing.assert_array_equal(confined[[DIA, MEAN, SYS]][~drawn], carried[~drawn])


def test_a_draw_is_the_gaussian_where_measured_and_the_carried_value_elsewhere():
    rng = np.random.default_rng(0)
    episodes = make_episodes(4, 3, seed=0)
    scaler, obs = fit_scaler(episodes), jnp.asarray(episodes.obs[0, 0])
    prediction = make_prediction(rng)
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn, mask = jax.jit(jax.vmap(lambda key: draw(prediction, scaler, obs, jnp.zeros(38, bool), key)))(keys)
    drawn, mask = np.asarray(drawn), np.asarray(mask)
    np.testing.assert_allclose(mask.mean(axis=0), 0.5, atol=0.05)
    held = np.broadcast_to(obs[:-1], mask.shape)[~mask]
    pressures = np.isin(np.broadcast_to(np.arange(NUM_MASKED), mask.shape)[~mask], [DIA, MEAN, SYS])
    np.testing.assert_array_equal(drawn[:, :-1][~mask][~pressures], held[~pressures])
    z = np.asarray(scaler.normalize(drawn))
    heart_rate = z[mask[:, 0], 0]
    np.testing.assert_allclose(heart_rate.mean(), prediction.mean[0], atol=0.05)
    np.testing.assert_allclose(heart_rate.std(), np.exp(prediction.log_sigma[0]), rtol=0.06)
    assert (drawn[:, URINE] != obs[URINE]).all()
    check_possible(drawn)


def test_two_actions_share_the_noise():
    """The same key under two predictions: the same uniforms for the masks, the same normals for the values."""
    rng = np.random.default_rng(1)
    episodes = make_episodes(4, 3, seed=0)
    scaler, obs = fit_scaler(episodes), jnp.asarray(episodes.obs[0, 0])
    noise, masks = [], []
    for logit in (0.0, 1.0):
        prediction = make_prediction(rng, mask_logit=logit)
        prediction = prediction.replace(mean=prediction.mean * 0.1, log_sigma=prediction.log_sigma - 2)
        drawn, mask = draw(prediction, scaler, obs, jnp.zeros(38, bool), jax.random.key(7))
        noise.append((scaler.normalize(drawn) - prediction.mean) / jnp.exp(prediction.log_sigma))
        masks.append(np.asarray(mask))
    assert (masks[1] >= masks[0]).all() and (masks[1] > masks[0]).any()
    shared = np.flatnonzero(np.append(masks[0], True))
    shared = shared[~np.isin(shared, GCS_COLUMNS)]
    np.testing.assert_allclose(noise[0][shared], noise[1][shared], atol=0.02)


def test_a_frozen_mask_draws_every_value():
    rng = np.random.default_rng(2)
    episodes = make_episodes(4, 3, seed=0)
    scaler, obs = fit_scaler(episodes), jnp.asarray(episodes.obs[0, 0])
    mask = jnp.asarray(episodes.mask[0, 0])
    drawn, after = draw(make_prediction(rng, mask_logit=None), scaler, obs, mask, jax.random.key(0))
    np.testing.assert_array_equal(after, mask)
    continuous = np.setdiff1d(np.arange(NUM_FEATURES), GCS_COLUMNS)
    assert (np.asarray(drawn) != np.asarray(obs))[continuous].all()


def test_log_prob_is_the_normal_density():
    prediction = make_prediction(np.random.default_rng(3))
    z, mean = np.linspace(-2, 2, NUM_FEATURES), np.asarray(prediction.mean)
    sigma = np.exp(np.asarray(prediction.log_sigma))
    expected = -0.5 * ((z - mean) / sigma) ** 2 - np.log(sigma * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(log_prob(prediction, jnp.float32(z)), expected, rtol=1e-5)


def test_median_of_the_mixture():
    rng = np.random.default_rng(4)
    carried = rng.normal(size=NUM_FEATURES).astype(np.float32)
    for logit in (-2.0, 0.5, 3.0):
        prediction = make_prediction(rng, mask_logit=logit)
        p = np.append(np.full(NUM_MASKED, 1 / (1 + np.exp(-logit))), 1.0)
        normal = np.asarray(prediction.mean) + np.exp(prediction.log_sigma) * rng.normal(size=(40001, NUM_FEATURES))
        mixture = np.where(rng.random(normal.shape) < p, normal, carried)
        np.testing.assert_allclose(median(prediction, jnp.asarray(carried)), np.median(mixture, axis=0), atol=0.03)
