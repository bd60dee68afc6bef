"""The numerical part of training: one epoch of all members of an ensemble as one compiled program.

Members are independent: each has its own weights, order of stays, dropout and best epoch, and comes out as if it had
been trained alone. The stays live on the device; an epoch gathers its batches there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh

from sepsis_jax.data.episodes import Episodes
from sepsis_jax.data.scaler import Scaler
from sepsis_jax.dynamics.worldmodel import sharding
from sepsis_jax.dynamics.worldmodel.bounds import Support
from sepsis_jax.dynamics.worldmodel.losses import Terms, loss_terms, means
from sepsis_jax.dynamics.worldmodel.model import Params
from sepsis_jax.dynamics.worldmodel.settings import TrainSettings
from sepsis_jax.errors import InputError

_PRODUCTS = {"float32": "float32", "bfloat16": "BF16_BF16_F32"}
_VALIDATION_KEY = 0


@struct.dataclass
class Fit:
    """What an update of one member changes (with leading M for all).

    Attributes:
      network: the weights.
      average: running average of the weights; what is validated and kept.
      optimizer: state of the optimiser.
    """

    network: Any
    average: Any
    optimizer: Any


@struct.dataclass
class TrainState:
    """Everything that training goes on from.

    Attributes:
      fit: Fit with leading M.
      best: like `fit.average`, after each member's best epoch.
      best_loss: f32[M] its validation loss. best_epoch: i32[M].
      epoch: i32[] epochs done.
      seed: u32[2] data of the key of all epochs; data, so that every seed runs the same compiled program.
    """

    fit: Fit
    best: Any
    best_loss: Any
    best_epoch: Any
    epoch: Any
    seed: Any


class Stays(NamedTuple):
    """The stays of one split on the device; the last row is an empty stay (length 0), which fills up batches."""

    episodes: Episodes

    @property
    def number(self) -> int:
        """Real stays."""
        return self.episodes.length.shape[0] - 1

    def batches(self, batch_size: int) -> int:
        """Batches that hold every stay once."""
        return -(-self.number // batch_size)


def stays_of(episodes: Episodes, split: str, mesh: Mesh) -> Stays:
    """One split on every device. Raises InputError where it is empty."""
    stays = dataclasses.replace(episodes.subset(split), propensity=None)
    if stays.num_stays == 0:
        hint = "prepare a larger cohort"
        raise InputError("episodes", field="split", expected=f"{split} stays", found="none", hint=hint)
    padded = jax.tree.map(lambda leaf: np.pad(leaf, [(0, 1)] + [(0, 0)] * (leaf.ndim - 1)), stays)
    return Stays(sharding.replicate(padded, mesh))


def first_weights(settings: TrainSettings, scaler: Scaler, support: Support) -> Params:
    """Fresh weights of all members."""
    return settings.model.init(scaler, support, _keys(settings)[0])


def start(settings: TrainSettings, params: Params, batches: int) -> TrainState:
    """State before the first epoch from weights with leading M, for `batches` updates an epoch."""
    optimizer = jax.vmap(_optimizer(settings, batches).init)(params.network)
    members = settings.members
    fit = Fit(params.network, params.network, optimizer)
    never, seed = jnp.full(members, jnp.inf), jax.random.key_data(_keys(settings)[1])
    return TrainState(fit, params.network, never, jnp.zeros(members, jnp.int32), jnp.int32(0), seed)


def training(settings: TrainSettings, state: TrainState) -> Any:
    """bool[M]: members that have had a better validation loss within the patience."""
    return state.epoch - state.best_epoch < settings.patience


@partial(jax.jit, static_argnames=("settings", "mesh"))
def run_epoch(
    settings: TrainSettings, mesh: Mesh, params: Params, state: TrainState, train: Stays, validation: Stays
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One pass over the train stays in random order, then the validation loss.

    Args:
      settings, mesh: static.
      params: scaler and support; its network is not read.
      state: before the epoch.
      train, validation: stays.

    Returns:
      State after the epoch, and f32[M] by name: train_<term>, averaged over the updates, and validation_<term>.
    """
    epoch, batches = state.epoch + 1, train.batches(settings.batch_size)
    key = jax.random.fold_in(jax.random.wrap_key_data(state.seed), epoch)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(settings.members))
    order_keys, dropout_keys = jnp.unstack(jax.vmap(jax.random.split)(keys), axis=1)
    order = jax.vmap(jax.random.permutation, (0, None))(order_keys, batches * settings.batch_size)
    rows = jnp.minimum(order, train.number).reshape(settings.members, batches, settings.batch_size)

    def step(fit: Fit, inputs: tuple[jax.Array, jax.Array]) -> tuple[Fit, dict[str, jax.Array]]:
        rows, count = inputs
        return update(settings, mesh, params, fit, train, rows, dropout_keys, count)

    counts = state.epoch * batches + jnp.arange(batches)
    fit, train_losses = jax.lax.scan(step, state.fit, (jnp.swapaxes(rows, 0, 1), counts))
    validation_losses = validate(settings, mesh, params, fit.average, validation)
    losses = {f"train_{name}": value.mean(axis=0) for name, value in train_losses.items()}
    losses |= {f"validation_{name}": value for name, value in validation_losses.items()}

    better = training(settings, state) & (validation_losses["loss"] < state.best_loss)
    best, best_loss, best_epoch = jax.tree.map(
        partial(_where_members, better),
        (fit.average, validation_losses["loss"], jnp.full_like(state.best_epoch, epoch)),
        (state.best, state.best_loss, state.best_epoch),
    )
    return sharding.keep_replicated((TrainState(fit, best, best_loss, best_epoch, epoch, state.seed), losses), mesh)


