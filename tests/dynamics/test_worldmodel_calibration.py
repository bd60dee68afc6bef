"""Recalibration finds the spread again that was taken away, and touches nothing else."""

import dataclasses

import chex
import jax
import numpy as np
from factories import fit_scaler, make_episodes

from sepsis_jax.dynamics.worldmodel import calibration
from sepsis_jax.dynamics.worldmodel.bounds import Support
from sepsis_jax.dynamics.worldmodel.calibration import calibrate
from sepsis_jax.dynamics.worldmodel.model import WorldModel

MODEL = WorldModel("carry", hidden=4, layers=1, members=2)
EPISODES = make_episodes(260, 6, seed=0)
EPISODES = EPISODES.replace(split=np.where(np.arange(260) < 60, 0, 1).astype(np.int8))
KEY = jax.random.key(0)


def spread(params):
    return np.asarray(params.network["log_spread"])


def test_a_spread_that_is_off_is_found_again(monkeypatch):
    monkeypatch.setattr(calibration, "LEAST_VALUES", 100)
    scaler = fit_scaler(EPISODES)
    params = MODEL.init(scaler, Support.plausible(scaler), jax.random.key(1))
    once = calibrate(MODEL, params, EPISODES, KEY)
    inside = np.abs(spread(once)[0]) < 0.19  # of the range of factors
    inside &= spread(once)[0] != 0
    assert inside.sum() >= 3
    off = dataclasses.replace(once, network=once.network | {"log_spread": once.network["log_spread"] - 0.2})
    again = calibrate(MODEL, off, EPISODES, KEY)
    np.testing.assert_allclose(spread(again)[:, inside], spread(once)[:, inside], atol=0.06)
    for name in set(params.network) - {"log_spread"}:
        chex.assert_trees_all_equal(again.network[name], params.network[name])


def test_few_values_are_left_alone():
    scaler = fit_scaler(EPISODES)
    params = MODEL.init(scaler, Support.plausible(scaler), jax.random.key(1))
    few = EPISODES.replace(split=np.where(np.arange(260) < 255, 0, 1).astype(np.int8))
    assert (spread(calibrate(MODEL, params, few, KEY)) == 0).all()


def test_published_stays_as_it_was_released():
    scaler = fit_scaler(EPISODES)
    model = WorldModel("published", hidden=4, layers=1)
    params = model.init(scaler, Support.plausible(scaler), jax.random.key(1))
    assert calibrate(model, params, EPISODES, KEY) is params
