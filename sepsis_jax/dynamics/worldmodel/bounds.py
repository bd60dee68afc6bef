"""What a sampled observation must respect: plausible ranges, ordered blood pressures, whole GCS points."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from sepsis_jax.clinical.features import GCS, HIGH, INDEX, LOW

PRESSURE_GAP = 1.0
"""mmHg that keep diastolic, mean and systolic apart."""

_SYS, _DIA, _MEAN = INDEX["sysbp"], INDEX["diabp"], INDEX["meanbp"]
_GCS = np.array([INDEX[name] for name in GCS])


def confine(obs: jax.Array, measured: jax.Array) -> jax.Array:
    """Bring a drawn observation back to what a patient can have.

    A new value gives way to the carried ones around it, so carried values move only where the record itself had the
    pressures out of order.

    Args:
      obs: f32[F] (clinical units) drawn where `measured`, carried forward elsewhere.
      measured: bool[F].

    Returns:
      f32[F] inside the plausible ranges, diabp < meanbp < sysbp, GCS of `measured` whole.
    """
    obs = jnp.clip(obs, LOW, HIGH)
    obs = obs.at[_GCS].set(jnp.where(measured[_GCS], jnp.round(obs[_GCS]), obs[_GCS]))
    floor = jnp.where(measured[_DIA], LOW[_DIA], obs[_DIA]) + PRESSURE_GAP
    ceiling = jnp.where(measured[_SYS], HIGH[_SYS], obs[_SYS]) - PRESSURE_GAP
    mean = jnp.clip(obs[_MEAN], LOW[_MEAN], HIGH[_MEAN])
    mean = jnp.where(measured[_MEAN], jnp.clip(mean, floor, ceiling), mean)
    obs = obs.at[_DIA].min(mean - PRESSURE_GAP)
    obs = obs.at[_SYS].max(mean + PRESSURE_GAP)
    return obs.at[_MEAN].set(mean)
