"""Fitted Q evaluation: a model of what actions are worth under a policy, from what clinicians did (Le et al. 2019).

    Q <- argmin sum (Q(s,a) - r - g sum_a' pi(a'|s') Q'(s',a'))^2,   Q' follows Q slowly

One network a policy, all policies side by side. A reward that pays the outcome ends every stay at its last recorded
step, also where the record was cut; otherwise the last step of a stay that was cut has no successor and teaches
nothing.
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


@dataclasses.dataclass(frozen=True)
class FQESettings:
    """How values are fitted.

    Attributes:
      hidden: width of the two hidden layers. updates: gradient steps. batch_size: transitions in each.
      learning_rate: of Adam, falling to 0. follow: share of Q that Q' takes on in an update.
    """

    hidden: int = 128
    updates: int = 3000
    batch_size: int = 512
    learning_rate: float = 1e-3
    follow: float = 0.02

    def __post_init__(self) -> None:
        check_range(self, "fqe", hidden=(1, 65536), updates=(1, math.inf), batch_size=(1, math.inf))
        check_range(self, "fqe", learning_rate=(0, 10), follow=(0, 1))


@struct.dataclass
class Values:
    """Fitted values: networks with leading P, and the mean and SD of the returns they were fitted to."""

    network: Any
    mean: Any
    sd: Any


class _Network(nnx.Module):
    def __init__(self, inputs: int, hidden: int, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(inputs, hidden, rngs=rngs)
        self.second = nnx.Linear(hidden, hidden, rngs=rngs)
        self.out = nnx.Linear(hidden, NUM_ACTIONS, kernel_init=nnx.initializers.zeros_init(), rngs=rngs)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        return self.out(nnx.relu(self.second(nnx.relu(self.first(inputs)))))


def fit(
    settings: FQESettings,
    data: Logged,
    inputs: np.ndarray,
    probs: np.ndarray,
    key: jax.Array,
    *,
    ended: np.ndarray | None = None,
) -> Values:
    """Values of P policies.

    Args:
      data: checked (`logged.check`), of other patients than are evaluated.
      inputs: f32[B,T,D] what is known at each decision. probs: f[P,B,T,25] of the policies.
      ended: bool[B] whether the last recorded step ends the stay; None for all: the reward pays the outcome there.
      key: of the first weights and of the batches; consumed.
    """
    valid = data.valid
    stay, step = np.nonzero(valid)
    last = step == np.asarray(data.length)[stay] - 1
    if ended is not None:
        keep = ~last | np.asarray(ended)[stay]
        stay, step, last = stay[keep], step[keep], last[keep]
    after = np.minimum(step + 1, valid.shape[1] - 1)
    total = np.where(valid, data.reward * data.gamma ** np.arange(valid.shape[1]), 0.0).sum(axis=1)
    mean, sd = float(total.mean()), float(max(total.std(), 1e-6))
    # In units of the returns' SD around their mean: the mean is paid at the end of a stay that has one.
    reward = data.reward[stay, step] / sd
    rows = {
        "inputs": inputs[stay, step],
        "action": data.action[stay, step],
        "reward": reward,
        "next_inputs": inputs[stay, after],
        "ongoing": ~last,
        "next_probs": np.moveaxis(probs[:, stay, after], 0, 1),
    }
    rows = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.int32 if leaf.dtype.kind == "i" else jnp.float32), rows)
    network = _fit(settings, float(data.gamma), rows, jnp.float32(mean / sd), key)
    return Values(network, jnp.float32(mean), jnp.float32(sd))


@partial(jax.jit, static_argnums=0)
def q_values(settings: FQESettings, values: Values, inputs: jax.Array) -> jax.Array:
    """f32[P,B,T,25] values of the actions at inputs f32[B,T,D]."""
    graph = _graph(settings, inputs.shape[-1])
    found = jax.lax.map(lambda network: nnx.merge(graph, network)(inputs), values.network)
    return values.mean + values.sd * found


def _graph(settings: FQESettings, inputs: int) -> Any:
    return nnx.graphdef(nnx.eval_shape(lambda: _Network(inputs, settings.hidden, nnx.Rngs(0))))


@partial(jax.jit, static_argnums=(0, 1))
def _fit(settings: FQESettings, gamma: float, rows: dict[str, jax.Array], mean: jax.Array, key: jax.Array) -> Any:
    """Networks with leading P; values are `mean` + network, in units of the returns' SD."""
    init_key, key = jax.random.split(key)
    first = nnx.state(_Network(rows["inputs"].shape[-1], settings.hidden, nnx.Rngs(init_key)))
    graph, policies = _graph(settings, rows["inputs"].shape[-1]), rows["next_probs"].shape[1]
    networks = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (policies, *leaf.shape)), first)
    optimizer = optax.adam(optax.cosine_decay_schedule(settings.learning_rate, settings.updates))

    def loss(network: Any, slow: Any, batch: dict[str, jax.Array], next_probs: jax.Array) -> jax.Array:
        q = nnx.merge(graph, network)(batch["inputs"])
        taken = mean + jnp.take_along_axis(q, batch["action"][:, None], axis=1)[:, 0]
        ahead = mean + (next_probs * nnx.merge(graph, slow)(batch["next_inputs"])).sum(axis=1)
        goal = batch["reward"] + gamma * batch["ongoing"] * ahead
        return optax.huber_loss(taken, jax.lax.stop_gradient(goal), delta=10.0).mean()

    def update(carry: tuple[Any, Any, Any], key: jax.Array) -> tuple[tuple[Any, Any, Any], None]:
        networks, slow, state = carry
        chosen = jax.random.randint(key, (settings.batch_size,), 0, rows["action"].shape[0])
        batch = jax.tree.map(lambda leaf: leaf[chosen], rows)
        gradient = jax.vmap(jax.grad(loss), (0, 0, None, 1))(networks, slow, batch, batch["next_probs"])
        updates, state = jax.vmap(optimizer.update)(gradient, state)
        networks = optax.apply_updates(networks, updates)
        slow = optax.incremental_update(networks, slow, settings.follow)
        return (networks, slow, state), None

    start = (networks, networks, jax.vmap(optimizer.init)(networks))
    return jax.lax.scan(update, start, jax.random.split(key, settings.updates))[0][0]
