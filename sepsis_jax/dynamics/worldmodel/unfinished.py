"""A training that has not ended, on disk: what `train` goes on from after a kill.

    FOLDER/training.json   which training this is: settings, stays, first weights
    FOLDER/epochs/N        Orbax checkpoint after epoch N; the newest whole one is kept
    FOLDER/metrics.csv     the rows so far, for people

Checkpoints are written in the background and appear by a rename, so that a kill at any time leaves a whole one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from sepsis_jax import files
from sepsis_jax.dynamics.worldmodel import checkpoint
from sepsis_jax.errors import InputError

IDENTITY, EPOCHS = "training.json", "epochs"
KIND = "an unfinished training"
Rows = list[dict[str, float]]


def digest(tree: Any) -> str:
    """Beginning of the SHA-256 of all arrays of a tree."""
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        total.update(f"{jax.tree_util.keystr(path)}{array.dtype}{array.shape}".encode())
        total.update(array.tobytes())
    return total.hexdigest()[:16]


class Unfinished:
    """The folder of one training; a context that ends when the last checkpoint is on disk.

    Args:
      folder: made where it is missing.
      identity: what makes two trainings the same one, by name.

    Raises:
      InputError: the folder holds another training or something else, or cannot be written.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.folder = Path(folder).absolute()
        files.check_replaceable(self.folder, IDENTITY, KIND)
        if (self.folder / IDENTITY).exists():
            _check_same(self.folder, identity)
        else:
            with files.replacing(self.folder, IDENTITY, KIND) as aside:
                (aside / IDENTITY).write_text(json.dumps(identity, indent=1) + "\n")
                (aside / EPOCHS).mkdir()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=1,
            cleanup_tmp_directories=True,
            # Only the first process has the folder open, so the others must not be waited for.
            multiprocessing_options=checkpoint.alone(),
            create=False,
        )
        self._manager = ocp.CheckpointManager(self.folder / EPOCHS, options=options)

    def __enter__(self) -> Unfinished:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            self._manager.close()
        except Exception as late:
            if error is None:  # else the first error counts
                raise self._unwritable(late) from late

    def load(self, like: Any) -> tuple[Any, Rows] | None:
        """The state after the last epoch on disk, shaped as `like`, and the metrics until then; None at the start."""
        epoch = self._manager.latest_step()
        if epoch is None:
            return None
        names = _by_path(like)
        where = self.folder / EPOCHS / str(epoch)
        try:
            as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
            restore = ocp.args.Composite(
                state=ocp.args.PyTreeRestore(restore_args=as_numpy), rows=ocp.args.JsonRestore()
            )
            found = self._manager.restore(epoch, args=restore)
            arrays = [found.state[name] for name in names]
        except Exception as error:
            found, hint = checkpoint.brief(error), f"remove {self.folder} to train anew"
            raise InputError(where, expected="a readable training state", found=found, hint=hint) from error
        for (name, leaf), array in zip(names.items(), arrays, strict=True):
            if np.shape(array) != leaf.shape:
                raise InputError(where, field=name, expected=f"shape {leaf.shape}", found=np.shape(array))
        return jax.tree.unflatten(jax.tree.structure(like), arrays), found.rows

    def save(self, epoch: int, state: Any, rows: Rows) -> None:
        """Begin to write the state (NumPy arrays) after `epoch`; nothing happens while an earlier one is written.

        Raises:
          InputError: this one or an earlier one could not be written; the last whole one is untouched.
        """
        try:
            checkpoint.write_metrics(self.folder / checkpoint.METRICS, rows)
            self._manager.check_for_errors()
            if not self._manager.is_saving_in_progress():
                arrays = _by_path(state)
                checkpoint.reserve(self.folder, arrays)
                whole = ocp.args.Composite(state=ocp.args.PyTreeSave(arrays), rows=ocp.args.JsonSave(rows))
                self._manager.save(epoch, args=whole)
        except Exception as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: Exception) -> InputError:
        return InputError(self.folder, expected="a disk that can be written", found=checkpoint.brief(error))


def remove(folder: Path) -> None:
    """Delete the folder of a training that has ended."""
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    folder.rename(aside)  # a kill while files vanish must not leave a folder that looks whole
    shutil.rmtree(aside, ignore_errors=True)


def _check_same(folder: Path, identity: dict[str, Any]) -> None:
    file = folder / IDENTITY
    try:
        before = dict(json.loads(file.read_text()))
    except (ValueError, TypeError, OSError) as error:
        raise InputError(file, expected="a JSON object", found=checkpoint.brief(error)) from error
    identity = json.loads(json.dumps(identity))
    for name in identity | before:  # in the order of the settings
        if before.get(name) != identity.get(name):
            hint = f"remove {folder} to train anew"
            expected = f"the unfinished training's {before.get(name)}"
            raise InputError(folder, field=name, expected=expected, found=identity.get(name), hint=hint)


def _by_path(tree: Any) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
