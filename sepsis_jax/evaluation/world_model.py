"""The world-model table: a model beside the published one, simple baselines and, where it is known, the truth.

Intervals are 95 % percentile bootstraps over patients (a patient's stays and steps move together). Models are scored
on the same decisions and the same draws, so that differences are paired.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from sepsis_jax.clinical.actions import NUM_ACTIONS, ActionBins
from sepsis_jax.data.episodes import Episodes
from sepsis_jax.data.scaler import Scaler
from sepsis_jax.dynamics.baselines import VAR
from sepsis_jax.dynamics.patient.truth import Truth
from sepsis_jax.dynamics.worldmodel.bounds import Support
from sepsis_jax.dynamics.worldmodel.model import Params, WorldModel
from sepsis_jax.evaluation import effects, oracle, rows
from sepsis_jax.evaluation.courses import Decisions, draw_decisions
from sepsis_jax.evaluation.effects import Comparison
from sepsis_jax.evaluation.one_step import analytic, sampled
from sepsis_jax.evaluation.persistence import persistence
from sepsis_jax.evaluation.rollouts import HOURS, roll_out
from sepsis_jax.evaluation.rows import Row
from sepsis_jax.evaluation.scores import Scores
from sepsis_jax.evaluation.settings import EvaluationSettings
from sepsis_jax.ope.bootstrap import patient_counts

MODEL, PUBLISHED, PERSISTENCE, LINEAR, ORACLE = "model", "published", "persistence", "var", "oracle"
"""Models of a table: the evaluated one, the compared one, two baselines, the simulator at the true latent state."""

DIFFERENCES = ("nll", "nll_interior", "crps", "energy_score", "mae_1step", *(f"mae_{hours}h" for hours in HOURS))
"""Figures whose difference between the evaluated and the compared model has rows of its own, `diff_<figure>`."""


class Evaluation(NamedTuple):
    """The table in two forms.

    Attributes:
      metrics: one flat object: <name>, <name>_low and <name>_high (95 % interval); None where it has no value. Names
        are those of `rows`, alone for the evaluated model, behind `published_` (`persistence_`, `var_`) for others,
        before `_oracle` for the simulator.
      rows: model, metric, value, low, high, n (entries, steps, stays or effects), reason (why there is no value).
    """

    metrics: dict[str, float | None]
    rows: list[Row]


@dataclasses.dataclass(frozen=True)
class Scored:
    """Everything that was computed on one set of stays.

    Attributes:
      subject_id: int[B]. scores: model -> Scores of the stays.
      effects: (model, suffix of the names) -> outcome -> Comparison; empty where the truth is not known
        or not asked for.
    """

    subject_id: np.ndarray
    scores: Mapping[str, Scores]
    effects: Mapping[tuple[str, str], Mapping[str, Comparison]]


def score(
    model: WorldModel,
    params: Params,
    episodes: Episodes,
    settings: EvaluationSettings,
    *,
    compared: tuple[WorldModel, Params] | None = None,
    train: Episodes | None = None,
    truth: Truth | None = None,
    bins: ActionBins | None = None,
) -> Scored:
    """Score a world model on all of `episodes`, usually the test split.

    Args:
      model, params: the evaluated model; figures are in z-scores of its scaler.
      compared: another one, usually the published architecture trained on the same stays.
      train: stays that the linear baseline is fitted on; None leaves it out.
      truth, bins: of a simulated cohort; without them there is no oracle and no counterfactual accuracy.
    """
    scaler, support = params.scaler, params.support
    ahead = draw_decisions(episodes, settings.decisions, ahead=1, seed=settings.seed)
    starts = draw_decisions(episodes, settings.rollouts, ahead=HOURS[0] // 4, seed=settings.seed)
    task = _Task(episodes, scaler, support, ahead, starts, settings)
    scores = {MODEL: task.predictive(model, params)}
    if compared is not None:
        scores[PUBLISHED] = task.predictive(*compared)
    scores[PERSISTENCE] = persistence(episodes, scaler, ahead, starts)
    if train is not None and (np.asarray(train.length) > 1).any():
        scores[LINEAR] = task.predictive(VAR(), VAR().fit(train, scaler, support))
    found: dict[tuple[str, str], Mapping[str, Comparison]] = {}
    if truth is not None and bins is not None:
        dynamics, true_params = oracle.oracle(truth, episodes, bins)
        best = task.drawn(dynamics, true_params)
        best |= Scores(means={"mae_1step": best.means["mae_1step_sampled"]} if ahead.rows.size else {})
        scores[ORACLE] = best | oracle.mortality(dynamics, true_params, episodes, seed=settings.seed)
        models = {MODEL: (model, params)} | ({} if compared is None else {PUBLISHED: compared})
        if settings.effects:
            propensity = oracle.propensity(truth, episodes)
            found = _effects(models, (dynamics, true_params), episodes, propensity, settings)
    return Scored(np.asarray(episodes.subject_id), scores, found)


@dataclasses.dataclass(frozen=True)
class _Task:
    """What all models are scored on."""

    episodes: Episodes
    scaler: Scaler
    support: Support
    ahead: Decisions
    starts: Decisions
    settings: EvaluationSettings

    def predictive(self, model: Any, params: Any) -> Scores:
        """Scores of a model whose predictive distribution is known."""
        seed = self.settings.seed
        exact = analytic(model, params, self.episodes, self.scaler, self.support, seed=seed)
        return exact | self.drawn(model, params)

    def drawn(self, dynamics: Any, params: Any) -> Scores:
        """Scores of samples."""
        settings, scores = self.settings, Scores()
        if self.ahead.rows.size:
            scores |= sampled(
                dynamics,
                params,
                self.episodes,
                self.scaler,
                self.ahead,
                samples=settings.samples,
                seed=settings.seed,
            )
        if self.starts.rows.size:
            scores |= roll_out(
                dynamics,
                params,
                self.episodes,
                self.scaler,
                self.support,
                self.starts,
                samples=settings.rollout_samples,
                seed=settings.seed,
            )
        return scores


def _effects(
    models: Mapping[str, tuple[WorldModel, Params]],
    simulator: tuple[Any, Any],
    episodes: Episodes,
    propensity: np.ndarray,
    settings: EvaluationSettings,
) -> dict[tuple[str, str], Mapping[str, Comparison]]:
    """Counterfactual accuracy of each model, for all actions and for the likely ones."""
    chosen = draw_decisions(episodes, settings.effects, ahead=0, seed=settings.seed)
    samples, seed = settings.effect_samples, settings.seed
    true = effects.effects(*simulator, episodes, chosen, samples=samples, seed=seed, title="true effects")
    out: dict[tuple[str, str], Mapping[str, Comparison]] = {}
    for name, (model, params) in models.items():
        # The windows of the published architecture are dear to roll on.
        kept = np.arange(0, chosen.rows.size, 1 if name == MODEL else 4)
        some = Decisions(chosen.rows[kept], chosen.steps[kept])
        predicted = effects.effects(model, params, episodes, some, samples=samples, seed=seed)
        likely = propensity[some.rows, some.steps] > effects.LIKELY
        for suffix, actions in (("", np.ones((kept.size, NUM_ACTIONS), bool)), ("_likely", likely)):
            out[name, suffix] = effects.compare(predicted, true[kept], actions, some.rows, episodes.num_stays)
    return out


def tabulate(scored: Scored, settings: EvaluationSettings) -> Evaluation:
    """Figures and intervals of what was scored."""
    counts = patient_counts(scored.subject_id, draws=settings.draws, seed=settings.seed)
    found: list[Row] = []
    for name, scores in scored.scores.items():
        found += [row | {"model": name} for row in rows.all_rows(scores, counts)]
    for (name, suffix), comparisons in scored.effects.items():
        found += [row | {"model": name} for row in rows.effect_rows(comparisons, counts, suffix)]
    means = {name: scores.means for name, scores in scored.scores.items()}
    if PUBLISHED in means:
        ours, theirs = means[MODEL], means[PUBLISHED]
        paired = [
            rows.difference_row(f"diff_{name}", ours[name], theirs[name], counts)
            for name in DIFFERENCES
            if name in ours
        ]
        found += [row | {"model": MODEL} for row in paired]
    if {PUBLISHED, ORACLE} <= means.keys() and "mae_1step_sampled" in means[MODEL]:
        gap = [means[name]["mae_1step_sampled"] for name in (MODEL, PUBLISHED, ORACLE)]
        found.append(rows.gap_row("gap_closed_1step", gap[0], gap[1], gap[2], counts) | {"model": MODEL})
    return Evaluation(flat(found), found)


def evaluate(
    model: WorldModel, params: Params, episodes: Episodes, settings: EvaluationSettings, **others: Any
) -> Evaluation:
    """`score`, then `tabulate`."""
    return tabulate(score(model, params, episodes, settings, **others), settings)


def json_name(model: str, metric: str) -> str:
    """Name of a figure in the flat object."""
    if model == MODEL:
        return metric
    return f"{metric}_oracle" if model == ORACLE else f"{model}_{metric}"


def flat(found: list[Row]) -> dict[str, float | None]:
    """Rows as one flat object."""
    out: dict[str, float | None] = {}
    for row in found:
        names = [row["metric"]]
        if row["metric"] == "effect_corr_constants_map_4h":  # the one that is always asked for
            names.append("effect_corr_constants")
        for name in names:
            for key, end in (("value", ""), ("low", "_low"), ("high", "_high")):
                value = row[key]
                out[json_name(row["model"], name) + end] = float(value) if np.isfinite(value) else None
    return out


def wide(found: list[Row], prefix: tuple[str, ...] = (), *, without: tuple[str, ...] = ()) -> pd.DataFrame:
    """One row a figure, one column a model, each cell a value with its interval, or why there is none.

    Args:
      prefix: keeps the figures whose names start with one of these; none keeps all.
      without: leaves out the figures whose names start with one of these.
    """
    kept = [
        row
        for row in found
        if (not prefix or row["metric"].startswith(prefix)) and not (without and row["metric"].startswith(without))
    ]
    models = list(dict.fromkeys(row["model"] for row in kept))
    cells: dict[str, dict[str, str]] = {row["metric"]: dict.fromkeys(models, "") for row in kept}
    for row in kept:
        cells[row["metric"]][row["model"]] = cell(row)
    frame = pd.DataFrame.from_dict(cells, orient="index", columns=models)
    return frame.rename_axis(index="figure")


def wide_effects(found: list[Row]) -> pd.DataFrame:
    """One row an outcome and hour (those of likely actions below), one column a model's figure."""
    figures = {
        "corr_within": "within actions",
        "corr_constants": "25 constants",
        "corr": "correlation",
        "slope": "slope",
    }
    order = ("correlation", "within actions", "slope", "25 constants")
    cells: dict[str, dict[str, str]] = {}
    for row in found:
        if not row["metric"].startswith("effect_"):
            continue
        rest = row["metric"].removeprefix("effect_")
        kind = next(kind for kind in figures if rest.startswith(f"{kind}_"))
        if row["model"] == MODEL:
            column, text = figures[kind], cell(row)
        elif kind == "corr_constants":
            continue
        else:
            column, text = f"{row['model']} {figures[kind]}", f"{row['value']:.3g}"
        cells.setdefault(rest.removeprefix(f"{kind}_"), {})[column] = text
    frame = pd.DataFrame.from_dict(cells, orient="index")
    columns = sorted(frame.columns, key=lambda name: (name not in order, order.index(name) if name in order else 0))
    return frame[columns].rename_axis(index="effect on")


def cell(row: Row) -> str:
    """A value with its interval, if it has one, in three digits, or why there is none."""
    if not np.isfinite(row["value"]):
        return row["reason"]
    if not np.isfinite(row["low"]):
        return f"{row['value']:.3g}"
    return f"{row['value']:.3g} [{row['low']:.3g}, {row['high']:.3g}]"
