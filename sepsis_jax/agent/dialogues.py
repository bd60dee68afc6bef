"""Dialogues to learn from: every finished decision of a run as a model reads and writes it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sepsis_jax import files
from sepsis_jax.agent.conversation import Conversation, decision_dialogue
from sepsis_jax.agent.tools import Message
from sepsis_jax.clinical.actions import ActionBins


def write(path: Path, cases: Iterable[dict[str, Any]], asking: Conversation, bins: ActionBins) -> int:
    """JSON lines of `messages` and `tools`, one a decision, in the chat completions format.

    Args:
      cases: see `agent.transcripts`. asking: whose task and tools these are. bins: doses of the task.

    Returns:
      How many.
    """
    system = asking.system(bins)
    lines = [
        json.dumps({"stay_id": one["stay_id"], "messages": messages, "tools": asking.tools})
        for one in cases
        for messages in decisions(system, one, asking.rationale)
    ]
    files.write(path, "".join(f"{line}\n" for line in lines).encode())
    return len(lines)


def decisions(system: Message, one: dict[str, Any], rationale: bool) -> Iterator[list[Message]]:
    """Each finished decision of a transcript as a dialogue of its own, with its reasons or without."""
    messages, starts = one["messages"], [decision["message"] for decision in one["decisions"]]
    observed = [messages[start]["content"] for start in starts]
    ends = [*starts[1:], len(messages)]
    whole = len(starts) - (one["failed"] is not None)  # what failed stands behind the last one that did not
    for number in range(whole):
        said = messages[starts[number] + 1 : ends[number]]
        shown = said if rationale else [silent(message) for message in said]
        yield decision_dialogue(system, observed[: number + 1], shown)


def silent(message: Message) -> Message:
    """Without the rationale that a tool of these schemas does not take."""
    calls = message.get("tool_calls")
    if not calls:
        return message
    return message | {"tool_calls": [call | {"function": _bare(call["function"])} for call in calls]}


def _bare(function: dict[str, Any]) -> dict[str, Any]:
    try:
        arguments = json.loads(function["arguments"])
    except (ValueError, RecursionError):
        return function  # a malformed call stays as it was said
    if not isinstance(arguments, dict) or "rationale" not in arguments:
        return function
    del arguments["rationale"]
    return function | {"arguments": json.dumps(arguments, separators=(",", ":"))}
