"""The network that all algorithms share: values of actions, the value of the state, and what clinicians would do."""

from __future__ import annotations

import jax
from flax import nnx, struct

from sepsis_jax.clinical.actions import NUM_ACTIONS
from sepsis_jax.policies.network import Perceptron


@struct.dataclass
class Heads:
    """Attributes: q f32[...,25] values of actions; v f32[...] value of the state; logits f32[...,25] of actions."""

    q: jax.Array
    v: jax.Array
    logits: jax.Array


class Network(nnx.Module):
    """f32[...,inputs] -> Heads; each head has layers of its own, and an algorithm pays for those that it uses.

    Args:
      dueling: Q = V + A - mean A, with V and A of layers of their own (Wang et al. 2016, arXiv 1511.06581, eq. 9).
    """

    def __init__(self, inputs: int, hidden: int, rngs: nnx.Rngs, *, dueling: bool = False) -> None:
        self.dueling = dueling
        self.q = Perceptron(inputs, hidden, NUM_ACTIONS, rngs, zero=True)
        self.v = Perceptron(inputs, hidden, 1, rngs, zero=True)
        self.logits = Perceptron(inputs, hidden, NUM_ACTIONS, rngs, zero=True)

    def __call__(self, inputs: jax.Array) -> Heads:
        q, v = self.q(inputs), self.v(inputs)
        if self.dueling:
            q = v + q - q.mean(axis=-1, keepdims=True)
        return Heads(q, v[..., 0], self.logits(inputs))
