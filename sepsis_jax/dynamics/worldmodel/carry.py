"""The default network: the whole history lives in the hidden state, one GRU step per simulated step.

The GRU reads [obs, level, mask, steps since measured, action before, static, time]; the heads read [hidden, obs,
level, action after], so that all candidate actions of a patient share one encoding. The level of a feature is a
running mean of its measured values: what is measured with noise and changes slowly (blood counts) is told from it
exactly, and needs no hidden units. The median of a value is its carried value, drawn to the level by a share that each
feature learns, plus a predicted change.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, struct

from sepsis_jax.clinical.actions import LEVELS
from sepsis_jax.clinical.features import NUM_FEATURES, NUM_MASKED, STATICS
from sepsis_jax.dynamics.worldmodel import copula
from sepsis_jax.dynamics.worldmodel.gru import StackedGRU
from sepsis_jax.dynamics.worldmodel.marginals import SLOPES, Marginals
from sepsis_jax.dynamics.worldmodel.prediction import MaskMixture, Prediction

RANK = 8
"""R, factors of the copula."""
PATTERNS = 8
"""C, patterns of measurement (which panels are drawn)."""
OUTCOMES = ("mortality_90d", "mortality_hospital")

_ACTION = 2 * LEVELS
INPUTS = 4 * NUM_FEATURES + _ACTION + len(STATICS) + 1
OUTPUTS = (NUM_FEATURES, NUM_FEATURES * SLOPES, PATTERNS, NUM_MASKED, 1, 2, 1)
LOG_SLOPE = (-5.0, 4.0)  # a feature that never changes must not drive the likelihood to infinity
_MEMORY = 6.0  # measurements; a full level moves by a sixth of what a new one differs
_LARGEST_INPUT = 8.0  # z-scores; liver enzymes reach 80 SD, where the gates are long saturated
_NEVER = 24.0  # steps since a measurement that has not been made


@struct.dataclass
class Memory:
    """What is kept of the past.

    Attributes:
      hidden: f32[L,H]. since: f32[F] steps since each feature was measured. steps: f32[] seen so far.
      level: f32[F] running mean of the measured values. number: f32[F] of values in it, at most `_MEMORY`.
    """

    hidden: Any
    since: Any
    steps: Any
    level: Any
    number: Any


class CarryNetwork(nnx.Module):
    """GRU over the history; two hidden layers before the heads of the next step; a hidden layer for mortality."""

    def __init__(self, hidden: int, layers: int, dropout: float, *, dtype: Any = jnp.float32, rngs: nnx.Rngs) -> None:
        zeros = nnx.initializers.zeros_init()
        linear = partial(nnx.Linear, dtype=dtype, preferred_element_type=jnp.float32, rngs=rngs)
        self.gru = StackedGRU(INPUTS, hidden, layers, dropout, dtype=dtype, rngs=rngs)
        self.trunk = linear(hidden + 2 * NUM_FEATURES + _ACTION, hidden)
        self.second = linear(hidden, hidden)
        # Zeros make the untrained model persistence with unit variance.
        self.heads = linear(hidden, sum(OUTPUTS), kernel_init=zeros)
        self.loading = nnx.Param(0.1 * jax.random.normal(rngs.params(), (NUM_FEATURES, RANK)))
        self.pull = nnx.Param(jnp.zeros(NUM_FEATURES))
        self.log_spread = nnx.Param(jnp.zeros(NUM_FEATURES))
        self.patterns = nnx.Param(jax.random.normal(rngs.params(), (PATTERNS, NUM_MASKED)))
        self.mortality = nnx.Linear(hidden + len(STATICS), hidden // 2, rngs=rngs)
        self.mortality_head = nnx.Linear(hidden // 2, len(OUTCOMES), kernel_init=zeros, rngs=rngs)
        self.dropout = nnx.Dropout(dropout)

    def initial(self) -> Memory:
        """Memory before the first observation."""
        level = jnp.zeros((2, NUM_FEATURES))
        return Memory(self.gru.initial(), jnp.full(NUM_FEATURES, _NEVER), jnp.float32(0), level[0], level[1])

    def observe(
        self,
        memory: Memory,
        static: jax.Array,
        z: jax.Array,
        mask: jax.Array,
        action: jax.Array,
        key: jax.Array | None = None,
        recurrent: Any = None,
    ) -> Memory:
        """Take in z f32[F] and mask bool[F], which came after `action` (one-hot f32[10]). Consumes `key`.

        `recurrent` is what `recur` gives, where it is known.
        """
        since = _since(memory.since, mask)
        level, number = _level(memory.level, memory.number, z, mask)
        x = network_inputs(static, z, level, mask, action, since, memory.steps)
        return Memory(self.gru(memory.hidden, x, key, recurrent), since, memory.steps + 1, level, number)

    def read(self, static: jax.Array, z: jax.Array, mask: jax.Array, action: jax.Array, key: Any = None) -> Memory:
        """Memory after every step, leading T: z f32[T,F], mask bool[T,F], action before each f32[T,10].

        Consumes `key` (dropout).
        """
        steps = jnp.arange(len(z), dtype=z.dtype)
        since, level, number = track(z, mask)
        xs = jax.vmap(network_inputs, (None, 0, 0, 0, 0, 0, 0))(static, z, level, mask, action, since, steps)
        return Memory(self.gru.unroll(xs, key), since, steps + 1, level, number)

    def recur(self, memory: Memory) -> Any:
        """What `observe` takes from the memory alone, whatever comes: L x f32[3H]."""
        return self.gru.recur(memory.hidden)

    def prepare(self, memory: Memory, static: jax.Array) -> Memory:
        """The same memory: all that a step needs is in it."""
        del static
        return memory

    def predict(
        self, memory: Memory, static: jax.Array, z: jax.Array, action: jax.Array, key: jax.Array | None = None
    ) -> Prediction:
        """The next step under `action` (one-hot f32[10]) from carried z f32[F]; no dropout, so `key` is not used."""
        del static, key
        above = memory.level - z
        features = jax.nn.relu(self.trunk(jnp.concatenate([memory.hidden[-1], squash(z), squash(above), action])))
        features = features + jax.nn.relu(self.second(features))
        outputs = self.heads(features)
        splits = [sum(OUTPUTS[: i + 1]) for i in range(len(OUTPUTS) - 1)]
        change, log_slope, pattern, mask_logit, vent_logit, exit_logit, zero_logit = jnp.split(outputs, splits)
        slopes = jnp.clip(log_slope.reshape(SLOPES, NUM_FEATURES), *LOG_SLOPE)
        slopes = slopes + jax.lax.stop_gradient(self.log_spread[...])[None]  # set after training (`calibration`)
        return Prediction(
            values=Marginals(z + self.pull[...] * above + change, slopes, zero_logit[0]),
            loading=copula.loadings(self.loading[...]),
            mask=MaskMixture(jax.nn.log_softmax(pattern), self.patterns[...] + mask_logit[None]),
            vent_logit=vent_logit[0],
            exit_logit=exit_logit,
        )

    def mortality_logits(self, memory: Memory, static: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """f32[2] of death within 90 days and in hospital of someone who leaves the ICU alive. Consumes `key` (dropout).

        It does not train the GRU: one label a stay, seen at each of its steps, would overfit it.
        """
        hidden = self.dropout(jax.lax.stop_gradient(memory.hidden[-1]), deterministic=key is None, rngs=key)
        return self.mortality_head(jax.nn.relu(self.mortality(jnp.concatenate([hidden, static]))))


def _since(before: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.where(mask, 0.0, jnp.minimum(before + 1, _NEVER))


def _level(level: jax.Array, number: jax.Array, z: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    number = jnp.minimum(number + mask, _MEMORY)
    return level + jnp.where(mask, (z - level) / jnp.maximum(number, 1.0), 0.0), number


def track(z: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`Memory.since`, `level` and `number` after every step of z f32[T,F] and mask bool[T,F]."""

    def step(before: tuple[Any, Any, Any], row: tuple[Any, Any]) -> tuple[Any, Any]:
        after = (_since(before[0], row[1]), *_level(before[1], before[2], *row))
        return after, after

    none = jnp.zeros(NUM_FEATURES)
    since, level, number = jax.lax.scan(step, (jnp.full(NUM_FEATURES, _NEVER), none, none), (z, mask))[1]
    return since, level, number


def network_inputs(static: Any, z: Any, level: Any, mask: Any, action: Any, since: Any, steps: Any) -> jax.Array:
    """What the recurrent network reads of one step, f32[INPUTS]; see `Memory` and `CarryNetwork.observe`."""
    time = jnp.log1p(steps)[None]
    return jnp.concatenate([squash(z), squash(level), mask.astype(z.dtype), jnp.log(since + 1), action, static, time])


def squash(z: jax.Array) -> jax.Array:
    """Z-scores within what the network reads."""
    return jnp.clip(z, -_LARGEST_INPUT, _LARGEST_INPUT)
