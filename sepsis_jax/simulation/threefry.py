"""JAX's own random numbers, bit for bit, at less cost on a CPU.

There JAX rolls the rounds of its hash into a loop, whose turns cost more than the rounds themselves where few numbers
are drawn at a time, and which cannot be fused with what uses them. Here they are written out (docs/decisions.md).
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.random import define_prng_impl, threefry_prng_impl

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
_WHOLE = 32  # bits of a word


def unrolled(key: jax.Array) -> jax.Array:
    """The same key[], whose draws, splits and folds are what JAX's are; any other than JAX's usual key as it is."""
    usual = jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and jax.random.key_impl(key) == "threefry2x32"
    if not usual or not jax.config.jax_threefry_partitionable:  # type: ignore[attr-defined]
        return key
    return jax.random.wrap_key_data(jax.random.key_data(key), impl=_UNROLLED)


def threefry(key: jax.Array, high: jax.Array, low: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Threefry-2x32 in 20 rounds (Salmon et al. 2011) of two words u32[...] each, under a key u32[2]: two u32[...]."""
    keys = (key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(_PARITY))
    high, low = high + keys[0], low + keys[1]
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            high = high + low
            low = high ^ (low << rotation | low >> (_WHOLE - rotation))
        high, low = high + keys[(group + 1) % 3], low + keys[(group + 2) % 3] + jnp.uint32(group + 1)
    return high, low


def _of_counts(key: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    low = jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)  # fewer than 2^32
    return threefry(key, jnp.zeros_like(low), low)


def _split(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jnp.stack(_of_counts(key, shape), axis=-1)


def _fold_in(key: jax.Array, data: Any) -> jax.Array:
    return jnp.stack(threefry(key, jnp.uint32(0), jnp.asarray(data, jnp.uint32)))


def _random_bits(key: jax.Array, bit_width: int, shape: tuple[int, ...]) -> jax.Array:
    high, low = _of_counts(key, shape)
    dtype = jnp.dtype(f"uint{bit_width}")
    if bit_width > _WHOLE:
        return high.astype(dtype) << _WHOLE | low.astype(dtype)
    return (high ^ low).astype(dtype)


_UNROLLED = define_prng_impl(
    key_shape=(2,),
    seed=threefry_prng_impl.seed,
    split=_split,
    random_bits=_random_bits,
    fold_in=_fold_in,
    name="threefry2x32 unrolled",
    tag="fry_unrolled",
)
