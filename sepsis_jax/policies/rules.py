"""Simple rules: treat nobody, throw dice, follow the guideline, do what another policy does most often."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from sepsis_jax.clinical import actions
from sepsis_jax.clinical.features import INDEX
from sepsis_jax.dynamics.protocol import History
from sepsis_jax.errors import check_range
from sepsis_jax.simulation.policy import Policy

_LEVELS = (0, actions.LEVELS - 1)


@dataclasses.dataclass(frozen=True)
class Fixed:
    """`Policy`: always the same levels, e.g. (0, 0) for no treatment."""

    vasopressor: int = 0
    fluid: int = 0

    def __post_init__(self) -> None:
        check_range(self, "Fixed", vasopressor=_LEVELS, fluid=_LEVELS)

    def init(self, params: Any, history: History) -> Any:
        """See `Policy.init`."""
        return None

    def probs(
        self, params: Any, carry: Any, obs: jax.Array, mask: jax.Array, prev_action: jax.Array
    ) -> tuple[jax.Array, Any]:
        """See `Policy.probs`."""
        action = actions.encode(jnp.array([self.vasopressor, self.fluid]))
        return jax.nn.one_hot(action, actions.NUM_ACTIONS), carry


@dataclasses.dataclass(frozen=True)
class Uniform:
    """`Policy`: every action is as likely as any other."""

    def init(self, params: Any, history: History) -> Any:
        """See `Policy.init`."""
        return None

    def probs(
        self, params: Any, carry: Any, obs: jax.Array, mask: jax.Array, prev_action: jax.Array
    ) -> tuple[jax.Array, Any]:
        """See `Policy.probs`."""
        return jnp.full(actions.NUM_ACTIONS, 1 / actions.NUM_ACTIONS), carry


@dataclasses.dataclass(frozen=True)
class Guideline:
    """`Policy`: the Surviving Sepsis Campaign 2021 (Evans et al.) read as one rule for each drug.

    Vasopressor: one level up while MAP is below `map_target`, one level down above `map_wean`, else unchanged.
    Fluids: level `fluid_hypoperfused` while lactate is above `lactate_target` or MAP below `map_target`, else level 1.

    Attributes:
      map_target, map_wean: mmHg. lactate_target: mmol/L.
      fluid_hypoperfused: fluid level.
    """

    map_target: float = 65.0
    map_wean: float = 75.0
    lactate_target: float = 2.0
    fluid_hypoperfused: int = 3

    def __post_init__(self) -> None:
        check_range(self, "Guideline", fluid_hypoperfused=_LEVELS)

    def init(self, params: Any, history: History) -> Any:
        """See `Policy.init`."""
        return None

    def probs(
        self, params: Any, carry: Any, obs: jax.Array, mask: jax.Array, prev_action: jax.Array
    ) -> tuple[jax.Array, Any]:
        """See `Policy.probs`."""
        meanbp, lactate = obs[INDEX["meanbp"]], obs[INDEX["lactate"]]
        change = jnp.where(meanbp < self.map_target, 1, jnp.where(meanbp > self.map_wean, -1, 0))
        vasopressor = jnp.clip(prev_action[0].astype(jnp.int32) + change, 0, actions.LEVELS - 1)
        hypoperfused = (meanbp < self.map_target) | (lactate > self.lactate_target)
        fluid = jnp.where(hypoperfused, self.fluid_hypoperfused, 1)
        return jax.nn.one_hot(vasopressor * actions.LEVELS + fluid, actions.NUM_ACTIONS), carry


@dataclasses.dataclass(frozen=True)
class MostLikely:
    """`Policy`: what `policy` does most often, without its chance; params and memory are those of `policy`."""

    policy: Policy

    def init(self, params: Any, history: History) -> Any:
        """See `Policy.init`."""
        return self.policy.init(params, history)

    def probs(
        self, params: Any, carry: Any, obs: jax.Array, mask: jax.Array, prev_action: jax.Array
    ) -> tuple[jax.Array, Any]:
        """See `Policy.probs`."""
        probs, carry = self.policy.probs(params, carry, obs, mask, prev_action)
        return jax.nn.one_hot(probs.argmax(), actions.NUM_ACTIONS), carry
