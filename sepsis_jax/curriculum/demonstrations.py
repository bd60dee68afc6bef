"""Stage II: dialogues of a teacher, each decision as a model reads and writes it; what is no example is left out.

The teacher is the planner, which shows what it would give beside plausible others and says why in simulated numbers,
or any language model whose run is at hand.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sepsis_jax.agent import dialogues, tools, transcripts
from sepsis_jax.agent.conversation import NOT_UNDERSTOOD, Conversation
from sepsis_jax.agent.tools import Malformed, Message
from sepsis_jax.clinical.actions import ActionBins
from sepsis_jax.errors import InputError

REASONS = ("kept", "failed", "malformed", "against the guideline", "not simulated", "worse than usual")


def accepted(
    cases: Iterable[dict[str, Any]], asking: Conversation, bins: ActionBins, refused: Counter[str]
) -> Iterator[dict[str, Any]]:
    """Decisions worth imitating: well-formed, within the guideline, and expected to do no worse than the usual one.

    The usual one is what clinicians do most often among what the teacher simulated and a guideline allows.

    Args:
      cases: transcripts, see `agent.transcripts`. asking: whose task and tools these are. bins: doses of the task.
      refused: counts every decision under one of `REASONS`.

    Yields:
      kind, answer, stay_id, changed (whether the vasopressor is another than before), messages, tools.
    """
    system = asking.system(bins)
    for case in cases:
        finished = list(dialogues.decisions(system, case, asking.rationale))
        refused["failed"] += len(case["decisions"]) - len(finished)
        for decision, messages in zip(case["decisions"], finished, strict=False):
            reason = _fault(decision, messages)
            refused[reason] += 1
            if reason == "kept":
                kind = {"kind": "decision", "answer": tools.level_pair(tuple(decision["action"]))}
                told = {"stay_id": case["stay_id"], "changed": decision["action"][0] != decision["previous"][0]}
                yield kind | told | {"messages": messages, "tools": asking.tools}


def lessons(examples: Sequence[dict[str, Any]], number: int, draw: np.random.Generator) -> list[dict[str, Any]]:
    """At most `number` of them, shuffled: two thirds as they come, and for later a third half of which is `changed`.

    Nine of ten decisions repeat what was given before, and a model that learns from all alike learns to repeat: it
    never begins (de Haan et al. 2019, arXiv 1905.11979). More such moments are the remedy of Wen et al. 2021 (ICML);
    from them alone it would learn to change too much and, with less to read, less of everything.

    Returns:
      Each with `later`: whether it is of the last third, which repeats earlier ones only as far as there are too few.
    """
    order = draw.permutation(len(examples)).tolist()
    changed, same = ([at for at in reversed(order) if examples[at]["changed"] == is_so] for is_so in (True, False))
    half = min(number // 6, len(changed), len(same))
    later = draw.permutation(changed[:half] + same[:half])
    plain = order[: number - later.size]
    return [examples[at] | {"later": False} for at in plain] + [examples[at] | {"later": True} for at in later]


def taught(folder: Path, stays: np.ndarray) -> list[dict[str, Any]]:
    """Transcripts of another teacher. InputError unless they are whole, and of these stays i64[N] alone."""
    path = folder / transcripts.FILE
    cases = transcripts.cases(path)
    others = {one["stay_id"] for one in cases} - set(stays.tolist())
    if others:
        found = f"stay {min(others)} and {len(others) - 1} more that are no train stays of this cohort"
        hint = "let the teacher treat those of the train split: agent_loop.py --agent.split train"
        raise InputError(path, expected="train stays alone", found=found, hint=hint)
    return cases


def alone(example: dict[str, Any], asking: Conversation, bins: ActionBins) -> dict[str, Any]:
    """The same decision, made from the record alone, and without its reasons, which are simulated numbers.

    Args:
      example: of `accepted`. asking: a model that is offered no simulation. bins: doses of the task.
    """
    _, observed, *said = example["messages"]
    kind = {"kind": "decision alone", "tools": asking.tools}
    return example | kind | {"messages": [asking.system(bins), observed, *map(dialogues.silent, said[-2:])]}


def _fault(decision: dict[str, Any], messages: list[Message]) -> str:
    if messages[-1]["role"] not in ("assistant", "tool"):
        return "failed"  # nothing was said
    for message in messages:
        if message["role"] != "assistant" and message["content"].startswith(NOT_UNDERSTOOD):
            return "malformed"
        if message["role"] == "assistant":
            calls = [(one["function"]["name"], one["function"]["arguments"]) for one in message.get("tool_calls", [])]
            try:
                tools.read(message["content"], calls, simulator=True)
            except Malformed:
                return "malformed"
    if decision["broken"]:
        return "against the guideline"
    considered = decision["considered"]
    if not considered:
        return "kept"  # by a teacher who did not ask: nothing was expected of it
    chosen = [one["value"] for one in considered if tuple(one["action"]) == tuple(decision["action"])]
    if not chosen:
        return "not simulated"
    allowed = [one for one in considered if one["keeps_guideline"]]
    usual = max(allowed, key=lambda one: one["support"], default=None)
    return "worse than usual" if usual is not None and chosen[-1] < usual["value"] else "kept"
