"""What policies and values are computed by: two hidden layers and a linear one."""

from __future__ import annotations

import jax
from flax import nnx


class Perceptron(nnx.Module):
    """f32[...,inputs] -> f32[...,outputs] through two layers of ReLU.

    Args:
      zero: begin with outputs of 0.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int, rngs: nnx.Rngs, *, zero: bool = False) -> None:
        last = nnx.initializers.zeros_init() if zero else nnx.initializers.lecun_normal()
        self.first = nnx.Linear(inputs, hidden, rngs=rngs)
        self.second = nnx.Linear(hidden, hidden, rngs=rngs)
        self.out = nnx.Linear(hidden, outputs, kernel_init=last, rngs=rngs)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        return self.out(nnx.relu(self.second(nnx.relu(self.first(inputs)))))
