"""The GRU against a plain NumPy one, written from PyTorch's formulas and in PyTorch's layout."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from oracles import gru_step

from sepsis_jax.dynamics.worldmodel.gru import GRUCell, StackedGRU


def test_cell_equals_the_formulas():
    cell = GRUCell(5, 4, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    hidden, x = rng.normal(size=4), rng.normal(size=5)
    np.testing.assert_allclose(cell(jnp.float32(hidden), jnp.float32(x)), gru_step(cell, hidden, x), atol=1e-6)


def test_recurrent_bias_of_the_new_gate_is_inside_the_reset_product():
    cell = GRUCell(2, 1, rngs=nnx.Rngs(0))
    for weight in (cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh):
        weight[...] = jnp.zeros_like(weight[...])
    cell.bias_hh[...] = jnp.array([0.0, -100.0, 1.0])  # r = 1/2, z = 0, b_hn = 1
    np.testing.assert_allclose(cell(jnp.zeros(1), jnp.zeros(2)), np.tanh([0.5]), atol=1e-6)


def test_stack_feeds_each_layer_with_the_one_below():
    gru = StackedGRU(5, 4, 3, 0.5, rngs=nnx.Rngs(1))
    xs = np.random.default_rng(1).normal(size=(6, 5))
    hidden, expected, stepped = np.zeros((3, 4)), [], gru.initial()
    for x in xs:
        stepped = gru(stepped, jnp.float32(x))
        for layer, cell in enumerate(gru.cells):
            x = hidden[layer] = gru_step(cell, hidden[layer], x)
        expected.append(hidden.copy())
    np.testing.assert_allclose(gru.unroll(jnp.float32(xs)), expected, atol=1e-6)
    np.testing.assert_allclose(stepped, expected[-1], atol=1e-6)


def test_dropout_only_with_a_key_and_only_between_layers():
    xs = jnp.float32(np.random.default_rng(2).normal(size=(6, 5)))
    deep = StackedGRU(5, 4, 2, 0.5, rngs=nnx.Rngs(2))
    assert not np.allclose(deep.unroll(xs), deep.unroll(xs, jax.random.key(0)))
    single = StackedGRU(5, 4, 1, 0.5, rngs=nnx.Rngs(2))
    np.testing.assert_array_equal(single.unroll(xs), single.unroll(xs, jax.random.key(0)))
