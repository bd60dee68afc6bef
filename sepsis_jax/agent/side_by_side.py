"""Work on many stays at once, a bounded number of them, each done as soon as it is done."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

_COLUMNS = (
    TextColumn("stays"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
    TextColumn("{task.fields[pace]}"),
)


def side_by_side(
    rows: Iterable[int],
    work: Callable[[int], Awaitable[dict[str, Any]]],
    finished: Callable[[dict[str, Any]], None],
    *,
    at_once: int,
    close: Callable[[], Awaitable[None]],
) -> list[dict[str, Any]]:
    """Await `work(row)` for every row, `at_once` at a time, with a progress bar.

    Args:
      rows: which stays. work: makes the record of one, with `usage` and `failed`.
      finished: gets every record as soon as it is there. close: awaited at the end, whatever happened.

    Returns:
      The records, in the order of `rows`.
    """
    turn, pace = asyncio.Semaphore(at_once), _Pace()

    async def one(row: int, progress: Progress, task: Any) -> dict[str, Any]:
        async with turn:
            done = await work(row)
        finished(done)
        progress.update(task, advance=1, pace=pace.of(done))
        return done

    async def everyone() -> list[dict[str, Any]]:
        every = [int(row) for row in rows]
        try:
            with Progress(*_COLUMNS, transient=True) as progress:
                task = progress.add_task("stays", total=len(every), pace="")
                async with asyncio.TaskGroup() as group:  # an error ends the others before anything is closed
                    tasks = [group.create_task(one(row, progress, task)) for row in every]
            return [task.result() for task in tasks]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from errors
        finally:
            await close()

    return asyncio.run(everyone())


class _Pace:
    """What stands beside the progress bar: stays a minute, tokens a second, failures."""

    def __init__(self) -> None:
        self._began, self._stays, self._tokens, self._failed = time.monotonic(), 0, 0, 0

    def of(self, done: dict[str, Any]) -> str:
        self._stays += 1
        self._tokens += done["usage"]["prompt_tokens"] + done["usage"]["completion_tokens"]
        self._failed += done["failed"] is not None
        seconds = max(time.monotonic() - self._began, 1e-3)
        text = f"{60 * self._stays / seconds:.3g} stays/min"
        if self._tokens:
            text += f", {self._tokens / seconds:.3g} tokens/s"
        return text + (f", {self._failed} failed" if self._failed else "")
