"""What a model knows of patients without a simulator: two questions at the first decision, answered as probabilities.

In-hospital mortality and the need for a vasopressor within 24 h, the intrinsic tasks of arXiv 2605.14723. The answer is
how likely `yes` is against `no` in the model's own words, at temperature 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sepsis_jax.agent.backends import Failed
from sepsis_jax.agent.case import Case
from sepsis_jax.agent.conversation import decision_dialogue
from sepsis_jax.agent.llm import LLMBackend
from sepsis_jax.agent.prompting import HOURS_PER_STEP, Prompts
from sepsis_jax.agent.side_by_side import side_by_side
from sepsis_jax.agent.simulator import BatchedSimulator
from sepsis_jax.agent.transcripts import plain
from sepsis_jax.clinical.actions import ActionBins
from sepsis_jax.data.episodes import Episodes

QUESTIONS = ("mortality", "vasopressor")
AHEAD = 24 // HOURS_PER_STEP
"""Steps that the question about a vasopressor looks ahead."""
_ASKED = {"max_tokens": 3, "temperature": 1.0, "logprobs": True, "top_logprobs": 20}
_STRUCTURED = {"structured_outputs": {"choice": ["yes", "no"]}}


def folder_of(run: Path) -> Path:
    """Where answers are, for the agent whose courses are in `run`."""
    return run.with_name(f"{run.name}.questions")


def run(
    episodes: Episodes,
    rows: np.ndarray,
    simulator: BatchedSimulator,
    bins: ActionBins,
    backend: LLMBackend,
    prompts: Prompts,
    *,
    concurrency: int,
    finished: Callable[[dict[str, Any]], None],
) -> None:
    """Ask about the stays `rows`.

    Args:
      concurrency: stays at once. finished: called with each as soon as it is there: stay_id, answers (question ->
        probability of yes), usage, and failed.
    """

    async def ask(row: int) -> dict[str, Any]:
        case, answers, failed = Case(episodes, row, simulator, bins, "model", prompts), {}, None
        case.observe()
        try:
            for about in QUESTIONS:
                task = {"role": "system", "content": prompts.question(about)}
                dialogue = decision_dialogue(task, case.observations, [])
                said = await backend.request(case, "chat", messages=dialogue, extra_body=_STRUCTURED, **_ASKED)
                answers[about] = _yes(said)
        except Failed as error:
            failed = {"kind": error.kind, "detail": error.detail}
        return plain({"stay_id": case.stay_id, "answers": answers, "usage": vars(case.usage), "failed": failed})

    side_by_side(rows, ask, finished, at_once=concurrency, close=backend.close)


def _yes(said: Any) -> float:
    """Of the probability of all beginnings of either word, the part that begins with `yes`."""
    try:
        first = said.choices[0].logprobs.content[0].top_logprobs
        chances = [(one.token.strip().lower(), math.exp(one.logprob)) for one in first]
    except (AttributeError, IndexError, TypeError, OverflowError) as error:
        raise Failed("no log-probabilities", "the server does not say how likely its tokens are") from error
    total = {
        word: sum(chance for token, chance in chances if token and word.startswith(token)) for word in ("yes", "no")
    }
    if not 0 < sum(total.values()) < 2:
        raise Failed("no log-probabilities", "neither yes nor no is among the likeliest tokens")
    return total["yes"] / sum(total.values())


def labels(episodes: Episodes) -> dict[str, np.ndarray]:
    """Question -> int8[B] what is recorded: 1 yes, 0 no, -1 unknown."""
    ahead = np.asarray(episodes.valid)[:, :AHEAD] & (np.asarray(episodes.action)[:, :AHEAD, 0] > 0)
    return {"mortality": np.asarray(episodes.mortality_hospital), "vasopressor": np.asarray(ahead.any(axis=1), np.int8)}


def answered(episodes: Episodes, stays: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Columns question, subject_id, label (bool) and chance: a row for each answer whose truth is known."""
    known, recorded = {one["stay_id"]: one["answers"] for one in stays if one["failed"] is None}, labels(episodes)
    rows = [
        (about, int(episodes.subject_id[row]), recorded[about][row] == 1, known[int(stay)][about])
        for row, stay in enumerate(np.asarray(episodes.stay_id))
        if int(stay) in known
        for about in QUESTIONS
        if recorded[about][row] >= 0
    ]
    return pd.DataFrame(rows, columns=["question", "subject_id", "label", "chance"])
