"""Folders and files that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sepsis_jax.errors import InputError


@contextmanager
def replacing(out: Path, marker: str, what: str) -> Iterator[Path]:
    """Yield a folder aside; when the block succeeds it is renamed to `out`, else it vanishes.

    Args:
      out: folder to make; an older one of the same kind, or an empty one, is replaced.
      marker: file that every folder of this kind holds.
      what: its name for people, e.g. 'an Episodes store'.

    Raises:
      InputError: `out` is something else, or cannot be written.
    """
    out = Path(out).resolve()  # through a link, so that the link stays
    check_replaceable(out, marker, what)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise InputError(out, expected="a folder that can be written", found=error.strerror) from error
    try:
        aside.chmod(0o755)
        yield aside
        old = aside.with_name(f"{aside.name}.old")
        if out.exists():
            out.rename(old)  # a kill between the two renames leaves the old folder whole, beside its place
        aside.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise InputError(out, expected="a disk that can be written", found=error.strerror or error) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def check_replaceable(out: Path, marker: str, what: str) -> None:
    """Raise InputError unless `out` is absent, empty, or a folder of this kind. Call it before long work."""
    if out.is_dir() and ((out / marker).exists() or not any(out.iterdir())):
        return
    if out.exists():
        hint = "choose another --out"
        raise InputError(out, expected=f"a new folder or {what}", found="something else", hint=hint)


def write(file: Path, content: bytes) -> None:
    """Write `content` aside, then rename it to `file`; an older file is replaced. InputError if that fails."""
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(content)
        aside.replace(file)
    except OSError as error:
        raise InputError(file, expected="a file that can be written", found=error.strerror) from error
    finally:
        with suppress(OSError):
            aside.unlink()
