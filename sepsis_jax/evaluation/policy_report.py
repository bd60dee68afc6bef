"""The policy table for people and for files: console, CSV, JSON, Markdown, LaTeX and two figures."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sepsis_jax import files, plotting
from sepsis_jax.evaluation.keep import slug
from sepsis_jax.evaluation.off_policy import ALL, ESTIMATORS
from sepsis_jax.evaluation.policies import Findings, true_values
from sepsis_jax.ope.diagnostics import EDGES

MARK = "†"
NOTE = f"{MARK} not reliable; policies.csv says why."
TREATING = "Treating policy: what it says, and how often it was done"
_LATEX = re.compile(r"[%_&#$]")  # what a caption must escape
RULES = ("guideline", "underdosing", "overdosing", "festor_a", "festor_b")


def value_table(findings: Findings, by: str = ALL, level: str = ALL) -> pd.DataFrame:
    """One row a policy: estimates with intervals, ESS, the heaviest patient's share, agreement, what is unsupported."""
    some = findings.values[(findings.values["by"] == by) & (findings.values["level"] == level)]
    habits, out = findings.habits.set_index("policy"), {}
    for policy, rows in some.groupby("policy", sort=False):
        of = rows.set_index("estimator")
        cells: dict[str, object] = {name: _cell(of.loc[name]) for name in ESTIMATORS}
        wis = of.loc["WIS"]
        cells |= {"ESS": f"{wis['ess']:.0f} of {wis['patients']}", "heaviest": f"{wis['max_share']:.1%}"}
        if by == ALL:
            cells |= {name: f"{habits.loc[policy, name]:.1%}" for name in ("agreement", "unsupported")}
        out[str(policy)] = cells
    return pd.DataFrame.from_dict(out, orient="index").rename_axis(index="policy")


def _cell(row: pd.Series) -> str:
    mark = "" if row["reliable"] else MARK
    if not np.isfinite(row["value"]):
        return f"-{mark}"
    if not np.isfinite(row["low"]):
        return f"{row['value']:.2f}{mark}"
    return f"{row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}]{mark}"


def _signed(value: float) -> str:
    return f"{value:+.2f}" if np.isfinite(value) else "-"


def _arrow(before: float, after: float) -> str:
    return f"{before:.2f} -> {after:.2f}" if np.isfinite(before) else "-"


def clipped_table(findings: Findings) -> pd.DataFrame:
    """One row a policy: weighted estimates as they are, and with the largest weights clipped."""
    some, out = findings.values[findings.values["by"] == ALL], {}
    for policy, rows in some.groupby("policy", sort=False):
        of = rows.set_index("estimator")
        cells = {name: _arrow(of.loc[name, "value"], of.loc[name, "clipped"]) for name in ("DR", "WIS", "WPDIS")}
        out[str(policy)] = cells | {"stays clipped": f"{of['clipped_share'].iloc[0]:.2%}"}
    return pd.DataFrame.from_dict(out, orient="index").rename_axis(index="policy")


def calibration_table(findings: Findings) -> pd.DataFrame:
    """One row a class of probability: predicted and observed frequency, and how many pairs of decision and action."""
    shown = findings.calibration
    cells = {name: shown[name].map("{:.2%}".format) for name in ("predicted", "observed")}
    return pd.DataFrame(cells | {"number": shown["number"].map("{:,}".format)}).rename_axis(index="class")


def rule_table(findings: Findings) -> pd.DataFrame:
    """One row a policy: decisions without a broken guideline rule, and hazards among the decisions at risk."""
    rules, out = findings.rules, {}
    for policy, rows in rules.groupby("policy", sort=False):
        of = rows.set_index("rule")
        kept = of.loc["guideline"]
        low, high = 1 - kept["rate_all_high"], 1 - kept["rate_all_low"]
        cells = {"guideline kept": f"{1 - kept['rate_all']:.2%} [{100 * low:.2f}, {100 * high:.2f}]"}
        for rule in RULES[1:]:
            one = of.loc[rule]
            cells[rule] = (
                f"{one['rate']:.1%} of {one['at_risk']:.0f} ({one['rate_all']:.2%})" if one["at_risk"] else "-"
            )
        out[str(policy)] = cells
    return pd.DataFrame.from_dict(out, orient="index").rename_axis(index="policy")


def outcome_table(findings: Findings) -> pd.DataFrame:
    """One row a policy: 90-day mortality under the held-out model and in truth, true value, and errors of estimates."""
    out: dict[str, dict[str, object]] = {}
    for stage, title in (("held_out", "held-out model, %"), ("true", "true, %")):
        for row in findings.outcomes.get(stage, pd.DataFrame()).to_dict("records"):
            cells = out.setdefault(row["policy"], {})
            low, high = 100 * row["death_90d_low"], 100 * row["death_90d_high"]
            cells[title] = f"{100 * row['death_90d']:.2f} [{low:.2f}, {high:.2f}]"
            cells[f"saved, {stage.replace('_', ' ')}"] = (
                f"{100 * row['saved']:.2f} [{100 * row['saved_low']:.2f}, {100 * row['saved_high']:.2f}]"
            )
    if "true" in findings.outcomes:
        errors = findings.values[findings.values["by"] == ALL].pivot(
            index="policy", columns="estimator", values="error"
        )
        for policy, value in true_values(findings.outcomes).items():
            out[str(policy)]["true value"] = f"{value:.2f}"
            out[str(policy)] |= {f"{name} error": _signed(errors.loc[policy, name]) for name in ESTIMATORS}
    return pd.DataFrame.from_dict(out, orient="index").rename_axis(index="policy")


