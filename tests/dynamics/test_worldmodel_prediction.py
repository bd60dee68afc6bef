"""Draws, bounds and the point forecast."""

import jax
import jax.numpy as jnp
import numpy as np
from factories import fit_scaler, make_episodes
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sepsis_jax.clinical.features import GCS, HIGH, INDEX, LOW, NUM_FEATURES, NUM_MASKED, URINE
from sepsis_jax.dynamics.worldmodel import marginals
from sepsis_jax.dynamics.worldmodel.bounds import Support, confine, interval
from sepsis_jax.dynamics.worldmodel.marginals import SLOPES, Marginals
from sepsis_jax.dynamics.worldmodel.prediction import (
    MaskMixture,
    Prediction,
    draw,
    draw_noise,
    joint_log_density,
    mask_log_prob,
    mask_prob,
    median,
    value_log_prob,
)

SYS, DIA, MEAN = INDEX["sysbp"], INDEX["diabp"], INDEX["meanbp"]
GCS_COLUMNS = [INDEX[name] for name in GCS]
CONTINUOUS = np.setdiff1d(np.arange(NUM_FEATURES), GCS_COLUMNS)
EPISODES = make_episodes(20, 6, seed=0)
SCALER = fit_scaler(EPISODES)
SUPPORT = Support.fit(EPISODES, SCALER)
PLAUSIBLE = Support.plausible(SCALER)
OBS = jnp.asarray(EPISODES.obs[0, 0])
_confine = jax.jit(confine)


def make_prediction(rng, *, mask_logit=0.0, slopes=SLOPES):
    mask = None if mask_logit is None else MaskMixture(jnp.zeros(1), jnp.full((1, NUM_MASKED), mask_logit))
    log_slope = jnp.float32(rng.normal(size=(slopes, NUM_FEATURES)) * 0.3 - 1)
    values = Marginals(jnp.float32(rng.normal(size=NUM_FEATURES)), log_slope)
    return Prediction(values, loading=None, mask=mask, vent_logit=jnp.float32(0), exit_logit=None)


def noise_of(key):
    return draw_noise(key, rank=0, masks=True)


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
    confined = np.asarray(_confine(PLAUSIBLE, obs, measured))
    check_possible(confined)
    points = confined[GCS_COLUMNS][measured[GCS_COLUMNS]]
    np.testing.assert_array_equal(points, np.round(points))
    np.testing.assert_array_equal(confined, _confine(PLAUSIBLE, confined, measured))


@settings(max_examples=200, deadline=None)
@given(st.floats(20, 100), st.floats(2, 60), st.floats(2, 60), st.floats(-50, 400), st.integers(0, 6))
def test_a_drawn_pressure_gives_way_to_carried_ones(dia, to_mean, to_sys, value, which):
    obs = ((LOW + HIGH) / 2).astype(np.float32)
    obs[[DIA, MEAN, SYS]] = carried = np.float32([dia, dia + to_mean, dia + to_mean + to_sys])
    measured = np.zeros(NUM_FEATURES, bool)
    measured[[DIA, MEAN, SYS]] = drawn = np.array([which & 1, which & 2, which & 4], bool)
    obs[[DIA, MEAN, SYS]] = np.where(drawn, value, carried)
    confined = np.asarray(_confine(PLAUSIBLE, obs, measured))
    check_possible(confined)
    np.testing.assert_array_equal(confined[[DIA, MEAN, SYS]][~drawn], carried[~drawn])


def test_a_draw_follows_the_marginals_where_measured_and_keeps_the_carried_value_elsewhere():
    prediction = make_prediction(np.random.default_rng(0))
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = jax.jit(jax.vmap(lambda key: draw(prediction, PLAUSIBLE, OBS, jnp.zeros(38, bool), noise_of(key))))(keys)
    value, obs, mask = map(np.asarray, drawn)
    np.testing.assert_allclose(mask.mean(axis=0), 0.5, atol=0.05)
    held = np.broadcast_to(OBS[:-1], mask.shape)[~mask]
    pressures = np.isin(np.broadcast_to(np.arange(NUM_MASKED), mask.shape)[~mask], [DIA, MEAN, SYS])
    np.testing.assert_array_equal(obs[:, :-1][~mask][~pressures], held[~pressures])
    np.testing.assert_array_equal(obs[mask[:, 0], 0], value[mask[:, 0], 0])
    heart_rate = np.asarray(PLAUSIBLE.normalize(value))[:, 0]
    scores = np.float32([-1.5, -0.5, 0.0, 0.5, 1.5])
    shape = jax.tree.map(lambda leaf: leaf[..., :1], prediction.values)
    expected = [float(marginals.value(shape, score[None])[0]) for score in scores]
    np.testing.assert_allclose(np.quantile(heart_rate, [0.0668, 0.3085, 0.5, 0.6915, 0.9332]), expected, atol=0.06)
    assert (obs[:, URINE] != OBS[URINE]).all()
    check_possible(obs)
    check_possible(value)


