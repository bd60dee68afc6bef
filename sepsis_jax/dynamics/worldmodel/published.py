"""The two published networks (arXiv 2605.14723), layer by layer, so that the released weights fit.

Inputs of one 4-h step are [obs 39, mask 38, Linear(static) 32, Linear(action) 32] = 141, where the action is the one
given after the observation. A network reads the last 6 (state) or 12 (outcome) steps; missing steps in front are rows
of zeros, which the GRU reads too.

Training encodes the windows of the decisions that it looks at. A simulation moves on from one decision: `prepare`
encodes what the windows to come hold of the time before it, so that this is read once a patient, and each step goes
on from there. What the first layer takes from a row is computed once for all windows that hold the row.
"""

from __future__ import annotations

from functools import partial
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


Layers = tuple[Any, ...]
"""L x f32[H], hidden states of the layers of a GRU: apart, since one array of all would be copied at every step."""


@struct.dataclass
class Flight:
    """What the windows of a simulation share.

    Attributes:
      begun: 5 x Layers: the first window after `prepare`, and the four after it, after what each holds of the time
        before; what later ones hold of it is nothing.
      outcome: Layers, the outcome's window of the next step, but for its newest two rows.
      projected: 5 x f32[3H], the first layer's part of the rows before the newest, in the state network.
      steps: i32[] since `prepare`.
    """

    begun: tuple[Layers, ...]
    outcome: Layers
    projected: tuple[jax.Array, ...]
    steps: Any


@struct.dataclass
class Window:
    """The last 12 steps of one patient, newest last.

    Attributes:
      rows: f32[12,87] observation (z), mask, action one-hot; zeros where there was no step yet. The newest row holds
        the action before its observation until the next one is known.
      seen: i32[] steps so far.
      flight: Flight; None where windows are encoded when they are asked for.
    """

    rows: Any
    seen: Any
    flight: Any = None