def sweep_table(findings: Findings) -> pd.DataFrame:
    """One row a policy, one column a share of clinicians: WIS with effective patients."""
    found = []
    for row in findings.sweep.itertuples():
        mark = "" if row.reliable else MARK
        found.append(f"{row.value:.2f} ({row.ess:.0f}){mark}" if np.isfinite(row.value) else f"-{mark}")
    cells = findings.sweep.assign(cell=found)
    wide = cells.pivot(index="policy", columns="softening", values="cell").loc[cells["policy"].unique()]
    return wide.rename(columns="{:g}".format).rename_axis(columns=None)


def tables(findings: Findings) -> dict[str, pd.DataFrame]:
    """Every table that the findings hold, by title."""
    found = {"Values (95 % by patient)": value_table(findings)}
    for by, level in dict.fromkeys(zip(findings.values["by"], findings.values["level"], strict=True)):
        if by != ALL:
            number = findings.values[(findings.values["by"] == by) & (findings.values["level"] == level)]["stays"].iloc[
                0
            ]
            found[f"Values, {by}: {level} (n = {number})"] = value_table(findings, by, level)
    found["Weights as they are -> clipped"] = clipped_table(findings)
    found["WIS (effective patients) by share of clinicians mixed in"] = sweep_table(findings)
    found[TREATING] = calibration_table(findings)
    found["Rules: rate among decisions at risk (among all)"] = rule_table(findings)
    if findings.outcomes:
        found["90-day mortality, deaths saved in points, and errors of the estimates"] = outcome_table(findings)
    return found


def flat(findings: Findings) -> dict[str, float | None]:
    """Everything as one flat object: `<policy>_<estimator>[_<by>_<level>]_<figure>`, `<policy>_<stage>_<figure>`,
    `<policy>_<rule>_<figure>`, `<policy>_wis_softened_<share>_<figure>`, and the habits `<policy>_<figure>`."""
    out: dict[str, float | None] = {}
    numbers = [name for name in findings.values.columns if name not in ("by", "level", "policy", "estimator", "reason")]
    for row in findings.values.to_dict("records"):
        group = "" if row["by"] == ALL else f"_{slug(row['by'])}_{slug(row['level'])}"
        prefix = f"{slug(row['policy'])}_{row['estimator'].lower()}{group}"
        out |= {f"{prefix}_{name}": _number(row[name]) for name in numbers}
    for stage, table in findings.outcomes.items():
        for row in table.to_dict("records"):
            out |= _keyed(row, stage)
    for row in findings.rules.to_dict("records"):
        out |= _keyed(row, row.pop("rule"))
    for row in findings.sweep.to_dict("records"):
        out |= _keyed(row, f"wis_softened_{row.pop('softening'):g}")
    for row in findings.habits.to_dict("records"):
        out |= _keyed(row)
    return out


def _keyed(row: dict[str, Any], *what: str) -> dict[str, float | None]:
    prefix = "_".join([slug(row.pop("policy")), *what])
    return {f"{prefix}_{name}": _number(value) for name, value in row.items()}


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def write(findings: Findings, folder: Path, footer: str) -> list[Path]:
    """Tables as policies.csv, .md and .tex, figures values.png and weights.png; returns what was written."""
    found = tables(findings)
    markdown = [f"## {title}\n\n{_markdown(table)}" for title, table in found.items()]
    latex = [table.to_latex(caption=_LATEX.sub(r"\\\g<0>", title), escape=True) for title, table in found.items()]
    texts = {
        "policies.csv": findings.values.to_csv(index=False),
        "policies.md": "\n\n".join([*markdown, NOTE, footer]) + "\n",
        "policies.tex": "\n".join([*latex, f"% {NOTE} {footer}"]) + "\n",
    }
    for name, text in texts.items():
        files.write(folder / name, text.encode())
    everyone = findings.values[findings.values["by"] == ALL]
    truth = true_values(findings.outcomes) if "true" in findings.outcomes else None
    for name, draw in {
        "values.png": lambda figure: plotting.forest(figure, everyone, truth=truth),
        "weights.png": lambda figure: plotting.weights(figure, findings.weights, EDGES),
    }.items():
        figure = Figure(figsize=(10, 1.2 + 0.25 * everyone["policy"].nunique()), layout="constrained", dpi=110)
        draw(figure)
        files.write(folder / name, plotting.png(figure))
    return [folder / name for name in (*texts, "values.png", "weights.png")]


def _markdown(table: pd.DataFrame) -> str:
    names = [str(table.index.name or ""), *table.columns]
    lines = [names, ["---"] * len(names), *([label, *cells] for label, *cells in table.itertuples())]
    return "\n".join(f"| {' | '.join('' if cell is np.nan else str(cell) for cell in line)} |" for line in lines)
