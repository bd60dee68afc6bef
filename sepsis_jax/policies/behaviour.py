"""How clinicians would have treated: estimates for cohorts whose propensities nobody knows.

Two kinds: `mlp`, the network of `clinician`, with a temperature fitted on the validation split; and `knn`, the share of
each action among the nearest recorded decisions, which Raghu et al. 2018 (arXiv 1807.01066) found the better calibrated
of simple estimates. Off-policy values depend on calibration more than on accuracy, so look at `calibration` first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import numpy as np
import pandas as pd
from sklearn.neighbors import NearestNeighbors

from sepsis_jax.clinical.actions import ALL_ACTIONS, LEVELS, NUM_ACTIONS, encode
from sepsis_jax.clinical.features import NUM_FEATURES, NUM_MASKED
from sepsis_jax.data.episodes import Episodes
from sepsis_jax.data.scaler import Scaler
from sepsis_jax.data.splits import assign
from sepsis_jax.errors import InputError
from sepsis_jax.policies import clinician
from sepsis_jax.policies.clinician import Clinician, ClinicianSettings
from sepsis_jax.policies.inputs import WIDTH, on_record
from sepsis_jax.simulation.policy import RARE, probs_on_record

Kind = Literal["mlp", "knn"]
Estimate = Callable[[Episodes], np.ndarray]
"""Probabilities f32[B,T,25] at the recorded decisions; zeros at padding."""

NEIGHBOURS = 200
_PRIOR = 10.0  # decisions that the shares over all the cohort count for, so that no action is impossible
_PREVIOUS = 2.0  # what was given before says more of the next action than any measurement
_LEVELS_APART = np.abs(np.asarray(ALL_ACTIONS, int)[:, None] - np.asarray(ALL_ACTIONS, int)).sum(axis=-1)
_FARTHEST = _LEVELS_APART.max()


def fit(kind: Kind, settings: ClinicianSettings, episodes: Episodes, scaler: Scaler, key: jax.Array) -> Estimate:
    """Estimate from the train split; the validation split stops and calibrates the network. Consumes `key`.

    InputError without train stays.
    """
    train = episodes.subset("train")
    if not train.num_stays:
        raise InputError("episodes", field="split", expected="train stays for the behaviour estimate", found="none")
    if kind == "mlp":
        params = clinician.fit(settings, episodes, scaler, key)
        return lambda some: probs_on_record(Clinician(settings), params, some)
    return _nearest(train, scaler)


def cross_fitted(
    kind: Kind, settings: ClinicianSettings, episodes: Episodes, scaler: Scaler, key: jax.Array, *, folds: int = 5
) -> np.ndarray:
    """f32[B,T,25]: every stay by an estimate that has seen none of its patient's stays.

    Args:
      episodes: of any split; a tenth of each fold's train patients calibrates the network. key: consumed.
    """
    subject = np.asarray(episodes.subject_id)
    patients = np.unique(subject)
    if not 2 <= folds <= patients.size:
        raise InputError("folds", expected=f"2 to {patients.size} (patients)", found=folds)
    fold = np.random.default_rng(0).permutation(patients.size) % folds
    fold_of = fold[np.searchsorted(patients, subject)]
    probs = np.zeros((*episodes.valid.shape, NUM_ACTIONS), np.float32)
    for number in range(folds):
        held = fold_of == number
        others = episodes.take(~held)
        split = assign(others.subject_id, np.asarray(others.mortality_90d), fractions=(0.9, 0.1, 0.0), seed=number)
        estimate = fit(kind, settings, others.replace(split=split), scaler, jax.random.fold_in(key, number))  # type: ignore[attr-defined]
        probs[held] = estimate(episodes.take(held))
    return probs


def calibration(probs: np.ndarray, episodes: Episodes, *, bins: int = 10) -> pd.DataFrame:
    """Predicted and observed frequency over all actions, in classes of predicted probability.

    Returns:
      Columns predicted, observed (means of the class), number (of pairs of decision and action).
    """
    each = np.asarray(probs)[episodes.valid].ravel()
    done = np.eye(NUM_ACTIONS, dtype=bool)[np.asarray(encode(episodes.action[episodes.valid]))].ravel()
    edges = np.geomspace(1e-3, 1, bins + 1)[1:-1]
    group = np.digitize(each, edges)
    number = np.bincount(group, minlength=bins)
    some = number > 0
    means = [np.bincount(group, values, minlength=bins)[some] / number[some] for values in (each, done)]
    return pd.DataFrame({"predicted": means[0], "observed": means[1], "number": number[some]})


def loss(probs: np.ndarray, episodes: Episodes) -> float:
    """Mean of -log probability (nats) of the actions given."""
    given = np.take_along_axis(np.asarray(probs), np.asarray(encode(episodes.action))[..., None], -1)[..., 0]
    with np.errstate(divide="ignore"):
        return float(-np.log(given[episodes.valid]).mean())


def unsupported(probs: np.ndarray, behaviour: np.ndarray) -> np.ndarray:
    """f32[B,T]: how much of a policy f32[B,T,25] falls on actions that clinicians hardly ever choose (below 1 %)."""
    return np.where(np.asarray(behaviour) < RARE, probs, 0.0).sum(axis=-1)


def strange(behaviour: np.ndarray) -> np.ndarray:
    """f32[...,25]: how many levels of the two drugs part an action from the nearest that clinicians f[...,25] choose.

    Actions of less than 1 % count as not chosen. Less what clinicians do themselves, so that they are 0 on average.
    """
    chosen = np.asarray(behaviour) >= RARE
    far = np.stack([np.where(chosen, steps, _FARTHEST).min(axis=-1) for steps in _LEVELS_APART], axis=-1)
    return (far - (behaviour * far).sum(axis=-1, keepdims=True)).astype(np.float32)


def _nearest(train: Episodes, scaler: Scaler) -> Estimate:
    known, done = _features(train, scaler), np.asarray(encode(train.action[train.valid]))
    index = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(known)), algorithm="brute").fit(known)
    prior = np.bincount(done, minlength=NUM_ACTIONS) + 1.0
    prior *= _PRIOR / prior.sum()

    def estimate(episodes: Episodes) -> np.ndarray:
        near = done[index.kneighbors(_features(episodes, scaler), return_distance=False)]
        row = np.arange(len(near))[:, None] * NUM_ACTIONS
        count = np.bincount((row + near).ravel(), minlength=len(near) * NUM_ACTIONS).reshape(-1, NUM_ACTIONS)
        probs = np.zeros((*episodes.valid.shape, NUM_ACTIONS), np.float32)
        probs[episodes.valid] = (count + prior) / (near.shape[1] + _PRIOR)
        return probs

    return estimate


def _features(episodes: Episodes, scaler: Scaler) -> np.ndarray:
    """f32[N,53] of all decisions: what a network sees without the masks, the previous action counting more."""
    weight = np.ones(WIDTH, np.float32)
    weight[NUM_FEATURES : NUM_FEATURES + NUM_MASKED] = 0.0
    weight[-1 - 2 * LEVELS : -1] = _PREVIOUS
    return (on_record(episodes, scaler)[episodes.valid] * weight)[:, weight > 0]
