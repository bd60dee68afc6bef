"""The `Policy` protocol: how treatments are chosen inside a simulation."""

from __future__ import annotations

from typing import Any, Protocol

import jax

from sepsis_jax.dynamics.protocol import History


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
