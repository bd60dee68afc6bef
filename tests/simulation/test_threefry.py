"""The unrolled generator against JAX's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sepsis_jax.simulation.threefry import unrolled

WORDS = st.integers(0, 2**32 - 1)


def everything(key, data):
    return {
        "fold": jax.random.key_data(jax.random.fold_in(key, data)),
        "split": jax.random.key_data(jax.random.split(key, (3, 2))),
        "normal": jax.random.normal(key, (7, 3)),
        "uniform": jax.random.uniform(key),
        "whole": jax.random.randint(key, (5,), 0, 1000),
        **{width: jax.random.bits(key, (9,), width) for width in ("uint8", "uint16", "uint32")},
    }


def assert_same(found, expected):
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@jax.jit
def both(key, data):
    return everything(unrolled(key), data), everything(key, data)


@given(WORDS, WORDS, WORDS)
def test_every_draw_is_that_of_jax(high, low, data):
    key = jax.random.wrap_key_data(jnp.array([high, low], jnp.uint32))
    assert_same(*both(key, jnp.uint32(data)))


def test_a_batch_of_keys_draws_what_each_draws_alone():
    keys, data = jax.random.split(jax.random.key(3), 4), jnp.arange(4)
    together = jax.vmap(lambda key, data: everything(unrolled(key), data))(keys, data)
    for row, key in enumerate(keys):
        assert_same(jax.tree.map(lambda leaf: leaf[row], together), everything(key, data[row]))  # noqa: B023


def test_words_of_64_bits_too():
    with jax.enable_x64(True):
        key = jax.random.key(1)
        np.testing.assert_array_equal(
            jax.random.bits(unrolled(key), (4,), "uint64"), jax.random.bits(key, (4,), "uint64")
        )


@pytest.mark.parametrize("key", [jax.random.key(1, impl="rbg"), jax.random.PRNGKey(1)])
def test_other_keys_are_left_alone(key):
    assert unrolled(key) is key


def test_so_is_every_key_where_jax_counts_otherwise():
    with jax.threefry_partitionable(False):
        key = jax.random.key(1)
        assert unrolled(key) is key
