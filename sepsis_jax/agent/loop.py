"""The loop: open cases side by side, let a backend decide each step, collect the transcripts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from sepsis_jax.agent.backends import Backend, Failed
from sepsis_jax.agent.case import Case
from sepsis_jax.agent.prompting import Prompts
from sepsis_jax.agent.settings import AgentSettings
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
    columns = (
        TextColumn("cases"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[pace]}"),
    )
    pace = _Pace()

    async def one(row: int, open_cases: asyncio.Semaphore, progress: Progress, task: Any) -> dict[str, Any]:
        async with open_cases:
            case, failure = Case(episodes, row, simulator, bins, settings.follow, prompts), None
            try:
                while not case.outcome.closed:
                    case.observe()
                    await backend.decide(case)
            except Failed as error:
                failure = {"kind": error.kind, "detail": error.detail}
            done = transcript(case, episodes, row, failure)
            if finished is not None:
                finished(done)
            progress.update(task, advance=1, pace=pace.of(done))
            return done

    async def everyone() -> list[dict[str, Any]]:
        open_cases = asyncio.Semaphore(settings.concurrency)
        try:
            with Progress(*columns, transient=True) as progress:
                task = progress.add_task("cases", total=len(rows), pace="")
                return await asyncio.gather(*(one(int(row), open_cases, progress, task) for row in rows))
        finally:
            await backend.close()

    return asyncio.run(everyone())


class _Pace:
    """What stands beside the progress bar: cases a minute, tokens a second, failures."""

    def __init__(self) -> None:
        self._began, self._cases, self._tokens, self._failed = time.monotonic(), 0, 0, 0

    def of(self, done: dict[str, Any]) -> str:
        self._cases += 1
        self._tokens += done["usage"]["prompt_tokens"] + done["usage"]["completion_tokens"]
        self._failed += done["failed"] is not None
        seconds = max(time.monotonic() - self._began, 1e-3)
        text = f"{60 * self._cases / seconds:.3g} cases/min"
        if self._tokens:
            text += f", {self._tokens / seconds:.3g} tokens/s"
        return text + (f", {self._failed} failed" if self._failed else "")
