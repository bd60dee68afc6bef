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
from jax.scipy.special import ndtr

_KNOTS = (-2.4, -1.6, -1.0, -0.4, 0.4, 1.0, 1.6, 2.4)  # normal scores; nearly equal shares, and the tails apart
SEGMENTS = len(_KNOTS) + 1
LARGEST_SCORE = 8.0
_LEAST = 1e-8  # probability; keeps the log and its gradient finite


@struct.dataclass
class Marginals:
    """Distributions of N values.

    Attributes:
      center: f32[...,N] (z-scores) medians.
      log_slope: f32[...,S,N] log of z-scores per unit of normal score, S = 1 or `SEGMENTS`.
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


class Segment(NamedTuple):
    """One slope and where it holds; the outer ends are infinite.

    Attributes:
      low, high: normal scores. log_slope: f32[...,N].
    """

    low: np.float32
    high: np.float32
    log_slope: Any


@jax.jit
def value(marginals: Marginals, score: jax.Array) -> jax.Array:
    """f32[...,N] z-scores at the normal scores f32[...,N]."""
    z = marginals.center
    for segment in _segments(marginals):  # a few fused passes; an axis of segments would be stored
        part = jnp.clip(score, segment.low, segment.high) - np.clip(np.float32(0), segment.low, segment.high)
        z = z + part * jnp.exp(segment.log_slope)
    return z


@jax.jit
def score(marginals: Marginals, z: jax.Array) -> jax.Array:
    """f32[...,N] normal scores at the z-scores f32[...,N], within ±8; inverse of `value`."""
    return _locate(marginals.center, _segments(marginals), z)[0]


@jax.jit
def log_prob(marginals: Marginals, observed: Interval) -> jax.Array:
    """f32[...,N]: log density (per z-score) of points, log probability (at least -18) of intervals."""
    center, segments = marginals.center, _segments(marginals)
    # The unused side of a `where` must stay finite for gradients.
    low, log_slope = _locate(center, segments, jnp.where(jnp.isinf(observed.low), center, observed.low))
    high, _ = _locate(center, segments, jnp.where(jnp.isinf(observed.high), center, observed.high))
    density = -0.5 * low**2 - 0.5 * np.log(2 * np.pi) - log_slope
    low, high = _open(observed, low, high)
    flip = low + high > 0  # the lower tail is where small probabilities are exact
    mass = ndtr(jnp.where(flip, -low, high)) - ndtr(jnp.where(flip, -high, low))
    mass = jnp.where(observed.point, 1.0, mass)
    return jnp.where(observed.point, density, jnp.log(mass + _LEAST))


def interval_scores(marginals: Marginals, observed: Interval) -> tuple[jax.Array, jax.Array]:
    """f32[...,N] normal scores of the ends; for points, of the value twice."""
    return _open(observed, score(marginals, observed.low), score(marginals, observed.high))


def _open(observed: Interval, low: jax.Array, high: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Scores of the ends, the largest ones where the support ends."""
    low = jnp.where(jnp.isinf(observed.low), -LARGEST_SCORE, low)
    return low, jnp.where(jnp.isinf(observed.high), LARGEST_SCORE, high)


def _segments(marginals: Marginals) -> list[Segment]:
    slopes = jnp.unstack(marginals.log_slope, axis=-2)
    inner = _KNOTS if len(slopes) == SEGMENTS else ()
    ends = np.array([-np.inf, *inner, np.inf], np.float32)
    return [Segment(*each) for each in zip(ends[:-1], ends[1:], slopes, strict=True)]


def _locate(center: jax.Array, segments: list[Segment], z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Normal score of z, and the log slope there: f32[...,N] each."""
    middle = len(segments) // 2
    mirrored = [Segment(-segment.high, -segment.low, segment.log_slope) for segment in segments[middle::-1]]
    (up, slope_above), (down, slope_below) = _walk(center, segments[middle:], z), _walk(-center, mirrored, -z)
    below = z < center
    at = jnp.clip(jnp.where(below, -down, up), -LARGEST_SCORE, LARGEST_SCORE)
    return at, jnp.where(below, slope_below, slope_above)


def _walk(center: jax.Array, segments: list[Segment], z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Score of a z above the center, and the log slope there, through the segments from the center upwards."""
    at, found, edge = jnp.zeros_like(z), segments[0].log_slope, center
    for segment in segments:
        reached = z > edge
        width = segment.high - np.maximum(segment.low, np.float32(0))
        end = edge + width * jnp.exp(segment.log_slope) if np.isfinite(width) else z
        at = at + jnp.where(reached, (jnp.minimum(z, end) - edge) * jnp.exp(-segment.log_slope), 0.0)
        found = jnp.where(reached, segment.log_slope, found)
        edge = end
    return at, found
