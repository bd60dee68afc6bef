"""A gated recurrent unit that loads PyTorch's weights exactly.

With gates in the order r, z, n and both biases (Cho et al. 2014, as in `torch.nn.GRU`):

    r = σ(W_ir x + b_ir + W_hr h + b_hr)
    z = σ(W_iz x + b_iz + W_hz h + b_hz)
    n = tanh(W_in x + b_in + r ∘ (W_hn h + b_hn))
    h' = (1 - z) ∘ n + z ∘ h

The three gates share one [in, 3H] and one [H, 3H] matrix (the transposes of PyTorch's). `flax.nnx.GRUCell` has no
b_hn inside the product with r, so it cannot hold such weights.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


class GRUCell(nnx.Module):
    """One GRU layer for one vector; `vmap` it for a batch.

    Attributes:
      weight_ih: f32[in,3H]. weight_hh: f32[H,3H]. bias_ih, bias_hh: f32[3H].
      dtype: to which the operands of products are rounded; sums are f32.
    """

    def __init__(self, in_features: int, hidden: int, *, dtype: Any = jnp.float32, rngs: nnx.Rngs) -> None:
        rows, bound = in_features + hidden + 2, hidden**-0.5
        weights = jax.random.uniform(rngs.params(), (rows, 3 * hidden), minval=-bound, maxval=bound)
        self.weight_ih = nnx.Param(weights[:in_features])
        self.weight_hh = nnx.Param(weights[in_features:-2])
        self.bias_ih = nnx.Param(weights[-2])
        self.bias_hh = nnx.Param(weights[-1])
        self.dtype = dtype

    def __call__(self, hidden: jax.Array, x: jax.Array) -> jax.Array:
        """f32[H], f32[in] -> f32[H]."""
        return self.advance(hidden, self.project(x))

    def project(self, x: jax.Array) -> jax.Array:
        """f32[...,in] -> f32[...,3H]: the input's part of the gates, for all steps at once."""
        return self.product(x, self.weight_ih[...]) + jnp.reshape(self.bias_ih[...], (1,) * (x.ndim - 1) + (-1,))

    def recur(self, hidden: jax.Array) -> jax.Array:
        """f32[H] -> f32[3H]: the hidden state's part of the gates."""
        return self.product(hidden, self.weight_hh[...]) + self.bias_hh[...]

    def advance(self, hidden: jax.Array, projected: jax.Array, recurrent: jax.Array | None = None) -> jax.Array:
        """f32[H], f32[3H] -> f32[H]; `recurrent` is what `recur` gives, where it is known."""
        return _gates(hidden, projected, self.recur(hidden) if recurrent is None else recurrent)

    def begin(self, projected: jax.Array) -> jax.Array:
        """`advance` from zeros, whose products are zeros: f32[3H] -> f32[H]."""
        return _gates(0.0, projected, self.bias_hh[...])

    def product(self, x: jax.Array, weight: jax.Array) -> jax.Array:
        """f32[...,in], f32[in,out] -> f32[...,out], of operands rounded to `dtype`."""
        return jnp.matmul(x.astype(self.dtype), weight.astype(self.dtype), preferred_element_type=jnp.float32)


class StackedGRU(nnx.Module):
    """L layers, each reading the one below; dropout between layers, as `torch.nn.GRU(dropout=...)`."""

    def __init__(
        self, in_features: int, hidden: int, layers: int, dropout: float, *, dtype: Any = jnp.float32, rngs: nnx.Rngs
    ) -> None:
        sizes = [in_features] + [hidden] * (layers - 1)
        self.cells = nnx.List([GRUCell(size, hidden, dtype=dtype, rngs=rngs) for size in sizes])
        self.dropout = nnx.Dropout(dropout)
        self.shape = (layers, hidden)

    def initial(self) -> jax.Array:
        """f32[L,H] zeros."""
        return jnp.zeros(self.shape)

    def recur(self, hidden: jax.Array) -> list[jax.Array]:
        """f32[L,H] -> L x f32[3H]: what the gates of each layer take from the hidden state."""
        return [cell.recur(hidden[layer]) for layer, cell in enumerate(self.cells)]

    def __call__(
        self,
        hidden: jax.Array,
        x: jax.Array,
        key: jax.Array | None = None,
        recurrent: list[jax.Array] | None = None,
    ) -> jax.Array:
        """One step: f32[L,H], f32[in] -> f32[L,H]. Consumes `key`; no key, no dropout. `recurrent`: see `recur`."""
        outputs: list[jax.Array] = []
        for layer, cell in enumerate(self.cells):
            if outputs:
                layer_key = None if key is None else jax.random.fold_in(key, layer)
                x = self.dropout(outputs[-1], deterministic=key is None, rngs=layer_key)
            known = None if recurrent is None else recurrent[layer]
            outputs.append(cell.advance(hidden[layer], cell.project(x), known))
        return jnp.stack(outputs)

    def unroll(self, xs: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """From zeros through f32[T,in]: hidden states f32[T,L,H] after every step. Consumes `key`.

        Layer by layer, so that all that does not wait for the step before is one product of matrices.
        """
        layers: list[jax.Array] = []
        for layer, cell in enumerate(self.cells):
            if layers:
                layer_key = None if key is None else jax.random.fold_in(key, layer)
                xs = self.dropout(layers[-1], deterministic=key is None, rngs=layer_key)
            layers.append(_scan(cell, xs))
        return jnp.stack(layers, axis=1)


def _gates(hidden: Any, projected: jax.Array, recurrent: jax.Array) -> jax.Array:
    """The new hidden state f32[H] from the input's and the hidden state's parts of the gates, f32[3H] each."""
    reset_x, update_x, new_x = jnp.split(projected, 3)
    reset_h, update_h, new_h = jnp.split(recurrent, 3)
    new = jnp.tanh(new_x + _sigmoid(reset_x + reset_h) * new_h)
    return new + _sigmoid(update_x + update_h) * (hidden - new)


def _sigmoid(x: jax.Array) -> jax.Array:
    """σ by tanh, which costs a CPU less than an exponential and a quotient."""
    return 0.5 * jnp.tanh(0.5 * x) + 0.5


def _scan(cell: GRUCell, xs: jax.Array) -> jax.Array:
    """f32[T,in] -> f32[T,H]."""

    def step(hidden: jax.Array, projected: jax.Array) -> tuple[jax.Array, jax.Array]:
        hidden = cell.advance(hidden, projected)
        return hidden, hidden

    initial = jnp.zeros(cell.weight_hh.shape[0], xs.dtype)
    return jax.lax.scan(step, initial, cell.project(xs))[1]
