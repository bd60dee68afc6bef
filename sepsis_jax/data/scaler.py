"""`Scaler`: the only place that knows how clinical units become z-scores.

Urine is log1p-transformed before scaling (as published); statistics come from the train split, from observed
entries only, so that carried-forward values do not count twice.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct

from sepsis_jax.clinical.features import NUM_FEATURES, PUBLISHED_MEAN, PUBLISHED_SD, URINE

_LEAST = 0.1  # of the published SD: what hardly varies in a small train split must not be far out in another patient
_STATIC_SD = np.array([15.0, 1.0, 3.0])  # of adults in the ICU: age (years), gender, Charlson index


@struct.dataclass
class Scaler:
    """Means and SDs in model units (clinical units, except log1p(mL / 4 h) for urine).

    Attributes:
      mean, sd: f32[F].
      static_mean, static_sd: f32[3]; gender stays 0/1.
    """

    mean: Any
    sd: Any
    static_mean: Any
    static_sd: Any

    @classmethod
    def fit(cls, obs: np.ndarray, observed: np.ndarray, static: np.ndarray) -> Scaler:
        """Statistics of the train rows.

        Args:
          obs: f32[...,F] (clinical units).
          observed: bool[...,F] which entries were measured; a feature never measured gets the published anchor.
          static: f32[B,3].
        """
        mean, sd = PUBLISHED_MEAN.astype(np.float64), PUBLISHED_SD.astype(np.float64)
        for i in range(NUM_FEATURES):  # one feature at a time: double precision without a double-sized copy
            values = np.asarray(obs)[..., i][np.asarray(observed)[..., i]].astype(np.float64)
            values = np.log1p(values) if i == URINE else values
            mean[i] = values.mean() if values.size else mean[i]
            sd[i] = values.std() if values.size > 1 else sd[i]
        static_mean = np.array(static, np.float64).mean(axis=0, keepdims=True)[0]
        static_sd = np.array(static, np.float64).std(axis=0, keepdims=True)[0]
        static_mean[1], static_sd[1] = 0.0, 1.0
        sd, static_sd = np.maximum(sd, _LEAST * PUBLISHED_SD), np.maximum(static_sd, _LEAST * _STATIC_SD)
        arrays = (mean, sd, static_mean, static_sd)
        return cls(*(array.astype(np.float32) for array in arrays))

    @property
    def fill(self) -> np.ndarray:
        """f32[F] (clinical units): stands in before a feature's first value."""
        fill = np.array(self.mean)
        fill[URINE] = np.expm1(fill[URINE])
        return fill

    def normalize(self, obs: Any) -> Any:
        """f32[...,F] clinical units -> z-scores."""
        obs = obs.at[..., URINE].set(jnp.log1p(obs[..., URINE])) if hasattr(obs, "at") else _log_urine(obs)
        return (obs - _align(self.mean, obs)) / _align(self.sd, obs)

    def denormalize(self, z: Any) -> Any:
        """f32[...,F] z-scores -> clinical units."""
        values = jnp.asarray(z) * _align(self.sd, z) + _align(self.mean, z)
        return values.at[..., URINE].set(jnp.expm1(values[..., URINE]))

    def log_rate(self, obs: Any) -> Any:
        """f32[...,F]: log of d normalize(obs) / d obs at obs in clinical units."""
        rate = jnp.log(_align(self.sd, obs))
        return -jnp.broadcast_to(rate, jnp.shape(obs)).at[..., URINE].add(jnp.log1p(obs[..., URINE]))

    def normalize_static(self, static: Any) -> Any:
        """f32[...,3] -> age and Charlson as z-scores, gender unchanged."""
        return (static - _align(self.static_mean, static)) / _align(self.static_sd, static)

    def to_dict(self) -> dict[str, list[float]]:
        """Plain lists for a manifest."""
        return {name: np.asarray(value, np.float64).tolist() for name, value in self.__dict__.items()}

    @classmethod
    def from_dict(cls, values: dict[str, list[float]]) -> Scaler:
        """Inverse of `to_dict`, exact in float32."""
        scaler = cls(**{name: np.asarray(value, np.float32) for name, value in values.items()})
        shapes = [np.shape(value) for value in (scaler.mean, scaler.sd, scaler.static_mean, scaler.static_sd)]
        if shapes != [(NUM_FEATURES,), (NUM_FEATURES,), (3,), (3,)]:
            raise ValueError(f"scaler of shapes {shapes}")
        if not all(np.isfinite(getattr(scaler, name)).all() for name in values):
            raise ValueError("scaler with NaN or infinity")
        if not ((scaler.sd > 0).all() and (scaler.static_sd > 0).all()):
            raise ValueError("scaler with an SD of 0 or less")
        return scaler


def _log_urine(obs: Any) -> np.ndarray:
    obs = np.array(obs, np.float32)
    obs[..., URINE] = np.log1p(obs[..., URINE])
    return obs


def _align(row: Any, like: Any) -> Any:
    """Rank promotion is an error in this project: give the row the rank of what it meets."""
    return jnp.reshape(row, (1,) * (jnp.ndim(like) - 1) + (-1,))
