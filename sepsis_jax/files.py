"""Folders and files that appear whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

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


def check_writable(path: Path) -> Path:
    """The nearest folder around `path` that exists. InputError if it takes nothing new. Call it before long work."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise InputError(path, expected="a place that can be written", found=f"{folder}, which takes nothing new")
    return folder


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file by its path inside the folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): _digest(path) for path in paths}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_digests(folder: Path, expected: Any, file: Path, hint: str) -> None:
    """Raise InputError unless the folder holds what `expected` (see `digests`), read from `file`, says.

    Zarr reads a lost chunk as zeros and a changed one as other numbers, without a word.
    """
    if not isinstance(expected, dict):
        raise InputError(file, field="sha256", expected="a digest a file", found=type(expected).__name__, hint=hint)
    found = digests(folder)
    for name, digest in expected.items():
        if found.get(name) != digest:
            state = "other bytes" if name in found else "no file"
            raise InputError(folder, field=name, expected="the file as it was written", found=state, hint=hint)


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
