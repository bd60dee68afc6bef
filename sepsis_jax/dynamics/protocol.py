"""The `Dynamics` protocol: all that simulation, planning and the agent know about a model of patients.

Functions describe one trajectory; callers `vmap` them over patients, candidates and samples. Every model honours
common random numbers: a step's noise is drawn before the step, by `noise`, which sees neither state nor action.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from sepsis_jax.data.episodes import EXIT_DEATH, EXIT_DISCHARGE, EXIT_TRUNCATED, Episodes


@struct.dataclass
class History:
    """What is known about one patient at a decision (add a leading B for a batch).

    Attributes:
      obs: f32[T,F] (clinical units); rows at or beyond `length` are ignored.
      mask: bool[T,38] newly measured.
      ventilated: bool[T] invasively.
      action: int8[T,2] levels; row t was given after obs[t], so rows at or beyond length - 1 are ignored.
      prior_action: int8[2] levels given before the first decision.
      static: f32[3] age (years), gender (1 = male), Charlson index.
      weight_kg: f32[] (kg).
      length: i32[] observations seen so far, at least 1; the decision is about step length - 1.
      stay_id: i32[] names the stay; enters the random key and lets the simulator find its latent state.
    """

    obs: Any
    mask: Any
    ventilated: Any
    action: Any
    prior_action: Any
    static: Any
    weight_kg: Any
    length: Any
    stay_id: Any


@struct.dataclass
class Step:
    """What one 4-h step brings.

    Attributes:
      obs: f32[F] (clinical units) next observation, carried forward where not measured.
      mask: bool[38] newly measured.
      vent_prob: f32[] probability of invasive ventilation.
      exit_hazard: f32[2] probability of death, of discharge, at the end of this step.
      value: f32[F] (clinical units) every feature as it would read if it were measured.
      present: probability of being in the ICU still, before the step and after it, where no exit is ever drawn.
    """

    obs: Any
    mask: Any
    vent_prob: Any
    exit_hazard: Any
    value: Any
    present: Any = (1.0, 1.0)


class Dynamics(Protocol):
    """A model of patients. Instances are hashable and static; numbers live in `params`.

    An ensemble has several members; sample s of a simulation belongs to member s mod `members` for its whole course
    and under every candidate. The other functions take what `member` returns.
    """

    @property
    def members(self) -> int:
        """M, at least 1."""
        ...

    @property
    def precision(self) -> str:
        """To which operands of matrix products are rounded: 'float32' or 'bfloat16'."""
        ...

    def member(self, params: Any, index: Any) -> Any:
        """Params of member `index` i32[]."""
        ...

    def encode(self, params: Any, history: History) -> Any:
        """State of one patient at the decision about step `history.length - 1`, as any pytree."""
        ...

    def noise(self, key: jax.Array) -> Any:
        """All random numbers of one step, as any pytree. Consumes `key`."""
        ...

    def shared(self, params: Any, state: Any) -> Any:
        """What a step takes from the state alone, whatever the action and the noise, as any pytree (None: nothing)."""
        ...

    def step(self, params: Any, state: Any, action: jax.Array, noise: Any, shared: Any = None) -> tuple[Any, Step]:
        """Advance 4 h under `action` int[2] with what `noise` drew. Deterministic.

        `shared` is what the method of that name gives for this state, where many steps share it.
        """
        ...

    def outcome(self, params: Any, state: Any) -> jax.Array:
        """f32[]: probability of death within 90 days of someone who leaves the ICU, alive, in this state."""
        ...


def history_at(episodes: Episodes, rows: Any, steps: Any) -> History:
    """Histories at the decisions about `steps` int[N] of stays `rows` int[N], as a batch with leading N."""
    rows, steps = np.asarray(rows), np.asarray(steps)
    return History(
        obs=np.asarray(episodes.obs)[rows],
        mask=np.asarray(episodes.mask)[rows],
        ventilated=np.asarray(episodes.ventilated)[rows],
        action=np.asarray(episodes.action)[rows],
        prior_action=np.asarray(episodes.prior_action)[rows],
        static=np.asarray(episodes.static)[rows],
        weight_kg=np.asarray(episodes.weight_kg)[rows],
        length=(steps + 1).astype(np.int32),
        stay_id=np.asarray(episodes.stay_id)[rows],
    )


def trajectory_key(seed: jax.Array, stay_id: Any, start_step: Any, sample: Any) -> jax.Array:
    """Key of one trajectory: depends on who, when and which sample, never on the action or on batch mates.

    Args:
      seed: key[] (threefry) of the whole run.
      stay_id, start_step, sample: i32[].
    """
    key = jax.random.fold_in(seed, stay_id)
    key = jax.random.fold_in(key, start_step)
    return jax.random.fold_in(key, sample)


class StepKeys(NamedTuple):
    """Independent streams of one step: the model's noise, the exit's uniforms, the policy's draw."""

    noise: jax.Array
    exit: jax.Array
    action: jax.Array


def step_keys(key: jax.Array, step: Any) -> StepKeys:
    """Keys of step i32[] of the trajectory with this key."""
    return StepKeys(*jax.random.split(jax.random.fold_in(key, step), 3))


@struct.dataclass
class StepNoise:
    """All random numbers of one simulated step.

    Attributes:
      dynamics: what `Dynamics.noise` drew. exit: f32[2] and action: f32[] uniforms of the exit and of a policy.
    """

    dynamics: Any
    exit: Any
    action: Any


def step_noise(dynamics: Dynamics, key: jax.Array, step: Any) -> StepNoise:
    """Noise of step i32[] of the trajectory with this key."""
    keys = step_keys(key, step)
    return StepNoise(dynamics.noise(keys.noise), exit_uniform(keys), jax.random.uniform(keys.action))


def exit_uniform(keys: StepKeys) -> jax.Array:
    """f32[2] for `sample_exit`."""
    return jax.random.uniform(keys.exit, (2,))


def sample_exit(exit_hazard: jax.Array, uniform: jax.Array) -> jax.Array:
    """How the step ends: int8[] 0 still in the ICU, 1 death, 2 discharge.

    Death and discharge each compare one shared `uniform` f32[2] with their hazard f32[2], death first, so that under
    common random numbers a lower hazard can only turn a death into a survival, never the reverse.
    """
    death, discharge = uniform < exit_hazard
    return jnp.where(death, EXIT_DEATH, jnp.where(discharge, EXIT_DISCHARGE, EXIT_TRUNCATED)).astype(jnp.int8)
