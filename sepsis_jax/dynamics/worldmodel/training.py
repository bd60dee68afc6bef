"""Training of a world model: whole epochs on the device, the best epoch on the validation stays is kept."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.progress import Progress

from sepsis_jax.data.episodes import Episodes
from sepsis_jax.data.scaler import Scaler
from sepsis_jax.dynamics.worldmodel.losses import Terms, loss_terms, means
from sepsis_jax.dynamics.worldmodel.model import Architecture, Params, WorldModel
from sepsis_jax.errors import SEEDS, InputError, check_range


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """How to train a world model.

    Attributes:
      architecture: 'carry' or 'published'.
      hidden: GRU width. layers: GRU depth. dropout: rate while training.
      epochs: passes over the train stays at most.
      patience: stop after this many epochs without a better validation loss.
      batch_size: stays in one update.
      learning_rate: peak of the cosine schedule. weight_decay: of AdamW. clip_norm: largest gradient norm.
      seed: of the weights, the order of stays and dropout.
    """

    architecture: Architecture = "carry"
    hidden: int = 128
    layers: int = 2
    dropout: float = 0.2
    epochs: int = 100
    patience: int = 15
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    clip_norm: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_range(self, "worldmodel", seed=SEEDS, weight_decay=(0, 10))
        _ = self.model  # raises for an impossible network
        for name in ("epochs", "patience", "batch_size", "learning_rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise InputError("world_model", field=name, expected="a positive number", found=getattr(self, name))

    @property
    def model(self) -> WorldModel:
        """The network that these settings train."""
        return WorldModel(self.architecture, self.hidden, self.layers, self.dropout)


class Trained(NamedTuple):
    """Result of `train`.

    Attributes:
      model, params: the best epoch.
      metrics: one row an epoch: epoch, train_<term>, validation_<term>.
    """

    model: WorldModel
    params: Params
    metrics: list[dict[str, float]]


def train(settings: TrainSettings, episodes: Episodes, scaler: Scaler) -> Trained:
    """Fit a world model on the train stays, choose the epoch on the validation stays.

    Raises:
      InputError: a split is empty, or the loss is not finite.
    """
    model = settings.model
    train_stays = _on_device(episodes, "train", settings.batch_size)
    validation_stays = _on_device(episodes, "validation", settings.batch_size)
    init_key, epochs_key = jax.random.split(jax.random.key(settings.seed))
    params = model.init(scaler, init_key)
    optimizer_state = _optimizer(settings, train_stays).init(params.network)

    best, best_loss, best_epoch, metrics = params, math.inf, 0, []
    with Progress(transient=True) as progress:
        task = progress.add_task("world model", total=settings.epochs)
        for epoch in range(1, settings.epochs + 1):
            key = jax.random.fold_in(epochs_key, epoch)
            params, optimizer_state, losses = _epoch(
                settings, params, optimizer_state, train_stays, validation_stays, key
            )
            row = {"epoch": epoch} | {name: float(value) for name, value in sorted(losses.items())}
            metrics.append(row)
            _check_finite(row)
            if row["validation_loss"] < best_loss:
                best, best_loss, best_epoch = params, row["validation_loss"], epoch
            description = f"world model, validation loss {row['validation_loss']:.3f}"
            progress.update(task, advance=1, description=description)
            if epoch - best_epoch >= settings.patience:
                break
    return Trained(model, best, metrics)


def _on_device(episodes: Episodes, split: str, batch_size: int) -> Episodes:
    """Stays of one split with stays of length 0 behind them, up to whole batches."""
    stays = dataclasses.replace(episodes.subset(split), propensity=None)
    if stays.num_stays == 0:
        hint = "prepare a larger cohort"
        raise InputError("episodes", field="split", expected=f"{split} stays", found="none", hint=hint)
    missing = -stays.num_stays % batch_size
    return jax.tree.map(lambda leaf: jnp.asarray(np.pad(leaf, [(0, missing)] + [(0, 0)] * (leaf.ndim - 1))), stays)


def _optimizer(settings: TrainSettings, train_stays: Episodes) -> optax.GradientTransformation:
    batches = train_stays.length.size // settings.batch_size
    total = settings.epochs * batches
    schedule = optax.warmup_cosine_decay_schedule(0.0, settings.learning_rate, min(batches, total // 10), total)
    chain = optax.chain(
        optax.clip_by_global_norm(settings.clip_norm),
        optax.adamw(schedule, weight_decay=settings.weight_decay),
    )
    return optax.flatten(chain)  # one long vector compiles faster than a kernel for each leaf


@partial(jax.jit, static_argnames="settings")
def _epoch(
    settings: TrainSettings,
    params: Params,
    optimizer_state: Any,
    train_stays: Episodes,
    validation_stays: Episodes,
    key: jax.Array,
) -> tuple[Params, Any, dict[str, jax.Array]]:
    """One pass over the train stays in random order, then the validation loss. Consumes `key`."""
    model, batch_size, optimizer = settings.model, settings.batch_size, _optimizer(settings, train_stays)
    order_key, dropout_key = jax.random.split(key)
    order = jax.random.permutation(order_key, train_stays.length.size).reshape(-1, batch_size)

    def terms_of(network: Any, batch: Episodes, keys: jax.Array | None) -> Terms:
        stay_terms = jax.vmap(loss_terms, (None, None, 0, 0))
        return stay_terms(model, dataclasses.replace(params, network=network), batch, keys)

    def loss_of(network: Any, batch: Episodes, keys: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        averages = means(terms_of(network, batch, keys))
        return averages["loss"], averages

    def update(carry: tuple[Any, Any], rows: jax.Array) -> tuple[tuple[Any, Any], dict[str, jax.Array]]:
        network, state = carry
        batch = jax.tree.map(lambda leaf: leaf[rows], train_stays)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(dropout_key, rows)
        gradient, averages = jax.grad(loss_of, has_aux=True)(network, batch, keys)
        updates, state = optimizer.update(gradient, state, network)
        return (optax.apply_updates(network, updates), state), averages

    (network, optimizer_state), train_losses = jax.lax.scan(update, (params.network, optimizer_state), order)
    batches = jax.tree.map(lambda leaf: leaf.reshape(-1, batch_size, *leaf.shape[1:]), validation_stays)
    validation_losses = means(jax.lax.map(lambda batch: terms_of(network, batch, None), batches))
    losses = {f"train_{name}": value.mean() for name, value in train_losses.items()}
    losses |= {f"validation_{name}": value for name, value in validation_losses.items()}
    return dataclasses.replace(params, network=network), optimizer_state, losses


def _check_finite(row: dict[str, float]) -> None:
    for name, value in row.items():
        if not math.isfinite(value):
            raise InputError(
                "training",
                field=f"{name} in epoch {row['epoch']}",
                expected="a finite loss",
                found=value,
                hint="lower world_model.learning_rate and check the data for extreme values",
            )
