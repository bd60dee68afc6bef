"""An estimate of what clinicians do in a state: a small network over the current observation.

It continues simulated trajectories after the planned steps and says how often clinicians chose an action in states
like this one (support). Calibrated, cross-fitted estimates for off-policy evaluation build on the same interface.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from sepsis_jax.clinical import actions
from sepsis_jax.clinical.features import NUM_FEATURES, NUM_MASKED
from sepsis_jax.data.episodes import Episodes
from sepsis_jax.data.scaler import Scaler
from sepsis_jax.dynamics.protocol import History
from sepsis_jax.errors import InputError, check_range

_INPUTS = NUM_FEATURES + NUM_MASKED + 3 + 2 * actions.LEVELS + 1
_STEPS_PER_DAY = 6.0
_CHECK_EVERY = 20  # updates between looks at the validation loss


@dataclasses.dataclass(frozen=True)
class ClinicianSettings:
    """How the estimate is fitted.

    Attributes:
      hidden: width of the two hidden layers.
      updates: gradient steps. batch_size: decisions in each.
      learning_rate, weight_decay: of AdamW.
      smoothing: share of the uniform distribution mixed into the probabilities, so that none is 0.
    """

    hidden: int = 64
    updates: int = 600
    batch_size: int = 512
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    smoothing: float = 0.02

    def __post_init__(self) -> None:
        check_range(self, "clinician", hidden=(1, 65536), updates=(1, math.inf), batch_size=(1, math.inf))
        check_range(self, "clinician", learning_rate=(0, 10), weight_decay=(0, 10), smoothing=(0, 1))


class _Network(nnx.Module):
    def __init__(self, hidden: int, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(_INPUTS, hidden, rngs=rngs)
        self.second = nnx.Linear(hidden, hidden, rngs=rngs)
        self.out = nnx.Linear(hidden, actions.NUM_ACTIONS, rngs=rngs)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        return self.out(nnx.relu(self.second(nnx.relu(self.first(inputs)))))


@dataclasses.dataclass(frozen=True)
class Clinician:
    """`Policy`: probabilities of the 25 actions given obs, mask, statics, previous action and time in the ICU.

    `params` is what `fit` returns; the carry is (z-scored statics f32[3], step i32[]).
    """

    settings: ClinicianSettings = ClinicianSettings()

    def init(self, params: Any, history: History) -> Any:
        """See `Policy.init`."""
        return params["scaler"].normalize_static(history.static), history.length - 1

    def probs(
        self, params: Any, carry: Any, obs: jax.Array, mask: jax.Array, prev_action: jax.Array
    ) -> tuple[jax.Array, Any]:
        """See `Policy.probs`."""
        static, step = carry
        inputs = _inputs(params["scaler"], obs, mask, static, prev_action, step)
        logits = nnx.merge(_graph(self.settings.hidden), params["network"])(inputs)
        uniform = self.settings.smoothing / actions.NUM_ACTIONS
        return (1 - self.settings.smoothing) * jax.nn.softmax(logits) + uniform, (static, step + 1)


def fit(settings: ClinicianSettings, episodes: Episodes, scaler: Scaler, key: jax.Array) -> Any:
    """Fit on the decisions of the train split; keep the weights with the lowest loss on the validation split.

    Without validation stays the last weights are kept. Consumes `key`; returns params of `Clinician`.
    """
    train, validation = (_decisions(episodes.subset(split), scaler) for split in ("train", "validation"))
    if train[1].size == 0:
        raise InputError("episodes", field="split", expected="train stays for the clinician estimate", found="none")
    network = _train(settings, *train, *validation, key)
    return {"network": network, "scaler": jax.tree.map(jnp.asarray, scaler)}


def _decisions(episodes: Episodes, scaler: Scaler) -> tuple[jax.Array, jax.Array]:
    """Network inputs f32[N,_INPUTS] and action ids i32[N] of all recorded decisions."""
    valid = episodes.valid
    return jnp.asarray(decision_inputs(episodes, scaler)[valid]), actions.encode(episodes.action[valid])


def decision_inputs(episodes: Episodes, scaler: Scaler) -> np.ndarray:
    """f32[B,T,91]: what is known at each decision: observations, masks, statics, what was given before, and time."""
    previous = np.concatenate([episodes.prior_action[:, None], episodes.action[:, :-1]], axis=1)
    step = np.broadcast_to(np.arange(episodes.num_steps), episodes.valid.shape)
    static = np.broadcast_to(scaler.normalize_static(episodes.static)[:, None], (*step.shape, 3))
    return np.asarray(_inputs(scaler, episodes.obs, episodes.mask, static, previous, step))


def fitted_probs(clinician: Clinician, params: Any, episodes: Episodes) -> np.ndarray:
    """Estimated probabilities f32[B,T,25] at every recorded decision (uniform at padding)."""
    previous = np.concatenate([episodes.prior_action[:, None], episodes.action[:, :-1]], axis=1)
    step = np.broadcast_to(np.arange(episodes.num_steps), episodes.valid.shape)
    static = np.broadcast_to(episodes.static[:, None], (*step.shape, 3))

    @jax.jit
    @jax.vmap
    @jax.vmap
    def at(obs: jax.Array, mask: jax.Array, static: jax.Array, action: jax.Array, step: jax.Array) -> jax.Array:
        carry = (params["scaler"].normalize_static(static), step)
        return clinician.probs(params, carry, obs, mask, action)[0]

    probs = np.asarray(at(episodes.obs, episodes.mask, static, previous, step))
    return np.where(episodes.valid[..., None], probs, np.float32(1 / actions.NUM_ACTIONS))


def _inputs(scaler: Scaler, obs: Any, mask: Any, static: Any, prev_action: Any, step: Any) -> jax.Array:
    """f32[...,_INPUTS]; `static` is already scaled."""
    parts = [
        scaler.normalize(jnp.asarray(obs)),
        mask.astype(jnp.float32),
        jnp.asarray(static),
        actions.one_hot(prev_action),
        (jnp.asarray(step, jnp.float32) / _STEPS_PER_DAY)[..., None],
    ]
    return jnp.concatenate(parts, axis=-1)


def _graph(hidden: int) -> Any:
    return nnx.graphdef(nnx.eval_shape(lambda: _Network(hidden, nnx.Rngs(0))))


@partial(jax.jit, static_argnums=0)
def _train(
    settings: ClinicianSettings,
    inputs: jax.Array,
    targets: jax.Array,
    held_inputs: jax.Array,
    held_targets: jax.Array,
    key: jax.Array,
) -> Any:
    init_key, key = jax.random.split(key)
    graph, first = nnx.split(_Network(settings.hidden, nnx.Rngs(init_key)))
    schedule = optax.cosine_decay_schedule(settings.learning_rate, settings.updates)
    optimizer = optax.adamw(schedule, weight_decay=settings.weight_decay)

    def loss(network: Any, inputs: jax.Array, targets: jax.Array) -> jax.Array:
        logits = nnx.merge(graph, network)(inputs)
        # The mean over no decisions is 0, not NaN: without validation stays every block counts as the best so far.
        total = optax.softmax_cross_entropy_with_integer_labels(logits, targets).sum()
        return total / max(targets.shape[0], 1)

    def update(carry: tuple[Any, Any], key: jax.Array) -> tuple[tuple[Any, Any], None]:
        network, state = carry
        rows = jax.random.randint(key, (settings.batch_size,), 0, targets.shape[0])
        gradient = jax.grad(loss)(network, inputs[rows], targets[rows])
        updates, state = optimizer.update(gradient, state, network)
        return (optax.apply_updates(network, updates), state), None

    def block(carry: tuple[Any, Any, Any, Any], keys: jax.Array) -> tuple[tuple[Any, Any, Any, Any], None]:
        network, state, best, best_loss = carry
        (network, state), _ = jax.lax.scan(update, (network, state), keys)
        held = loss(network, held_inputs, held_targets)
        best = jax.tree.map(lambda new, old: jnp.where(held <= best_loss, new, old), network, best)
        return (network, state, best, jnp.minimum(held, best_loss)), None

    keys = jax.random.split(key, (max(settings.updates // _CHECK_EVERY, 1), _CHECK_EVERY))
    (_, _, best, _), _ = jax.lax.scan(block, (first, optimizer.init(first), first, jnp.inf), keys)
    return best
