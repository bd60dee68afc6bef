"""Small random inputs that keep the contracts, for tests that need shape and validity rather than medicine."""

from __future__ import annotations

import numpy as np

from sepsis_jax.clinical import actions, features
from sepsis_jax.clinical.features import INDEX, URINE
from sepsis_jax.data.episodes import Episodes
from sepsis_jax.data.scaler import Scaler

_NUM_VITALS = len(features.VITALS)


def make_episodes(num_stays: int, num_steps: int, seed: int, *, known_propensity: bool = False) -> Episodes:
    """Random `Episodes` that keep the contract and hold something to learn.

    Features are mean-reverting in z-scores (correlation 0.6 from step to step, one shared severity), the vasopressor
    level raises the blood pressure of the next step, the last lactate predicts death. About 70 / 10 / 20 % of the
    stays are train / validation / test.
    """
    rng = np.random.default_rng(seed)
    action = rng.integers(0, actions.LEVELS, (num_stays, num_steps, 2)).astype(np.int8)
    length = rng.integers(min(2, num_steps), num_steps + 1, num_stays).astype(np.int32)
    valid = np.arange(num_steps) < length[:, None]
    truth, severity = _true_values(rng, action)
    mask = _measured(rng, num_stays, num_steps) & valid[..., None]
    obs = np.where(valid[..., None], _carry_forward(truth, mask), 0).astype(np.float32)
    died = rng.random(num_stays) < 1 / (1 + np.exp(1 - 2 * severity))
    ended = rng.random(num_stays)
    leaves = np.where(died & (ended < 0.5), 1, np.where(length < num_steps, 2, 0))
    dose = actions.AI_CLINICIAN_BINS.doses(action)
    propensity = rng.dirichlet(np.ones(actions.NUM_ACTIONS), (num_stays, num_steps)).astype(np.float32)
    return Episodes(
        obs=obs,
        mask=mask,
        static=np.stack(
            [rng.uniform(20, 95, num_stays), rng.integers(0, 2, num_stays), rng.integers(0, 15, num_stays)], axis=-1
        ).astype(np.float32),
        weight_kg=rng.uniform(45, 130, num_stays).astype(np.float32),
        action=np.where(valid[..., None], action, 0).astype(np.int8),
        prior_action=rng.integers(0, actions.LEVELS, (num_stays, 2)).astype(np.int8),
        vaso_dose=np.where(valid, dose[..., 0], 0).astype(np.float32),
        fluid_ml=np.where(valid, dose[..., 1], 0).astype(np.float32),
        length=length,
        exit=leaves.astype(np.int8),
        ventilated=valid & (obs[..., INDEX["fio2"]] > 50),
        sofa=np.where(valid, rng.integers(0, 16, valid.shape), 0).astype(np.float32),
        mortality_90d=died.astype(np.int8),
        mortality_hospital=(leaves == 1).astype(np.int8),
        subject_id=np.arange(num_stays, dtype=np.int32) + 100,
        stay_id=np.arange(num_stays, dtype=np.int32) + 1000,
        split=rng.permutation(np.digitize(np.arange(num_stays), [0.7 * num_stays, 0.8 * num_stays])).astype(np.int8),
        propensity=np.where(valid[..., None], propensity, 0) if known_propensity else None,
    )


def fit_scaler(episodes: Episodes) -> Scaler:
    """Scaler of all stays."""
    urine = np.ones((*episodes.valid.shape, 1), bool)
    observed = np.concatenate([episodes.mask, urine], axis=-1) & episodes.valid[..., None]
    return Scaler.fit(episodes.obs, observed, episodes.static)


def _true_values(rng: np.random.Generator, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """f64[B,T,F] true clinical values at every step and f64[B] severity at the end."""
    num_stays, num_steps, _ = action.shape
    severity = rng.normal(size=num_stays)
    z = np.empty((num_stays, num_steps, features.NUM_FEATURES))
    z[:, 0] = rng.normal(size=z[:, 0].shape)
    for t in range(1, num_steps):
        z[:, t] = 0.6 * z[:, t - 1] + 0.3 * severity[:, None] + 0.5 * rng.normal(size=z[:, t].shape)
        z[:, t, INDEX["meanbp"]] += 0.2 * (action[:, t - 1, 0] - 2)
    value = features.PUBLISHED_MEAN + features.PUBLISHED_SD * z
    value[..., URINE] = np.expm1(value[..., URINE])
    value = np.clip(value, features.LOW, features.HIGH)
    for name in features.GCS:
        value[..., INDEX[name]] = np.round(value[..., INDEX[name]])
    mean = np.clip(value[..., INDEX["meanbp"]], 30, 200)
    value[..., INDEX["meanbp"]] = mean
    value[..., INDEX["diabp"]] = np.clip(value[..., INDEX["diabp"]], 5, mean - 2)
    value[..., INDEX["sysbp"]] = np.clip(value[..., INDEX["sysbp"]], mean + 2, 300)
    return value, severity


def _measured(rng: np.random.Generator, num_stays: int, num_steps: int) -> np.ndarray:
    """bool[B,T,38]: vitals as one panel in 19 steps of 20, each laboratory value in 7 steps of 20."""
    chance = np.full((num_stays, num_steps, features.NUM_MASKED), 0.35)
    mask = rng.random(chance.shape) < chance
    mask[..., :_NUM_VITALS] = (rng.random((num_stays, num_steps)) < 0.95)[..., None]
    return mask


def _carry_forward(truth: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Last measured value; the published mean before the first one; urine as it is."""
    fill = features.PUBLISHED_MEAN.astype(np.float64)
    held = np.broadcast_to(fill, truth[:, 0].shape).copy()
    obs = np.empty_like(truth)
    for t in range(truth.shape[1]):
        held[:, :-1] = np.where(mask[:, t], truth[:, t, :-1], held[:, :-1])
        held[:, URINE] = truth[:, t, URINE]
        obs[:, t] = held
    return obs
