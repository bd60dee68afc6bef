"""Train / validation / test split: by patient, stratified by outcome, seeded."""

from __future__ import annotations

import numpy as np

from sepsis_jax.data.episodes import SPLITS


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


def _interleave(count: int, fractions: np.ndarray) -> np.ndarray:
    """int8[count] in which every run of positions holds each split close to its share (largest deficit first)."""
    given = np.zeros(fractions.size)
    out = np.empty(count, np.int8)
    for i in range(count):
        out[i] = np.argmax(fractions * (i + 1) - given - (fractions == 0) * count)
        given[out[i]] += 1
    return out
