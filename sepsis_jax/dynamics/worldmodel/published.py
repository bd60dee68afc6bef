"""The two published networks (arXiv 2605.14723), layer by layer, so that the released weights fit.

Inputs of one 4-h step are [obs 39, mask 38, Linear(static) 32, Linear(action) 32] = 141, where the action is the one
given after the observation. A network reads the last 6 (state) or 12 (outcome) steps; missing steps in front are rows
of zeros, which the GRU reads too.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, struct

from sepsis_jax.clinical.actions import LEVELS
from sepsis_jax.clinical.features import NUM_FEATURES, NUM_MASKED, STATICS
from sepsis_jax.dynamics.worldmodel.gru import StackedGRU
from sepsis_jax.dynamics.worldmodel.marginals import Marginals
from sepsis_jax.dynamics.worldmodel.prediction import Prediction

STATE_WINDOW, OUTCOME_WINDOW = 6, 12
EMBEDDING, HEAD = 32, 64
DECISIONS = 4
"""Decisions of a stay that one update of training looks at."""
_ACTION = 2 * LEVELS
_INPUT = NUM_FEATURES + NUM_MASKED + 2 * EMBEDDING


@struct.dataclass
class Window:
    """The last 12 steps of one patient, newest last.

    Attributes:
      rows: f32[12,87] observation (z), mask, action one-hot; zeros where there was no step yet. The newest row holds
        the action before its observation until the next one is known.
      seen: i32[] steps so far.
    """

    rows: Any
    seen: Any


class Trunk(nnx.Module):
    """Embeddings and GRU, common to both networks."""

    def __init__(self, hidden: int, layers: int, dropout: float, *, rngs: nnx.Rngs) -> None:
        self.static_embed = nnx.Linear(len(STATICS), EMBEDDING, rngs=rngs)
        self.act_embed = nnx.Linear(_ACTION, EMBEDDING, rngs=rngs)
        self.gru = StackedGRU(_INPUT, hidden, layers, dropout, rngs=rngs)

    def __call__(self, rows: jax.Array, static: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """rows f32[W,87], static f32[3] (z) -> f32[H] after the newest row. Consumes `key` (dropout)."""
        seen, action = rows[:, :-_ACTION], rows[:, -_ACTION:]
        embedded = jnp.broadcast_to(self.static_embed(static), (len(rows), EMBEDDING))
        return self.gru.unroll(jnp.concatenate([seen, embedded, self.act_embed(action)], axis=-1), key)[-1, -1]


class StateNetwork(nnx.Module):
    """`state_model_log.pt`: mean and log sigma of the next state, and ventilation."""

    def __init__(self, hidden: int, layers: int, dropout: float, *, rngs: nnx.Rngs) -> None:
        self.trunk = Trunk(hidden, layers, dropout, rngs=rngs)
        self.vent_head = nnx.List([nnx.Linear(hidden, HEAD, rngs=rngs), nnx.Linear(HEAD, 1, rngs=rngs)])
        self.trans_pre = nnx.Linear(hidden + 1, hidden, rngs=rngs)
        self.mu_head = nnx.Linear(hidden, NUM_FEATURES, rngs=rngs)
        self.log_sigma_head = nnx.Linear(hidden, NUM_FEATURES, rngs=rngs)
        self.dropout = nnx.Dropout(dropout)

    def __call__(self, rows: jax.Array, static: jax.Array, key: jax.Array | None = None) -> Prediction:
        """rows f32[6,87], static f32[3] (z). Consumes `key` (dropout)."""
        trunk_key, head_key = (None, None) if key is None else jax.random.split(key)
        hidden = self.trunk(rows, static, trunk_key)
        vent_logit = self.vent_head[1](jax.nn.relu(self.vent_head[0](hidden)))
        features = jax.nn.relu(self.trans_pre(jnp.concatenate([hidden, jax.nn.sigmoid(vent_logit)])))
        features = self.dropout(features, deterministic=key is None, rngs=head_key)
        gaussian = Marginals(self.mu_head(features), self.log_sigma_head(features)[None])
        return Prediction(gaussian, loading=None, mask=None, vent_logit=vent_logit[0], exit_logit=None)


class OutcomeNetwork(nnx.Module):
    """`outcome.pt`: 90-day mortality."""

    def __init__(self, hidden: int, layers: int, dropout: float, *, rngs: nnx.Rngs) -> None:
        self.trunk = Trunk(hidden, layers, dropout, rngs=rngs)
        self.outcome_head = nnx.List([nnx.Linear(hidden, HEAD, rngs=rngs), nnx.Linear(HEAD, 1, rngs=rngs)])
        self.dropout = nnx.Dropout(dropout)

    def __call__(self, rows: jax.Array, static: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """rows f32[12,87], static f32[3] (z) -> logit f32[]. Consumes `key` (dropout)."""
        trunk_key, head_key = (None, None) if key is None else jax.random.split(key)
        features = jax.nn.relu(self.outcome_head[0](self.trunk(rows, static, trunk_key)))
        return self.outcome_head[1](self.dropout(features, deterministic=key is None, rngs=head_key))[0]


class PublishedNetwork(nnx.Module):
    """Both networks over one window of the last 12 steps."""

    def __init__(self, hidden: int, layers: int, dropout: float, *, rngs: nnx.Rngs) -> None:
        self.state = StateNetwork(hidden, layers, dropout, rngs=rngs)
        self.outcome = OutcomeNetwork(hidden, layers, dropout, rngs=rngs)

    def initial(self) -> Window:
        """Memory before the first observation."""
        return Window(jnp.zeros((OUTCOME_WINDOW, NUM_FEATURES + NUM_MASKED + _ACTION)), jnp.int32(0))

    def observe(
        self,
        memory: Window,
        static: jax.Array,
        z: jax.Array,
        mask: jax.Array,
        action: jax.Array,
        key: jax.Array | None = None,
    ) -> Window:
        """Append what came after `action` (one-hot f32[10]); nothing is computed, so `key` is not used."""
        del static, key
        before = jnp.where(memory.seen > 0, _with_action(memory.rows, action), memory.rows)
        row = jnp.concatenate([z, mask.astype(z.dtype), action])
        return Window(jnp.concatenate([before[1:], row[None]]), memory.seen + 1)

    def predict(
        self, memory: Window, static: jax.Array, z: jax.Array, action: jax.Array, key: jax.Array | None = None
    ) -> Prediction:
        """The next step under `action` (one-hot f32[10]). Consumes `key` (dropout)."""
        del z
        return self.state(_with_action(memory.rows, action)[-STATE_WINDOW:], static, key)

    def read(self, static: jax.Array, z: jax.Array, mask: jax.Array, action: jax.Array, key: Any = None) -> Window:
        """Memory after every step, leading T: z f32[T,F], mask bool[T,38], action before each f32[T,10]."""

        def step(memory: Window, inputs: tuple[jax.Array, ...]) -> tuple[Window, Window]:
            z, mask, action = inputs
            memory = self.observe(memory, static, z, mask, action, key)
            return memory, memory

        return jax.lax.scan(step, self.initial(), (z, mask, action))[1]

    def mortality_logits(self, memory: Window, static: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """f32[1] of death within 90 days; before an action is chosen, the last one is taken to go on.

        Consumes `key` (dropout).
        """
        return self.outcome(memory.rows, static, key)[None]


def _with_action(rows: jax.Array, action: jax.Array) -> jax.Array:
    return rows.at[-1, -_ACTION:].set(action)
