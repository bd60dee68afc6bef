"""Cross-validation by patient, for cohorts too small to spare a test split."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from sepsis_jax.data import splits
from sepsis_jax.data.episodes import Episodes
from sepsis_jax.data.scaler import Scaler
from sepsis_jax.dynamics.worldmodel.training import TrainSettings, train
from sepsis_jax.errors import InputError
from sepsis_jax.evaluation.one_step import measured_entries
from sepsis_jax.evaluation.scores import Scores, join
from sepsis_jax.evaluation.settings import EvaluationSettings
from sepsis_jax.evaluation.world_model import Scored, score

_VALIDATION = 0.125  # of the stays that are not tested


def cross_validate(
    training: TrainSettings, episodes: Episodes, settings: EvaluationSettings, folds: int
) -> tuple[Scored, Episodes]:
    """Train once a fold, score the stays left out, and pool: every stay is tested once.

    The published architecture is trained beside it on the same stays. Scalers are fitted anew in each fold.

    Args:
      training: of the evaluated model. episodes: all stays; their splits are not used.
      settings: of the evaluation; decisions and roll-outs are shared out among the folds.
      folds: number of folds, at least 2.

    Returns:
      The scores, and the stays in their order.
    """
    fold = assign(np.asarray(episodes.subject_id), np.asarray(episodes.mortality_90d), folds, settings.seed)
    if np.unique(fold).size < folds:
        patients = np.unique(np.asarray(episodes.subject_id)).size
        raise InputError("--folds", expected=f"at most {patients} folds, one a patient", found=folds)
    share = {name: -(-getattr(settings, name) // folds) for name in ("decisions", "rollouts")}
    settings = dataclasses.replace(settings, **share)
    parts: list[Mapping[str, Scores]] = []
    order = []
    for number in range(folds):
        order.append(np.flatnonzero(fold == number))
        rest, test = episodes.take(fold != number), episodes.take(order[-1])
        rest = _with_validation(rest, settings.seed)
        learned = rest.subset("train")
        observed = measured_entries(np.asarray(learned.mask)) & learned.valid[..., None]
        scaler = Scaler.fit(np.asarray(learned.obs), observed, np.asarray(learned.static))
        trained, other = train(training, rest, scaler), train(training.published, rest, scaler)
        compared = (other.model, other.params)
        scored = score(trained.model, trained.params, test, settings, compared=compared, train=learned)
        parts.append(scored.scores)
    pooled = episodes.take(np.concatenate(order))
    stays = [one.size for one in order]
    models = dict.fromkeys(name for part in parts for name in part)
    scores = {name: join([part.get(name, Scores()) for part in parts], stays) for name in models}
    return Scored(np.asarray(pooled.subject_id), scores, {}), pooled


def assign(subject_id: np.ndarray, outcome: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Fold int[B] of each stay: by patient, stratified by outcome, as even as can be."""
    patients, row = np.unique(subject_id, return_inverse=True)
    stratum = np.full(patients.size, -1)
    np.maximum.at(stratum, row, np.asarray(outcome, int))
    order = np.random.default_rng(seed).permutation(patients.size)
    order = order[np.argsort(stratum[order], kind="stable")]
    fold = np.empty(patients.size, int)
    fold[order] = np.arange(patients.size) % folds
    return fold[row]


def _with_validation(rest: Episodes, seed: int) -> Episodes:
    fractions = (1 - _VALIDATION, _VALIDATION, 0.0)
    outcome = np.asarray(rest.mortality_90d)
    split = splits.assign(np.asarray(rest.subject_id), outcome, fractions=fractions, seed=seed)
    return dataclasses.replace(rest, split=split)
