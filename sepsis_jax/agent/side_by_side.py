"""Work on many stays at once, a bounded number of them, each done as soon as it is done."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

_COLUMNS = (TextColumn("stays"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())


def side_by_side(
    rows: np.ndarray,
    work: Callable[[int], Awaitable[Any]],
    finished: Callable[[Any], None],
    *,
    at_once: int,
    close: Callable[[], Awaitable[None]],
) -> None:
    """Await `work(row)` for every row, `at_once` at a time, with a progress bar; `finished` gets each result.

    `close` is awaited at the end, whatever happened.
    """

    async def one(row: int, turn: asyncio.Semaphore) -> Any:
        async with turn:
            return await work(row)

    async def everyone() -> None:
        turn = asyncio.Semaphore(at_once)
        try:
            with Progress(*_COLUMNS, transient=True) as progress:
                task = progress.add_task("stays", total=len(rows))
                for done in asyncio.as_completed([one(int(row), turn) for row in rows]):
                    finished(await done)
                    progress.update(task, advance=1)
        finally:
            await close()

    asyncio.run(everyone())
