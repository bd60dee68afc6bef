"""Transcripts: one JSON object a finished case, one case a line (JSONL)."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from sepsis_jax.agent.case import Case
from sepsis_jax.clinical.actions import LEVELS
from sepsis_jax.data.episodes import Episodes
from sepsis_jax.errors import InputError

FILE = "transcripts.jsonl"
_SHOWN = {"action", "value", "support", "keeps_guideline"}
_EXITS = ("in the ICU at the end of the record", "died in the ICU", "left the ICU alive")


def transcript(case: Case, episodes: Episodes, row: int, failure: dict[str, str] | None = None) -> dict[str, Any]:
    """A finished case as plain JSON types: who, every decision, how it ended, and how the record ended.

    `failed` is null, or the kind and the detail of why the case could not go on.
    """
    age, gender, charlson = (float(value) for value in episodes.static[row])
    return plain(
        {
            "stay_id": case.stay_id,
            "patient": {
                "age": age,
                "sex": "male" if gender else "female",
                "charlson": charlson,
                "weight_kg": float(episodes.weight_kg[row]),
            },
            "decisions": [dataclasses.asdict(decision) for decision in case.decisions],
            "outcome": dataclasses.asdict(case.outcome),
            "record": {
                "length": int(episodes.length[row]),
                "exit": int(episodes.exit[row]),
                "mortality_90d": int(episodes.mortality_90d[row]),
            },
            "messages": case.messages,
            "usage": dataclasses.asdict(case.usage),
            "failed": failure,
        }
    )


def write(path: Path, transcripts: Iterable[dict[str, Any]]) -> None:
    """One line each."""
    with path.open("w") as file:
        for one in transcripts:
            file.write(json.dumps(one, allow_nan=False) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """Inverse of `write`. Raises InputError for a missing or damaged file."""
    try:
        return [of_line(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(path, expected="one JSON object a line", found=str(error)) from error


def cases(path: Path) -> list[dict[str, Any]]:
    """As `read`, of whole transcripts (see `transcript`), each stay once. InputError for anything else."""
    found = read(path)
    if not found:
        raise InputError(path, expected="transcripts of cases", found="none")
    seen: set[int] = set()
    for one in found:
        if one["stay_id"] in seen or not _whole(one):
            what = "twice" if one["stay_id"] in seen else "without all that a transcript holds"
            raise InputError(path, expected="each case once, and whole", found=f"stay {one['stay_id']} {what}")
        seen.add(one["stay_id"])
    return found


def _whole(one: dict[str, Any]) -> bool:
    try:
        usage, number = one["usage"], len(one["messages"])
        counts = [usage["requests"], usage["prompt_tokens"], usage["completion_tokens"], *usage["malformed"].values()]
        return (
            all(type(count) is int for count in counts)
            and all(message.keys() >= {"role", "content"} for message in one["messages"])
            and bool(one["decisions"] or one["failed"])
            and all(
                all(len(decision[pair]) == 2 for pair in ("action", "previous"))
                and {*decision["action"], *decision["previous"]} <= set(range(LEVELS))
                and isinstance(decision["broken"], list)
                and all(shown.keys() >= _SHOWN for shown in decision["considered"])
                and all(math.isfinite(shown[key]) for shown in decision["considered"] for key in ("value", "support"))
                and 0 <= decision["message"] < number
                for decision in one["decisions"]
            )
        )
    except (KeyError, TypeError, AttributeError):
        return False


def of_line(line: str | bytes) -> dict[str, Any]:
    """A stay's record. Raises ValueError or RecursionError where the line holds none."""
    one = json.loads(line)
    if not isinstance(one, dict) or type(one.get("stay_id")) is not int or "failed" not in one:
        raise ValueError(f"{line[:60]!r}, which is no record of a stay")
    return one


def table(transcripts: list[dict[str, Any]]) -> pd.DataFrame:
    """The first decision of every case, for the console."""
    rows = []
    for one in transcripts:
        if not one["decisions"]:
            rows.append({"stay": one["stay_id"], "decisions": 0})
            continue
        first = one["decisions"][0]
        chosen = next((f for f in first["considered"] if f["action"] == first["action"]), None)
        row = {
            "stay": one["stay_id"],
            "MAP": round(first["obs"]["meanbp"]),
            "lactate": round(first["obs"]["lactate"], 1),
            "recommended": _levels(first["action"]),
            "clinician": _levels(first["clinician"]),
            "90-day mortality": f"{chosen['death_90d']:.1%}" if chosen else "-",
            "support": f"{chosen['support']:.1%}" if chosen else "-",
            "guideline": "broken" if "guideline" in first["broken"] else "kept",
            "decisions": len(one["decisions"]),
        }
        rows.append(row)
    return pd.DataFrame(rows).set_index("stay").astype(object).fillna("-")


def failures(transcripts: list[dict[str, Any]]) -> dict[str, list[int]]:
    """Kind of failure -> stay_ids."""
    found: dict[str, list[int]] = {}
    for one in transcripts:
        if one["failed"] is not None:
            found.setdefault(one["failed"]["kind"], []).append(one["stay_id"])
    return found


def ended(one: dict[str, Any]) -> str:
    """How a case ended under the policy, in words of ours; what a failure was in detail is not among them."""
    outcome, decisions = one["outcome"], one["decisions"]
    if one["failed"] is not None:
        return f"failed after {len(decisions)} decisions, {one['failed']['kind']}"
    text = _EXITS[outcome["exit"]]
    return text + (f"; simulated 90-day mortality {outcome['death_90d']:.0%}" if outcome["deviated"] else "")


def recorded(one: dict[str, Any]) -> str:
    """How the record of a case ended, in words."""
    record = one["record"]
    died = {-1: "unknown", 0: "alive", 1: "died"}[record["mortality_90d"]]
    return f"{record['length']} decisions, {_EXITS[record['exit']]}; at 90 days: {died}"


def _levels(action: list[int] | None) -> str:
    return "-" if action is None else f"({action[0]},{action[1]})"


def plain(value: Any) -> Any:
    """Six digits are enough for a reader; NaN (nobody left in the ICU) has no place in JSON: null."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