def test_two_actions_share_the_noise():
    """The same key under two predictions: the same uniforms for the masks, the same normals for the values."""
    rng = np.random.default_rng(1)
    scores, masks = [], []
    for logit in (0.0, 1.0):
        prediction = make_prediction(rng, mask_logit=logit)
        values = Marginals(prediction.values.center * 0.1, prediction.values.log_slope - 2)
        drawn = draw(
            prediction.replace(values=values), PLAUSIBLE, OBS, jnp.zeros(38, bool), noise_of(jax.random.key(7))
        )
        scores.append(np.asarray(marginals.score(values, PLAUSIBLE.normalize(drawn.value))))
        masks.append(np.asarray(drawn.mask))
    assert (masks[1] >= masks[0]).all() and (masks[1] > masks[0]).any()
    np.testing.assert_allclose(scores[0][CONTINUOUS], scores[1][CONTINUOUS], atol=0.02)


def test_a_frozen_mask_draws_every_value():
    mask = jnp.asarray(EPISODES.mask[0, 0])
    prediction = make_prediction(np.random.default_rng(2), mask_logit=None, slopes=1)
    drawn = draw(prediction, PLAUSIBLE, OBS, mask, noise_of(jax.random.key(0)))
    np.testing.assert_array_equal(drawn.mask, mask)
    assert (np.asarray(drawn.obs) != np.asarray(OBS))[CONTINUOUS].all()


def test_densities_are_per_z_score_whatever_the_axis():
    """One Gaussian segment on a logarithmic axis is a log-normal density, once changed to z-scores."""
    prediction = make_prediction(np.random.default_rng(3), slopes=1)
    prediction = prediction.replace(values=prediction.values.replace(log_slope=prediction.values.log_slope + 1))
    obs = np.clip(np.asarray(OBS), LOW * 1.01 + 0.1, HIGH * 0.99)
    support = PLAUSIBLE.replace(log=PLAUSIBLE.log | (LOW > 0))
    got = value_log_prob(prediction, support, SCALER, jnp.asarray(obs), jnp.ones(NUM_FEATURES, bool))
    x = obs.astype(np.float64) + (np.arange(NUM_FEATURES) == URINE)
    logged = np.asarray(support.log)
    axis = np.where(logged, np.log(np.maximum(x, 1e-3)), x)
    deviation = (axis - np.asarray(support.mean)) / np.asarray(support.sd) - np.asarray(prediction.values.center)
    sigma = np.exp(np.asarray(prediction.values.log_slope[0]))
    density = -0.5 * (deviation / sigma) ** 2 - np.log(sigma * np.sqrt(2 * np.pi))
    per_x = density - np.log(np.asarray(support.sd)) - np.where(logged, np.log(np.maximum(x, 1e-3)), 0)
    per_z = per_x + np.log(np.asarray(SCALER.sd)) + np.where(np.arange(NUM_FEATURES) == URINE, np.log(x), 0)
    near = CONTINUOUS[np.abs(deviation / sigma)[CONTINUOUS] < 7]  # scores end at 8
    assert near.size > 15
    np.testing.assert_allclose(np.asarray(got)[near], per_z[near], rtol=2e-3, atol=2e-3)


def test_joint_density_leaves_out_gcs_and_what_was_not_measured():
    prediction = make_prediction(np.random.default_rng(4))
    measured = np.zeros(NUM_FEATURES, bool)
    measured[[0, MEAN, *GCS_COLUMNS]] = True
    joint = joint_log_density(prediction, SUPPORT, SCALER, OBS, jnp.asarray(measured), jax.random.key(0))
    each = np.asarray(value_log_prob(prediction, SUPPORT, SCALER, OBS, jnp.asarray(measured)))
    np.testing.assert_allclose(joint, each[0] + each[MEAN], rtol=1e-5)
    assert (each[~measured] == 0).all() and (each[GCS_COLUMNS] <= 0).all()


