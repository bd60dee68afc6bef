"""Exits in expectation: a course goes on as if the patient stayed, and carries along how it might have ended.

Whether a course ends in death is a rare coin whose two sides lie far apart: by far the largest noise in the mean over
a few samples. Here no coin is tossed (Rao-Blackwell over the exits): with hazards d_t of death, l_t of discharge, and
q_t the probability of death within 90 days of who leaves alive after step t, `outcome` gives after H steps

    sum_t S_t (d_t + (1 - d_t) l_t q_t) + S_{H+1} q_H        S_1 = 1, S_{t+1} = S_t (1 - d_t) (1 - l_t)

which is the mean of the model's own answer over exits, given the rest of the course. What a step earns counts for
those who are still there (`Step.present`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from sepsis_jax.dynamics.protocol import Dynamics, History, Step


@struct.dataclass
class ExpectedState:
    """A course without exits.

    Attributes:
      inner: state of the model. here: f32[] probability of still being in the ICU.
      death_90d: f32[] probability of having left, and of dying within 90 days.
    """

    inner: Any
    here: Any
    death_90d: Any


@dataclasses.dataclass(frozen=True)
class ExpectedExits:
    """`Dynamics` of `model` with hazards of 0 and the exits in `outcome`.

    Undiscounted returns are those of `model` on average; exits are not told apart from each other by when they come.
    """

    model: Dynamics

    @property
    def members(self) -> int:
        """M of the model."""
        return self.model.members

    @property
    def precision(self) -> str:
        """Of the model."""
        return self.model.precision

    def member(self, params: Any, index: Any) -> Any:
        """See `Dynamics.member`."""
        return self.model.member(params, index)

    def encode(self, params: Any, history: History) -> ExpectedState:
        """See `Dynamics.encode`."""
        return ExpectedState(self.model.encode(params, history), jnp.float32(1), jnp.float32(0))

    def noise(self, key: jax.Array) -> Any:
        """See `Dynamics.noise`. Consumes `key`."""
        return self.model.noise(key)

    def shared(self, params: Any, state: ExpectedState) -> Any:
        """See `Dynamics.shared`."""
        return self.model.shared(params, state.inner)

    def step(
        self, params: Any, state: ExpectedState, action: jax.Array, noise: Any, shared: Any = None
    ) -> tuple[ExpectedState, Step]:
        """See `Dynamics.step`."""
        inner, step = self.model.step(params, state.inner, action, noise, shared)
        death, discharge = step.exit_hazard
        leaves = (1 - death) * discharge
        ends = state.here * (death + leaves * self.model.outcome(params, inner))
        after = ExpectedState(inner, state.here * (1 - death - leaves), state.death_90d + ends)
        return after, dataclasses.replace(step, exit_hazard=jnp.zeros(2), present=(state.here, after.here))

    def outcome(self, params: Any, state: ExpectedState) -> jax.Array:
        """f32[]: probability of death within 90 days, in the ICU or after it, of someone who has not left for sure."""
        return state.death_90d + state.here * self.model.outcome(params, state.inner)
