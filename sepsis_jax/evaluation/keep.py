"""Results of long work, kept in a folder as soon as they are there, so that a stopped run goes on."""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sepsis_jax import files
from sepsis_jax.errors import InputError

Arrays = Mapping[str, Any]


def kept(folder: Path, name: str, depends: Any, compute: Callable[[], Arrays]) -> dict[str, np.ndarray]:
    """The arrays `name` as `folder` keeps them, or computed and kept there.

    Args:
      depends: plain types that say what the arrays depend on; those that were kept under another are not taken.
    """
    digest = hashlib.sha256(json.dumps([name, depends], sort_keys=True, default=str).encode()).hexdigest()[:16]
    file = folder / f"{slug(name)}-{digest}.npz"
    if file.is_file():
        try:
            with np.load(file) as arrays:
                return dict(arrays)
        except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
            hint = "remove it, and it is computed again"
            raise InputError(file, expected="a finished result", found=type(error).__name__, hint=hint) from error
    found = {key: np.asarray(value) for key, value in compute().items()}
    buffer = io.BytesIO()
    np.savez(buffer, **found)  # type: ignore[arg-type]
    files.write(file, buffer.getvalue())
    return found


def slug(name: str) -> str:
    """The name of a policy in file names and keys."""
    return re.sub(r"\W+", "_", name).strip("_")
