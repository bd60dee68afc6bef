"""Rolling one patient forward: one function for plans and for policies.

Random numbers follow `dynamics.protocol.trajectory_key`: the noise of step i of sample s of a stay is the same for
every candidate (common random numbers), so differences between candidates are effects, not luck. `batch.simulate` runs
thousands of the same courses at once.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from sepsis_jax.clinical.actions import LEVELS
from sepsis_jax.dynamics.protocol import History, step_noise
from sepsis_jax.errors import InputError
from sepsis_jax.simulation.course import ASK_POLICY, Moment, World, advance, finish, start


@struct.dataclass
class Trajectory:
    """One simulated future of H steps (leading axes are added by batching).

    Attributes:
      steps: Moment with leading H.
      death_90d: f32[] probability of death within 90 days, given all of this.
      value: f32[] return: discounted step rewards and the expected terminal reward.
    """

    steps: Moment
    death_90d: Any
    value: Any


def rollout(
    world: World, params: Any, policy_params: Any, history: History, plan: jax.Array, key: jax.Array, *, horizon: int
) -> Trajectory:
    """One trajectory: follow `plan`, then the policy.

    Args:
      world: dynamics, action bins, reward, policy.
      params: of one member of the dynamics. policy_params: of the policy, or None.
      history: what is known at the decision (one patient).
      plan: int8[P,2] levels of the first P steps, P from 0 to horizon; the policy draws the rest.
      key: of this trajectory; consumed.
      horizon: H, 4-h steps.

    Raises:
      InputError: a plan that is longer, or (where it is no tracer) of levels that do not exist.
    """
    if not isinstance(plan, jax.core.Tracer):
        check_levels(world, np.asarray(plan))
    plan = pad_plans(world, plan, horizon, rows=horizon)

    def body(course: Any, inputs: tuple[jax.Array, jax.Array]) -> tuple[Any, Moment]:
        index, planned = inputs
        noise = step_noise(world.dynamics, key, index)
        return advance(world, params, policy_params, course, planned, noise, index)

    last, steps = jax.lax.scan(body, start(world, params, policy_params, history), (jnp.arange(horizon), plan))
    return Trajectory(steps, *finish(world, params, last))


def pad_plans(world: World, plans: Any, horizon: int, rows: int) -> Any:
    """int8[...,P,2] -> int8[...,rows,2]: `ASK_POLICY` after the plan.

    InputError where it is longer than the horizon, or there is no policy to ask.
    """
    planned = plans.shape[-2]
    if planned > horizon:
        raise InputError("plans", expected=f"at most {horizon} steps, the horizon", found=planned)
    if planned < horizon and world.policy is None:
        expected = f"levels for all {horizon} steps, as there is no policy to go on with"
        raise InputError("plans", expected=expected, found=f"{planned} steps")
    width = [(0, 0)] * (plans.ndim - 2) + [(0, rows - planned), (0, 0)]
    pad = np.pad if isinstance(plans, np.ndarray) else jnp.pad  # NumPy compiles nothing anew for another shape
    return pad(plans.astype(np.int8), width, constant_values=ASK_POLICY)


def check_levels(world: World, levels: np.ndarray) -> None:
    """InputError unless int[...,P,2] are levels, or leave whole steps to a policy that is there."""
    least = 0 if world.policy is None else ASK_POLICY
    if levels.size and not (levels.dtype.kind in "iu" and levels.min() >= least and levels.max() < LEVELS):
        found = f"{levels.min()} to {levels.max()} of {levels.dtype}"
        raise InputError("plans", expected=f"whole levels from {least} to {LEVELS - 1}", found=found)
    asked = levels == ASK_POLICY
    if (asked.any(axis=-1) != asked.all(axis=-1)).any():
        hint = "one drug alone cannot be left to the policy"
        raise InputError("plans", expected=f"both levels, or {ASK_POLICY} for both", found="one of them", hint=hint)
