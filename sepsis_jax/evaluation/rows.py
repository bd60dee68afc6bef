"""From `Scores` to the rows of a table: values, intervals, and the reason where there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from sepsis_jax.clinical.features import NAMES
from sepsis_jax.evaluation.discrimination import Figure, auprc, auroc, brier, ece, in_the_large, rank
from sepsis_jax.evaluation.effects import Comparison, Moments, correlation, slope
from sepsis_jax.evaluation.scores import Labelled, Scores
from sepsis_jax.ope.bootstrap import interval, ratio_draws

Row = dict[str, Any]
"""metric, model, value, low, high (95 % interval), n, reason (why there is no value, else '')."""

LEAST_ENTRIES = 100
"""Entries below which a feature has no say in an extreme over features."""

MORTALITY: dict[str, Figure] = {"auroc": auroc, "auprc": auprc, "brier": brier, "ece": ece, "bias": in_the_large}
"""Figures of mortality; bias: mean predicted minus observed."""

_FIGURES: dict[str, dict[str, Figure]] = {
    "ventilation": {"auroc": auroc},
    "mortality": MORTALITY,
    "mortality_running": MORTALITY,
    "hospital_mortality": MORTALITY,
}


def row(metric: str, value: float, ends: Iterable[float], n: int, *, reason: str = "") -> Row:
    """One row; the model is named later."""
    low, high = (float(end) for end in ends)
    return {"metric": metric, "value": float(value), "low": low, "high": high, "n": int(n), "reason": reason}


def empty_row(metric: str, n: int, reason: str) -> Row:
    """A figure without a value."""
    return row(metric, np.nan, (np.nan, np.nan), n, reason=reason)


def all_rows(scores: Scores, counts: np.ndarray) -> list[Row]:
    """Every figure of one model; counts f32[R,B] of the bootstrap."""
    rows = [mean_row(name, total, counts) for name, total in scores.means.items()]
    for name, total in scores.features.items():
        rows += _feature_rows(name, total, counts)
    for name, labelled in scores.labelled.items():
        rows += [class_row(f"{name}_{figure}", labelled, counts, of) for figure, of in _FIGURES[name].items()]
    return rows


def mean_row(name: str, total: np.ndarray, counts: np.ndarray) -> Row:
    """Mean from sums and counts f64[B,2]."""
    entries = total[:, 1].sum()
    if not entries:
        return empty_row(name, 0, "nothing to score")
    return row(name, total[:, 0].sum() / entries, interval(_drawn(total, counts)), round(entries))


def _feature_rows(name: str, total: np.ndarray, counts: np.ndarray) -> list[Row]:
    """Rows of a figure that each feature has, f64[B,K,2]: its extremes, and for 80 % intervals each feature."""
    rows = [_extreme_row(metric, total, counts, reduce) for metric, reduce in _extremes(name).items()]
    if name == "coverage80":
        rows += [mean_row(f"{name}_{NAMES[i]}", total[:, i], counts) for i in np.flatnonzero(total[..., 1].sum(axis=0))]
    return rows


def _extremes(name: str) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    if name.startswith("coverage"):
        return {f"{name}_min": _least, f"{name}_max": _most}
    if name.startswith("drift"):
        return {f"{name}_max": lambda share: _most(np.abs(share))}
    return {f"{name}_excess": _most}


def _least(share: np.ndarray) -> np.ndarray:
    return share.min(axis=-1)


def _most(share: np.ndarray) -> np.ndarray:
    return share.max(axis=-1)


def _extreme_row(name: str, total: np.ndarray, counts: np.ndarray, reduce: Callable[[np.ndarray], np.ndarray]) -> Row:
    """An extreme over the features with enough entries."""
    sums = total.sum(axis=0)
    enough = sums[:, 1] >= LEAST_ENTRIES
    if not enough.any():
        return empty_row(name, 0, f"no feature has {LEAST_ENTRIES} entries")
    drawn = reduce(ratio_draws(total[:, enough, 0], total[:, enough, 1], counts))
    value = reduce((sums[enough, 0] / sums[enough, 1])[None])[0]
    return row(name, value, interval(drawn), round(sums[enough, 1].sum()))


def class_row(name: str, labelled: Labelled, counts: np.ndarray, figure: Figure) -> Row:
    """A figure of predicted probabilities; the ECE has no interval, see `ece`."""
    number = labelled.label.size
    if not number:
        return empty_row(name, 0, "no label is known")
    if labelled.label.all() or not labelled.label.any():
        return empty_row(name, number, f"every label is {'positive' if labelled.label.all() else 'negative'}")
    ranked = rank(labelled.label, labelled.chance)
    stay = labelled.stay[ranked.order]
    value = figure(ranked, np.ones(number))
    if figure is ece:  # a resample's is larger, by the noise of its bins
        return row(name, value, (np.nan, np.nan), number)
    drawn = np.array([figure(ranked, weight[stay].astype(np.float64)) for weight in counts])
    return row(name, value, interval(drawn), number)


def difference_row(name: str, first: np.ndarray, second: np.ndarray, counts: np.ndarray) -> Row:
    """Mean of the first minus mean of the second, f64[B,2] each, over the same draws."""
    entries = first[:, 1].sum(), second[:, 1].sum()
    if not all(entries):
        return empty_row(name, 0, "nothing to score")
    value = first[:, 0].sum() / entries[0] - second[:, 0].sum() / entries[1]
    return row(name, value, interval(_drawn(first, counts) - _drawn(second, counts)), round(entries[0]))


def gap_row(name: str, model: np.ndarray, baseline: np.ndarray, best: np.ndarray, counts: np.ndarray) -> Row:
    """(baseline - model) / (baseline - best): the share of the reducible error that is gone. Means as f64[B,2]."""
    totals = (baseline, model, best)
    drawn = [_drawn(total, counts) for total in totals]
    means = [total[:, 0].sum() / total[:, 1].sum() for total in totals]

    def share(means: Any) -> Any:
        with np.errstate(divide="ignore", invalid="ignore"):
            return (means[0] - means[1]) / (means[0] - means[2])

    return row(name, share(means), interval(share(drawn)), round(model[:, 1].sum()))


def _drawn(total: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """f[R]: the mean in each draw, from sums and counts f64[B,2]."""
    return ratio_draws(total[:, 0], total[:, 1], counts)


def effect_rows(comparisons: Mapping[str, Comparison], counts: np.ndarray, suffix: str = "") -> list[Row]:
    """Correlations and slope of each outcome, whose names end with `suffix`."""
    rows = []
    for outcome, comparison in comparisons.items():
        for metric, sums, figure in (
            (f"effect_corr_{outcome}", comparison.pooled, correlation),
            (f"effect_corr_within_{outcome}", comparison.within, correlation),
            (f"effect_slope_{outcome}", comparison.pooled, slope),
            (f"effect_corr_constants_{outcome}", comparison.constant, correlation),
        ):
            rows.append(_effect_row(metric + suffix, sums, figure, counts))
    return rows


def _effect_row(name: str, sums: Moments, figure: Callable[[Moments], np.ndarray], counts: np.ndarray) -> Row:
    number = round(sums.n.sum())
    value = float(figure(Moments(*(part.sum(keepdims=True) for part in sums)))[0])
    if not np.isfinite(value):
        return empty_row(name, number, "no effect varies" if number else "no such action")
    drawn = counts.astype(np.float64) @ np.stack(sums, axis=1)
    return row(name, value, interval(figure(Moments(*drawn.T))), number)
