"""Bootstrap by patient: whole patients are drawn, never steps or stays."""

from __future__ import annotations

import numpy as np


def patient_counts(subject_id: np.ndarray, *, draws: int, seed: int) -> np.ndarray:
    """How often each stay counts in each bootstrap draw.

    Args:
      subject_id: int[B]; the stays of one patient are drawn together.
      draws: R. seed: of the draw.

    Returns:
      f32[R,B].
    """
    patients, row = np.unique(subject_id, return_inverse=True)
    chance = np.full(patients.size, 1 / patients.size)
    counts = np.random.default_rng(seed).multinomial(patients.size, chance, size=draws)
    return counts[:, row].astype(np.float32)


def ratio_draws(numerator: np.ndarray, denominator: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """f[R] or f[R,K]: sum(numerator) / sum(denominator), both f[B] or f[B,K], in draws f32[R,B]; NaN for x / 0."""
    above, below = counts @ np.asarray(numerator, np.float32), counts @ np.asarray(denominator, np.float32)
    return np.divide(above, below, out=np.full(above.shape, np.nan, np.float32), where=below > 0)


def interval(draws: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of f[R]; draws of NaN do not count, and without any other it is NaN."""
    finite = draws[np.isfinite(draws)]
    if not finite.size:
        return float("nan"), float("nan")
    low, high = np.quantile(finite, [0.025, 0.975])
    return float(low), float(high)


def ratio_interval(numerator: np.ndarray, denominator: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of sum(numerator) / sum(denominator), both f[B], over draws f32[R,B].

    NaN where no draw has anything in the denominator.
    """
    return interval(ratio_draws(numerator, denominator, counts))
