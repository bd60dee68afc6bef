"""Exact quantiles of many groups without sorting."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_BITS = 32


def quantiles(samples: Any, values: jax.Array, at: tuple[float, ...]) -> jax.Array:
    """Quantiles of each cell's valid samples, f32[N cells,G,Q], linear between order statistics as `numpy.quantile`.

    Order statistics are found by bisection on the bits of a float, whose order as integers is that of the numbers: 32
    counts of what is at or below a threshold. A sort of as many values takes some ten times as long on a CPU.

    Args:
      samples: `record.Samples`.
      values: f32[N,M,W,G]. at: Q probabilities.

    Returns:
      NaN where a cell has no valid sample.
    """
    shape = (len(samples.cell), values.shape[-1], len(at))
    if 0 in shape:
        return jnp.zeros(shape)
    flat = values.reshape(shape[0], -1, shape[1])
    bits = jax.lax.bitcast_convert_type(flat, jnp.int32)
    largest = jnp.int32(np.iinfo(np.int32).max)
    ordered = jnp.where(bits < 0, bits ^ largest, bits)
    valid = samples.valid.reshape(shape[0], -1)
    ordered = jnp.where(valid[..., None], ordered, largest)  # above every threshold that counts
    count = samples.by_cell(valid.sum(axis=1, dtype=jnp.int32))
    place = jnp.asarray(at)[None] * (count - 1)[:, None].astype(jnp.float32)
    rank = jnp.floor(place).astype(jnp.int32)[:, None]  # [N,1,Q]

    def at_or_below(threshold: jax.Array) -> jax.Array:
        """i32[N,G,Q] how many values of each cell."""
        mine = threshold[samples.cell]
        parts = [(ordered <= mine[:, None, :, i]).sum(axis=1, dtype=jnp.int32) for i in range(len(at))]
        return samples.by_cell(jnp.stack(parts, axis=-1))

    def halve(_: Any, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low >> 1) + (high >> 1) + (low & high & 1)
        enough = at_or_below(middle) > rank
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    least = jnp.full(shape, np.iinfo(np.int32).min, jnp.int32)
    found, _ = jax.lax.fori_loop(0, _BITS, halve, (least, jnp.full(shape, largest)))
    above = jnp.where(
        at_or_below(found) > rank + 1,
        found,
        jax.ops.segment_min(_next(ordered, found[samples.cell]), samples.cell, shape[0]),
    )
    share = (place - jnp.floor(place))[:, None]
    low, high = _to_float(found), _to_float(jnp.where(rank + 1 < count[:, None, None], above, found))
    return jnp.where(count[:, None, None] > 0, low + share * (high - low), jnp.nan)


def _next(ordered: jax.Array, found: jax.Array) -> jax.Array:
    """i32[N,G,Q]: the least value of a slot above what was found."""
    largest = jnp.int32(np.iinfo(np.int32).max)
    parts = [jnp.where(ordered > found[:, None, :, i], ordered, largest).min(axis=1) for i in range(found.shape[-1])]
    return jnp.stack(parts, axis=-1)


def _to_float(ordered: jax.Array) -> jax.Array:
    bits = jnp.where(ordered < 0, ordered ^ jnp.int32(np.iinfo(np.int32).max), ordered)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)
