"""Transcripts as Markdown, to read and to compare: every case with its outcome and the whole dialogue.

What a model or a server said stands in fenced blocks alone, whose fences are longer than any run of backticks inside:
no text can end its block.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sepsis_jax.agent.tools import Message, called
from sepsis_jax.agent.transcripts import ended, recorded

FILE = "transcripts.md"
_WARNING = "Research software, not for care."


def write(path: Path, cases: Iterable[dict[str, Any]]) -> None:
    """One document of all cases, see `agent.transcripts`."""
    parts = ["# Transcripts", f"**{_WARNING}**", *(part for one in cases for part in _case(one))]
    # A model can say half a character, which no file can hold.
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8", errors="replace")


def _case(one: dict[str, Any]) -> Iterator[str]:
    who, failed = one["patient"], one["failed"]
    facts = f"{who['sex']}, {who['age']:.0f} years, Charlson {who['charlson']:.0f}, {who['weight_kg']:.0f} kg"
    yield f"## Stay {one['stay_id']}"
    yield f"- Patient: {facts}\n- Under the policy: {ended(one)}\n- In the record: {recorded(one)}"
    if failed is not None:
        yield _fenced(failed["detail"])
    for message in one["messages"]:
        yield from _message(message)


def _message(message: Message) -> Iterator[str]:
    yield f"### {message['role'].capitalize()}"
    if message["content"]:
        yield _fenced(message["content"])
    for call in message.get("tool_calls", ()):
        yield _fenced(called(call), "json")


def _fenced(text: str, kind: str = "text") -> str:
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{kind}\n{text}\n{fence}"
