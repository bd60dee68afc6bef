"""`Scores`: sums for each stay, from which every figure of the world-model table and its bootstrap follow."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Labelled(NamedTuple):
    """N predicted probabilities: the stay int[N] of each, what happened bool[N], the probability f64[N]."""

    stay: np.ndarray
    label: np.ndarray
    chance: np.ndarray


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of one model on B stays.

    Attributes:
      means: name -> f64[B,2], sum and count of a figure that is a mean over entries, steps or decisions.
      features: name -> f64[B,K,2], the same apart for each feature (or each end of its support).
      labelled: name -> probabilities of an event.
    """

    means: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    features: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    labelled: dict[str, Labelled] = dataclasses.field(default_factory=dict)

    def __or__(self, other: Scores) -> Scores:
        """Both; the stays must be the same."""
        return Scores(self.means | other.means, self.features | other.features, self.labelled | other.labelled)


def join(parts: Sequence[Scores]) -> Scores:
    """Scores of other stays of the same kind, one behind the other (the folds of a cross-validation)."""
    first = parts[0]
    stays = [next(iter(part.means.values())).shape[0] for part in parts]
    starts = np.cumsum([0, *stays[:-1]])
    labelled = {
        name: Labelled(
            np.concatenate([part.labelled[name].stay + start for part, start in zip(parts, starts, strict=True)]),
            np.concatenate([part.labelled[name].label for part in parts]),
            np.concatenate([part.labelled[name].chance for part in parts]),
        )
        for name in first.labelled
    }
    means = {name: np.concatenate([part.means[name] for part in parts]) for name in first.means}
    features = {name: np.concatenate([part.features[name] for part in parts]) for name in first.features}
    return Scores(means, features, labelled)


def per_stay(rows: np.ndarray, values: np.ndarray, counts: np.ndarray, stays: int) -> np.ndarray:
    """Sums over the decisions of each stay: values and counts of shape [N] or [N,K] -> f64[B,2] or f64[B,K,2].

    Values where `counts` is 0 are ignored, whatever they are.
    """
    counts = np.asarray(counts, np.float64)
    kept = np.where(counts > 0, np.asarray(values, np.float64) * counts, 0.0)
    out = np.zeros((stays, *counts.shape[1:], 2))
    np.add.at(out, np.asarray(rows), np.stack([kept, counts], axis=-1))
    return out
