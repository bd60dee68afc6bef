"""The figures that notebooks and reports share: parts drawn into axes that the caller owns, and figures of a sweep."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from sepsis_jax.clinical.actions import ALL_ACTIONS, LEVELS

# Okabe-Ito: told apart by readers with any colour vision.
RECORD, CHOSEN, CLINICIAN, UNTREATED = "#000000", "#0072B2", "#D55E00", "#7F7F7F"


def fan(
    axes: Axes,
    hours: Any,
    low: Any,
    median: Any,
    high: Any,
    *,
    color: str,
    label: str,
    start: tuple[float, float] | None = None,
    filled: bool = True,
) -> None:
    """Median line and 80 % band f[H] over hours f[H], joined to the present value `start` (hour, value) if given.

    Fill one band only: several on top of each other hide what they show; the others get thin bounds.
    """
    bands = [np.asarray(values, float) for values in (hours, low, median, high)]
    if start is not None:
        hour, value = start
        bands = [np.insert(band, 0, first) for band, first in zip(bands, (hour, value, value, value), strict=True)]
    x, lower, middle, upper = bands
    if filled:
        axes.fill_between(x, lower, upper, color=color, alpha=0.18, linewidth=0)
    else:
        axes.plot(x, np.stack([lower, upper], axis=1), color=color, linewidth=0.9, linestyle="--")
    axes.plot(x, middle, color=color, linewidth=1.6, label=label)


def observed(axes: Axes, hours: Any, values: Any, measured: Any, *, label: str) -> None:
    """A carried-forward series f[T] with a dot where it was measured, bool[T]."""
    hours, values, measured = np.asarray(hours), np.asarray(values, float), np.asarray(measured, bool)
    axes.step(hours, values, where="post", color=RECORD, linewidth=1.0, label=label)
    axes.plot(hours[measured], values[measured], "o", color=RECORD, markersize=3)


def action_heatmap(
    axes: Axes,
    values: Any,
    *,
    title: str,
    marks: Sequence[tuple[tuple[int, int], str, str]] = (),
    number_format: str = "{:.1f}",
    reverse: bool = False,
) -> None:
    """5x5 map of f[25] in action order: vasopressor level upwards, fluid level to the right.

    Args:
      axes: to draw into.
      values: one number an action; NaN stays blank.
      title: what they are.
      marks: ((vasopressor, fluid), colour, label) frames around cells.
      number_format: of the numbers in the cells.
      reverse: True where low is good.
    """
    grid = np.asarray(values, float).reshape(LEVELS, LEVELS)
    axes.imshow(grid, origin="lower", cmap="viridis_r" if reverse else "viridis", aspect="auto")
    finite = grid[np.isfinite(grid)]
    middle = (finite.min() + finite.max()) / 2 if finite.size else 0.0
    for (vasopressor, fluid), value in np.ndenumerate(grid):
        if np.isfinite(value):
            color = "black" if (value > middle) != reverse else "white"
            axes.text(fluid, vasopressor, number_format.format(value), ha="center", va="center", color=color, size=7)
    for (vasopressor, fluid), color, label in marks:
        frame = Rectangle(
            (fluid - 0.46, vasopressor - 0.46), 0.92, 0.92, fill=False, edgecolor=color, linewidth=2.5, label=label
        )
        axes.add_patch(frame)
    axes.set_xticks(range(LEVELS))
    axes.set_yticks(range(LEVELS))
    axes.set_xlabel("IV fluid level")
    axes.set_ylabel("vasopressor level")
    axes.set_title(title, size=9)


def effects_over_time(axes: Axes, hours: Any, values: Any, actions: Any, *, label: str) -> None:
    """Lines f[K,H] over hours f[H], one a candidate that begins with `actions` int[K,2].

    Colour tells the vasopressor level, line width the fluid level.
    """
    colors = colormaps["viridis"](np.linspace(0, 0.9, LEVELS))
    for (vasopressor, fluid), line in zip(np.asarray(actions), np.asarray(values, float), strict=True):
        name = f"vasopressor {vasopressor}" if fluid == 0 else None
        axes.plot(hours, line, color=colors[vasopressor], linewidth=0.6 + 0.5 * fluid, label=name)
    axes.axhline(0, color=UNTREATED, linewidth=0.8)
    axes.set_xlabel("hours")
    axes.set_ylabel(label)


def has_all_actions(sweep: xr.Dataset) -> bool:
    """Whether the candidates of a sweep are the 25 actions, in their order."""
    return sweep.candidate.values.tolist() == [f"({vasopressor}, {fluid})" for vasopressor, fluid in ALL_ACTIONS]


def sweep_fans(sweep: xr.Dataset, episode: int, time: int, candidates: Sequence[str]) -> Figure:
    """Median and 80 % interval of every feature of a sweep after one decision, a panel each.

    Args:
      sweep: as sweep.py writes it. episode: id of the stay. time: step of the decision. candidates: up to three labels.
    """
    colors = (CHOSEN, CLINICIAN, UNTREATED)
    figure, panels = _panels(sweep.sizes["feature"])
    for axes, name in zip(panels, sweep.feature.values, strict=True):
        here = sweep.obs.sel(episode=episode, time=time, feature=name)
        for i, (color, candidate) in enumerate(zip(colors[: len(candidates)], candidates, strict=True)):
            bands = [here.sel(candidate=candidate, statistic=statistic) for statistic in ("q10", "q50", "q90")]
            fan(axes, sweep.horizon, *bands, color=color, label=candidate, filled=i == 0)
        axes.set_title(f"{name} ({sweep.feature_units.sel(feature=name).item()})", size=9)
        axes.set_xlabel("hours")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=LEVELS, fontsize=8)
    figure.suptitle(f"stay {episode}, step {time}: median and 80 % of simulated futures", size=10)
    return figure


def sweep_maps(sweep: xr.Dataset, episode: int, time: int) -> Figure:
    """Maps of the 25 actions at one decision: return, 90-day mortality, and every event at the horizon.

    Args:
      sweep: as sweep.py writes it, of all 25 actions. episode: id of the stay. time: step of the decision.
    """
    here = sweep.sel(episode=episode, time=time)
    events = here.events.isel(horizon=-1)
    figure, panels = _panels(2 + events.sizes["event"])
    action_heatmap(panels[0], here.value, title="expected return")
    action_heatmap(panels[1], 100 * here.death_90d, title="90-day mortality, %", reverse=True)
    for axes, name in zip(panels[2:], sweep.event.values, strict=True):
        values, title = events.sel(event=name), f"{name} after {sweep.horizon.values[-1]} h"
        if name == "sofa":  # a score; the others are probabilities
            action_heatmap(axes, values, title=title, reverse=True)
        else:
            good = name in ("in_icu", "discharged", "lactate_falls")
            action_heatmap(axes, 100 * values, title=f"{title}, %", reverse=not good)
    shown = "return, mortality and exits of all, the rest of those still in the ICU"
    figure.suptitle(f"stay {episode}, step {time}: {shown}", size=10)
    return figure


def sweep_effects(sweep: xr.Dataset, time: int) -> Figure:
    """Difference that each action makes to the mean of every feature against (0, 0), over the stays, a panel each.

    Means are of who is still in the ICU; a stay counts at a horizon where that is somebody under every action.

    Args:
      sweep: as sweep.py writes it, of all 25 actions. time: step of the decisions.
    """
    mean = sweep.obs.sel(statistic="mean", time=time)
    effect = (mean - mean.sel(candidate="(0, 0)", drop=True)).where(mean.notnull().all("candidate")).mean("episode")
    figure, panels = _panels(sweep.sizes["feature"])
    for axes, name in zip(panels, sweep.feature.values, strict=True):
        label = f"effect on {name} ({sweep.feature_units.sel(feature=name).item()})"
        lines = effect.sel(feature=name).transpose("candidate", "horizon")
        effects_over_time(axes, sweep.horizon, lines, ALL_ACTIONS, label=label)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=LEVELS, fontsize=8)
    figure.suptitle(f"step {time}: effect against no treatment, of those still in the ICU, mean over stays", size=10)
    return figure


def _panels(number: int) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels, four in a row."""
    columns = min(4, number)
    rows = -(-number // columns)
    figure = Figure(figsize=(3.4 * columns, 2.8 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for unused in panels[number:]:
        unused.remove()
    return figure, panels[:number]


def png(figure: Figure) -> bytes:
    """The figure as the content of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def svg(figure: Figure) -> str:
    """The figure as a data URI for an <img> of a self-contained page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def training(log: Mapping[str, Any], titles: Mapping[str, str]) -> Figure:
    """A panel for each figure of a training log, with its mean over a tenth of the updates; NaN leaves a gap.

    Args:
      log: columns f[N] of updates; `step` is their number. titles: column -> what its panel is called.
    """
    figure, panels = _panels(len(titles))
    for axes, (name, title) in zip(panels, titles.items(), strict=True):
        values = pd.Series(log[name], dtype=float)
        smooth = values.rolling(max(1, len(values) // 10), min_periods=1, center=True).mean()
        axes.plot(log["step"], values, color=UNTREATED, linewidth=0.6)
        axes.plot(log["step"], smooth, color=CHOSEN, linewidth=1.6)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("update", fontsize=8)
        axes.tick_params(labelsize=8)
    return figure


def forest(figure: Figure, rows: Any, *, truth: Any = None) -> None:
    """Values of policies with their intervals, one panel an estimator; hollow where they are not reliable.

    Args:
      rows: DataFrame with columns policy, estimator, value, low, high, reliable.
      truth: Series policy -> true value, drawn as a cross where it is known; None without.
    """
    policies, estimators = list(dict.fromkeys(rows["policy"])), list(dict.fromkeys(rows["estimator"]))
    height = {name: len(policies) - i for i, name in enumerate(policies)}
    panels = figure.subplots(1, len(estimators), sharey=True, squeeze=False)[0]
    for axes, estimator in zip(panels, estimators, strict=True):
        for row in rows[rows["estimator"] == estimator].itertuples():
            color = CHOSEN if row.reliable else UNTREATED
            axes.plot([row.low, row.high], [height[row.policy]] * 2, color=color, linewidth=1.2)
            fill = color if row.reliable else "white"
            axes.plot(row.value, height[row.policy], "o", color=color, markerfacecolor=fill, markersize=4)
        if truth is not None:
            axes.plot(truth.reindex(policies), list(height.values()), "x", color=CLINICIAN, markersize=5)
        own = rows[(rows["estimator"] == estimator) & (rows["policy"] == policies[0])]["value"].iloc[0]
        axes.axvline(own, color=RECORD, linewidth=0.6, linestyle=":")
        axes.set_title(estimator, fontsize=9)
        axes.set_xlabel("value", fontsize=8)
        axes.tick_params(labelsize=8)
    panels[0].set_yticks(list(height.values()), policies)


def weights(figure: Figure, diagnoses: Any, edges: Any) -> None:
    """Effective patients by step, and stays by the size of their weight, of each policy.

    Args:
      diagnoses: mapping policy -> `ope.diagnostics.Diagnosis`. edges: f[13] powers of ten between its classes.
    """
    left, right = figure.subplots(1, 2)
    places = np.append(np.asarray(edges), edges[-1] + 1) - 0.5
    for name, one in diagnoses.items():
        left.plot(np.maximum(one.ess_at, 0.5), linewidth=1.0, label=name)
        right.plot(places, np.maximum(one.histogram, 0.5), linewidth=1.0, label=name, drawstyle="steps-mid")
    for axes in (left, right):
        axes.set_yscale("log")
        axes.tick_params(labelsize=8)
    left.set_xlabel("decision", fontsize=8)
    left.set_ylabel("effective patients", fontsize=8)
    right.set_xlabel("weight, power of ten (left: none)", fontsize=8)
    right.set_ylabel("stays", fontsize=8)
    right.legend(fontsize=6, ncols=2)
