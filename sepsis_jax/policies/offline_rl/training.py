"""One loop for all algorithms; seeds learn side by side."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from sepsis_jax.data.scaler import Scaler
from sepsis_jax.dynamics.protocol import History
from sepsis_jax.errors import InputError, check_range
from sepsis_jax.policies.inputs import Carry, look, remember
from sepsis_jax.policies.offline_rl.algorithms import ALGORITHMS, Algorithm, Batch
from sepsis_jax.policies.offline_rl.network import Heads, Network
from sepsis_jax.policies.offline_rl.transitions import Transitions, kept


@dataclasses.dataclass(frozen=True)
class OfflineSettings:
    """How policies are learned.

    Attributes:
      hidden: width of the layers.
      updates: gradient steps.
      batch_size: transitions in each.
      learning_rate: of Adam, falling to 0.
      follow: share of the network that its slow copy takes on in an update.
      seeds: how many networks learn side by side; the policy draws one of them at each decision.
      reports: points of a learning curve.
    """

    hidden: int = 128
    updates: int = 3000
    batch_size: int = 512
    learning_rate: float = 1e-3
    follow: float = 0.01
    seeds: int = 5
    reports: int = 20

    def __post_init__(self) -> None:
        check_range(self, "offline_rl", hidden=(1, 65536), updates=(1, math.inf), batch_size=(1, math.inf))
        check_range(self, "offline_rl", learning_rate=(1e-9, 10), follow=(1e-9, 1), seeds=(1, 1000))
        if not 1 <= self.reports <= self.updates:
            raise InputError("offline_rl", field="reports", expected=f"1 to {self.updates}", found=self.reports)


Report = Callable[[int, Any, np.ndarray], None]
"""Called now and then with the updates so far, the networks, and the mean loss f32[seeds] since the last call."""


def fit(
    name: str, settings: OfflineSettings, transitions: Transitions, key: jax.Array, report: Report | None = None
) -> Any:
    """Networks with leading [seeds], learned by `ALGORITHMS[name]`. Consumes `key`.

    InputError for an unknown name, or without transitions.
    """
    if name not in ALGORITHMS:
        raise InputError("algorithm", expected=f"one of {', '.join(ALGORITHMS)}", found=repr(name))
    if not transitions.action.size:
        raise InputError("transitions", expected="at least one", found="none")
    init_key, key = jax.random.split(key)
    state = _begin(name, settings, transitions.inputs.shape[1], jax.random.split(init_key, settings.seeds))
    block, rest = divmod(settings.updates, settings.reports)
    done = 0
    for number in range(settings.reports):
        length = block + (rest if number == settings.reports - 1 else 0)
        state, loss = _learn(name, settings, length, transitions, state, jax.random.fold_in(key, number))
        done += length
        if report is not None:
            report(done, state[0], np.asarray(loss))
    return state[0]


def heads_of(name: str, settings: OfflineSettings, network: Any, inputs: jax.Array) -> Heads:
    """Heads f32[...] of one network at f32[...,D]; values in units of the returns' SD around their mean."""
    graph = _graph(ALGORITHMS[name], settings, inputs.shape[-1])
    return nnx.merge(graph, network)(inputs)


@partial(jax.jit, static_argnums=(0, 1))
def probs_of(name: str, settings: OfflineSettings, networks: Any, inputs: jax.Array) -> jax.Array:
    """f32[...,25]: mean over the seeds of what each would do at f32[...,D]."""
    each = jax.vmap(lambda network: ALGORITHMS[name].probs(heads_of(name, settings, network, inputs)))(networks)
    return each.mean(axis=0)


@dataclasses.dataclass(frozen=True)
class Learned:
    """`Policy` that was learned by the algorithm `name`; `params` are {"networks", "scaler"}."""

    name: str
    settings: OfflineSettings = OfflineSettings()

    def init(self, params: Any, history: History) -> Carry:
        """See `Policy.init`."""
        scaler: Scaler = params["scaler"]
        return remember(scaler, history)

    def probs(
        self, params: Any, carry: Carry, obs: jax.Array, mask: jax.Array, prev_action: jax.Array
    ) -> tuple[jax.Array, Carry]:
        """See `Policy.probs`."""
        inputs, carry = look(params["scaler"], carry, obs, mask, prev_action)
        return probs_of(self.name, self.settings, params["networks"], inputs), carry


def _graph(algorithm: Algorithm, settings: OfflineSettings, inputs: int) -> Any:
    return nnx.graphdef(
        nnx.eval_shape(lambda: Network(inputs, settings.hidden, nnx.Rngs(0), dueling=algorithm.dueling))
    )


def _optimizer(algorithm: Algorithm, settings: OfflineSettings) -> optax.GradientTransformation:
    if algorithm.learning_rate is not None:
        return optax.adam(algorithm.learning_rate)
    return optax.adam(optax.cosine_decay_schedule(settings.learning_rate, settings.updates))


@partial(jax.jit, static_argnums=(0, 1, 2))
def _begin(name: str, settings: OfflineSettings, inputs: int, keys: jax.Array) -> Any:
    algorithm = ALGORITHMS[name]

    def one(key: jax.Array) -> Any:
        network = nnx.state(Network(inputs, settings.hidden, nnx.Rngs(key), dueling=algorithm.dueling))
        return network, network, _optimizer(algorithm, settings).init(network), jnp.int32(0)

    return jax.vmap(one)(keys)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _learn(
    name: str, settings: OfflineSettings, length: int, transitions: Transitions, state: Any, key: jax.Array
) -> tuple[Any, jax.Array]:
    """`length` updates of every seed, and their mean loss f32[seeds]."""
    algorithm = ALGORITHMS[name]
    mean, sd = (jnp.float32(0), jnp.float32(1)) if algorithm.raw else (transitions.mean, transitions.sd)
    optimizer = _optimizer(algorithm, settings)

    def look_at(network: Any, inputs: jax.Array) -> Heads:
        heads = heads_of(name, settings, network, inputs)
        return dataclasses.replace(heads, q=heads.q + mean / sd, v=heads.v + mean / sd)

    def loss(network: Any, slow: Any, chosen: jax.Array) -> jax.Array:
        some = kept(transitions, chosen)
        now, after = transitions.inputs[some.now], transitions.inputs[some.after]
        # What comes next is a goal, not something to be moved.
        ends = ((slow, now), (network, after), (slow, after))
        slow_now, after_heads, slow_after = (jax.lax.stop_gradient(look_at(one, inputs)) for one, inputs in ends)
        batch = Batch(
            action=some.action,
            next_action=some.next_action,
            reward=some.reward / sd,
            ongoing=some.ongoing,
            sofa=some.sofa,
            gamma=transitions.gamma,
            sd=sd,
            now=look_at(network, now),
            after=after_heads,
            slow_now=slow_now,
            slow_after=slow_after,
        )
        return algorithm.loss(batch)

    def update(state: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        network, slow, memory, number = state
        chosen = jax.random.randint(key, (settings.batch_size,), 0, transitions.action.shape[0])
        value, gradient = jax.value_and_grad(loss)(network, slow, chosen)
        changes, memory = optimizer.update(gradient, memory)
        network, number = optax.apply_updates(network, changes), number + 1
        if algorithm.copy_every:
            slow = optax.periodic_update(network, slow, number, algorithm.copy_every)
        else:
            slow = optax.incremental_update(network, slow, settings.follow)
        return (network, slow, memory, number), value

    def of_seed(state: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        state, losses = jax.lax.scan(update, state, jax.random.split(key, length))
        return state, losses.mean()

    return jax.vmap(of_seed)(state, jax.random.split(key, settings.seeds))
