"""Figures of predicted probabilities, weighted, so that a bootstrap draw costs one pass over sorted values."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd

BINS = 10
"""Equal-mass bins of the calibration curve and of its error."""


class Ranked(NamedTuple):
    """N probabilities in ascending order.

    Attributes:
      order: int[N] that sorts them. label: f64[N], chance: f64[N], both sorted.
      starts: int[G] where each group of equal probabilities starts.
      bin: int[N] of `BINS` bins of equal mass, but for ties.
    """

    order: np.ndarray
    label: np.ndarray
    chance: np.ndarray
    starts: np.ndarray
    bin: np.ndarray


def rank(label: np.ndarray, chance: np.ndarray) -> Ranked:
    """Sort labels bool[N] by their probabilities f64[N]."""
    order = np.argsort(chance, kind="stable")
    ordered = np.asarray(chance, np.float64)[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] > ordered[:-1]])
    ends = np.r_[starts[1:], ordered.size]  # equal probabilities share the bin of their middle, whatever their order
    number = np.repeat((starts + ends - 1) // 2 * BINS // max(ordered.size, 1), ends - starts)
    return Ranked(order, np.asarray(label, np.float64)[order], ordered, starts, number)


Figure = Callable[[Ranked, np.ndarray], float]
"""Statistic of ranked probabilities with weights f64[N] in the same order; NaN where it has no value."""


def auroc(ranked: Ranked, weight: np.ndarray) -> float:
    """Probability that an event has a larger chance than a non-event; ties count half."""
    events, others = _by_group(ranked, weight)
    below = np.cumsum(others) - others
    pairs = events.sum() * others.sum()
    return float((events * (below + others / 2)).sum() / pairs) if pairs > 0 else float("nan")


def auprc(ranked: Ranked, weight: np.ndarray) -> float:
    """Average precision: Σ precision x step in recall, from the largest chance on."""
    events, others = (part[::-1] for part in _by_group(ranked, weight))
    found, called = np.cumsum(events), np.cumsum(events + others)
    precision = np.divide(found, called, out=np.zeros_like(found), where=called > 0)
    return float((events * precision).sum() / found[-1]) if found[-1] > 0 else float("nan")


def brier(ranked: Ranked, weight: np.ndarray) -> float:
    """Mean squared error."""
    return _mean((ranked.chance - ranked.label) ** 2, weight)


def ece(ranked: Ranked, weight: np.ndarray) -> float:
    """Expected calibration error: mean over bins, by their weight, of |mean chance - share of events|.

    Above 0 by chance, the more so the fewer rows there are, and in a resample by more still: no percentile interval.
    """
    gap = np.bincount(ranked.bin, weight * (ranked.chance - ranked.label), minlength=BINS)
    return float(np.abs(gap).sum() / weight.sum()) if weight.sum() > 0 else float("nan")


def in_the_large(ranked: Ranked, weight: np.ndarray) -> float:
    """Mean chance minus share of events."""
    return _mean(ranked.chance - ranked.label, weight)


def _mean(value: np.ndarray, weight: np.ndarray) -> float:
    return float((weight * value).sum() / weight.sum()) if weight.sum() > 0 else float("nan")


def _by_group(ranked: Ranked, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weight of events and of other rows in each group of ties."""
    events = np.add.reduceat(weight * ranked.label, ranked.starts)
    return events, np.add.reduceat(weight * (1 - ranked.label), ranked.starts)


def calibration(label: np.ndarray, chance: np.ndarray) -> pd.DataFrame:
    """One row a bin: n, mean predicted chance, share of events."""
    ranked = rank(label, chance)
    frame = pd.DataFrame({"bin": ranked.bin + 1, "predicted": ranked.chance, "observed": ranked.label})
    groups = frame.groupby("bin")
    return groups.mean().assign(n=groups.size())[["n", "predicted", "observed"]]
