"""Examples on disk: JSON lines in chat format, with a card that says what they are."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from sepsis_jax import files
from sepsis_jax.errors import InputError

FILE, CARD = "examples.jsonl", "README.md"
_SORTED = 50  # batches among which dialogues are sorted by length
ROLES = ("system", "user", "assistant", "tool")


def write(folder: Path, examples: Iterable[dict[str, Any]], about: dict[str, Any]) -> int:
    """A folder of examples, all of them or none; how many there are. InputError where there are none to write.

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
        if not stays:
            raise InputError(folder, expected="examples", found="none that can be learned from")
        facts = about | {"stays": len(stays), "sha256": digest.hexdigest()}
        (aside / CARD).write_text(_card(counts, facts))
    return sum(counts.values())


def read(folder: Path) -> list[dict[str, Any]]:
    """Inverse of `write`; arguments of calls as objects, as chat templates want them. InputError if unreadable."""
    path = folder / FILE
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise _none(path, error.strerror) from error
    except ValueError as error:
        raise InputError(path, expected="text in UTF-8", found=str(error)) from error
    if not lines:
        raise _none(path, "an empty file")
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(_ready(json.loads(line)))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            expected = "a dialogue: messages with roles and texts, of which the assistant says at least one"
            raise InputError(path, field=f"line {number}", expected=expected, found=str(error)[:80]) from error
    return found


def _ready(one: dict[str, Any]) -> dict[str, Any]:
    messages = one["messages"]
    for message in messages:
        if message["role"] not in ROLES or not isinstance(message["content"], str):
            raise ValueError(f"a message of {message['role']!r}")
        for call in message.get("tool_calls", []):
            call["function"]["arguments"] = dict(json.loads(call["function"]["arguments"]))
            _ = call["function"]["name"]
    if not any(message["role"] == "assistant" for message in messages):
        raise ValueError("nothing that the assistant says")
    if not isinstance(one.get("tools", []), list):
        raise ValueError("tools that are no list")
    return one


def digest(folder: Path) -> str:
    """SHA-256 that tells these examples from others. InputError where there are none."""
    found = files.digests(folder).get(FILE)
    if found is None:
        raise _none(folder / FILE, "no such file")
    return found


def order(lengths: np.ndarray, epochs: int, batch: int, seed: int) -> np.ndarray:
    """In which order to learn from dialogues of these lengths: int[N epochs], known beforehand.

    Every pass holds each dialogue once, at random but for neighbours in a batch, which are about equally long.
    """
    draw, passes, rest, size = np.random.default_rng(seed), [np.zeros(0, int)], [], batch * _SORTED
    for _ in range(epochs):
        some = draw.permutation(lengths.size)
        parts = [some[first : first + size] for first in range(0, lengths.size, size)]
        parts = [part[np.argsort(-lengths[part], kind="stable")] for part in parts]
        batches = [part[first : first + batch] for part in parts for first in range(0, part.size, batch)]
        whole = [one for one in batches if one.size == batch]
        rest += [one for one in batches if one.size < batch]  # at the end, so that batches stay together
        passes += [whole[at] for at in draw.permutation(len(whole))]
    return np.concatenate(passes + rest)


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
