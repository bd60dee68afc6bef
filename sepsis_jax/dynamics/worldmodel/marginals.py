"""The distribution of one value: a standard normal score bent by a continuous, increasing, piecewise linear map.

With segments of slopes s between the fixed knots of `knots(S)`, value(g) = center + Σ_s slope_s · (the part of [0, g]
in segment s). One segment is a Gaussian (the published model); nine follow skewed, heavy-tailed and two-peaked
shapes. Both directions and the density are closed, `center` is the median, and a larger score is a larger value.

A value is recorded only inside a support: draws beyond it pile up at its ends, and Glasgow Coma Scale components are
whole points. Such entries have a probability instead of a density, that of the interval of scores that ends there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.scipy.special import log_ndtr

_KNOTS = (-2.4, -1.6, -1.0, -0.4, 0.4, 1.0, 1.6, 2.4)  # normal scores; nearly equal shares, and the tails apart
SEGMENTS = len(_KNOTS) + 1
LARGEST_SCORE = 8.0


@struct.dataclass
class Marginals:
    """Distributions of N values.

    Attributes:
      center: f32[...,N] (z-scores) medians.
      log_slope: f32[...,N,S] log of z-scores per unit of normal score, S = 1 or `SEGMENTS`.
    """

    center: Any
    log_slope: Any


class Interval(NamedTuple):
    """Where observed values lie, in z-scores: equal ends for a density, an interval for a probability.

    Attributes:
      low, high: f32[...,N], -inf and inf where the support ends.
      point: bool[...,N] low is high.
    """

    low: Any
    high: Any
    point: Any


def value(marginals: Marginals, score: jax.Array) -> jax.Array:
    """f32[...,N] z-scores at the normal scores f32[...,N]."""
    ends = _ends(marginals)
    parts = _part(score, ends)
    return marginals.center + (parts * jnp.exp(marginals.log_slope)).sum(axis=-1)


def score(marginals: Marginals, z: jax.Array) -> jax.Array:
    """f32[...,N] normal scores at the z-scores f32[...,N]; inverse of `value`."""
    slope, positions = jnp.exp(marginals.log_slope), _positions(marginals)
    low, high = positions[..., :-1], positions[..., 1:]
    z, center = z[..., None], marginals.center[..., None]
    parts = (jnp.clip(z, low, high) - jnp.clip(center, low, high)) / slope
    return jnp.clip(parts.sum(axis=-1), -LARGEST_SCORE, LARGEST_SCORE)


def log_prob(marginals: Marginals, observed: Interval) -> jax.Array:
    """f32[...,N]: log density (per z-score) of points, log probability of intervals."""
    # The unused side of a `where` must stay finite for gradients.
    inside = jnp.where(observed.point, observed.low, marginals.center)
    at = score(marginals, inside)
    positions = _positions(marginals)
    here = (inside[..., None] >= positions[..., :-1]) & (inside[..., None] < positions[..., 1:])
    density = -0.5 * at**2 - 0.5 * np.log(2 * np.pi) - jnp.where(here, marginals.log_slope, 0.0).sum(axis=-1)
    low, high = interval_scores(marginals, observed)
    return jnp.where(observed.point, density, _log_mass(low, high))


def interval_scores(marginals: Marginals, observed: Interval) -> tuple[jax.Array, jax.Array]:
    """f32[...,N] normal scores of the ends; for points, of the value twice."""
    low = score(marginals, jnp.where(jnp.isfinite(observed.low), observed.low, marginals.center))
    high = score(marginals, jnp.where(jnp.isfinite(observed.high), observed.high, marginals.center))
    low = jnp.where(jnp.isfinite(observed.low), low, -LARGEST_SCORE)
    return low, jnp.where(jnp.isfinite(observed.high), high, LARGEST_SCORE)


def _log_mass(low: jax.Array, high: jax.Array) -> jax.Array:
    """log(Φ(high) - Φ(low)), from the tail where it is accurate; at least about log 1e-7."""
    flip = low + high > 0
    a, b = jnp.where(flip, -high, low), jnp.where(flip, -low, high)
    gap = jnp.maximum(b - a, 1e-5)
    return log_ndtr(b) + jnp.log(-jnp.expm1(jnp.minimum(log_ndtr(b - gap) - log_ndtr(b), -1e-7)))


def _ends(marginals: Marginals) -> np.ndarray:
    """f32[S+1] normal scores where segments end; the outer two are infinite."""
    inner = _KNOTS if marginals.log_slope.shape[-1] == SEGMENTS else ()
    return np.array([-np.inf, *inner, np.inf], np.float32)


def _part(score: jax.Array, ends: np.ndarray) -> jax.Array:
    """f32[...,S]: how much of [0, score] lies in each segment, negative below 0."""
    low, high = ends[:-1], ends[1:]
    shape = (1,) * jnp.ndim(score) + low.shape
    low, high = low.reshape(shape), high.reshape(shape)
    return jnp.clip(score[..., None], low, high) - np.clip(np.float32(0), low, high)


def _positions(marginals: Marginals) -> jax.Array:
    """f32[...,N,S+1] z-scores where segments end."""
    ends = _ends(marginals)
    outer = jnp.full((*marginals.center.shape, 1), jnp.inf)
    if len(ends) == 2:
        return jnp.concatenate([-outer, outer], axis=-1)
    parts = _part(jnp.asarray(ends[1:-1]), ends)  # [S-1,S]
    inner = marginals.center[..., None] + jnp.exp(marginals.log_slope) @ parts.T
    return jnp.concatenate([-outer, inner, outer], axis=-1)
