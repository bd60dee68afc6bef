"""Groups of patients: does the model discriminate and stay calibrated in each."""

from __future__ import annotations

import numpy as np
import pandas as pd

from sepsis_jax.data.episodes import Episodes
from sepsis_jax.errors import InputError
from sepsis_jax.evaluation.rows import MORTALITY, Row, class_row, mean_row
from sepsis_jax.evaluation.scores import Labelled, Scores
from sepsis_jax.evaluation.settings import EvaluationSettings
from sepsis_jax.evaluation.world_model import cell
from sepsis_jax.ope.bootstrap import patient_counts

_AGES, _CHARLSON = (50, 65, 80), (3, 6, 9)
_FIGURES = ("auroc", "ece", "bias")


def levels(episodes: Episodes, by: str, *, at_first: bool = False) -> tuple[list[str], np.ndarray]:
    """Names of the levels of a grouping and the level int[B] of each stay.

    Treatments count if they were ever given or, with `at_first`, if they were under way at the first decision: what
    came later is a result of the decisions, so that no policy can be judged within it.

    Raises:
      InputError: there is no such grouping.
    """
    if by not in GROUPINGS:
        raise InputError("by", expected=f"some of {', '.join(GROUPINGS)}", found=by)
    age, gender, charlson = np.asarray(episodes.static).T
    valid = np.asarray(episodes.valid)
    if by == "sex":
        return ["female", "male"], (gender == 1).astype(int)
    if by == "age_band":
        return ["18-49", "50-64", "65-79", "80+"], np.digitize(age, _AGES)
    if by == "charlson_band":
        return ["0-2", "3-5", "6-8", "9+"], np.digitize(charlson, _CHARLSON)
    if at_first:
        before = np.asarray(episodes.prior_action)[:, 0] > 0
        return ["not at first", "at first"], (episodes.ventilated[:, 0] if by == "ventilated" else before).astype(int)
    ever = np.asarray(episodes.ventilated) if by == "ventilated" else np.asarray(episodes.vaso_dose) > 0
    return ["never", "ever"], (ever & valid).any(axis=1).astype(int)


GROUPINGS = ("sex", "age_band", "charlson_band", "ventilated", "any_vasopressor")


def parse(text: str) -> tuple[str, ...]:
    """Groupings from a comma-separated list. Raises InputError for one that does not exist."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in GROUPINGS:
            raise InputError("--by", expected=f"some of {', '.join(GROUPINGS)}", found=name or "an empty name")
    return names


def group_rows(scores: Scores, episodes: Episodes, by: tuple[str, ...], settings: EvaluationSettings) -> list[Row]:
    """Rows of each group: 90-day mortality (AUROC, ECE, bias: mean predicted minus observed) and mae_1step.

    Each has `by`, `level` and `stays` besides the keys of a Row.
    """
    counts = patient_counts(np.asarray(episodes.subject_id), draws=settings.draws, seed=settings.seed)
    mortality, error = scores.labelled["mortality"], scores.means["mae_1step"]
    out = []
    for grouping in by:
        names, level = levels(episodes, grouping)
        for i, name in enumerate(names):
            inside = level == i
            chosen = inside[mortality.stay]
            part = Labelled(*(column[chosen] for column in mortality))
            found = [class_row(f"mortality_{figure}", part, counts, MORTALITY[figure]) for figure in _FIGURES]
            found.append(mean_row("mae_1step", np.where(inside[:, None], error, 0), counts))
            where = {"by": grouping, "level": name, "stays": int(inside.sum())}
            out += [row | where for row in found]
    return out


def wide(found: list[Row]) -> pd.DataFrame:
    """One row a group, one column a figure."""
    cells: dict[str, dict[str, object]] = {}
    for row in found:
        group = cells.setdefault(f"{row['by']}: {row['level']}", {"stays": row["stays"]})
        group[row["metric"]] = cell(row)
    return pd.DataFrame.from_dict(cells, orient="index").rename_axis(index="group")


def flat(found: list[Row]) -> dict[str, float | None]:
    """`<figure>_<grouping>_<level>` with `_low` and `_high`, and `stays_<grouping>_<level>`."""
    out: dict[str, float | None] = {}
    for row in found:
        group = f"{row['by']}_{row['level']}"
        out[f"stays_{group}"] = row["stays"]
        for key, end in (("value", ""), ("low", "_low"), ("high", "_high")):
            out[f"{row['metric']}_{group}{end}"] = float(row[key]) if np.isfinite(row[key]) else None
    return out
