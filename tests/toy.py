"""A world small enough to compute by hand: MAP follows the vasopressor, lactate falls with fluid, the rest stays."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from sepsis_jax.agent.simulator import BatchedSimulator, Truth
from sepsis_jax.clinical.actions import AI_CLINICIAN_BINS
from sepsis_jax.clinical.features import INDEX
from sepsis_jax.clinical.reward import PUBLISHED, Reward
from sepsis_jax.dynamics.protocol import History, Step
from sepsis_jax.policies.planner import PlannerSettings
from sepsis_jax.policies.rules import Guideline
from sepsis_jax.simulation.course import World

MAP, LACTATE = INDEX["meanbp"], INDEX["lactate"]


@struct.dataclass
class ToyParams:
    """f32[] each: effects of one level, noise SDs, hazards of death per mmHg below 75 and of discharge."""

    pressor: Any = 3.0
    fluid: Any = 0.2
    noise_map: Any = 4.0
    noise_lactate: Any = 0.1
    death: Any = 0.02
    discharge: Any = 0.05


@dataclasses.dataclass(frozen=True)
class ToyDynamics:
    """`Dynamics` whose state is the observation itself."""

    members: ClassVar[int] = 1
    precision: ClassVar[str] = "float32"

    def member(self, params: ToyParams, index: Any) -> ToyParams:
        return params

    def encode(self, params: ToyParams, history: History) -> jax.Array:
        return history.obs[history.length - 1]

    def noise(self, key: jax.Array) -> jax.Array:
        return jax.random.normal(key, (2,))

    def shared(self, params: ToyParams, state: jax.Array) -> None:
        return None

    def step(
        self, params: ToyParams, state: jax.Array, action: jax.Array, noise: jax.Array, shared: None = None
    ) -> tuple[jax.Array, Step]:
        pressor, fluid = action.astype(jnp.float32)
        state = state.at[MAP].add(params.pressor * (pressor - 1) + params.noise_map * noise[0])
        state = state.at[LACTATE].add(-params.fluid * (fluid - 1) + params.noise_lactate * noise[1])
        state = state.at[LACTATE].set(jnp.maximum(state[LACTATE], 0.1))
        death = jnp.clip(params.death * (75 - state[MAP]), 0.0, 1.0)
        mask = jnp.zeros(38, bool).at[MAP].set(True)
        return state, Step(state, mask, jnp.float32(0.25), jnp.stack([death, jnp.float32(params.discharge)]), state)

    def outcome(self, params: ToyParams, state: jax.Array) -> jax.Array:
        return jax.nn.sigmoid((65 - state[MAP]) / 10 + state[LACTATE] - 3)


def toy_world(reward: Reward = PUBLISHED, policy: Any = Guideline()) -> World:
    """The toy patients with published rewards; the guideline rule goes on where a plan ends."""
    return World(ToyDynamics(), AI_CLINICIAN_BINS, reward, policy)


def toy_params() -> ToyParams:
    """Default parameters as arrays."""
    return jax.tree.map(jnp.float32, ToyParams())


def toy_simulator(concurrency: int = 16, truth: Truth | None = None, **settings: Any) -> BatchedSimulator:
    """What an agent asks about the toy patients: 16 samples of two steps, unless the planner's `settings` say more."""
    small = PlannerSettings(**({"samples": 16, "horizon": 2} | settings))
    return BatchedSimulator(toy_world(), toy_params(), None, small, seed=0, concurrency=concurrency, truth=truth)
