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
from sepsis_jax.evaluation.closed_loop import Chances, Played, Stage, play
from sepsis_jax.evaluation.policy_table import CLINICIANS
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
        asked = questions.folder_of(folder) / transcripts.FILE
        cases = {one["stay_id"]: one for one in transcripts.cases(folder / transcripts.FILE)}
        return cls(cases, transcripts.read(asked) if asked.is_file() else [])

    def of(self, some: Episodes) -> list[dict[str, Any]]:
        """Transcripts of these stays."""
        return [self.cases[int(stay)] for stay in np.asarray(some.stay_id)]

    @property
    def finished(self) -> set[int]:
        """Stays without failure."""
        return {stay for stay, one in self.cases.items() if one["failed"] is None}


def table(
    runs: Mapping[str, Run], episodes: Episodes, stage: Stage, clinicians: Chances, *, draws: int, seed: int
) -> pd.DataFrame:
    """The clinicians, and a row a model: what it did is judged on stays that all finished, what it said on all its own.

    A model that finished none, since it never came to a valid call, is left out of what was done.

    Args:
      runs: name -> what it did; each is compared with the last one before that finished anything.
      episodes: the cohort, ascending stay_id.
      stage: the simulator that it comes from. clinicians: those in it. draws, seed: of the patient bootstrap.

    Returns:
      Columns patients, failed (of its own cases, a share), and, each with _low and _high: value and death_90d (true),
      gained and saved (against the row above), adherence and unsafe (shares of decisions), valid (of answers),
      tokens (a decision), and AUROC and AUPRC of both questions.
    """
    finished = [run.finished for run in runs.values() if run.finished]
    some = _those(episodes, set.intersection(*finished) if finished else set())
    if not some.num_stays:
        raise InputError("policies", field="agents", expected="stays that all have finished", found="none")
    counts = patient_counts(np.asarray(some.subject_id), draws=draws, seed=seed)
    before = play(clinicians, some, stage)
    outcome = {"value": _mean(before.value, counts), "death_90d": _mean(before.death_90d, counts)}
    rows = {CLINICIANS: {"patients": some.num_stays, "failed": np.nan} | _columns(outcome)}
    for name, run in runs.items():
        figures = {}
        if run.finished:
            lived, cases = _played(run, some, stage), run.of(some)
            figures = {
                "value": _mean(lived.value, counts),
                "death_90d": _mean(lived.death_90d, counts),
                "gained": _mean(lived.value - before.value, counts),
                "saved": _mean(before.death_90d - lived.death_90d, counts),
                "adherence": _share(cases, _decisions, _within_guideline, counts),
                "unsafe": _share(cases, _decisions, _unsafe, counts),
            }
            before = lived
        own = _those(episodes, set(run.cases))
        asked = patient_counts(np.asarray(own.subject_id), draws=draws, seed=seed)
        figures["valid"] = _share(run.of(own), _requests, lambda one: _requests(one) - _malformed(one), asked)
        figures["tokens"] = _share(run.of(own), _tried, _tokens, asked)
        figures |= _answered(run, episodes, draws, seed)
        judged = some.num_stays if run.finished else 0
        rows[name] = {"patients": judged, "failed": 1 - len(run.finished) / len(run.cases)} | _columns(figures)
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")


def _those(episodes: Episodes, stays: set[int]) -> Episodes:
    return episodes.take(np.isin(np.asarray(episodes.stay_id), sorted(stays)))


def _columns(figures: Mapping[str, Cell]) -> dict[str, float]:
    return {
        f"{key}{end}": value
        for key in _SHOWN
        for end, value in zip(("", "_low", "_high"), figures.get(key, _NONE), strict=True)
    }


def _played(run: Run, some: Episodes, stage: Stage) -> Played:
    given = {stay: np.asarray(encode(np.array(_actions(run.cases[stay]), np.int8))) for stay in run.finished}
    again = Answers(np.zeros(0, int), np.zeros((0, 0, 25), np.float32), given).again
    return play(again, some, stage)


def _actions(case: dict[str, Any]) -> list[Any]:
    return [decision["action"] for decision in case["decisions"]]


def _within_guideline(case: dict[str, Any]) -> int:
    return sum("guideline" not in decision["broken"] for decision in case["decisions"])


def _unsafe(case: dict[str, Any]) -> int:
    return sum("unsafe" in decision["broken"] for decision in case["decisions"])


def _decisions(case: dict[str, Any]) -> int:
    return len(case["decisions"])


def _tried(case: dict[str, Any]) -> int:
    return _decisions(case) + (case["failed"] is not None)


def _requests(case: dict[str, Any]) -> int:
    return int(case["usage"]["requests"])


def _malformed(case: dict[str, Any]) -> int:
    return sum(case["usage"]["malformed"].values())


def _tokens(case: dict[str, Any]) -> int:
    return int(case["usage"]["prompt_tokens"] + case["usage"]["completion_tokens"])


def _mean(figures: Any, counts: np.ndarray) -> Cell:
    each = np.asarray(figures)
    return (float(each.mean()), *interval(counts @ each / counts.sum(axis=1)))


def _share(
    cases: Sequence[dict[str, Any]], of: Callable[[Any], float], what: Callable[[Any], float], counts: np.ndarray
) -> Cell:
    above, below = (np.array([count(one) for one in cases], float) for count in (what, of))
    return (float(above.sum() / below.sum()) if below.sum() else np.nan, *ratio_interval(above, below, counts))


def _answered(run: Run, episodes: Episodes, draws: int, seed: int) -> dict[str, Cell]:
    names = [(about, name) for about in questions.QUESTIONS for name in ("AUROC", "AUPRC")]
    if not run.answers:
        return {}
    found = intrinsic.table(questions.answered(episodes, run.answers), draws=draws, seed=seed)
    return {
        f"{about} {name}": tuple(found.loc[about, [name, f"{name}_low", f"{name}_high"]].astype(float))
        for about, name in names
        if about in found.index
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
    cells = {
        "patients": table["patients"].map("{:,}".format),
        "failed": table["failed"].map("{:.1%}".format, na_action="ignore").fillna("-"),
    }
    for key, (title, form, scale) in _SHOWN.items():
        figures = (scale * table[[key, f"{key}_low", f"{key}_high"]]).itertuples(index=False)
        cells[title] = pd.Series(
            ["-" if np.isnan(f[0]) else "{} [{}, {}]".format(*map(form.format, f)) for f in figures], index=table.index
        )
    return pd.DataFrame(cells).T.rename_axis(index="", columns=None)
