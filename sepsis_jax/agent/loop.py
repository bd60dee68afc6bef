"""The loop: open cases side by side, let a backend decide each step, collect the transcripts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sepsis_jax.agent.backends import Backend, Failed
from sepsis_jax.agent.case import Case
from sepsis_jax.agent.prompting import Prompts
from sepsis_jax.agent.settings import AgentSettings
from sepsis_jax.agent.side_by_side import side_by_side
from sepsis_jax.agent.simulator import BatchedSimulator
from sepsis_jax.agent.transcripts import transcript
from sepsis_jax.clinical.actions import ActionBins
from sepsis_jax.data.episodes import SPLITS, Episodes
from sepsis_jax.errors import InputError


def choose_stays(episodes: Episodes, settings: AgentSettings) -> np.ndarray:
    """int[N]: rows of the stays that the settings ask for. InputError when there is none."""
    rows = np.arange(episodes.num_stays)
    if settings.split != "all":
        rows = rows[np.asarray(episodes.split) == SPLITS.index(settings.split)]
    if not rows.size:
        raise InputError("agent", field="split", expected="a split with stays", found=f"none in '{settings.split}'")
    return rows[: settings.stays] if settings.stays else rows


def run(
    episodes: Episodes,
    rows: Sequence[int] | np.ndarray,
    simulator: BatchedSimulator,
    bins: ActionBins,
    backend: Backend,
    settings: AgentSettings,
    prompts: Prompts | None = None,
    finished: Callable[[dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """Run the cases of `rows`, at most `settings.concurrency` at once; transcripts in the order of `rows`.

    A case that fails ends there, as failed; the others go on. `prompts` as in `Case`; `finished` is called with every
    transcript as soon as it is there.
    """

    async def lived(row: int) -> dict[str, Any]:
        case, failure = Case(episodes, row, simulator, bins, settings.follow, prompts), None
        try:
            while not case.outcome.closed:
                case.observe()
                await backend.decide(case)
        except Failed as error:
            failure = {"kind": error.kind, "detail": error.detail}
        return transcript(case, episodes, row, failure)

    return side_by_side(rows, lived, finished or (lambda done: None), at_once=settings.concurrency, close=backend.close)
