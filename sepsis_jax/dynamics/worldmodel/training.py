"""Training of a world model: epochs on the device, one after the other, that a kill cannot lose."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from rich.progress import Progress

from sepsis_jax.data.episodes import Episodes
from sepsis_jax.data.scaler import Scaler
from sepsis_jax.dynamics.worldmodel import sharding, steps
from sepsis_jax.dynamics.worldmodel.bounds import Support
from sepsis_jax.dynamics.worldmodel.calibration import calibrate
from sepsis_jax.dynamics.worldmodel.model import Params, WorldModel
from sepsis_jax.dynamics.worldmodel.settings import TrainSettings
from sepsis_jax.dynamics.worldmodel.unfinished import Rows, Unfinished, digest
from sepsis_jax.errors import InputError


class Trained(NamedTuple):
    """Result of `train`.

    Attributes:
      model, params: the best epoch of every member.
      metrics: a row for each epoch and member that had not stopped: epoch, member, train_<term>, validation_<term>.
    """

    model: WorldModel
    params: Params
    metrics: Rows


def train(
    settings: TrainSettings,
    episodes: Episodes,
    scaler: Scaler,
    *,
    first: Params | None = None,
    unfinished: Path | None = None,
    report: Callable[[Rows], None] | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Trained:
    """Fit a world model on the train stays, choose each member's epoch on the validation stays.

    Args:
      settings: of the network and of its training.
      episodes: all stays, the same in every process.
      scaler: of the cohort; `first` has its own.
      first: weights, scaler and support to start from instead of fresh ones; of the same layout.
      unfinished: folder that keeps the state while training; where it holds one of the same training, that one goes
        on, and ends bit for bit as an unbroken one on the same devices. It stays; see `unfinished.remove`.
      report: gets the rows of each epoch (in the first process).
      devices: to train on; None takes all, of all processes.

    Raises:
      InputError: a split is empty, hosts hold other stays, the loss is not finite, or `unfinished` is another training
        or cannot be written.
    """
    mesh = sharding.mesh(devices)
    train_stays, validation_stays = (steps.stays_of(episodes, split, mesh) for split in ("train", "validation"))
    params = _first_params(settings, episodes, scaler) if first is None else first
    state = steps.start(settings, params, train_stays.batches(settings.batch_size))
    params, state = jax.tree.map(np.asarray, (params, state))
    if not sharding.same_everywhere(digest(episodes)):
        hint = "copy one store to all hosts"
        raise InputError("training", expected="the same stays on every host", found="others on some", hint=hint)
    identity = dataclasses.asdict(settings) | {"stays": digest(episodes), "first weights": digest(params)}
    with _opened(unfinished, identity) as folder:
        state, rows = _go_on(folder, state, mesh)
        params = sharding.replicate(params, mesh)
        with Progress(transient=True, disable=not sharding.is_first()) as progress:
            task = progress.add_task("world model", total=settings.epochs)
            while int(state.epoch) < settings.epochs and steps.training(settings, state).any():
                progress.update(task, completed=int(state.epoch))
                on_devices, going = sharding.replicate(state, mesh), np.asarray(steps.training(settings, state))
                state, losses = sharding.to_host(
                    steps.run_epoch(settings, mesh, params, on_devices, train_stays, validation_stays)
                )
                new = _rows(np.flatnonzero(going), int(state.epoch), losses)
                _check_finite(new)
                rows += new
                if folder is not None:
                    folder.save(int(state.epoch), state, rows)
                if report is not None and sharding.is_first():
                    report(new)
                loss = float(np.mean([row["validation_loss"] for row in new]))
                progress.update(task, description=f"world model, validation loss {loss:.3f}")
    best = dataclasses.replace(sharding.to_host(params), network=state.best)
    best = calibrate(settings.model, jax.tree.map(jnp.asarray, best), episodes, jax.random.key(settings.seed))
    return Trained(settings.model, best, rows)


def _first_params(settings: TrainSettings, episodes: Episodes, scaler: Scaler) -> Params:
    return steps.first_weights(settings, scaler, Support.fit(episodes.subset("train"), scaler))


def _opened(folder: Path | None, identity: dict[str, Any]) -> Any:
    """The folder of the training in the first process; None elsewhere and where there is none."""
    return nullcontext() if folder is None or not sharding.is_first() else Unfinished(folder, identity)


def _go_on(folder: Unfinished | None, state: steps.TrainState, mesh: Mesh) -> tuple[steps.TrainState, Rows]:
    """The state on disk if there is one, in every process; its rows in the first."""
    found = None if folder is None else folder.load(state)
    state, rows = (state, []) if found is None else found
    return sharding.from_first(state), rows


def _rows(members: np.ndarray, epoch: int, losses: dict[str, np.ndarray]) -> Rows:
    return [
        {"epoch": epoch, "member": member} | {name: float(value[member]) for name, value in sorted(losses.items())}
        for member in members.tolist()
    ]


def _check_finite(rows: Rows) -> None:
    for row in rows:
        for name, value in row.items():
            if not math.isfinite(value):
                raise InputError(
                    "training",
                    field=f"{name} of member {row['member']} in epoch {row['epoch']}",
                    expected="a finite loss",
                    found=value,
                    hint="lower world_model.learning_rate and check the data for extreme values",
                )


def weights_to_adapt(settings: TrainSettings, path: Path) -> Params:
    """Weights, scaler and support of a checkpoint, to train on with another cohort.

    Raises:
      InputError: it cannot be read, or its layout is not that of `settings` (only dropout may differ).
    """
    model, params, _ = WorldModel.from_checkpoint(path)
    wanted = settings.model
    for field in dataclasses.fields(WorldModel):
        ours, theirs = getattr(wanted, field.name), getattr(model, field.name)
        if field.name != "dropout" and ours != theirs:
            hint = f"set world_model.{field.name} to {theirs}"
            raise InputError(path, field=field.name, expected=ours, found=theirs, hint=hint)
    return params
