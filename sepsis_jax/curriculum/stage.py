"""The folder of a stage: one process works on it, with one set of settings, until its model is there."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from sepsis_jax import files
from sepsis_jax.errors import InputError

MODEL, CHECKPOINTS, LOG, CURVES = "model", "checkpoints", "log.jsonl", "curves.png"
BEGUN, DONE, LOCK = "begun.json", "done.json", ".lock"


PROCESSES = int(os.environ.get("WORLD_SIZE", "1"))
"""That work on the stage together (`accelerate launch`)."""
_LONGEST_WAIT = timedelta(hours=12)  # for who makes or fetches the model that all of them start from


def shared(number: int, batch: int) -> tuple[int, int]:
    """How each process computes an update of `number` answers or dialogues: in batches of, and how many of them.

    An update is the same whatever the number of processes. InputError where it cannot be shared.
    """
    own, rest = divmod(number, PROCESSES)
    batch = min(batch, own)
    if rest or not own or own % batch:
        expected = f"updates that {PROCESSES} processes can share, in batches of {batch or 1}"
        raise InputError("curriculum", field="batch", expected=expected, found=f"{number} dialogues an update")
    return batch, own // batch


def leads() -> bool:
    """Whether this process writes what all of one run have made."""
    return os.environ.get("RANK", "0") == "0"


def agreed(found: bool) -> bool:
    """What the leading process has found, in all of them, as soon as all have come here."""
    if PROCESSES == 1:
        return found
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    PartialState(timeout=_LONGEST_WAIT)
    told = [found]
    broadcast_object_list(told)
    return told[0]


@contextmanager
def working(out: Path, told: dict[str, Any], leaves: str = f"{MODEL}/config.json") -> Iterator[bool]:
    """Work on the stage in `out`; yields whether nothing is left to do. What fails before it has begun leaves no trace.

    Args:
      told: plain types; whatever changes what the stage ends with. leaves: the last file that it writes.

    Raises:
      InputError: the folder is something else's, a stage of other settings, or another process works on it.
    """
    if not leads():
        yield agreed(False)
        return
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or (out / BEGUN).is_file())):
        hint = "choose another --out"
        raise InputError(out, expected="a new folder, or one of train_agent.py", found="something else", hint=hint)
    files.check_writable(out / LOCK)
    out.mkdir(parents=True, exist_ok=True)
    with (out / LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(out, expected="a stage that has stopped", found="one that a process works on") from error
        plain = json.loads(json.dumps(told, default=str))
        for path in (out / DONE, out / BEGUN):
            if path.is_file() and _read(path) != plain:
                hint = "delete it to start anew, or use another --out or --run"
                raise InputError(out, expected="a stage of these settings", found="one of others", hint=hint)
        if (out / DONE).is_file() and (out / leaves).is_file():
            yield agreed(True)
            return
        files.write(out / BEGUN, json.dumps(plain).encode())
        try:
            yield agreed(False)
        except InputError:
            if not (out / LOG).exists():  # settings that never came to an update bind nobody
                shutil.rmtree(out)
            raise
        files.write(out / DONE, json.dumps(plain).encode())


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        hint = "delete the folder to start anew"
        raise InputError(path, expected="the settings of a stage", found=str(error)[:80], hint=hint) from error
