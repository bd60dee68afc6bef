"""What an observation can be: the range and axis of each feature, ordered blood pressures, whole GCS points."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from sepsis_jax.clinical.features import GCS, HIGH, INDEX, LOW, NUM_FEATURES, NUM_MASKED, URINE
from sepsis_jax.data.episodes import Episodes
from sepsis_jax.data.scaler import Scaler
from sepsis_jax.dynamics.worldmodel.marginals import Interval

PRESSURE_GAP = 1.0
"""mmHg that keep diastolic, mean and systolic apart."""

_ROUNDING = 1e-3  # mmHg; a carried value that is far enough must come out bit for bit
_PILE = 5e-4  # share of the measured values at one extreme from which it is an end of the scale, not a rare value
_LEAST_PILE = 5  # values, in a small cohort
_LEAST_SD = 1e-3
_OFFSET = np.where(np.arange(NUM_FEATURES) == URINE, 1.0, 0.0).astype(np.float32)
_SYS, _DIA, _MEAN = INDEX["sysbp"], INDEX["diabp"], INDEX["meanbp"]
_GCS = np.array([INDEX[name] for name in GCS])
_IS_GCS = np.isin(np.arange(NUM_FEATURES), _GCS)


@struct.dataclass
class Support:
    """How the record shows each feature, and the axis on which a network sees and predicts it.

    Values pile up at the ends of the range (SpO2 at 100 %, urine at 0, clipped laboratories). Skewed features have a
    logarithmic axis, where liver enzymes of 30 and of 3,000 U/L can both be told from their neighbours.

    Attributes:
      low, high: f32[F] (clinical units) range.
      log: bool[F] axis of log(x), for urine of log(1 + x); linear elsewhere.
      mean, sd: f32[F] of measured values on that axis; what a network sees has mean 0 and SD 1.
    """

    low: Any
    high: Any
    log: Any
    mean: Any
    sd: Any

    @classmethod
    def plausible(cls, scaler: Scaler) -> Support:
        """Plausible ranges and the axes of the z-scores, for a record that is not at hand."""
        return cls(LOW.copy(), HIGH.copy(), _OFFSET > 0, np.asarray(scaler.mean), np.asarray(scaler.sd))

    @classmethod
    def fit(cls, episodes: Episodes, scaler: Scaler) -> Support:
        """From the measured values of the train stays; a feature never measured keeps its plausible range and z-score.

        An extreme at which at least 0.05 % of the values sit, and five, is an end of the range. A positive feature
        whose skewness is above 1, and smaller after a logarithm, has a logarithmic axis.
        """
        support = jax.tree.map(np.array, cls.plausible(scaler))
        for i in range(NUM_FEATURES):
            x = _measured(episodes, i)
            if x.size < 2 or x.min() == x.max():
                continue
            for extreme, end in ((x.min(), support.low), (x.max(), support.high)):
                if (x == extreme).sum() >= max(_PILE * x.size, _LEAST_PILE):
                    end[i] = extreme
            if x.min() + _OFFSET[i] > 0 and not _IS_GCS[i]:
                logged = np.log(x + _OFFSET[i])
                support.log[i] = _skewness(x) > 1 and abs(_skewness(logged)) < _skewness(x)
            on_axis = np.log(x + _OFFSET[i]) if support.log[i] else x
            support.mean[i], support.sd[i] = on_axis.mean(), max(on_axis.std(), _LEAST_SD)
        return support

    def in_z(self, scaler: Scaler) -> Support:
        """The same ranges on the axes of the z-scores, for networks that see those (published)."""
        return dataclasses.replace(Support.plausible(scaler), low=self.low, high=self.high)

    def normalize(self, obs: Any) -> jax.Array:
        """f32[...,F] clinical units -> what a network sees."""
        log, mean, sd = (_align(row, obs) for row in (self.log, self.mean, self.sd))
        logged = jnp.log(jnp.maximum(obs + _align(_OFFSET, obs), _LEAST_SD))
        return (jnp.where(log, logged, obs) - mean) / sd

    def denormalize(self, seen: Any) -> jax.Array:
        """Inverse of `normalize`."""
        log, mean, sd = (_align(row, seen) for row in (self.log, self.mean, self.sd))
        value = seen * sd + mean
        return jnp.where(log, jnp.exp(jnp.where(log, value, 0.0)) - _align(_OFFSET, seen), value)

    def log_rate(self, obs: Any) -> jax.Array:
        """f32[...,F]: log of d normalize(obs) / d obs."""
        log, sd = (_align(row, obs) for row in (self.log, self.sd))
        return -jnp.log(sd) - jnp.where(log, jnp.log(jnp.maximum(obs + _align(_OFFSET, obs), _LEAST_SD)), 0.0)

    def to_dict(self) -> dict[str, list[float]]:
        """Plain lists for a checkpoint."""
        return {name: np.asarray(value).tolist() for name, value in self.__dict__.items()}

    @classmethod
    def from_dict(cls, values: dict[str, list[float]]) -> Support:
        """Inverse of `to_dict`, exact in float32. Raises ValueError for other shapes, empty ranges and NaN."""
        if not all(isinstance(value, bool) for value in values["log"]):
            raise ValueError("log of other values than true and false")
        arrays = {name: np.asarray(value, bool if name == "log" else np.float32) for name, value in values.items()}
        support = cls(**arrays)
        if any(array.shape != (NUM_FEATURES,) for array in arrays.values()):
            raise ValueError(f"{NUM_FEATURES} numbers a field expected")
        if not ((support.low < support.high) & (support.sd > 0)).all():
            raise ValueError("an empty range or an SD of 0")
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise ValueError("NaN or infinity")
        return support


def _measured(episodes: Episodes, feature: int) -> np.ndarray:
    """f64[N]: measured values of one feature."""
    measured = np.asarray(episodes.valid)
    if feature < NUM_MASKED:
        measured = measured & np.asarray(episodes.mask)[..., feature]
    return np.asarray(episodes.obs)[..., feature][measured].astype(np.float64)


def _skewness(x: np.ndarray) -> float:
    return float(((x - x.mean()) ** 3).mean() / max(x.std(), _LEAST_SD) ** 3)


def _align(row: Any, like: Any) -> jax.Array:
    """Rank promotion is an error in this project: give the row the rank of what it meets."""
    return jnp.reshape(jnp.asarray(row), (1,) * (jnp.ndim(like) - 1) + (-1,))


def interval(support: Support, obs: jax.Array) -> Interval:
    """What obs f32[...,F] (clinical units) says about values before rounding and clipping, on the network's axes."""
    lowest, highest, is_gcs = (_align(row, obs) for row in (support.low, support.high, _IS_GCS))
    half = jnp.where(is_gcs, 0.5, 0.0)
    # An end that is also a value: everything beyond it piles up there.
    low = jnp.where(obs <= lowest, -jnp.inf, support.normalize(obs - half))
    high = jnp.where(obs >= highest, jnp.inf, support.normalize(obs + half))
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
    obs = jnp.where(measured & _IS_GCS, jnp.round(obs), obs)
    floor = jnp.where(measured[_DIA], low[_DIA], obs[_DIA]) + PRESSURE_GAP
    ceiling = jnp.where(measured[_SYS], high[_SYS], obs[_SYS]) - PRESSURE_GAP
    mean = jnp.where(measured[_MEAN], jnp.clip(obs[_MEAN], floor, ceiling), obs[_MEAN])
    near = PRESSURE_GAP - _ROUNDING
    dia = jnp.where(mean - obs[_DIA] < near, mean - PRESSURE_GAP, obs[_DIA])
    sys = jnp.where(obs[_SYS] - mean < near, mean + PRESSURE_GAP, obs[_SYS])
    # The three lie side by side; in a batch, one pass instead of three scatters.
    return jnp.concatenate([obs[:_SYS], jnp.stack([sys, dia, mean]), obs[_MEAN + 1 :]])
