"""Fitted Q evaluation: a model of what actions are worth under a policy, from what clinicians did (Le et al. 2019).

    Q <- argmin sum (Q(s,a) - r - g sum_a' pi(a'|s') Q'(s',a'))^2,   Q' follows Q slowly

Q(s,a) = V(s) + A(s,a), with A drawn towards 0. One network a policy, all policies side by side. A reward that pays the
outcome ends every stay at its last recorded step, also where the record was cut; otherwise the last step of a stay that
was cut has no successor and teaches nothing.

What clinicians hardly ever do is not in the record, so nothing that is fitted to it knows the harm: such an action is
presumed to cost something, as in offline reinforcement learning (a penalty on rewards: Yu et al. 2020, arXiv
2005.13239; a lower bound of Q: Kumar et al. 2020, arXiv 2006.04779, eq. 2). The clinicians' own value stays as it is.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx, struct

from sepsis_jax.clinical.actions import NUM_ACTIONS
from sepsis_jax.errors import check_range
from sepsis_jax.ope.logged import Logged
from sepsis_jax.policies.network import Perceptron
from sepsis_jax.policies.offline_rl.transitions import Transitions, kept, of_stays


@dataclasses.dataclass(frozen=True)
class FQESettings:
    """How values are fitted.

    Attributes:
      hidden: width of the two hidden layers.
      updates: gradient steps.
      batch_size: transitions in each.
      learning_rate: of Adam, falling to 0.
      follow: share of Q that Q' takes on in an update.
      shrinkage: price of a squared advantage of any action (in SDs of the returns), so that what was hardly ever given
        is worth what its state is worth; 0 lets the network guess (docs/decisions.md).
      doubt: presumed cost of each level that parts an action from what clinicians would choose, in SDs of the returns.
    """

    hidden: int = 128
    updates: int = 3000
    batch_size: int = 512
    learning_rate: float = 1e-3
    follow: float = 0.02
    shrinkage: float = 0.5
    doubt: float = 0.01

    def __post_init__(self) -> None:
        check_range(self, "fqe", hidden=(1, 65536), updates=(1, math.inf), batch_size=(1, math.inf))
        check_range(self, "fqe", learning_rate=(1e-9, 10), follow=(1e-9, 1), shrinkage=(0, 1e6), doubt=(0, 1e3))


@struct.dataclass
class Values:
    """Fitted values: networks with leading P, and the mean and SD of the returns they were fitted to."""

    network: Any
    mean: Any
    sd: Any


def fit(
    settings: FQESettings,
    data: Logged,
    inputs: np.ndarray,
    probs: np.ndarray,
    key: jax.Array,
    *,
    strange: np.ndarray | None = None,
    ended: np.ndarray | None = None,
) -> Values:
    """Values of P policies.

    Args:
      data: checked (`logged.check`), of other patients than are evaluated.
      inputs: f32[B,T,D] what is known at each decision. probs: f[P,B,T,25] of the policies.
      strange: f32[B,T,25] how much of the presumed cost each action bears (`behaviour.strange`); None for nothing.
      ended: bool[B] whether the last recorded step ends the stay; None for all: the reward pays the outcome there.
      key: of the first weights and of the batches; consumed.
    """
    rows = of_stays(inputs, data.action, data.reward, data.length, gamma=data.gamma, ended=ended)
    strange = np.zeros((*data.valid.shape, NUM_ACTIONS)) if strange is None else strange
    network = _fit(settings, rows, *(_at_rows(array, data.valid) for array in (probs, strange)), key)
    return Values(network, rows.mean, rows.sd)


def _at_rows(array: np.ndarray, valid: np.ndarray) -> jax.Array:
    """f32[...,M+1,25] of f[...,B,T,25]: recorded decisions, and zeros for the row where stays end."""
    found = np.asarray(array, np.float32)[..., valid, :]
    return jnp.asarray(np.concatenate([found, np.zeros_like(found[..., :1, :])], axis=-2))


@partial(jax.jit, static_argnums=0)
def q_values(settings: FQESettings, values: Values, inputs: jax.Array, strange: jax.Array | None = None) -> jax.Array:
    """f32[P,B,T,25] values of the actions at inputs f32[B,T,D]; `strange` as in `fit`."""
    graph = _graph(settings, inputs.shape[-1])
    found = jax.lax.map(lambda network: nnx.merge(graph, network)(inputs), values.network)
    presumed = 0.0 if strange is None else settings.doubt * strange[None]
    return values.mean + values.sd * (found - presumed)


class _Network(nnx.Module):
    """Q(s, a) = V(s) + A(s, a)."""

    def __init__(self, inputs: int, hidden: int, rngs: nnx.Rngs) -> None:
        self.state = Perceptron(inputs, hidden, 1, rngs, zero=True)
        self.advantage = Perceptron(inputs, hidden, NUM_ACTIONS, rngs, zero=True)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        return self.state(inputs) + self.advantage(inputs)


def _network(settings: FQESettings, inputs: int, rngs: nnx.Rngs) -> _Network:
    return _Network(inputs, settings.hidden, rngs)


def _graph(settings: FQESettings, inputs: int) -> Any:
    return nnx.graphdef(nnx.eval_shape(lambda: _network(settings, inputs, nnx.Rngs(0))))


@partial(jax.jit, static_argnums=0)
def _fit(settings: FQESettings, rows: Transitions, probs: jax.Array, strange: jax.Array, key: jax.Array) -> Any:
    """Networks with leading P; values are the mean return + network, in units of the returns' SD."""
    init_key, key = jax.random.split(key)
    mean, inputs = rows.mean / rows.sd, rows.inputs.shape[1]
    first = nnx.state(_network(settings, inputs, nnx.Rngs(init_key)))
    graph, policies = _graph(settings, inputs), len(probs)
    networks = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (policies, *leaf.shape)), first)
    optimizer = optax.adam(optax.cosine_decay_schedule(settings.learning_rate, settings.updates))

    def loss(network: Any, slow: Any, probs: jax.Array, batch: Transitions) -> jax.Array:
        parts, inputs = nnx.merge(graph, network), rows.inputs[batch.now]
        advantage = parts.advantage(inputs)
        q = parts.state(inputs) + advantage
        taken = mean + jnp.take_along_axis(q, batch.action[:, None], axis=1)[:, 0]
        after = nnx.merge(graph, slow)(rows.inputs[batch.after]) - settings.doubt * strange[batch.after]
        ahead = mean + (probs[batch.after] * after).sum(axis=1)
        goal = batch.reward / rows.sd + rows.gamma * batch.ongoing * ahead
        distance = optax.huber_loss(taken, jax.lax.stop_gradient(goal), delta=10.0).mean()
        return distance + settings.shrinkage * (advantage**2).mean()

    def update(carry: tuple[Any, Any, Any], key: jax.Array) -> tuple[tuple[Any, Any, Any], None]:
        networks, slow, state = carry
        batch = kept(rows, jax.random.randint(key, (settings.batch_size,), 0, rows.action.shape[0]))
        gradient = jax.vmap(jax.grad(loss), (0, 0, 0, None))(networks, slow, probs, batch)
        updates, state = jax.vmap(optimizer.update)(gradient, state)
        networks = optax.apply_updates(networks, updates)
        slow = optax.incremental_update(networks, slow, settings.follow)
        return (networks, slow, state), None

    start = (networks, networks, jax.vmap(optimizer.init)(networks))
    return jax.lax.scan(update, start, jax.random.split(key, settings.updates))[0][0]
