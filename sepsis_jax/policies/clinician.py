"""An estimate of what clinicians do in a state: a small network over the current observation.

It continues simulated trajectories after the planned steps, says how often clinicians chose an action in states like
this one (support), and stands in for propensities that nobody knows (`behaviour`).
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
from sepsis_jax.data.episodes import Episodes
from sepsis_jax.data.scaler import Scaler
from sepsis_jax.dynamics.protocol import History
from sepsis_jax.errors import InputError, check_range
from sepsis_jax.policies.inputs import WIDTH, look, on_record, remember
from sepsis_jax.policies.network import Perceptron

_CHECK_EVERY = 20  # updates between looks at the validation loss


@dataclasses.dataclass(frozen=True)
class ClinicianSettings:
    """How the estimate is fitted.

    Attributes:
      hidden: width of the two hidden layers.
      updates: gradient steps, rounded up to twenties.
      batch_size: decisions in each.
      learning_rate: of AdamW.
      weight_decay: of AdamW.
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


@dataclasses.dataclass(frozen=True)
class Clinician:
    """`Policy`: probabilities of the 25 actions given obs, mask, statics, previous action and time in the ICU.

    `params` is what `fit` returns; the carry is (z-scored statics f32[3], step i32[]).
    """

    settings: ClinicianSettings = ClinicianSettings()

    def init(self, params: Any, history: History) -> Any:
        """See `Policy.init`."""
        return remember(params["scaler"], history)

    def probs(
        self, params: Any, carry: Any, obs: jax.Array, mask: jax.Array, prev_action: jax.Array
    ) -> tuple[jax.Array, Any]:
        """See `Policy.probs`."""
        inputs, carry = look(params["scaler"], carry, obs, mask, prev_action)
        logits = nnx.merge(_graph(self.settings.hidden), params["network"])(inputs)
        uniform = self.settings.smoothing / actions.NUM_ACTIONS
        return (1 - self.settings.smoothing) * jax.nn.softmax(logits / params["temperature"]) + uniform, carry


def fit(settings: ClinicianSettings, episodes: Episodes, scaler: Scaler, key: jax.Array) -> Any:
    """Fit on the decisions of the train split; keep the weights with the lowest loss on the validation split.

    There one temperature is fitted, too (Guo et al. 2017, arXiv 1706.04599). Without validation stays the last weights
    are kept as they are. Consumes `key`; returns params of `Clinician`.
    """
    train, validation = (_decisions(episodes.subset(split), scaler) for split in ("train", "validation"))
    if train[1].size == 0:
        raise InputError("episodes", field="split", expected="train stays for the clinician estimate", found="none")
    network = _train(settings, *train, *validation, key)
    temperature = _temperature(settings, network, *validation)
    return {"network": network, "temperature": temperature, "scaler": jax.tree.map(jnp.asarray, scaler)}


def _decisions(episodes: Episodes, scaler: Scaler) -> tuple[jax.Array, jax.Array]:
    """Network inputs f32[N,WIDTH] and action ids i32[N] of all recorded decisions."""
    valid = episodes.valid
    return jnp.asarray(on_record(episodes, scaler)[valid]), actions.encode(episodes.action[valid])


def _network(hidden: int, rngs: nnx.Rngs) -> Perceptron:
    return Perceptron(WIDTH, hidden, actions.NUM_ACTIONS, rngs)


def _graph(hidden: int) -> Any:
    return nnx.graphdef(nnx.eval_shape(lambda: _network(hidden, nnx.Rngs(0))))


_TEMPERATURES = np.geomspace(0.5, 2.0, 57, dtype=np.float32)


@partial(jax.jit, static_argnums=0)
def _temperature(settings: ClinicianSettings, network: Any, inputs: jax.Array, targets: jax.Array) -> jax.Array:
    """f32[] of lowest loss; 1 without decisions."""
    logits = nnx.merge(_graph(settings.hidden), network)(inputs)

    def loss(temperature: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(logits / temperature, targets).sum()

    best = jnp.asarray(_TEMPERATURES)[jax.lax.map(loss, jnp.asarray(_TEMPERATURES)).argmin()]
    return best if targets.shape[0] else jnp.float32(1)


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
    graph, first = nnx.split(_network(settings.hidden, nnx.Rngs(init_key)))
    blocks = math.ceil(settings.updates / _CHECK_EVERY)
    schedule = optax.cosine_decay_schedule(settings.learning_rate, blocks * _CHECK_EVERY)
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

    keys = jax.random.split(key, (blocks, _CHECK_EVERY))
    (_, _, best, _), _ = jax.lax.scan(block, (first, optimizer.init(first), first, jnp.inf), keys)
    return best
