"""Bootstrap by patient: whole patients are drawn, never steps or stays.

Draws are rows of counts, so that all of them are one product of matrices. For off-policy estimates weights are
normalised anew in every draw; the treating policy and the values Q are not fitted anew.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.scipy.special import ndtr, ndtri

from sepsis_jax.ope.estimators import Terms, estimate


def patient_counts(subject_id: np.ndarray, *, draws: int, seed: int) -> np.ndarray:
    """How often each stay counts in each bootstrap draw.

    Args:
      subject_id: int[B]; the stays of one patient are drawn together.
      draws: R. seed: of the draw.

    Returns:
      f32[R,B]; NaN for a single patient, of whose scatter nothing is known.
    """
    patients, row = np.unique(subject_id, return_inverse=True)
    number, rng = patients.size, np.random.default_rng(seed)
    if number == 1:
        return np.full((draws, row.size), np.nan, np.float32)
    counts = np.empty((draws, number), np.float32)
    for one in counts:  # a quarter of the time of a multinomial over all patients
        one[:] = np.bincount(rng.integers(0, number, number), minlength=number)
    return counts[:, row]


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


def bca_interval(draws: np.ndarray, value: float, without: np.ndarray) -> tuple[float, float]:
    """95 % interval, corrected for bias and skewness (Efron 1987, J Am Stat Assoc 82:171), of f[R].

    Args:
      value: the estimate. without: f[P] the estimate without each patient.
    """
    finite, rest = (np.asarray(found, np.float64)[np.isfinite(found)] for found in (draws, without))
    if not finite.size or not rest.size or not np.isfinite(value):
        return float("nan"), float("nan")
    apart = rest.mean() - rest
    spread = (apart**2).sum()
    bend = (apart**3).sum() / (6 * spread**1.5) if spread > 0 else 0.0
    below = np.clip(np.mean(finite < value), 0.5 / finite.size, 1 - 0.5 / finite.size)
    shift = float(ndtri(below)) + np.asarray(ndtri(np.array([0.025, 0.975])))
    room = np.maximum(1 - bend * shift, 1e-6)  # so skewed that the correction would turn round: the end of the draws
    low, high = np.quantile(finite, np.asarray(ndtr(float(ndtri(below)) + shift / room)))
    return float(low), float(high)


@jax.jit
def draw(each: Terms, scale: jax.Array, counts: jax.Array) -> dict[str, jax.Array]:
    """f[R] of every estimator, from Terms with leading B, their scale f[T], and counts f[R,B]."""
    flat, one = _columns(each)
    return jax.vmap(lambda row: estimate(one(row), scale))(counts @ flat)


def leave_out(each: Terms, scale: jax.Array, subject_id: np.ndarray) -> dict[str, np.ndarray]:
    """f[P] of every estimator without each patient.

    Args:
      each: Terms with leading B. scale: f[T] of their weights. subject_id: [B].
    """
    patients, row = np.unique(subject_id, return_inverse=True)
    flat, one = _columns(each)
    columns = np.asarray(flat, np.float64)  # since the heaviest patient is subtracted from a sum of little else
    of_patient = np.zeros((patients.size, columns.shape[1]))
    np.add.at(of_patient, row, columns)
    rest = jnp.asarray((columns.sum(axis=0) - of_patient).astype(flat.dtype))
    return jax.tree.map(np.asarray, jax.vmap(lambda row: estimate(one(row), scale))(rest))


def _columns(each: Terms) -> tuple[jax.Array, Callable[[jax.Array], Terms]]:
    """f[B,C], and what makes Terms without leading axes of f[C]."""
    _, one = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], each))
    return jax.vmap(lambda row: ravel_pytree(row)[0])(each), one
