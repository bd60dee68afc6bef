"""The journal of a run: every case is on disk, whole, before the next one counts; a killed run goes on where it was.

A file of JSON lines beside the folder of results. The first line says what run it is, each other line is a finished
case. A kill in the middle of a line leaves that line broken; it is cut off, and its case is run again.
"""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from sepsis_jax import files
from sepsis_jax.agent import transcripts
from sepsis_jax.errors import InputError

RUN = "run.json"
_SUFFIX = ".unfinished.jsonl"


def path_of(out: Path) -> Path:
    """The journal of the run whose results go to the folder `out`."""
    return out.with_name(out.name + _SUFFIX)


class Journal:
    """Finished cases of one run, see `open_run`.

    Args:
      path: see `path_of`. identity: plain JSON types that tell this run from others.
      cases: finished ones to begin with.

    Attributes:
      done: stay_id -> transcript.
    """

    def __init__(self, path: Path, identity: Any, cases: list[dict[str, Any]]) -> None:
        self._path = path
        self.done = {one["stay_id"]: one for one in cases}
        lines = [{"run": identity}, *self.done.values()]
        files.write(path, "".join(f"{json.dumps(one, allow_nan=False)}\n" for one in lines).encode())
        self._file = path.open("ab")
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def add(self, case: dict[str, Any]) -> None:
        """One more finished case; on disk when this returns. InputError if the disk takes no more."""
        try:
            self._file.write(f"{json.dumps(case, allow_nan=False)}\n".encode())
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise InputError(self._path, expected="a disk that can be written", found=error.strerror) from error
        self.done[case["stay_id"]] = case

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with suppress(OSError):  # of a disk that is full, which has been said
            self._file.close()
        if kind is not None and not self.done:  # nothing to go on with, and nothing that may stand in the way
            self._path.unlink(missing_ok=True)


def check_open(out: Path, *, resume: bool) -> None:
    """InputError if an unfinished run is in the way, or there is none to go on with. Says so before the work begins."""
    path = path_of(out)
    if resume and not path.exists():
        raise InputError(path, expected="an unfinished run", found="none", hint="leave out --resume")
    if path.exists() and not resume and not _unfinished(path)[1]:
        path.unlink()  # a run that was stopped before its first case
    if path.exists() and not resume:
        hint = f"--resume goes on with it; to start anew, delete {path}"
        raise InputError(path, expected="no unfinished run", found="one", hint=hint)


def open_run(out: Path, identity: Any, *, resume: bool, retry_failed: bool) -> Journal:
    """The journal of a new run, of the one that was stopped, or of one whose failed cases are run again.

    Args:
      out: folder of the results. identity: plain JSON types that tell this run from others.
      resume: go on with the unfinished run. retry_failed: take failed cases for open, also those of finished results.

    Raises:
      InputError: an unfinished run is in the way, there is none to go on with, it is of other settings, or damaged.
    """
    path, identity = path_of(out), json.loads(json.dumps(identity))
    check_open(out, resume=resume)
    if resume:
        known, cases = _unfinished(path)
    elif retry_failed:
        known, cases = _finished(out)
    else:
        known, cases = identity, []
    if known != identity:
        other = [name for name in identity if not isinstance(known, dict) or known.get(name) != identity[name]]
        hint = "ask for the same run, or start anew with another --out"
        found = f"one with other {', '.join(other) or 'settings'}"
        raise InputError(out, expected="a run of the same settings", found=found, hint=hint)
    return Journal(path, identity, [one for one in cases if not (retry_failed and one["failed"] is not None)])


def _finished(out: Path) -> tuple[Any, list[dict[str, Any]]]:
    try:
        identity = json.loads((out / RUN).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(out, expected="a finished run", found="none", hint="leave out --retry_failed") from error
    return identity, transcripts.read(out / transcripts.FILE)


def _unfinished(path: Path) -> tuple[Any, list[dict[str, Any]]]:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(
                path, expected="a run that has stopped", found="one that another process works on"
            ) from error
        text = file.read()
    whole = text[: text.rfind(b"\n") + 1]  # the rest is what a kill left of a line
    try:
        head, *lines = whole.splitlines()
        cases = [transcripts.of_line(line) for line in lines]
        return json.loads(head)["run"], list({one["stay_id"]: one for one in cases}.values())
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        hint = "delete it to start anew"
        raise InputError(path, expected="the journal of a run", found=repr(error)[:80], hint=hint) from error
