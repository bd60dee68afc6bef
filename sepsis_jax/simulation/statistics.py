"""Records of a simulation: what a reader wants to know of S samples, or only what a planner compares."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from sepsis_jax.clinical.features import INDEX, NAMES
from sepsis_jax.data.episodes import EXIT_DEATH, EXIT_DISCHARGE, EXIT_TRUNCATED
from sepsis_jax.dynamics.protocol import History
from sepsis_jax.simulation.rollout import Trajectory


@struct.dataclass
class Returns:
    """What a planner compares (leading [B,K] after `simulate`).

    Attributes:
      value, value_se: f32[] expected return and its Monte Carlo standard error.
      death_90d: f32[] expected 90-day mortality.
    """

    value: Any
    value_se: Any
    death_90d: Any


@struct.dataclass
class Summary(Returns):
    """Statistics over S samples of one candidate (leading [B,K] after `simulate`).

    Feature statistics are over the samples still in the ICU at the end of the step, NaN when there is none; G are the
    features that `Summarize` was asked for.

    Attributes:
      median, low, high: f32[H,G] (clinical units) 50 %, 10 % and 90 % quantiles.
      mean: f32[H,G].
      in_icu, died, discharged: f32[H] shares of samples.
      map_below_65, lactate_above_2, lactate_falls: f32[H] shares of those in the ICU; falls: below the value at the
        decision.
      ventilated: f32[H] mean probability.
      sofa: f32[H] mean.
    """

    median: Any
    low: Any
    high: Any
    mean: Any
    in_icu: Any
    died: Any
    discharged: Any
    map_below_65: Any
    lactate_above_2: Any
    lactate_falls: Any
    ventilated: Any
    sofa: Any


def returns(samples: Trajectory, history: History) -> Returns:
    """Trajectory with leading S -> Returns. A `Record` for `rollout.simulate`."""
    spread = samples.value.std() / jnp.sqrt(samples.value.shape[0])
    return Returns(samples.value.mean(), spread, samples.death_90d.mean())


@dataclasses.dataclass(frozen=True)
class Summarize:
    """`Record` for `rollout.simulate`: Trajectory with leading S -> Summary.

    Attributes:
      features: names to describe over time. Quantiles need a sort, so fewer features are faster.
    """

    features: tuple[str, ...] = NAMES

    def __call__(self, samples: Trajectory, history: History) -> Summary:
        there = samples.exit == EXIT_TRUNCATED  # [S,H]
        count = there.sum(axis=0)
        obs = samples.obs[..., np.array([INDEX[name] for name in self.features])]
        low, median, high = jnp.nanquantile(
            jnp.where(there[..., None], obs, jnp.nan), jnp.array([0.1, 0.5, 0.9]), axis=0
        )
        lactate = samples.obs[..., INDEX["lactate"]]
        lactate_now = history.obs[history.length - 1, INDEX["lactate"]]

        def share(event: jax.Array) -> jax.Array:
            return jnp.where(there, event, 0.0).sum(axis=0) / count  # 0 / 0 is NaN: nobody left

        return Summary(
            **returns(samples, history).__dict__,
            median=median,
            low=low,
            high=high,
            mean=jnp.where(there[..., None], obs, 0.0).sum(axis=0) / count[:, None],
            in_icu=there.mean(axis=0),
            died=(samples.exit == EXIT_DEATH).mean(axis=0),
            discharged=(samples.exit == EXIT_DISCHARGE).mean(axis=0),
            map_below_65=share(samples.obs[..., INDEX["meanbp"]] < 65),
            lactate_above_2=share(lactate > 2),
            lactate_falls=share(lactate < lactate_now),
            ventilated=share(samples.vent_prob),
            sofa=share(samples.sofa),
        )
