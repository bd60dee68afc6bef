"""The default network: the whole history lives in the hidden state, one GRU step per simulated step.

The GRU reads [obs, mask, action before, static]; the heads read [hidden, obs, action after], so that all candidate
actions of a patient share one encoding. The mean of a value is its carried value plus a predicted change.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from sepsis_jax.clinical.actions import LEVELS
from sepsis_jax.clinical.features import NUM_FEATURES, NUM_MASKED, STATICS
from sepsis_jax.dynamics.worldmodel.gru import StackedGRU
from sepsis_jax.dynamics.worldmodel.prediction import Prediction

_ACTION = 2 * LEVELS
_OUTPUTS = (NUM_FEATURES, NUM_FEATURES, NUM_MASKED, 1, 2)  # change, log sigma, mask, ventilation, exits
_LOG_SIGMA = (-4.0, 3.0)  # a feature that never changes must not drive the likelihood to infinity
_LARGEST_INPUT = 8.0  # z-scores; liver enzymes reach 80 SD, where the gates are long saturated


class CarryNetwork(nnx.Module):
    """GRU over the history, one hidden layer before the heads of the next step, a linear head for mortality."""

    def __init__(self, hidden: int, layers: int, dropout: float, *, rngs: nnx.Rngs) -> None:
        zeros = nnx.initializers.zeros_init()
        inputs = NUM_FEATURES + NUM_MASKED + _ACTION + len(STATICS)
        self.gru = StackedGRU(inputs, hidden, layers, dropout, rngs=rngs)
        self.trunk = nnx.Linear(hidden + NUM_FEATURES + _ACTION, hidden, rngs=rngs)
        # Zeros make the untrained model persistence with unit variance.
        self.heads = nnx.Linear(hidden, sum(_OUTPUTS), kernel_init=zeros, rngs=rngs)
        self.mortality_head = nnx.Linear(hidden + len(STATICS), 1, kernel_init=zeros, rngs=rngs)
        self.dropout = nnx.Dropout(dropout)

    def initial(self) -> jax.Array:
        """Memory before the first observation: f32[L,H]."""
        return self.gru.initial()

    def observe(
        self,
        memory: jax.Array,
        static: jax.Array,
        z: jax.Array,
        mask: jax.Array,
        action: jax.Array,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Take in z f32[F] and mask bool[38], which came after `action` (one-hot f32[10]). Consumes `key`."""
        return self.gru(memory, jnp.concatenate([_squash(z), mask.astype(z.dtype), action, static]), key)

    def predict(
        self, memory: jax.Array, static: jax.Array, z: jax.Array, action: jax.Array, key: jax.Array | None = None
    ) -> Prediction:
        """The next step under `action` (one-hot f32[10]) from carried z f32[F]. Consumes `key` (dropout)."""
        del static
        features = jax.nn.relu(self.trunk(jnp.concatenate([memory[-1], _squash(z), action])))
        outputs = self.heads(self.dropout(features, deterministic=key is None, rngs=key))
        splits = [sum(_OUTPUTS[: i + 1]) for i in range(len(_OUTPUTS) - 1)]
        change, log_sigma, mask_logit, vent_logit, exit_logit = jnp.split(outputs, splits)
        return Prediction(z + change, jnp.clip(log_sigma, *_LOG_SIGMA), mask_logit, vent_logit[0], exit_logit)

    def mortality_logit(self, memory: jax.Array, static: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """f32[] of death within 90 days of someone who leaves alive. Consumes `key` (dropout).

        A linear read-out that does not train the GRU: one label a stay, seen at each of its steps, would overfit it.
        """
        hidden = self.dropout(jax.lax.stop_gradient(memory[-1]), deterministic=key is None, rngs=key)
        return self.mortality_head(jnp.concatenate([hidden, static]))[0]


def _squash(z: jax.Array) -> jax.Array:
    return jnp.clip(z, -_LARGEST_INPUT, _LARGEST_INPUT)
