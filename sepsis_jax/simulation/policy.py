"""The `Policy` protocol: how treatments are chosen inside a simulation."""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from sepsis_jax.data.episodes import Episodes
from sepsis_jax.dynamics.protocol import History, history_at


class Policy(Protocol):
    """Chooses among the 25 actions. Instances are hashable and static; numbers live in `params`."""

    def init(self, params: Any, history: History) -> Any:
        """What the policy remembers at the decision about step `history.length - 1`, as any pytree."""
        ...

    def probs(
        self, params: Any, carry: Any, obs: jax.Array, mask: jax.Array, prev_action: jax.Array
    ) -> tuple[jax.Array, Any]:
        """Probabilities f32[25] of the next action, and what to remember.

        Args:
          params, carry: of this policy.
          obs: f32[F] (clinical units) at the decision.
          mask: bool[38] newly measured.
          prev_action: int8[2] levels of the step before.
        """
        ...


def previous_action(history: History) -> jax.Array:
    """int8[2]: levels of the step before the decision of one history."""
    last = history.length - 1
    return jnp.where(last > 0, history.action[jnp.maximum(last - 1, 0)], history.prior_action)


RARE = 0.01
"""Probability below which clinicians hardly ever choose an action."""
_BLOCK = 16  # a power of two; always at least two blocks, since XLA makes another program of a loop that turns once


def probs_at(policy: Policy, params: Any, histories: History) -> np.ndarray:
    """f32[B,25]: what the policy would do at the decision of each history (leading B).

    Compiled once for all B up to the same power of two. Blocks of one size, so that no digit depends on who else asks.
    """
    number = len(histories.length)
    rows = np.minimum(np.arange(max(2 * _BLOCK, 1 << (number - 1).bit_length())), number - 1)
    padded = jax.tree.map(lambda leaf: np.asarray(leaf)[rows], histories)
    return np.asarray(_probs_at(policy, params, padded))[:number]


@partial(jax.jit, static_argnums=0)
def _probs_at(policy: Policy, params: Any, histories: History) -> jax.Array:
    def one(history: History) -> jax.Array:
        last, carry = history.length - 1, policy.init(params, history)
        return policy.probs(params, carry, history.obs[last], history.mask[last], previous_action(history))[0]

    return jax.lax.map(one, histories, batch_size=_BLOCK)


def probs_on_record(policy: Policy, params: Any, episodes: Episodes) -> np.ndarray:
    """f32[B,T,25]: what the policy would do at every recorded decision, given what was done before (zeros at padding).

    The policy remembers from the first decision on, as in a simulation.
    """
    first = history_at(episodes, np.arange(episodes.num_stays), np.zeros(episodes.num_stays, int))
    before = episodes.previous_action
    probs = np.asarray(_on_record(policy, params, first, episodes.obs, episodes.mask, before))
    return np.where(episodes.valid[..., None], probs, np.float32(0))


@partial(jax.jit, static_argnums=0)
def _on_record(policy: Policy, params: Any, first: History, obs: Any, mask: Any, before: Any) -> jax.Array:
    def one(stay: tuple[History, Any, Any, Any]) -> jax.Array:
        history, *seen = stay

        def decide(carry: Any, now: tuple[Any, Any, Any]) -> tuple[Any, jax.Array]:
            probs, carry = policy.probs(params, carry, *now)
            return carry, probs

        return jax.lax.scan(decide, policy.init(params, history), tuple(seen))[1]

    return jax.lax.map(one, (first, obs, mask, before), batch_size=256)
