"""What a sweep compares: the 25 actions, plans from a file, or policies by name."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sepsis_jax.clinical.actions import ALL_ACTIONS, LEVELS
from sepsis_jax.errors import InputError
from sepsis_jax.simulation.policy import Policy

ALL = "all"


@dataclasses.dataclass(frozen=True)
class Candidates:
    """K candidates that one program simulates.

    Attributes:
      names: K labels.
      plans: int8[K,P,2] levels of the first P steps.
      policy, policy_params: what goes on after them.
    """

    names: tuple[str, ...]
    plans: np.ndarray
    policy: Policy
    policy_params: Any


def parse(text: str, hold: int, policies: Mapping[str, tuple[Policy, Any]], usual: str) -> list[Candidates]:
    """Candidates from a command line.

    Args:
      text: 'all' (each action for `hold` steps), a JSON file of plans, or names of policies separated by commas.
      hold: 4-h steps.
      policies: name -> policy and its params. usual: name of the one that goes on after a plan.

    Raises:
      InputError: neither of these, or a file that holds something else.
    """
    if text == ALL:
        names = tuple(f"({vasopressor}, {fluid})" for vasopressor, fluid in ALL_ACTIONS)
        return [Candidates(names, np.repeat(ALL_ACTIONS[:, None], hold, axis=1), *policies[usual])]
    if Path(text).suffix == ".json":
        named = _read(Path(text))
        # Plans of different lengths cannot share an array.
        lengths = sorted({len(plan) for plan in named.values()})
        alike = [{name: plan for name, plan in named.items() if len(plan) == length} for length in lengths]
        return [Candidates(tuple(part), np.stack(list(part.values())), *policies[usual]) for part in alike]
    names = tuple(text.split(","))
    for name in names:
        if name not in policies:
            expected = f"{ALL}, a .json file of plans, or some of {', '.join(policies)}"
            raise InputError("--candidates", expected=expected, found=repr(name))
        if names.count(name) > 1:
            raise InputError("--candidates", expected="each name once", found=f"{name} twice")
    return [Candidates((name,), np.zeros((1, 0, 2), np.int8), *policies[name]) for name in names]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; ValueError where a name stands twice."""
    names = [name for name, _ in pairs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"{', '.join(map(ascii, twice))} twice")
    return dict(pairs)


def _read(file: Path) -> dict[str, np.ndarray]:
    """Name -> int8[P,2] from {"name": [[vasopressor, fluid], ...], ...}."""
    try:
        named = json.loads(file.read_text("utf-8-sig"), object_pairs_hook=_once)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(file, expected="a JSON file of plans", found=str(error)[:120]) from error
    expected = '{"name": [[vasopressor, fluid], ...], ...} with levels 0 to 4'
    if not isinstance(named, dict) or not named:
        raise InputError(file, expected=expected, found="no plans" if named == {} else type(named).__name__)
    plans = {}
    for name, plan in named.items():
        if not (name and name.isprintable()):
            raise InputError(file, expected="names that can be printed", found=ascii(name))
        try:
            levels = np.asarray(plan)
        except ValueError:
            levels = np.zeros(0)
        whole = levels.dtype.kind == "i" and levels.ndim == 2 and levels.shape[1:] == (2,)
        if not (whole and levels.size and levels.min() >= 0 and levels.max() < LEVELS):
            raise InputError(file, field=name, expected=expected, found=str(plan)[:60])
        plans[name] = levels.astype(np.int8)
    return plans
