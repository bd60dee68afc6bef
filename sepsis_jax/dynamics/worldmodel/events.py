"""TensorBoard event files, for those who have tensorboardX installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sepsis_jax.dynamics.worldmodel.unfinished import Rows
from sepsis_jax.errors import InputError


@contextmanager
def event_log(folder: Path, members: int) -> Iterator[Callable[[Rows], None]]:
    """Yield a `report` for `training.train` that writes the scalars `<term>/<split>[/<member>]` by epoch.

    Args:
      folder: of the event files; `tensorboard --logdir` takes it or any folder around it. members: of the ensemble.

    Raises:
      InputError: tensorboardX is not installed, or the folder cannot be written.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        hint = "pip install tensorboardX"
        raise InputError("--tensorboard", expected="tensorboardX", found="no such package", hint=hint) from error
    try:
        writer = SummaryWriter(str(folder))
    except OSError as error:
        raise InputError(folder, expected="a folder that can be written", found=error.strerror) from error

    def report(rows: Rows) -> None:
        for row in rows:
            for name, value in row.items():
                split, _, term = name.partition("_")
                if term:
                    tag = f"{term}/{split}" if members == 1 else f"{term}/{split}/{row['member']}"
                    writer.add_scalar(tag, value, int(row["epoch"]))
        writer.flush()

    with writer:
        yield report
