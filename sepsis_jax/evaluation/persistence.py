"""The forecast that nothing changes, which any world model has to beat. It has no spread, so NumPy is enough."""

from __future__ import annotations

import numpy as np

from sepsis_jax.data.episodes import Episodes
from sepsis_jax.data.scaler import Scaler
from sepsis_jax.evaluation.courses import Decisions
from sepsis_jax.evaluation.one_step import has_next_step, measured_entries
from sepsis_jax.evaluation.rollouts import HOURS
from sepsis_jax.evaluation.scores import Scores, per_stay


def persistence(episodes: Episodes, scaler: Scaler, ahead: Decisions, starts: Decisions) -> Scores:
    """The figures of `one_step` and `rollouts` that a forecast without a spread has, in z-scores.

    mae_1step, mae_1step_all: at every decision; mae_1step_sampled, crps, energy_score: at `ahead`; mae_8h (24h, 48h),
    crps_8h, energy_score_8h: from `starts`. The CRPS of a certain forecast is its absolute error, the energy score its
    distance.
    """
    stays, every = episodes.num_stays, Decisions(*np.nonzero(has_next_step(episodes)))
    error, measured = _error(episodes, scaler, every, 1)
    totals = {"mae_1step": measured, "mae_1step_all": np.ones_like(measured)}
    means = {name: per_stay(every.rows, error, kept, stays).sum(axis=1) for name, kept in totals.items()}
    means |= _means(episodes, scaler, ahead, 1, ("mae_1step_sampled", "crps", "energy_score"))
    for hours in HOURS:
        names = (f"mae_{hours}h", f"crps_{hours}h", f"energy_score_{hours}h")
        means |= _means(episodes, scaler, starts, hours // 4, names)
    return Scores(means)


def _means(
    episodes: Episodes, scaler: Scaler, decisions: Decisions, steps: int, names: tuple[str, str, str]
) -> dict[str, np.ndarray]:
    """Sums for each stay of error, CRPS and energy score under their `names`."""
    rows, stays = decisions.rows, episodes.num_stays
    error, measured = _error(episodes, scaler, decisions, steps)
    entries = per_stay(rows, error, measured, stays).sum(axis=1)
    distance = np.sqrt((np.where(measured, error, 0.0) ** 2).sum(axis=1))
    energy = per_stay(rows, distance, np.asarray(measured.any(axis=1)), stays)
    return dict(zip(names, (entries, entries, energy), strict=True))


def _error(episodes: Episodes, scaler: Scaler, decisions: Decisions, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """|z| f[N,F] by which values differ after `steps`, and which are measured there, bool[N,F] (none after the end)."""
    rows, now = decisions
    later = now + steps
    recorded = later < np.asarray(episodes.length)[rows]
    later = np.minimum(later, episodes.num_steps - 1)
    obs = np.asarray(episodes.obs)
    error = np.abs(np.asarray(scaler.normalize(obs[rows, later])) - np.asarray(scaler.normalize(obs[rows, now])))
    return error, measured_entries(np.asarray(episodes.mask)[rows, later]) & recorded[:, None]
