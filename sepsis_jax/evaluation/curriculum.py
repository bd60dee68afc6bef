"""The ablation table: what each stage of the curriculum changed, on the same patients with the same luck.

Courses are those of `agent_loop.py --agent.follow truth`; they are played again in the patient simulator, so values and
mortality are true ones and differences between models are paired.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sepsis_jax.agent import questions, transcripts
from sepsis_jax.clinical.actions import encode
from sepsis_jax.data.episodes import Episodes
from sepsis_jax.errors import InputError
from sepsis_jax.evaluation import agents, intrinsic
from sepsis_jax.evaluation.agents import Answers
from sepsis_jax.evaluation.closed_loop import Stage, play
from sepsis_jax.ope.bootstrap import interval, patient_counts, ratio_interval

Cell = tuple[float, float, float]
"""A figure with its 95 % interval."""
_NONE: Cell = (np.nan, np.nan, np.nan)


@dataclasses.dataclass(frozen=True)
class Run:
    """What one model did: transcripts by stay, and its answers to questions, if it was asked."""

    cases: Mapping[int, dict[str, Any]]
    answers: Sequence[dict[str, Any]]

    @classmethod
    def read(cls, folder: Path) -> Run:
        """That in `folder`. InputError unless it was lived in the patient simulator."""
        if agents.lived(folder) is None:
            hint = "run agent_loop.py with --agent.follow truth"
            raise InputError(folder, expected="courses in the patient simulator", found="none", hint=hint)
        asked = folder.with_name(f"{folder.name}.questions") / transcripts.FILE
        cases = {one["stay_id"]: one for one in transcripts.read(folder / transcripts.FILE)}
        return cls(cases, transcripts.read(asked) if asked.is_file() else [])

    @property
    def finished(self) -> set[int]:
        """Stays without failure."""
        return {stay for stay, one in self.cases.items() if one["failed"] is None}


def table(runs: Mapping[str, Run], episodes: Episodes, stage: Stage, *, draws: int, seed: int) -> pd.DataFrame:
    """One row a model, on the stays that all of them finished.

    Args:
      runs: name -> what it did; each is compared with the one before. episodes: the cohort, ascending stay_id.
      stage: the simulator that it comes from. draws, seed: of the patient bootstrap.

    Returns:
      Columns patients, failed (of its own cases, a share), and, each with _low and _high: value and death_90d (true),
      gained and saved (against the row above), adherence and unsafe (shares of decisions), valid (of answers),
      tokens (a decision), and AUROC and AUPRC of both questions.
    """
    common = set.intersection(*(run.finished for run in runs.values()))
    some = episodes.take(np.isin(np.asarray(episodes.stay_id), sorted(common)))
    if not some.num_stays:
        raise InputError("policies", field="agents", expected="stays that all have finished", found="none")
    counts = patient_counts(np.asarray(some.subject_id), draws=draws, seed=seed)
    rows, before = {}, None
    for name, run in runs.items():
        lived = _played(run, some, stage)
        cases = [run.cases[int(stay)] for stay in np.asarray(some.stay_id)]
        failed = len(run.cases) - len(run.finished)
        figures: dict[str, Cell] = {
            "value": _mean(lived["value"], counts),
            "gained": _NONE if before is None else _mean(lived["value"] - before["value"], counts),
            "death_90d": _mean(lived["death_90d"], counts),
            "saved": _NONE if before is None else _mean(before["death_90d"] - lived["death_90d"], counts),
            "adherence": _share(cases, _decisions, lambda one: sum("guideline" not in d for d in _broken(one)), counts),
            "unsafe": _share(cases, _decisions, lambda one: sum("unsafe" in d for d in _broken(one)), counts),
            "valid": _share(cases, _requests, lambda one: _requests(one) - _malformed(one), counts),
            "tokens": _share(cases, _decisions, _tokens, counts),
        }
        figures |= _asked(run, episodes, draws, seed)
        rows[name] = {"patients": some.num_stays, "failed": failed / len(run.cases)} | {
            f"{key}{end}": value
            for key, cell in figures.items()
            for end, value in zip(("", "_low", "_high"), cell, strict=True)
        }
        before = lived
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")


def _played(run: Run, some: Episodes, stage: Stage) -> dict[str, np.ndarray]:
    given = {stay: np.asarray(encode(np.array(_actions(run.cases[stay]), np.int8))) for stay in run.finished}
    again = Answers(np.zeros(0, int), np.zeros((0, 0, 25), np.float32), given).again
    found = play(again, some, stage)
    return {"value": np.asarray(found.value), "death_90d": np.asarray(found.death_90d)}


def _actions(case: dict[str, Any]) -> list[Any]:
    return [decision["action"] for decision in case["decisions"]]


def _broken(case: dict[str, Any]) -> list[Any]:
    return [decision["broken"] for decision in case["decisions"]]


def _decisions(case: dict[str, Any]) -> int:
    return len(case["decisions"])


def _requests(case: dict[str, Any]) -> int:
    return int(case["usage"]["requests"])


def _malformed(case: dict[str, Any]) -> int:
    return sum(case["usage"]["malformed"].values())


def _tokens(case: dict[str, Any]) -> int:
    return int(case["usage"]["prompt_tokens"] + case["usage"]["completion_tokens"])


def _mean(each: np.ndarray, counts: np.ndarray) -> Cell:
    return (float(each.mean()), *interval(counts @ each / counts.sum(axis=1)))


def _share(
    cases: Sequence[dict[str, Any]], of: Callable[[Any], float], what: Callable[[Any], float], counts: np.ndarray
) -> Cell:
    above, below = (np.array([count(one) for one in cases], float) for count in (what, of))
    return (float(above.sum() / below.sum()) if below.sum() else np.nan, *ratio_interval(above, below, counts))


def _asked(run: Run, episodes: Episodes, draws: int, seed: int) -> dict[str, Cell]:
    names = [(about, name) for about in questions.QUESTIONS for name in ("AUROC", "AUPRC")]
    if not run.answers:
        return {f"{about} {name}": _NONE for about, name in names}
    found = intrinsic.table(questions.answered(episodes, run.answers), draws=draws, seed=seed)
    return {
        f"{about} {name}": tuple(found.loc[about, [name, f"{name}_low", f"{name}_high"]].astype(float))
        for about, name in names
    }


_SHOWN = {
    "value": ("true value", "{:.2f}", 1),
    "gained": ("gained", "{:+.2f}", 1),
    "death_90d": ("true 90-day mortality, %", "{:.1f}", 100),
    "saved": ("saved, points", "{:+.2f}", 100),
    "adherence": ("guideline, %", "{:.1f}", 100),
    "unsafe": ("unsafe, %", "{:.1f}", 100),
    "valid": ("valid calls, %", "{:.1f}", 100),
    "tokens": ("tokens a decision", "{:,.0f}", 1),
    "mortality AUROC": ("death AUROC", "{:.3f}", 1),
    "mortality AUPRC": ("death AUPRC", "{:.3f}", 1),
    "vasopressor AUROC": ("vasopressor AUROC", "{:.3f}", 1),
    "vasopressor AUPRC": ("vasopressor AUPRC", "{:.3f}", 1),
}


def wide(table: pd.DataFrame) -> pd.DataFrame:
    """For people: a column a model."""
    cells = {"patients": table["patients"].map("{:,}".format), "failed": table["failed"].map("{:.1%}".format)}
    for key, (title, form, scale) in _SHOWN.items():
        figures = (scale * table[[key, f"{key}_low", f"{key}_high"]]).itertuples(index=False)
        cells[title] = pd.Series(
            ["-" if np.isnan(f[0]) else "{} [{}, {}]".format(*map(form.format, f)) for f in figures], index=table.index
        )
    return pd.DataFrame(cells).T.rename_axis(index="", columns=None)
