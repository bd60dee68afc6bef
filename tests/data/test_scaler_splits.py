"""Scaling and splitting."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from factories import fit_scaler, make_episodes
from hypothesis import given
from hypothesis import strategies as st

from sepsis_jax.clinical.features import PUBLISHED_MEAN, PUBLISHED_SD, URINE
from sepsis_jax.data import splits
from sepsis_jax.data.scaler import Scaler

EPISODES = make_episodes(40, 5, seed=1)


def test_scaler_uses_observed_entries_only():
    observed = np.concatenate([EPISODES.mask, EPISODES.valid[..., None]], axis=-1)
    scaler = Scaler.fit(EPISODES.obs, observed, EPISODES.static)
    for i in range(39):
        values = EPISODES.obs[..., i][observed[..., i]].astype(np.float64)
        values = np.log1p(values) if i == URINE else values
        np.testing.assert_allclose(scaler.mean[i], values.mean(), rtol=1e-5)
        np.testing.assert_allclose(scaler.sd[i], values.std(), rtol=1e-4)
    changed = np.where(observed, EPISODES.obs, 1e9)
    np.testing.assert_array_equal(Scaler.fit(changed, observed, EPISODES.static).mean, scaler.mean)


def test_a_feature_never_measured_gets_the_anchor():
    scaler = Scaler.fit(EPISODES.obs, np.zeros(EPISODES.obs.shape, bool), EPISODES.static)
    np.testing.assert_array_equal(scaler.mean, PUBLISHED_MEAN)
    np.testing.assert_array_equal(scaler.sd, PUBLISHED_SD)


def test_what_hardly_varies_in_few_patients_is_not_far_out_in_another():
    alike = make_episodes(3, 5, seed=1)
    obs, static = np.broadcast_to(alike.obs[:1, :1], alike.obs.shape), np.broadcast_to(alike.static[:1], (3, 3))
    scaler = Scaler.fit(obs, np.ones(obs.shape, bool), static)
    assert np.abs(scaler.normalize(obs + PUBLISHED_SD)[..., :-1]).max() < 11, "a published SD off"
    older = static + np.array([30, 0, 6])
    assert np.abs((older - scaler.static_mean) / scaler.static_sd).max() < 21


def test_normalize_round_trips_and_is_standard():
    scaler = fit_scaler(EPISODES)
    z = scaler.normalize(EPISODES.obs)
    np.testing.assert_allclose(scaler.denormalize(z), EPISODES.obs, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(jax.jit(scaler.normalize)(EPISODES.obs), z, rtol=1e-5, atol=1e-5)
    urine = (np.log1p(EPISODES.obs[..., URINE]) - scaler.mean[URINE]) / scaler.sd[URINE]
    np.testing.assert_allclose(z[..., URINE], urine, rtol=1e-5)
    np.testing.assert_allclose(scaler.normalize(scaler.fill), 0, atol=1e-4)


def test_statics_keep_gender():
    scaled = fit_scaler(EPISODES).normalize_static(EPISODES.static)
    np.testing.assert_array_equal(scaled[:, 1], EPISODES.static[:, 1])


def test_scaler_as_json_is_exact():
    scaler = fit_scaler(EPISODES)
    for name, value in Scaler.from_dict(scaler.to_dict()).__dict__.items():
        np.testing.assert_array_equal(value, getattr(scaler, name))


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(-1, 1)), min_size=1, max_size=80), st.integers(0, 5))
def test_stays_of_a_patient_share_a_split_whatever_the_order(stays, seed):
    subject, outcome = np.array(stays).T
    split = splits.assign(subject, outcome, seed=seed)
    for patient in np.unique(subject):
        assert len(set(split[subject == patient])) == 1
    order = np.random.default_rng(0).permutation(len(stays))
    np.testing.assert_array_equal(splits.assign(subject[order], outcome[order], seed=seed), split[order])


def test_shares_hold_within_each_stratum():
    outcome = (np.arange(1000) % 4 == 0).astype(int)
    split = splits.assign(np.arange(1000), outcome, fractions=(0.7, 0.1, 0.2), seed=3)
    for stratum in (0, 1):
        share = np.bincount(split[outcome == stratum], minlength=3) / (outcome == stratum).sum()
        np.testing.assert_allclose(share, [0.7, 0.1, 0.2], atol=0.01)
    assert (splits.assign(np.arange(1000), outcome, seed=4) != split).any()


def test_an_empty_split_stays_empty():
    assert set(splits.assign(np.arange(50), np.zeros(50, int), fractions=(0.8, 0.0, 0.2), seed=0)) == {0, 2}


@pytest.mark.parametrize("fractions", [(0.5, 0.5, 0.5), (1.2, -0.2, 0.0)])
def test_fractions_must_make_sense(fractions):
    with pytest.raises(ValueError, match="must be >= 0 and sum to 1"):
        splits.assign(np.arange(5), np.zeros(5, int), fractions=fractions)
