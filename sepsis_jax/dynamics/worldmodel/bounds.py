"""What an observation can be: the range of each feature, ordered blood pressures, whole GCS points."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from sepsis_jax.clinical.features import GCS, HIGH, INDEX, LOW, NUM_FEATURES
from sepsis_jax.data.episodes import Episodes
from sepsis_jax.data.scaler import Scaler
from sepsis_jax.dynamics.worldmodel.marginals import Interval

PRESSURE_GAP = 1.0
"""mmHg that keep diastolic, mean and systolic apart."""

_PILE = 5e-4  # share of the measured values at one extreme from which it is an end of the scale, not a rare value
_SYS, _DIA, _MEAN = INDEX["sysbp"], INDEX["diabp"], INDEX["meanbp"]
_GCS = np.array([INDEX[name] for name in GCS])
_IS_GCS = np.isin(np.arange(NUM_FEATURES), _GCS)


@struct.dataclass
class Support:
    """Range of each feature in the record, where values pile up (SpO2 at 100 %, urine at 0, clipped laboratories).

    Attributes:
      low, high: f32[F] (clinical units).
    """

    low: Any
    high: Any

    @classmethod
    def plausible(cls) -> Support:
        """The plausible ranges, for a record that is not at hand."""
        return cls(LOW.copy(), HIGH.copy())

    @classmethod
    def fit(cls, episodes: Episodes) -> Support:
        """Extremes of the measured values where at least 0.05 % of them sit, the plausible range elsewhere."""
        support = cls.plausible()
        valid = np.asarray(episodes.valid)
        for i in range(NUM_FEATURES):
            measured = valid & np.asarray(episodes.mask)[..., i] if i < episodes.mask.shape[-1] else valid
            values = np.asarray(episodes.obs)[..., i][measured]
            if not values.size:
                continue
            for extreme, end in ((values.min(), support.low), (values.max(), support.high)):
                if (values == extreme).mean() >= _PILE and values.min() < values.max():
                    end[i] = extreme
        return support

    def to_dict(self) -> dict[str, list[float]]:
        """Plain lists for a checkpoint."""
        return {name: np.asarray(value, np.float64).tolist() for name, value in self.__dict__.items()}

    @classmethod
    def from_dict(cls, values: dict[str, list[float]]) -> Support:
        """Inverse of `to_dict`, exact in float32. Raises ValueError for other shapes or empty ranges."""
        support = cls(**{name: np.asarray(value, np.float32) for name, value in values.items()})
        if not (
            np.shape(support.low) == np.shape(support.high) == (NUM_FEATURES,) and (support.low < support.high).all()
        ):
            raise ValueError(f"{NUM_FEATURES} ranges expected")
        return support


def interval(support: Support, scaler: Scaler, obs: jax.Array) -> Interval:
    """What obs f32[...,F] (clinical units) says about the values before rounding and clipping, in z-scores."""
    shape = (1,) * (obs.ndim - 1) + (NUM_FEATURES,)
    lowest, highest = (jnp.reshape(jnp.asarray(end), shape) for end in (support.low, support.high))
    is_gcs = _IS_GCS.reshape(shape)
    half = jnp.where(is_gcs, 0.5, 0.0)
    low = jnp.where(obs <= lowest, -jnp.inf, scaler.normalize(obs - half))
    high = jnp.where(obs >= highest, jnp.inf, scaler.normalize(obs + half))
    # An end that is also a value: everything beyond it piles up there.
    return Interval(low, high, ~is_gcs & (obs > lowest) & (obs < highest))


def confine(support: Support, obs: jax.Array, measured: jax.Array) -> jax.Array:
    """Bring a drawn observation back to what a patient can have.

    A new value gives way to the carried ones around it, so carried values move only where the record itself had the
    pressures out of order.

    Args:
      obs: f32[F] (clinical units) drawn where `measured`, carried forward elsewhere.
      measured: bool[F].

    Returns:
      f32[F] inside the support, diabp < meanbp < sysbp, GCS of `measured` whole.
    """
    low, high = jnp.asarray(support.low), jnp.asarray(support.high)
    obs = jnp.clip(obs, jnp.where(measured, low, LOW), jnp.where(measured, high, HIGH))
    obs = obs.at[_GCS].set(jnp.where(measured[_GCS], jnp.round(obs[_GCS]), obs[_GCS]))
    floor = jnp.where(measured[_DIA], low[_DIA], obs[_DIA]) + PRESSURE_GAP
    ceiling = jnp.where(measured[_SYS], high[_SYS], obs[_SYS]) - PRESSURE_GAP
    mean = jnp.where(measured[_MEAN], jnp.clip(obs[_MEAN], floor, ceiling), obs[_MEAN])
    obs = obs.at[_DIA].min(mean - PRESSURE_GAP)
    obs = obs.at[_SYS].max(mean + PRESSURE_GAP)
    return obs.at[_MEAN].set(mean)
