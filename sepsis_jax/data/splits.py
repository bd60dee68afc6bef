"""Train / validation / test split: by patient, stratified by outcome, seeded; or the latest patients as test set."""

from __future__ import annotations

from typing import NoReturn

import numpy as np

from sepsis_jax.data.episodes import SPLITS
from sepsis_jax.errors import InputError


def assign(
    subject_id: np.ndarray,
    outcome: np.ndarray,
    *,
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
    seed: int = 0,
) -> np.ndarray:
    """Split of every stay; all stays of one patient share it.

    Args:
      subject_id: int[B].
      outcome: int[B] stratum of the stay; a patient belongs to the largest of theirs.
      fractions: shares of patients in train, validation and test; must sum to 1.
      seed: of the shuffle. The result does not depend on the order of the rows.

    Returns:
      int8[B]: 0 train, 1 validation, 2 test.
    """
    if min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"split fractions must be >= 0 and sum to 1, got {fractions}")
    patients, row = np.unique(subject_id, return_inverse=True)
    stratum = np.full(patients.size, np.iinfo(np.int64).min)
    np.maximum.at(stratum, row, np.asarray(outcome, np.int64))
    order = np.random.default_rng(seed).permutation(patients.size)
    # A stable sort by stratum of a random order, cut by a low-discrepancy walk, keeps every stratum's shares.
    order = order[np.argsort(stratum[order], kind="stable")]
    split_of_patient = np.empty(patients.size, np.int8)
    split_of_patient[order] = _interleave(patients.size, np.asarray(fractions))
    assert len(fractions) == len(SPLITS)
    return split_of_patient[row]


def assign_temporal(
    subject_id: np.ndarray,
    outcome: np.ndarray,
    period: np.ndarray,
    *,
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
    seed: int = 0,
    file: object = "stays",
) -> np.ndarray:
    """Split of every stay in which every test patient is later than all others.

    Whole periods, the latest first, are the test split as soon as they hold its share of the patients. The patients
    before them are split as in `assign`, in the proportion of the other two shares.

    Args:
      subject_id, outcome, fractions, seed: as in `assign`; the test share must be above 0.
      period: int[B] orders calendar time; see `patient_period`.
      file: named in the error.

    Returns:
      int8[B]: 0 train, 1 validation, 2 test.

    Raises:
      InputError: no period is left for train and validation.
    """
    patients, first = np.unique(subject_id, return_index=True)
    of_row = patient_period(subject_id, period)
    periods, count = np.unique(of_row[first], return_counts=True)
    train, validation, share = fractions
    from_here_on = count[::-1].cumsum()[::-1]
    start = np.flatnonzero(from_here_on >= share * patients.size - 1e-6)[-1]
    if start == 0:
        _refuse(file, periods, from_here_on, share)
    test = of_row >= periods[start]
    split = np.full(of_row.size, SPLITS.index("test"), np.int8)
    earlier = (train / (train + validation), validation / (train + validation), 0.0)
    split[~test] = assign(subject_id[~test], outcome[~test], fractions=earlier, seed=seed)
    return split


def patient_period(subject_id: np.ndarray, period: np.ndarray) -> np.ndarray:
    """int[B] period of the patient of every stay: the latest of their stays, so that no train stay is later."""
    patients, row = np.unique(subject_id, return_inverse=True)
    latest = np.full(patients.size, np.iinfo(np.int64).min)
    np.maximum.at(latest, row, np.asarray(period, np.int64))
    return latest[row]


def patients_by_period(subject_id: np.ndarray, period: np.ndarray, split: np.ndarray) -> dict[str, dict[str, int]]:
    """Split -> period -> patients, from int[B], int[B] and int8[B], in the JSON types of a manifest."""
    _, first = np.unique(subject_id, return_index=True)
    of_patient, split = patient_period(subject_id, period)[first], split[first]
    out = {}
    for code, name in enumerate(SPLITS):
        periods, patients = np.unique(of_patient[split == code], return_counts=True)
        out[name] = {str(p): int(n) for p, n in zip(periods, patients, strict=True)}
    return out


def _refuse(file: object, periods: np.ndarray, from_here_on: np.ndarray, share: float) -> NoReturn:
    if periods.size == 1:
        found = f"only {periods[0]}"
        raise InputError(file, field="period", expected="at least two periods for a temporal split", found=found)
    raise InputError(
        file,
        field="period",
        expected=f"at least {share:.0%} of the patients after the first period, {periods[0]}",
        found=f"{from_here_on[1]} of {from_here_on[0]}",
        hint="choose a smaller test share in split_fractions",
    )


def _interleave(count: int, fractions: np.ndarray) -> np.ndarray:
    """int8[count] in which every run of positions holds each split close to its share (largest deficit first)."""
    given = np.zeros(fractions.size)
    out = np.empty(count, np.int8)
    for i in range(count):
        out[i] = np.argmax(fractions * (i + 1) - given - (fractions == 0) * count)
        given[out[i]] += 1
    return out
