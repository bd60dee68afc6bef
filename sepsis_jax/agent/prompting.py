"""What a model is told: Jinja templates of `prompts/`, or of a folder of the user's own that replaces some of them."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import ChoiceLoader, Environment, FileSystemLoader, PackageLoader, StrictUndefined, TemplateError

from sepsis_jax.agent.simulator import Foresight, Next
from sepsis_jax.agent.tools import MOST_CANDIDATES
from sepsis_jax.clinical.actions import ActionBins
from sepsis_jax.clinical.features import FEATURES, NUM_MASKED
from sepsis_jax.errors import InputError
from sepsis_jax.simulation.policy import RARE

HOURS_PER_STEP = 4
ANSWERED = ("meanbp", "heart_rate", "lactate", "output_4hourly", "spo2")
"""Features of a simulation answer; the agent's report shows more."""
_TEMPLATES = ("system", "observation", "simulation", "sample", "question")


def number(value: float | None) -> str:
    """Three digits, never an exponent."""
    if value is None or not math.isfinite(value):
        return "-"
    if abs(value) >= 999.5:
        return f"{value:.0f}"
    return np.format_float_positional(value, precision=3, unique=False, fractional=False, trim="-")


def _percent(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.0%}"


def _band(one: Foresight, name: str, step: int) -> str:
    """Median and interval; nothing where nobody is left in the ICU."""
    median, low, high = (number(part[name][step]) for part in (one.median, one.low, one.high))
    return f"{median} [{low}-{high}]" if median != "-" else "-"


class Prompts:
    """The texts of a dialogue.

    Args:
      folder: templates that replace those of the package, by name; None for none.

    Raises:
      InputError: the folder is missing, holds none of the templates, or one cannot be parsed.
    """

    def __init__(self, folder: Path | None = None) -> None:
        own = [] if folder is None else [FileSystemLoader(str(folder))]
        loader = ChoiceLoader([*own, PackageLoader("sepsis_jax.agent", "prompts")])
        self._texts = Environment(
            loader=loader, undefined=StrictUndefined, autoescape=False, trim_blocks=True, lstrip_blocks=True
        )
        self._texts.filters |= {"number": number, "percent": _percent, "band": _band}
        if folder is not None:
            _check(folder)
        for name in _TEMPLATES:
            try:
                self._texts.get_template(f"{name}.jinja")
            except (TemplateError, UnicodeError, OSError, RecursionError) as error:
                raise InputError(f"{name}.jinja", expected="a Jinja template", found=str(error)) from error

    def system(self, bins: ActionBins, *, simulator: bool, simulations: int) -> str:
        """The task: levels, guidelines and tools."""
        facts = {"bins": bins, "features": FEATURES, "most_candidates": MOST_CANDIDATES}
        return self._render("system", simulator=simulator, simulations=simulations, **facts)

    def question(self, about: str, asked: str = "") -> str:
        """What is asked about a record, see `agent.questions` and `curriculum.dynamics`; some ask of a feature."""
        return self._render("question", about=about, asked=asked, features=FEATURES)

    def observation(self, **facts: Any) -> str:
        """One decision: who, hour, what was given, and what was newly measured."""
        return self._render("observation", **facts)

    def simulation(self, futures: Sequence[Foresight], samples: int) -> str:
        """The answer to a simulation, in distributions."""
        last = HOURS_PER_STEP * len(futures[0].sofa)
        facts = {"samples": samples, "first": HOURS_PER_STEP, "last": last, "rare": RARE, "features": ANSWERED}
        return self._render("simulation", futures=futures, hours_per_step=HOURS_PER_STEP, **facts)

    def sample(self, actions: Sequence[tuple[int, int]], states: Sequence[Next]) -> str:
        """The answer to a simulation as published: one sampled next state for each action."""
        futures = [
            (action, measured(one.obs, np.ones(NUM_MASKED, bool))) for action, one in zip(actions, states, strict=True)
        ]
        return self._render("sample", futures=futures, hours_per_step=HOURS_PER_STEP)

    def _render(self, name: str, **facts: Any) -> str:
        try:
            return self._texts.get_template(f"{name}.jinja").render(**facts).strip()
        except Exception as error:  # a template can compute anything
            raise InputError(f"{name}.jinja", expected="a template of known names", found=repr(error)[:200]) from error


def measured(obs: np.ndarray, mask: np.ndarray) -> list[dict[str, str]]:
    """Name, value and unit of the features f32[F] that the mask bool[38] says were measured; urine always is."""
    return [
        {"name": f.name, "value": number(float(obs[i])), "unit": f.unit}
        for i, f in enumerate(FEATURES)
        if i >= NUM_MASKED or mask[i]
    ]


def _check(folder: Path) -> None:
    names = [f"{name}.jinja" for name in _TEMPLATES]
    for name in names:
        if (folder / name).exists() and not (folder / name).is_file():
            raise InputError(folder / name, expected="a file", found="something else")
    if not any((folder / name).is_file() for name in names):
        raise InputError(folder, expected=f"some of {', '.join(names)}", found="none")


@functools.cache
def package_prompts() -> Prompts:
    """Those of the package."""
    return Prompts()