def update(
    settings: TrainSettings,
    mesh: Mesh,
    params: Params,
    fit: Fit,
    train: Stays,
    rows: jax.Array,
    keys: jax.Array,
    count: jax.Array,
) -> tuple[Fit, dict[str, jax.Array]]:
    """One update of every member.

    Args:
      settings, mesh, params, train: see `run_epoch`.
      fit: before the update.
      rows: i32[M,b] stays of each member's batch.
      keys: key[M] of this epoch's dropout; a stay's key depends on its row.
      count: i32[] updates before this one.

    Returns:
      `fit` after the update, and each term's average over the batch f32[M].
    """
    optimizer = _optimizer(settings, train.batches(settings.batch_size))
    rows = sharding.fill_up(rows, mesh, train.number)
    batch = sharding.divide(jax.tree.map(lambda leaf: leaf[rows], train.episodes), mesh, axis=1)

    def loss_of(network: Any, batch: Episodes, stay_keys: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        averages = means(_terms(settings, params, network, batch, stay_keys, train=True))
        return averages["loss"], averages

    def member(fit: Fit, batch: Episodes, rows: jax.Array, key: jax.Array) -> tuple[Fit, dict[str, jax.Array]]:
        stay_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, rows)
        gradient, averages = jax.grad(loss_of, has_aux=True)(fit.network, batch, stay_keys)
        updates, state = optimizer.update(gradient, fit.optimizer, fit.network)
        network = optax.apply_updates(fit.network, updates)
        return Fit(network, averaged(settings.average, network, fit.average, count), state), averages

    return _each_member(member, fit, batch, rows, keys)


def averaged(decay: float, network: Any, average: Any, count: jax.Array) -> Any:
    """The running average after update `count`; it starts at the first weights, and a short memory leaves them soon."""
    return optax.incremental_update(network, average, 1 - jnp.minimum(decay, (1 + count) / (10 + count)))


def validate(
    settings: TrainSettings, mesh: Mesh, params: Params, network: Any, validation: Stays
) -> dict[str, jax.Array]:
    """f32[M] by name: each term's average over all validation stays, for `network` with leading M."""
    batches = validation.batches(settings.batch_size)
    rows = jnp.minimum(jnp.arange(batches * settings.batch_size), validation.number)
    rows = sharding.fill_up(rows.reshape(batches, settings.batch_size), mesh, validation.number)
    key = jax.random.key(_VALIDATION_KEY)  # the same every epoch, so that epochs differ by their weights alone

    def batch_terms(rows: jax.Array) -> Terms:
        batch = sharding.divide(jax.tree.map(lambda leaf: leaf[rows], validation.episodes), mesh, axis=0)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, rows)
        return _each_member(lambda network: _terms(settings, params, network, batch, keys, train=False), network)

    return jax.vmap(means, in_axes=1)(jax.lax.map(batch_terms, rows))


def _each_member(function: Callable[..., Any], *arguments: Any) -> Any:
    """`vmap` over the leading M; on a CPU one after the other, a fifth faster, since one member fits its cache."""
    return jax.lax.platform_dependent(
        *arguments,
        cpu=lambda *members: jax.lax.map(lambda member: function(*member), members),
        default=jax.vmap(function),
    )


def _terms(
    settings: TrainSettings, params: Params, network: Any, batch: Episodes, keys: jax.Array, *, train: bool
) -> Terms:
    """Terms of one member with leading b."""
    params = dataclasses.replace(params, network=network)
    with jax.default_matmul_precision(_PRODUCTS[settings.precision]):
        return jax.vmap(lambda episode, key: loss_terms(settings.model, params, episode, key, train=train))(batch, keys)


def _keys(settings: TrainSettings) -> jax.Array:
    """key[2]: of the first weights and of the epochs."""
    return jax.random.split(jax.random.key(settings.seed))


def _optimizer(settings: TrainSettings, batches: int) -> optax.GradientTransformation:
    total = settings.epochs * batches
    schedule = optax.warmup_cosine_decay_schedule(0.0, settings.learning_rate, min(batches, total // 10), total)
    chain = optax.chain(
        optax.clip_by_global_norm(settings.clip_norm),
        optax.adamw(schedule, weight_decay=settings.weight_decay),
    )
    return optax.flatten(chain)  # one long vector compiles faster than a kernel for each leaf


def _where_members(condition: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    return jnp.where(condition.reshape(-1, *[1] * (new.ndim - 1)), new, old)
