"""Discrete offline reinforcement learning: one loss and one way to act for each algorithm.

A loss sees a batch of transitions and what the network and its slow copy say at both ends of them. Values are in units
of the returns' SD around their mean, so that one learning rate serves every reward.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from sepsis_jax.clinical.actions import NUM_ACTIONS
from sepsis_jax.policies.offline_rl.network import Heads


@struct.dataclass
class Batch:
    """N transitions, see `Transitions`, and what the network says of them.

    Attributes:
      now, after: Heads of the network at the state and at the next one. slow_now, slow_after: of its slow copy.
      sd: f32[] of returns, for what depends on their unit.
    """

    action: Any
    next_action: Any
    reward: Any
    ongoing: Any
    sofa: Any
    gamma: Any
    sd: Any
    now: Heads
    after: Heads
    slow_now: Heads
    slow_after: Heads


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """How a policy is learned, and how it acts.

    Attributes:
      loss: Batch -> f32[]. probs: Heads f32[...] -> f32[...,25].
      dueling: network. raw: learn rewards as they are paid, not in units of the returns' SD around their mean.
      learning_rate: of Adam, instead of the settings'. copy_every: updates between copies to the slow network, which
        then does not follow in between; 0 follows.
    """

    loss: Callable[[Batch], jax.Array]
    probs: Callable[[Heads], jax.Array]
    dueling: bool = False
    raw: bool = False
    learning_rate: float | None = None
    copy_every: int = 0


def at(values: jax.Array, action: jax.Array) -> jax.Array:
    """f32[N]: of values f32[N,25] those of the actions i32[N]; -1 is the last."""
    return jnp.take_along_axis(values, action[:, None] % NUM_ACTIONS, axis=1)[:, 0]


def greedy(heads: Heads) -> jax.Array:
    """The action of the highest value."""
    return jax.nn.one_hot(heads.q.argmax(axis=-1), NUM_ACTIONS)


def imitate(heads: Heads) -> jax.Array:
    """What the logits say."""
    return jax.nn.softmax(heads.logits)


def q_learning_goal(batch: Batch) -> jax.Array:
    """f32[N]: r + g max_a Q'(s', a) (Mnih et al. 2015)."""
    return batch.reward + batch.gamma * batch.ongoing * batch.slow_after.q.max(axis=1)


def double_q_goal(batch: Batch, allowed: jax.Array | bool = True) -> jax.Array:
    """f32[N]: r + g Q'(s', argmax_a Q(s', a)) among allowed bool[N,25] (van Hasselt et al. 2016, arXiv 1509.06461)."""
    best = jnp.where(allowed, batch.after.q, -jnp.inf).argmax(axis=1)
    return batch.reward + batch.gamma * batch.ongoing * at(batch.slow_after.q, best)


def _distance(batch: Batch, goal: jax.Array) -> jax.Array:
    return optax.huber_loss(at(batch.now.q, batch.action), jax.lax.stop_gradient(goal)).mean()


def dqn(batch: Batch) -> jax.Array:
    """Deep Q-learning."""
    return _distance(batch, q_learning_goal(batch))


def double_dqn(batch: Batch) -> jax.Array:
    """Double Q-learning; with a dueling network, the D3QN of Raghu et al. 2017 (arXiv 1711.09602)."""
    return _distance(batch, double_q_goal(batch))


CQL_ALPHA = 0.03
"""Weight of the conservative term (values in units of the returns' SD)."""


def cql(batch: Batch) -> jax.Array:
    """Double Q-learning that lowers the values of what was not done (Kumar et al. 2020, arXiv 2006.04779, eq. 4)."""
    gap = jax.nn.logsumexp(batch.now.q, axis=1) - at(batch.now.q, batch.action)
    return double_dqn(batch) + CQL_ALPHA * gap.mean()


BCQ_THRESHOLD = 0.3
"""Least probability of an action among clinicians, relative to their most likely one."""


def likely(logits: jax.Array) -> jax.Array:
    """bool[...,25]: actions that `BCQ_THRESHOLD` lets pass."""
    return logits - logits.max(axis=-1, keepdims=True) >= jnp.log(BCQ_THRESHOLD)


def bcq(batch: Batch) -> jax.Array:
    """Double Q-learning among actions that clinicians would take (Fujimoto et al. 2019, arXiv 1910.01708)."""
    goal = double_q_goal(batch, likely(batch.after.logits))
    return _distance(batch, goal) + behaviour_cloning(batch) + 1e-2 * (batch.now.logits**2).mean()


def best_likely(heads: Heads) -> jax.Array:
    """The action of the highest value among those that clinicians would take."""
    return jax.nn.one_hot(jnp.where(likely(heads.logits), heads.q, -jnp.inf).argmax(axis=-1), NUM_ACTIONS)


IQL_EXPECTILE, IQL_TEMPERATURE, _MOST = 0.8, 30.0, 100.0
"""Expectile of values that a state is worth; how much more an action counts per unit of advantage."""


def iql(batch: Batch) -> jax.Array:
    """Implicit Q-learning: never asks for an action that was not taken (Kostrikov et al. 2021, arXiv 2110.06169)."""
    advantage = jax.lax.stop_gradient(at(batch.slow_now.q, batch.action)) - batch.now.v
    weight = jnp.where(advantage > 0, IQL_EXPECTILE, 1 - IQL_EXPECTILE)
    value = (jax.lax.stop_gradient(weight) * advantage**2).mean()
    goal = batch.reward + batch.gamma * batch.ongoing * batch.after.v
    counts = jnp.minimum(jnp.exp(IQL_TEMPERATURE * jax.lax.stop_gradient(advantage)), _MOST)
    surprise = optax.softmax_cross_entropy_with_integer_labels(batch.now.logits, batch.action)
    return value + _distance(batch, goal) + (counts * surprise).mean()


LEAST_SOFA = 4.0
"""Below it WD3QNE takes what the clinician did for the best."""


def _weighted_goal(batch: Batch) -> jax.Array:
    """f32[N] value of the next state: of two best actions, weighted, or of the clinician's where SOFA is low."""
    slow = batch.slow_after.q
    best, slow_best = batch.after.q.argmax(axis=1), slow.argmax(axis=1)
    chance = jax.nn.softmax(batch.sd * slow)
    first, second = at(chance, best), at(chance, slow_best)
    mixed = (first * at(slow, best) + second * at(slow, slow_best)) / (first + second)
    return jnp.where(batch.sofa < LEAST_SOFA, at(slow, batch.next_action), mixed)


def wd3qne(batch: Batch) -> jax.Array:
    """Weighted dueling double deep Q-network with human expertise (Wu et al. 2023, npj Digit Med 6:15)."""
    return _distance(batch, batch.reward + batch.gamma * batch.ongoing * _weighted_goal(batch))


def wd3qne_faithful(batch: Batch) -> jax.Array:
    """As its code computes it: a missing axis lets every patient's end cut off every other patient's future.

    There `done` has one axis more than rewards and values: y_ij = r_j + g Q_j (1 - done_i), for all pairs (i, j).
    """
    ahead = batch.gamma * _weighted_goal(batch)
    goal = batch.reward[None] + batch.ongoing[:, None] * ahead[None]
    taken = jnp.broadcast_to(at(batch.now.q, batch.action)[None], goal.shape)
    return optax.huber_loss(taken, jax.lax.stop_gradient(goal)).mean()


def behaviour_cloning(batch: Batch) -> jax.Array:
    """Do as clinicians do."""
    return optax.softmax_cross_entropy_with_integer_labels(batch.now.logits, batch.action).mean()


ALGORITHMS: dict[str, Algorithm] = {
    "BC": Algorithm(behaviour_cloning, imitate),
    "DQN": Algorithm(dqn, greedy),
    "D3QN": Algorithm(double_dqn, greedy, dueling=True),
    "CQL": Algorithm(cql, greedy, dueling=True),
    "BCQ": Algorithm(bcq, best_likely),
    "IQL": Algorithm(iql, imitate),
    "WD3QNE": Algorithm(wd3qne, greedy, dueling=True),
    "WD3QNE (as released)": Algorithm(
        wd3qne_faithful, greedy, dueling=True, raw=True, learning_rate=1e-4, copy_every=100
    ),
}
"""Name -> how it learns and acts."""
