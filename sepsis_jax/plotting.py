"""The figures that notebooks and reports share. Every function draws into axes that the caller owns."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from sepsis_jax.clinical.actions import LEVELS

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
    middle = (np.nanmin(grid) + np.nanmax(grid)) / 2
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


def svg(figure: Figure) -> str:
    """The figure as a data URI for an <img> of a self-contained page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
