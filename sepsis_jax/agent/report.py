"""One self-contained HTML page for a run: what was seen, simulated, chosen and why, beside the clinicians' action."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from sepsis_jax import plotting
from sepsis_jax.agent.prompting import HOURS_PER_STEP
from sepsis_jax.agent.simulator import ANSWER_FEATURES
from sepsis_jax.agent.transcripts import ended, recorded
from sepsis_jax.clinical.features import FEATURES, INDEX, URINE

_PAGES = Environment(loader=PackageLoader("sepsis_jax.agent"), undefined=StrictUndefined, autoescape=True)
FILE = "report.html"
MOST_CASES = 50
"""Shown; a page of hundreds would not open."""


def write(path: Path, transcripts: list[dict[str, Any]], run: dict[str, Any]) -> None:
    """Write the page.

    Args:
      path: HTML file to make.
      transcripts: of `agent.transcripts`. The first `MOST_CASES` are shown, those that failed before the others.
      run: facts of the run shown at the top (name -> text).
    """
    shown = sorted(transcripts, key=lambda one: one["failed"] is None)[:MOST_CASES]
    page = _PAGES.get_template("report.html.jinja").render(
        cases=[_case(one) for one in shown],
        left_out=len(transcripts) - len(shown),
        run=run,
        totals=_totals(transcripts),
    )
    path.write_text(page, encoding="utf-8", errors="replace")  # a model can say half a character


def _totals(transcripts: list[dict[str, Any]]) -> dict[str, str]:
    decisions = [decision for one in transcripts for decision in one["decisions"]]
    both = [d for d in decisions if d["clinician"] is not None and d["source"] == "record"]
    agree = sum(d["action"] == d["clinician"] for d in both)
    kept = sum("guideline" not in d["broken"] for d in decisions)
    clinicians = sum("guideline" not in d["clinician_broken"] for d in both)
    failed = sum(one["failed"] is not None for one in transcripts)
    return {
        "Stays": f"{len(transcripts)}, of which {failed} failed" if failed else str(len(transcripts)),
        "Decisions": str(len(decisions)),
        "Same as the clinician": f"{agree} of {len(both)} decisions on recorded states",
        "Guideline kept": f"{kept} of {len(decisions)} decisions",
        "Guideline kept by clinicians": f"{clinicians} of {len(both)} on the same recorded states",
    }


def _case(one: dict[str, Any]) -> dict[str, Any]:
    decisions, failed = one["decisions"], one["failed"]
    return {
        "stay_id": one["stay_id"],
        "patient": one["patient"],
        "ended": ended(one) + (f": {failed['detail']}" if failed is not None else ""),
        "recorded": recorded(one),
        "fans": plotting.svg(_fans(one)) if decisions else None,
        "maps": plotting.svg(_maps(decisions[0])) if decisions and decisions[0]["considered"] else None,
        "decisions": [_decision(d) for d in decisions],
        "messages": one["messages"],
    }


def _decision(d: dict[str, Any]) -> dict[str, Any]:
    ranked = sorted(d["considered"], key=lambda future: -future["value"])
    return d | {
        "hour": HOURS_PER_STEP * (d["step"] + 1),
        "ranked": ranked,
        "vitals": {name: d["obs"][name] for name in ("meanbp", "heart_rate", "lactate", "output_4hourly")},
    }


def _future(decision: dict[str, Any], action: Any) -> dict[str, Any] | None:
    return next((f for f in decision["considered"] if f["action"] == list(action)), None)


def _fans(one: dict[str, Any]) -> Figure:
    """What was lived, with the futures simulated at the first decision."""
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    grid = figure.subplots(2, 3)
    first = one["decisions"][0]
    hours = np.array([HOURS_PER_STEP * (d["step"] + 1) for d in one["decisions"]])
    lines = [(first["action"], plotting.CHOSEN, "chosen"), ([0, 0], plotting.UNTREATED, "no treatment")]
    if first["clinician"] not in (None, first["action"]):
        lines.insert(1, (first["clinician"], plotting.CLINICIAN, "clinician's"))
    for axes, name in zip(grid.flat, ANSWER_FEATURES, strict=True):
        values = np.array([d["obs"][name] for d in one["decisions"]])
        measured = [INDEX[name] == URINE or name in d["measured"] for d in one["decisions"]]
        plotting.observed(axes, hours, values, measured, label="lived")
        for action, color, label in lines:
            if (future := _future(first, action)) is not None:
                horizon = hours[0] + HOURS_PER_STEP * np.arange(1, len(future["sofa"]) + 1)
                bands = ([np.nan if v is None else v for v in future[key][name]] for key in ("low", "median", "high"))
                text = f"{label} ({action[0]},{action[1]})"
                chosen = color == plotting.CHOSEN
                plotting.fan(axes, horizon, *bands, color=color, label=text, start=(hours[0], values[0]), filled=chosen)
        axes.set_title(f"{name} ({FEATURES[INDEX[name]].unit})", size=9)
        ahead = max((len(future["sofa"]) for future in first["considered"]), default=0)
        axes.set_xlim(hours[0] - 2, max(hours[-1], hours[0] + HOURS_PER_STEP * ahead) + 2)
    simulated = next((h for h, d in zip(hours, one["decisions"], strict=True) if d["source"] != "record"), None)
    for axes in grid.flat:
        if simulated is not None:
            axes.axvline(simulated - HOURS_PER_STEP / 2, color="0.6", linestyle=":", linewidth=1)
    for axes in grid[1]:
        axes.set_xlabel("hours since the anchor")
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def _maps(decision: dict[str, Any]) -> Figure:
    """Expected return and 90-day mortality of all candidates at the first decision."""
    figure = Figure(figsize=(11, 2.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    value, death = np.full(25, np.nan), np.full(25, np.nan)
    for future in decision["considered"]:
        index = 5 * future["action"][0] + future["action"][1]
        value[index], death[index] = future["value"], 100 * future["death_90d"]
    marks = [(tuple(decision["action"]), plotting.CHOSEN, "chosen")]
    if decision["clinician"] not in (None, decision["action"]):
        marks.append((tuple(decision["clinician"]), plotting.CLINICIAN, "clinician's"))
    plotting.action_heatmap(left, value, title="expected return", marks=marks)
    plotting.action_heatmap(right, death, title="90-day mortality (%)", marks=marks, reverse=True)
    return figure