class Trunk(nnx.Module):
    """Embeddings and GRU, common to both networks."""

    def __init__(self, hidden: int, layers: int, dropout: float, *, dtype: Any = jnp.float32, rngs: nnx.Rngs) -> None:
        linear = partial(nnx.Linear, dtype=dtype, preferred_element_type=jnp.float32, rngs=rngs)
        self.static_embed = linear(len(STATICS), EMBEDDING)
        self.act_embed = linear(_ACTION, EMBEDDING)
        self.gru = StackedGRU(_INPUT, hidden, layers, dropout, dtype=dtype, rngs=rngs)

    def read(self, rows: jax.Array, static: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """rows f32[W,87], static f32[3] (z) -> f32[W,L,H] after each row, from zeros. Consumes `key` (dropout)."""
        return self.gru.unroll(self._inputs(rows, static), key)

    def project(self, row: jax.Array, static: jax.Array) -> jax.Array:
        """f32[87] -> [3H]: what the first layer takes from one row, whatever window reads it.

        Embeddings are linear, so they are multiplied into the layer's weights, once for all trajectories.
        """
        cell, seen = self.gru.cells[0], len(row) - _ACTION
        of_row, of_static, of_action = jnp.split(cell.weight_ih[...], [seen, seen + EMBEDDING])
        kernel = [of_row, self.static_embed.kernel[...] @ of_static, self.act_embed.kernel[...] @ of_action]
        bias = self.static_embed(jnp.zeros(len(STATICS))) @ of_static + self.act_embed(jnp.zeros(_ACTION)) @ of_action
        x = jnp.concatenate([row[:seen], static, row[seen:]])
        return cell.product(x, jnp.concatenate(kernel)) + (cell.bias_ih[...] + bias)

    def advance(self, hidden: Layers, projected: jax.Array) -> Layers:
        """After one more row."""
        after = [self.gru.cells[0].advance(hidden[0], projected)]
        for cell, before in zip(self.gru.cells[1:], hidden[1:], strict=True):
            after.append(cell(before, after[-1]))
        return tuple(after)

    def begin(self, projected: jax.Array) -> Layers:
        """After the first row of a window."""
        after = [self.gru.cells[0].begin(projected)]
        for cell in self.gru.cells[1:]:
            after.append(cell.begin(cell.project(after[-1])))
        return tuple(after)

    def _inputs(self, rows: jax.Array, static: jax.Array) -> jax.Array:
        """f32[W,87] -> f32[W,141]."""
        seen, action = rows[:, :-_ACTION], rows[:, -_ACTION:]
        embedded = jnp.broadcast_to(self.static_embed(static), (len(rows), EMBEDDING))
        return jnp.concatenate([seen, embedded, self.act_embed(action)], axis=-1)


class StateNetwork(nnx.Module):
    """`state_model_log.pt`: mean and log sigma of the next state, and ventilation."""

    def __init__(self, hidden: int, layers: int, dropout: float, *, dtype: Any = jnp.float32, rngs: nnx.Rngs) -> None:
        linear = partial(nnx.Linear, dtype=dtype, preferred_element_type=jnp.float32, rngs=rngs)
        self.trunk = Trunk(hidden, layers, dropout, dtype=dtype, rngs=rngs)
        self.vent_head = nnx.List([linear(hidden, HEAD), linear(HEAD, 1)])
        self.trans_pre = linear(hidden + 1, hidden)
        self.mu_head = linear(hidden, NUM_FEATURES)
        self.log_sigma_head = linear(hidden, NUM_FEATURES)
        self.dropout = nnx.Dropout(dropout)

    def __call__(self, rows: jax.Array, static: jax.Array, key: jax.Array | None = None) -> Prediction:
        """rows f32[6,87], static f32[3] (z). Consumes `key` (dropout)."""
        trunk_key, head_key = (None, None) if key is None else jax.random.split(key)
        return self.heads(self.trunk.read(rows, static, trunk_key)[-1, -1], head_key)

    def heads(self, hidden: jax.Array, key: jax.Array | None = None) -> Prediction:
        """From f32[H] after the newest row. Consumes `key` (dropout)."""
        vent_logit = self.vent_head[1](jax.nn.relu(self.vent_head[0](hidden)))
        features = jax.nn.relu(self.trans_pre(jnp.concatenate([hidden, jax.nn.sigmoid(vent_logit)])))
        features = self.dropout(features, deterministic=key is None, rngs=key)
        gaussian = Marginals(self.mu_head(features), self.log_sigma_head(features)[None])
        return Prediction(gaussian, loading=None, mask=None, vent_logit=vent_logit[0], exit_logit=None)


class OutcomeNetwork(nnx.Module):
    """`outcome.pt`: 90-day mortality."""

    def __init__(self, hidden: int, layers: int, dropout: float, *, dtype: Any = jnp.float32, rngs: nnx.Rngs) -> None:
        linear = partial(nnx.Linear, dtype=dtype, preferred_element_type=jnp.float32, rngs=rngs)
        self.trunk = Trunk(hidden, layers, dropout, dtype=dtype, rngs=rngs)
        self.outcome_head = nnx.List([linear(hidden, HEAD), linear(HEAD, 1)])
        self.dropout = nnx.Dropout(dropout)

    def __call__(self, rows: jax.Array, static: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """rows f32[12,87], static f32[3] (z) -> logit f32[]. Consumes `key` (dropout)."""
        trunk_key, head_key = (None, None) if key is None else jax.random.split(key)
        return self.head(self.trunk.read(rows, static, trunk_key)[-1, -1], head_key)

    def head(self, hidden: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Logit f32[] from f32[H] after the newest row. Consumes `key` (dropout)."""
        features = jax.nn.relu(self.outcome_head[0](hidden))
        return self.outcome_head[1](self.dropout(features, deterministic=key is None, rngs=key))[0]


class PublishedNetwork(nnx.Module):
    """Both networks over one window of the last 12 steps."""

    def __init__(self, hidden: int, layers: int, dropout: float, *, dtype: Any = jnp.float32, rngs: nnx.Rngs) -> None:
        self.state = StateNetwork(hidden, layers, dropout, dtype=dtype, rngs=rngs)
        self.outcome = OutcomeNetwork(hidden, layers, dropout, dtype=dtype, rngs=rngs)

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
        recurrent: Any = None,
    ) -> Window:
        """Append what came after `action` (one-hot f32[10]). No dropout, so `key` is not used."""
        del key, recurrent
        last = _complete(memory.rows[-1], action)
        if memory.flight is None:  # else there is a newest row
            last = jnp.where(memory.seen > 0, last, memory.rows[-1])
        row = jnp.concatenate([z, mask.astype(z.dtype), action])
        flight = None if memory.flight is None else self._fly(memory.flight, last, static)
        return Window(jnp.concatenate([memory.rows[1:-1], last[None], row[None]]), memory.seen + 1, flight)

    def recur(self, memory: Window) -> None:
        """Nothing: what windows share is in flight."""
        del memory

    def prepare(self, memory: Window, static: jax.Array) -> Window:
        """The same memory with windows in flight, for a simulation from here on."""
        state, outcome = self.state.trunk, self.outcome.trunk
        known = memory.rows[:-1]
        begun = [tuple(state.read(known[-read:], static)[-1]) for read in range(STATE_WINDOW - 1, 0, -1)]
        last = tuple(outcome.read(known[2 - OUTCOME_WINDOW :], static)[-1])
        unread = (jnp.zeros_like(state.project(known[-1], static)),) * (STATE_WINDOW - 1)
        return Window(memory.rows, memory.seen, Flight(tuple(begun), last, unread, jnp.int32(0)))

    def _fly(self, flight: Flight, row: jax.Array, static: jax.Array) -> Flight:
        """After the newest row is complete: the next window has been used."""
        outcome = self.outcome.trunk
        # Only the first step: a loop of no rounds costs nothing in a batch, where a choice would compute both sides.
        done = jnp.minimum(flight.steps, 1)
        last = jax.lax.fori_loop(
            done, 1, lambda _, hidden: outcome.advance(hidden, outcome.project(row, static)), flight.outcome
        )
        return Flight(flight.begun, last, self._projected(flight, row, static)[1:], flight.steps + 1)

    def _projected(self, flight: Flight, row: jax.Array, static: jax.Array) -> tuple[jax.Array, ...]:
        """6 x f32[3H] of the next window, of which `row` is the newest."""
        return (*flight.projected, self.state.trunk.project(row, static))

    def predict(
        self, memory: Window, static: jax.Array, z: jax.Array, action: jax.Array, key: jax.Array | None = None
    ) -> Prediction:
        """The next step under `action` (one-hot f32[10]). Consumes `key` (dropout)."""
        del z
        last = _complete(memory.rows[-1], action)
        if memory.flight is None:
            return self.state(jnp.concatenate([memory.rows[-STATE_WINDOW:-1], last[None]]), static, key)
        steps, trunk = memory.flight.steps, self.state.trunk
        own = STATE_WINDOW - 1 - jnp.minimum(steps, STATE_WINDOW - 1)
        least, begun = _least(own), memory.flight.begun

        def before() -> Layers:
            """After the `own` rows that the window holds of the time before; of no meaning where it holds none."""
            chosen = begun[-1]
            for number, hidden in enumerate(begun[:-1]):
                chosen = jax.tree.map(partial(jnp.where, steps == number), hidden, chosen)
            return chosen

        none = _least(-own) == 0  # where the greatest is 0
        hidden = jax.lax.cond(none, lambda: begun[0], before)
        for number, row in enumerate(self._projected(memory.flight, last, static)):

            def read(hidden: Layers, number: int = number, row: jax.Array = row) -> Layers:
                after = trunk.advance(hidden, row) if number else trunk.begin(row)
                return jax.tree.map(partial(jnp.where, number < own), hidden, after)

            hidden = jax.lax.cond(number < least, lambda hidden: hidden, read, hidden)
        return self.state.heads(hidden[-1])

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
        if memory.flight is None:
            return self.outcome(memory.rows, static, key)[None]
        trunk, rows, one = self.outcome.trunk, memory.rows, memory.flight.steps == 1
        known = jnp.where(one, OUTCOME_WINDOW - 1, 0)
        least, begun = _least(known), memory.flight.outcome

        def begin() -> Layers:
            return jax.tree.map(partial(jnp.where, one), begun, trunk.begin(trunk.project(rows[0], static)))

        def advance(number: Any, hidden: Layers) -> Layers:
            after = trunk.advance(hidden, trunk.project(rows[number], static))
            return jax.tree.map(partial(jnp.where, number < known), hidden, after)

        hidden = jax.lax.cond(least == 0, begin, lambda: begun)
        read = jax.lax.fori_loop(jnp.maximum(least, 1), OUTCOME_WINDOW, advance, hidden)
        return self.outcome.head(read[-1])[None]


@jax.custom_batching.custom_vmap
def _least(number: jax.Array) -> jax.Array:
    """The least of a whole batch, for all of it: a choice by it is one, not one for each of the batch."""
    return number


@_least.def_vmap
def _least_of_batch(size: int, batched: list[bool], numbers: jax.Array) -> tuple[jax.Array, bool]:
    del size
    return _least(numbers.min() if batched[0] else numbers), False


def _complete(row: jax.Array, action: jax.Array) -> jax.Array:
    """The newest row f32[87] with the action after its observation, now that it is known."""
    return jnp.concatenate([row[:-_ACTION], action])
