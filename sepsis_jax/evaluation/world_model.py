"""The world-model table: one-step error beside persistence, discrimination, likelihood, with honest intervals.

Intervals are 95 % percentile bootstraps over patients (a patient's stays and steps move together).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from sepsis_jax.data.episodes import Episodes
from sepsis_jax.dynamics.worldmodel.losses import history_of
from sepsis_jax.dynamics.worldmodel.model import Params, WorldModel
from sepsis_jax.dynamics.worldmodel.prediction import log_prob, median, with_urine
from sepsis_jax.evaluation.bootstrap import patient_counts, ratio_interval

Row = dict[str, Any]


class Evaluation(NamedTuple):
    """The table in two forms.

    Attributes:
      metrics: one flat object: <metric>, <metric>_low and <metric>_high (95 % interval); None where it has no value.
      rows: metric, value, low, high, n (entries, steps or stays), reason (why there is no value, else '').
    """

    metrics: dict[str, float | None]
    rows: list[Row]


def evaluate(
    model: WorldModel, params: Params, episodes: Episodes, *, num_bootstrap: int = 200, seed: int = 0
) -> Evaluation:
    """Score a world model on the given stays, usually the test split.

    mae_1step is of the predicted mean on values measured in the next step (and urine); mae_1step_all of the predicted
    median on every entry of the next step, carried-forward ones too. Both in z-scores, each beside the error of
    predicting no change. Mortality is that within 90 days, at the last decision: death in the ICU at the end of the
    step, or later for those who leave alive. Names of the published architecture start with `published_`.
    """
    scores = jax.tree.map(np.asarray, _score(model, params, dataclasses.replace(episodes, propensity=None)))
    counts = patient_counts(np.asarray(episodes.subject_id), draws=num_bootstrap, seed=seed)
    rows = [_ratio_row(name, total[:, 0], total[:, 1], counts) for name, total in scores["means"].items()]

    has_next = np.arange(episodes.num_steps - 1) < np.asarray(episodes.length)[:, None] - 1
    stay = np.nonzero(has_next)[0]
    ventilated = np.asarray(episodes.ventilated)[:, 1:][has_next]
    vent_prob = scores["vent_prob"][:, :-1][has_next]
    rows.append(_class_row("ventilation_auroc", roc_auc_score, ventilated, vent_prob, counts[:, stay]))

    known = np.asarray(episodes.mortality_90d) >= 0
    died, death_prob = np.asarray(episodes.mortality_90d)[known] == 1, scores["death_prob"][known]
    for name, statistic in (
        ("mortality_auroc", roc_auc_score),
        ("mortality_auprc", average_precision_score),
        ("mortality_brier", brier_score_loss),
    ):
        rows.append(_class_row(name, statistic, died, death_prob, counts[:, known]))

    prefix = "published_" if model.architecture == "published" else ""
    rows = [row | {"metric": prefix + row["metric"]} for row in rows]
    return Evaluation(_flat(rows), rows)


def _flat(rows: list[Row]) -> dict[str, float | None]:
    ends = (("value", ""), ("low", "_low"), ("high", "_high"))
    cells = {row["metric"] + end: row[key] for row in rows for key, end in ends}
    return {name: value if np.isfinite(value) else None for name, value in cells.items()}


@partial(jax.jit, static_argnames="model")
def _score(model: WorldModel, params: Params, episodes: Episodes) -> dict[str, Any]:
    """Per stay: sums and counts of the errors f32[B,2], ventilation f32[B,T], death within 90 days f32[B]."""

    def stay(episode: Episodes) -> dict[str, Any]:
        states = model.encode_all(params, history_of(episode))
        decoded = jax.vmap(model.decode, (None, 0, 0))(params, states, episode.action)
        z = params.scaler.normalize(episode.obs)
        next_z = jnp.roll(z, -1, axis=0)
        has_next = (jnp.arange(len(z)) < episode.length - 1)[:, None]
        measured = with_urine(jnp.roll(episode.mask, -1, axis=0), True) & has_next
        every = jnp.broadcast_to(has_next, z.shape)

        def total(value: jax.Array, counts: jax.Array) -> jax.Array:
            return jnp.stack([jnp.where(counts, value, 0).sum(), counts.sum().astype(value.dtype)])

        last = episode.length - 1
        outcome = model.outcome(params, jax.tree.map(lambda leaf: leaf[last], states))
        hazard = 0.0 if decoded.exit_logit is None else jax.nn.sigmoid(decoded.exit_logit[last, 0])
        return {
            "means": {
                "mae_1step": total(jnp.abs(decoded.mean - next_z), measured),
                "persistence_mae_1step": total(jnp.abs(z - next_z), measured),
                "mae_1step_all": total(jnp.abs(median(decoded, z) - next_z), every),
                "persistence_mae_1step_all": total(jnp.abs(z - next_z), every),
                "nll": total(-log_prob(decoded, next_z), measured),
            },
            "vent_prob": jax.nn.sigmoid(decoded.vent_logit),
            "death_prob": hazard + (1 - hazard) * outcome,
        }

    return jax.lax.map(stay, jax.tree.map(jnp.asarray, episodes), batch_size=64)


def _ratio_row(name: str, total: np.ndarray, count: np.ndarray, counts: np.ndarray) -> Row:
    """Mean over entries from per-stay sums f[B] and counts f[B]; counts f[R,B] of the bootstrap."""
    entries = int(count.sum(dtype=np.float64))
    if not entries:
        return _empty_row(name, 0, "no stay has a next step")
    value = total.sum(dtype=np.float64) / entries
    return _row(name, value, ratio_interval(total, count, counts), entries)


def _class_row(
    name: str, statistic: Callable[..., float], label: np.ndarray, score: np.ndarray, counts: np.ndarray
) -> Row:
    """A statistic of labels bool[N] and probabilities f[N]; counts f[R,N] of the bootstrap."""
    if not label.size:
        return _empty_row(name, 0, "no label is known")
    if label.all() or not label.any():
        return _empty_row(name, label.size, f"every label is {'positive' if label.all() else 'negative'}")
    both = (counts[:, label].sum(axis=1) > 0) & (counts[:, ~label].sum(axis=1) > 0)
    drawn = [statistic(label, score, sample_weight=weight) for weight in counts[both]]
    interval = np.quantile(drawn, [0.025, 0.975]) if drawn else (np.nan, np.nan)
    return _row(name, statistic(label, score), interval, label.size)


def _row(name: str, value: float, interval: Iterable[float], n: int) -> Row:
    low, high = (float(end) for end in interval)
    return {"metric": name, "value": float(value), "low": low, "high": high, "n": n, "reason": ""}


def _empty_row(name: str, n: int, reason: str) -> Row:
    return {"metric": name, "value": np.nan, "low": np.nan, "high": np.nan, "n": n, "reason": reason}
