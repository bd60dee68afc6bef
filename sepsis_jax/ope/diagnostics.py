"""Whether an estimate can be believed: how many stays it rests on.

The effective sample size is (sum w)^2 / sum w^2 (Kong 1992), with w of a patient the sum over their stays, which are no
independent witnesses. An estimate is called reliable if it is at least 50 and 5 % of the patients, if no patient holds
more than 10 % of the weight, and if the mean weight, which is 1 for true propensities, is neither halved nor doubled.
"""

from __future__ import annotations

import dataclasses

import numpy as np

LEAST_ESS, LEAST_SHARE, MOST_WEIGHT, MEAN_WEIGHT = 50.0, 0.05, 0.1, (0.5, 2.0)
EDGES = np.arange(-6.0, 7.0)
"""Of the histogram of weights, powers of ten; what is smaller or larger falls into the outer classes."""


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """Of the weights w_{T-1} of B stays under one policy.

    Attributes:
      stays: B. patients: P. ess: effective patients. max_share: of the heaviest patient in all weight.
      ess_at: f[T] effective patients by step, with what has ended counted at its last weight.
      histogram: int[14] stays by weight, from none (0) and below 10^-6 to above 10^6.
      reliable: whether the estimates can be believed. reason: why not; empty where they can.
    """

    stays: int
    patients: int
    ess: float
    max_share: float
    ess_at: np.ndarray
    histogram: np.ndarray
    reliable: bool
    reason: str


def diagnose(log_w: np.ndarray, subject_id: np.ndarray) -> Diagnosis:
    """From log w_t f[B,T], as `estimators.log_weights` gives them; ValueError for weights that are no numbers."""
    order = np.argsort(subject_id, kind="stable")
    log_w, first = np.asarray(log_w, np.float64)[order], np.unique(np.asarray(subject_id)[order], return_index=True)[1]
    if np.isnan(log_w).any() or (log_w == np.inf).any():
        raise ValueError("expected weights below infinity; `logged.check` says where they are not")
    largest = log_w.max(axis=0)
    scale = np.where(np.isfinite(largest), largest, 0.0)
    weight = np.add.reduceat(np.exp(log_w - scale), first)
    total, squares = weight.sum(axis=0), (weight**2).sum(axis=0)
    ess_at = np.divide(total**2, squares, out=np.zeros_like(total), where=squares > 0)
    share = float(weight[:, -1].max() / total[-1]) if total[-1] > 0 else 1.0
    with np.errstate(divide="ignore", over="ignore"):
        mean = float(np.exp(np.log(total[-1] / len(log_w)) + scale[-1]))
        histogram = np.bincount(np.digitize(log_w[:, -1] / np.log(10), EDGES), minlength=EDGES.size + 1)
    stays, patients = len(log_w), len(weight)
    reason = _reason(patients, float(ess_at[-1]), share, mean)
    return Diagnosis(stays, patients, float(ess_at[-1]), share, ess_at, histogram, not reason, reason)


def _reason(patients: int, ess: float, share: float, mean: float) -> str:
    if patients < 2:
        return "one patient"
    least = max(LEAST_ESS, LEAST_SHARE * patients)
    if not ess >= least:
        return f"ESS {ess:.3g} of {patients} patients, below {least:.3g}"
    if not share <= MOST_WEIGHT:
        return f"one patient holds {100 * share:.3g} % of the weight"
    if not MEAN_WEIGHT[0] <= mean <= MEAN_WEIGHT[1]:
        return f"a mean weight of {mean:.3g}, which is 1 for true propensities"
    return ""
