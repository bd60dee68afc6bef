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


def join(parts: Sequence[Scores], stays: Sequence[int]) -> Scores:
    """Scores of so many other stays each, one behind the other (the folds of a cross-validation).

    A figure that a part has no decision for counts nothing there.
    """
    starts = np.cumsum([0, *stays[:-1]])
    labelled: dict[str, list[Labelled]] = {}
    for part, start in zip(parts, starts, strict=True):
        for name, one in part.labelled.items():
            labelled.setdefault(name, []).append(Labelled(one.stay + start, one.label, one.chance))
    return Scores(
        _behind_each_other([part.means for part in parts], stays),
        _behind_each_other([part.features for part in parts], stays),
        {name: Labelled(*map(np.concatenate, zip(*found, strict=True))) for name, found in labelled.items()},
    )


def _behind_each_other(parts: Sequence[dict[str, np.ndarray]], stays: Sequence[int]) -> dict[str, np.ndarray]:
    known = {name: sums for part in parts for name, sums in part.items()}
    return {
        name: np.concatenate(
            [part.get(name, np.zeros((number, *one.shape[1:]))) for part, number in zip(parts, stays, strict=True)]
        )
        for name, one in known.items()
    }


def per_stay(rows: np.ndarray, values: np.ndarray, counts: np.ndarray, stays: int) -> np.ndarray:
    """Sums over the decisions of each stay: values and counts of shape [N] or [N,K] -> f64[B,2] or f64[B,K,2].

    Values where `counts` is 0 are ignored, whatever they are.
    """
    counts = np.asarray(counts, np.float64)
    kept = np.where(counts > 0, np.asarray(values, np.float64) * counts, 0.0)
    out = np.zeros((stays, *counts.shape[1:], 2))
    np.add.at(out, np.asarray(rows), np.stack([kept, counts], axis=-1))
    return out