def test_gcs_probabilities_add_up_to_one():
    prediction = make_prediction(np.random.default_rng(5))
    for name in GCS:
        column = INDEX[name]
        points = np.arange(LOW[column], HIGH[column] + 1)
        obs = np.tile(np.asarray(OBS), (len(points), 1))
        obs[:, column] = points
        every = jnp.ones(obs.shape, bool)
        log_prob = value_log_prob(jax.tree.map(lambda x: x[None], prediction), SUPPORT, SCALER, jnp.asarray(obs), every)
        np.testing.assert_allclose(np.exp(log_prob[:, column]).sum(), 1, atol=1e-4)


def test_an_extreme_where_values_pile_up_is_an_end_of_the_range():
    episodes = make_episodes(60, 6, seed=1)
    obs = np.array(episodes.obs)
    obs[..., INDEX["spo2"]] = np.where(obs[..., INDEX["spo2"]] > 97, 100, obs[..., INDEX["spo2"]])
    obs[..., INDEX["alt"]] = np.exp(np.random.default_rng(0).normal(4, 1.5, obs.shape[:2]))
    support = Support.fit(episodes.replace(obs=obs), SCALER)
    assert support.high[INDEX["spo2"]] == 100 and support.high[INDEX["alt"]] > obs[..., INDEX["alt"]].max()
    assert support.log[INDEX["alt"]] and support.log[URINE] and not support.log[MEAN]
    observed = interval(support, jnp.full(NUM_FEATURES, 100.0))
    assert np.isposinf(observed.high[INDEX["spo2"]]) and not observed.point[INDEX["spo2"]]
    inside = np.float32(obs[0, 0])
    np.testing.assert_allclose(
        support.denormalize(support.normalize(jnp.asarray(inside))), inside, rtol=1e-3, atol=1e-2
    )


def test_median_of_the_mixture():
    rng = np.random.default_rng(4)
    carried = rng.normal(size=NUM_FEATURES).astype(np.float32)
    for logit in (-2.0, 0.5, 3.0):
        prediction = make_prediction(rng, mask_logit=logit)
        p = np.append(np.full(NUM_MASKED, 1 / (1 + np.exp(-logit))), 1.0)
        scores = jnp.float32(rng.normal(size=(40001, NUM_FEATURES)))
        drawn = marginals.value(jax.tree.map(lambda x: x[None], prediction.values), scores)
        mixture = np.where(rng.random(drawn.shape) < p, drawn, carried)
        np.testing.assert_allclose(median(prediction, jnp.asarray(carried)), np.median(mixture, axis=0), atol=0.04)


def test_patterns_of_measurement_are_a_distribution():
    rng = np.random.default_rng(6)
    weight, logit = jax.nn.log_softmax(jnp.float32(rng.normal(size=3))), jnp.float32(rng.normal(size=(3, 4)) * 2)
    mask = MaskMixture(weight, logit)
    every = (np.arange(16)[:, None] >> np.arange(4)) % 2 == 1
    prob = np.exp([mask_log_prob(mask, jnp.asarray(row)) for row in every])
    np.testing.assert_allclose(prob.sum(), 1, rtol=1e-5)
    np.testing.assert_allclose(prob @ every, mask_prob(mask), rtol=1e-4)


def test_drawn_masks_keep_the_patterns():
    """Two panels that are never drawn together."""
    panel = np.arange(NUM_MASKED) < 19
    logit = np.where([panel, ~panel], 20.0, -20.0)
    mask = MaskMixture(jnp.log(jnp.float32([0.3, 0.7])), jnp.float32(logit))
    prediction = make_prediction(np.random.default_rng(7)).replace(mask=mask)
    keys = jax.random.split(jax.random.key(1), 2000)
    drawn = np.asarray(
        jax.jit(jax.vmap(lambda k: draw(prediction, PLAUSIBLE, OBS, jnp.zeros(38, bool), noise_of(k)).mask))(keys)
    )
    first = drawn[:, 0]
    assert (drawn == np.where(first[:, None], panel, ~panel)).all()
    np.testing.assert_allclose(first.mean(), 0.3, atol=0.04)
