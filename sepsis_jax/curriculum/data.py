"""Examples on disk: JSON lines in chat format, with a card that says what they are."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sepsis_jax import files
from sepsis_jax.errors import InputError

FILE, CARD = "examples.jsonl", "README.md"


def write(folder: Path, examples: Iterable[dict[str, Any]], about: dict[str, Any]) -> int:
    """A folder of examples, all of them or none; how many there are.

    Args:
      examples: kind, answer, stay_id, messages and, where tools are offered, tools. about: facts for the card.
    """
    counts: Counter[tuple[str, str]] = Counter()
    stays: set[int] = set()
    digest = hashlib.sha256()
    with files.replacing(folder, FILE, "examples of train_agent.py") as aside:
        with (aside / FILE).open("w") as file:
            for one in examples:
                line = json.dumps(one, allow_nan=False) + "\n"
                file.write(line)
                digest.update(line.encode())
                counts[one["kind"], one["answer"]] += 1
                stays.add(one["stay_id"])
        facts = about | {"stays": len(stays), "sha256": digest.hexdigest()}
        (aside / CARD).write_text(_card(counts, facts))
    return sum(counts.values())


def read(folder: Path) -> list[dict[str, Any]]:
    """Inverse of `write`; arguments of calls as objects, as chat templates want them. InputError if unreadable."""
    path = folder / FILE
    try:
        found = [json.loads(line) for line in path.read_text().splitlines()]
    except OSError as error:
        raise _none(path, error.strerror) from error
    except ValueError as error:
        raise InputError(path, expected="JSON lines", found=str(error)) from error
    for one in found:
        for message in one["messages"]:
            for call in message.get("tool_calls", []):
                call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return found


def digest(folder: Path) -> str:
    """SHA-256 that tells these examples from others. InputError where there are none."""
    found = files.digests(folder).get(FILE)
    if found is None:
        raise _none(folder / FILE, "no such file")
    return found


def _none(path: Path, found: str | None) -> InputError:
    hint = "make them first: train_agent.py --stage data"
    return InputError(path, expected="examples", found=found, hint=hint)


def _card(counts: Counter[tuple[str, str]], facts: dict[str, Any]) -> str:
    lines = ["# Examples to teach a language model with", "", "Chat format, one dialogue a line of `examples.jsonl`: "]
    lines[-1] += "`messages` and, where tools are offered, `tools`. Only what the assistant says is to be learned. "
    lines[-1] += "Research, not care; examples of patients are as private as the record they come from."
    lines += ["", "| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in facts.items())]
    lines += ["", "| kind | answer | dialogues |", "| --- | --- | --- |"]
    lines += [f"| {kind} | {answer or 'various'} | {n} |" for (kind, answer), n in sorted(counts.items())]
    return "\n".join(lines) + "\n"
