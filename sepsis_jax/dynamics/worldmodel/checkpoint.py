"""World models on disk: one folder with `arrays` (Orbax), `worldmodel.json` and the training's `metrics.csv`."""

from __future__ import annotations

import csv
import json
import logging
import os
import re
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from sepsis_jax import files
from sepsis_jax.data.store import Manifest
from sepsis_jax.dynamics.worldmodel.bounds import Support
from sepsis_jax.errors import InputError

SCHEMA_VERSION = 4
KIND = "a world-model checkpoint"
ARRAYS, DESCRIPTION, METRICS = "arrays", "worldmodel.json", "metrics.csv"


logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax's pages of tracebacks; its errors become InputError


class Checkpoint(NamedTuple):
    """What a folder holds.

    Attributes:
      model: fields of `WorldModel`.
      arrays: weights by path inside the network, e.g. 'gru/cells/0/weight_ih'.
      support: ranges of the record that trained it.
      manifest: of the cohort that trained it, with the scaler and the action bins.
      training: settings of the training run.
    """

    model: dict[str, Any]
    arrays: dict[str, np.ndarray]
    support: Support
    manifest: Manifest
    training: dict[str, Any]


def save(out: Path, checkpoint: Checkpoint, metrics: list[dict[str, float]]) -> None:
    """Write the folder aside, then rename it to `out`; an older checkpoint at `out` is replaced.

    Raises:
      InputError: `out` is something else than a checkpoint, or cannot be written.
    """
    with files.replacing(out, DESCRIPTION, KIND) as folder:
        _write_arrays(folder / ARRAYS, checkpoint.arrays)
        description = {
            "schema_version": SCHEMA_VERSION,
            "model": checkpoint.model,
            "training": checkpoint.training,
            "support": checkpoint.support.to_dict(),
            "manifest": checkpoint.manifest.to_dict(),
            "sha256": files.digests(folder / ARRAYS),
        }
        (folder / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n")
        write_metrics(folder / METRICS, metrics)


def write_metrics(file: Path, metrics: list[dict[str, float]]) -> None:
    """One CSV line for each row; all rows have the same columns."""
    with file.open("w", newline="") as lines:
        table = csv.DictWriter(lines, fieldnames=list(metrics[0]) if metrics else ["epoch"])
        table.writeheader()
        table.writerows(metrics)


def alone() -> ocp.options.MultiprocessingOptions:
    """Orbax in this process only: none of the others is waited for."""
    index = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=index, active_processes={index})


def brief(error: Exception) -> str:
    """The system's own words where an error of Orbax holds them, else its beginning."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if match := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(match[1]))
    return f"{type(error).__name__}: {str(error)[:120]}"


def load(path: Path) -> Checkpoint:
    """Read a folder. Raises InputError for a missing, foreign, damaged or differently versioned one."""
    path = Path(path).absolute()
    description = _load_description(path / DESCRIPTION)
    files.check_digests(path / ARRAYS, description.get("sha256"), path / DESCRIPTION, "train again, or copy it anew")
    try:
        with _orbax() as reader:
            names = reader.metadata(path / ARRAYS).item_metadata.tree
            as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
            arrays = reader.restore(path / ARRAYS, ocp.args.PyTreeRestore(restore_args=as_numpy))
    except Exception as error:
        raise InputError(path / ARRAYS, expected="readable Orbax arrays", found=brief(error)) from error
    try:
        manifest, support = Manifest.from_dict(description["manifest"]), Support.from_dict(description["support"])
        return Checkpoint(description["model"], arrays, support, manifest, description["training"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(path / DESCRIPTION, expected="the fields of a checkpoint", found=brief(error)) from error


def _orbax() -> ocp.Checkpointer:
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone())
    return ocp.Checkpointer(handler, multiprocessing_options=alone())


def reserve(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    """Raise OSError where the disk has no room for `arrays`, which Orbax would tell from many threads at once."""
    with tempfile.TemporaryFile(dir=folder) as file:
        for array in arrays.values():
            file.write(bytes(array.nbytes))
        file.flush()


def _write_arrays(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    reserve(folder.parent, arrays)
    try:
        with _orbax() as writer:
            writer.save(folder, ocp.args.PyTreeSave(arrays))
    except OSError:
        raise
    except Exception as error:  # Orbax wraps what the system says
        raise OSError(None, brief(error)) from error


def _load_description(file: Path) -> dict[str, Any]:
    if not file.is_file():
        hint = "train one with train_wm.py, or name one: --checkpoint sepsis_jax/checkpoints/carry"
        raise InputError(file, expected=KIND, found="no such file", hint=hint)
    try:
        description = json.loads(file.read_text())
        schema = description["schema_version"]
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        raise InputError(file, expected="JSON with a schema_version", found=brief(error)) from error
    if schema != SCHEMA_VERSION:
        hint = "train again with this version"
        raise InputError(file, field="schema_version", expected=str(SCHEMA_VERSION), found=schema, hint=hint)
    return description
