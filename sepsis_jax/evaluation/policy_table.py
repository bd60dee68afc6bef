"""The policy table: what each policy, played in the true simulator, does to 90-day mortality."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sepsis_jax.errors import InputError
from sepsis_jax.evaluation.closed_loop import Played
from sepsis_jax.evaluation.keep import kept, slug
from sepsis_jax.ope.bootstrap import interval, patient_counts
from sepsis_jax.policies.planner import PlannerSettings

CLINICIANS = "clinicians"
"""The policy that the others are compared with."""


@dataclasses.dataclass(frozen=True)
class Result:
    """How n patients fared under a policy.

    Attributes:
      death_90d: f32[n] true probability of death within 90 days. value: f32[n] return.
      vasopressor, fluid: f32[n] mean level given.
      seconds: f64[] it took.
    """

    death_90d: np.ndarray
    value: np.ndarray
    vasopressor: np.ndarray
    fluid: np.ndarray
    seconds: Any

    @classmethod
    def of(cls, played: Played, seconds: float) -> Result:
        """Of a finished play."""
        vasopressor, fluid = (played.history.action.sum(axis=1) / played.history.length[:, None]).T
        return cls(played.death_90d, played.value, vasopressor, fluid, np.float64(seconds))


def kept_result(folder: Path, name: str, depends: Any, compute: Callable[[], Played]) -> Result:
    """The result of policy `name` as `folder` keeps it, or computed and kept there (see `keep.kept`)."""

    def timed() -> dict[str, Any]:
        before = time.monotonic()
        return vars(Result.of(compute(), time.monotonic() - before))

    found = kept(folder, name, depends, timed)
    if set(found) != {field.name for field in dataclasses.fields(Result)}:
        raise InputError(folder, expected=f"a finished policy '{name}'", found="other arrays", hint="remove the folder")
    return Result(**found)


def tabulate(
    results: Mapping[str, Result],
    planners: Mapping[str, PlannerSettings],
    subject_id: np.ndarray,
    *,
    draws: int,
    seed: int,
) -> pd.DataFrame:
    """One row a policy.

    Args:
      results: of `CLINICIANS` and the others. Each has the first n of the same stays, n its own; its difference to
        the clinicians is paired, on those n.
      planners: settings of those policies that plan.
      subject_id: int[N] whose stays they are. draws, seed: of the patient bootstrap.

    Returns:
      Columns policy, patients, death_90d, saved (deaths that the policy saves, as a share of the patients), value and
      gained (value above the clinicians'), each with _low and _high (95 %), vasopressor, fluid (mean levels), seconds,
      and samples, horizon, caution (NaN for who does not plan).
    """
    base, rows = results[CLINICIANS], []
    for name, own in results.items():
        number = own.death_90d.size
        subject = np.asarray(subject_id)[:number]
        counts = patient_counts(subject, draws=draws, seed=seed)
        row: dict[str, Any] = {"policy": name, "patients": np.unique(subject).size}
        saved = base.death_90d[:number] - own.death_90d
        gained = own.value - base.value[:number]
        each_of = {"death_90d": own.death_90d, "saved": saved, "value": own.value, "gained": gained}
        for figure, each in each_of.items():
            low, high = interval(counts @ each / counts.sum(axis=1))
            row |= {figure: each.mean(), f"{figure}_low": low, f"{figure}_high": high}
        row |= {figure: getattr(own, figure).mean() for figure in ("vasopressor", "fluid", "seconds")}
        row |= {key: getattr(planners.get(name), key, np.nan) for key in ("samples", "horizon", "caution")}
        rows.append(row)
    return pd.DataFrame(rows)


def wide(table: pd.DataFrame) -> pd.DataFrame:
    """For people: percent, and minutes of wall time."""
    cells = pd.DataFrame({"patients": table["patients"].map("{:,}".format)})
    for figure, title in (("death_90d", "90-day mortality, %"), ("saved", "saved, points")):
        percent = (100 * table[[figure, f"{figure}_low", f"{figure}_high"]]).itertuples(index=False)
        cells[title] = [f"{value:.2f} [{low:.2f}, {high:.2f}]" for value, low, high in percent]
    cells.loc[(table["policy"] == CLINICIANS).to_numpy(), "saved, points"] = "-"
    cells["return"] = table["value"]
    cells["levels (v, f)"] = [f"{row.vasopressor:.2f}, {row.fluid:.2f}" for row in table.itertuples()]
    cells["S"], cells["H"], cells["caution"] = table["samples"], table["horizon"], table["caution"]
    cells["min"] = table["seconds"] / 60
    return cells.set_index(table["policy"])


def flat(table: pd.DataFrame) -> dict[str, float]:
    """The table as one flat object: `<policy>_<column>`."""
    return {
        f"{slug(row['policy'])}_{name}": float(row[name])
        for row in table.to_dict("records")
        for name in table.columns
        if name != "policy"
    }
