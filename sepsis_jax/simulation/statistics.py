"""`summarize`: the default record of a simulation, what a reader wants to know of S samples."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from sepsis_jax.clinical.features import INDEX
from sepsis_jax.data.episodes import EXIT_DEATH, EXIT_DISCHARGE, EXIT_TRUNCATED
from sepsis_jax.dynamics.protocol import History
from sepsis_jax.simulation.rollout import Trajectory


@struct.dataclass
class Summary:
    """Statistics over S samples of one candidate (leading [B,K] after `simulate`).

    Feature statistics are over the samples still in the ICU at the end of the step, NaN when there is none.

    Attributes:
      median, low, high: f32[H,F] (clinical units) 50 %, 10 % and 90 % quantiles.
      mean: f32[H,F].
      in_icu, died, discharged: f32[H] shares of samples.
      map_below_65, lactate_above_2, lactate_falls: f32[H] shares of those in the ICU; falls: below the value at the
        decision.
      ventilated: f32[H] mean probability.
      sofa: f32[H] mean.
      value, value_se: f32[] expected return and its Monte Carlo standard error.
      death_90d: f32[] expected 90-day mortality.
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
    value: Any
    value_se: Any
    death_90d: Any


def summarize(samples: Trajectory, history: History) -> Summary:
    """Trajectory with leading S -> Summary. A `Record` for `rollout.simulate`."""
    there = samples.exit == EXIT_TRUNCATED  # [S,H]
    count = there.sum(axis=0)
    obs = jnp.where(there[..., None], samples.obs, jnp.nan)
    low, median, high = jnp.nanquantile(obs, jnp.array([0.1, 0.5, 0.9]), axis=0)
    lactate = samples.obs[..., INDEX["lactate"]]
    lactate_now = history.obs[history.length - 1, INDEX["lactate"]]

    def share(event: jax.Array) -> jax.Array:
        return jnp.where(there, event, 0.0).sum(axis=0) / count  # 0 / 0 is NaN: nobody left

    return Summary(
        median=median,
        low=low,
        high=high,
        mean=jnp.where(there[..., None], samples.obs, 0.0).sum(axis=0) / count[:, None],
        in_icu=there.mean(axis=0),
        died=(samples.exit == EXIT_DEATH).mean(axis=0),
        discharged=(samples.exit == EXIT_DISCHARGE).mean(axis=0),
        map_below_65=share(samples.obs[..., INDEX["meanbp"]] < 65),
        lactate_above_2=share(lactate > 2),
        lactate_falls=share(lactate < lactate_now),
        ventilated=share(samples.vent_prob),
        sofa=share(samples.sofa),
        value=samples.value.mean(),
        value_se=samples.value.std() / jnp.sqrt(samples.value.shape[0]),
        death_90d=samples.death_90d.mean(),
    )
