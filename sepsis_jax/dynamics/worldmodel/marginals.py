"""The distribution of one value: a standard normal score bent by a smooth, increasing map.

The slope of the map is s_k at the k-th of `_KNOTS`, linear between them and constant beyond the outer ones, so that
value(g) = center + the integral of the slope from 0 to g is a quadratic spline (Müller et al. 2019, section 4.1). One
slope is a Gaussian (the published model); nine follow skewed, heavy-tailed and two-peaked shapes. Both directions
and the density are closed, `center` is the median, and a larger score is a larger value. The density is continuous:
one with steps has likelihoods whose gradient says nothing of the values that cross a step.

A value is recorded only inside a support: draws beyond it pile up at its ends, and Glasgow Coma Scale components are
whole points. Such entries have a probability instead of a density, that of the interval of scores that ends there.
No smooth map leads from a pile of zeros to a peak far above it without values in between, so the last value (urine,
which is often 0) can have a hurdle: with a probability of its own it lies at the low end, else it follows the map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.scipy.special import ndtr, ndtri

_KNOTS = (0.0, 0.5, 1.0, 1.6, 2.4)  # normal scores, and the same below 0
SLOPES = 2 * len(_KNOTS) - 1
LARGEST_SCORE = 8.0
_FAR = 1e3  # z-scores; below every support
_LEAST_SLOPE = 1e-3  # where a difference of large squares rounds below zero
_LEAST = 1e-8  # probability; keeps the log and its gradient finite


@struct.dataclass
class Marginals:
    """Distributions of N values.

    Attributes:
      center: f32[...,N] (z-scores) medians.
      log_slope: f32[...,S,N] log of z-scores per unit of normal score, S = 1 or `SLOPES`, in ascending order.
      zero_logit: f32[...] log odds that the last value is at the low end of its support whatever the map says; None
        where there is no hurdle.
    """

    center: Any
    log_slope: Any
    zero_logit: Any = None


class Interval(NamedTuple):
    """Where observed values lie, in z-scores: equal ends for a density, an interval for a probability.

    Attributes:
      low, high: f32[...,N], -inf and inf where the support ends.
      point: bool[...,N] low is high.
    """

    low: Any
    high: Any
    point: Any


@jax.jit
def value(marginals: Marginals, score: jax.Array) -> jax.Array:
    """f32[...,N] z-scores at the normal scores f32[...,N]."""
    if marginals.zero_logit is None:
        return _bend(marginals, score)
    tail = ndtr(-score[..., -1]) / jax.nn.sigmoid(-marginals.zero_logit)  # of those over it
    score = _with_last(score, -ndtri(jnp.clip(tail, 1e-30, 1 - 1e-6)))
    z = _bend(marginals, score)
    return _with_last(z, jnp.where(tail < 1, z[..., -1], -_FAR))


@jax.jit
def score(marginals: Marginals, z: jax.Array) -> jax.Array:
    """f32[...,N] normal scores at the z-scores f32[...,N], within ±8; inverse of `value`."""
    at = _locate(marginals, z)[0]
    if marginals.zero_logit is None:
        return at
    tail = ndtr(-at[..., -1]) * jax.nn.sigmoid(-marginals.zero_logit)
    return _with_last(at, jnp.clip(-ndtri(tail), -LARGEST_SCORE, LARGEST_SCORE))


@jax.jit
def log_prob(marginals: Marginals, observed: Interval) -> jax.Array:
    """f32[...,N]: log density (per z-score) of points, log probability (at least -18) of intervals."""
    center = marginals.center
    # The unused side of a `where` must stay finite for gradients.
    low, log_slope = _locate(marginals, jnp.where(jnp.isinf(observed.low), center, observed.low))
    high, _ = _locate(marginals, jnp.where(jnp.isinf(observed.high), center, observed.high))
    density = -0.5 * low**2 - 0.5 * np.log(2 * np.pi) - log_slope
    low, high = _open(observed, low, high)
    flip = low + high > 0  # the lower tail is where small probabilities are exact
    mass = ndtr(jnp.where(flip, -low, high)) - ndtr(jnp.where(flip, -high, low))
    mass = jnp.where(observed.point, 1.0, mass)
    found = jnp.where(observed.point, density, jnp.log(mass + _LEAST))
    if marginals.zero_logit is None:
        return found
    at_low = jnp.isinf(observed.low[..., -1])
    # Zeros teach the hurdle alone; a map that also bends down to them never gives them up.
    last = jnp.where(at_low, jax.lax.stop_gradient(found[..., -1]), found[..., -1])
    over = jax.nn.log_sigmoid(-marginals.zero_logit) + last
    return _with_last(found, jnp.where(at_low, jnp.logaddexp(jax.nn.log_sigmoid(marginals.zero_logit), over), over))


def interval_scores(marginals: Marginals, observed: Interval) -> tuple[jax.Array, jax.Array]:
    """f32[...,N] normal scores of the ends; for points, of the value twice."""
    return _open(observed, score(marginals, observed.low), score(marginals, observed.high))


def _open(observed: Interval, low: jax.Array, high: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Scores of the ends, the largest ones where the support ends."""
    low = jnp.where(jnp.isinf(observed.low), -LARGEST_SCORE, low)
    return low, jnp.where(jnp.isinf(observed.high), LARGEST_SCORE, high)


def _with_last(values: jax.Array, last: jax.Array) -> jax.Array:
    return jnp.concatenate([values[..., :-1], last[..., None]], axis=-1)


def _bend(marginals: Marginals, score: jax.Array) -> jax.Array:
    """The map itself, without a hurdle: f32[...,N] -> f32[...,N]."""
    slopes, above = jnp.unstack(marginals.log_slope, axis=-2), score > 0
    middle = len(slopes) // 2
    pairs = zip(slopes[middle::-1], slopes[middle:], strict=True)
    rise = _rise([jnp.exp(jnp.where(above, up, down)) for down, up in pairs], jnp.abs(score))
    return marginals.center + jnp.where(above, rise, -rise)


def _sides(marginals: Marginals) -> tuple[Sequence[jax.Array], Sequence[jax.Array]]:
    """Slopes f32[...,N] from the median downwards and upwards, each at as many of `_KNOTS`."""
    slopes = jnp.unstack(jnp.exp(marginals.log_slope), axis=-2)
    middle = len(slopes) // 2
    return slopes[middle::-1], slopes[middle:]


def _rise(slopes: Sequence[jax.Array], score: jax.Array) -> jax.Array:
    """Integral of the slope from 0 to a score above 0. A few fused passes: an axis would be stored."""
    rise = slopes[-1] * jnp.maximum(score - _KNOTS[len(slopes) - 1], 0.0)
    for low, high, left, right in _pieces(slopes):
        part = jnp.clip(score - low, 0.0, high - low)
        rise = rise + part * (left + (right - left) * (part * (0.5 / (high - low))))
    return rise


def _locate(marginals: Marginals, z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Normal score of z, and the log slope there: f32[...,N] each."""
    below, above = _sides(marginals)
    rise = z - marginals.center
    (down, slope_below), (up, slope_above) = _climb(below, -rise), _climb(above, rise)
    at = jnp.where(rise < 0, -down, up)
    return jnp.clip(at, -LARGEST_SCORE, LARGEST_SCORE), jnp.log(jnp.where(rise < 0, slope_below, slope_above))


def _climb(slopes: Sequence[jax.Array], rise: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Score at which `_rise` is `rise`, and the slope there: find the piece, then solve its quadratic equation."""
    rest = jnp.maximum(rise, 0.0)
    edge, start, left, bend, inside = (jnp.zeros_like(rest) for _ in range(5))
    for low, high, at_low, at_high in [*_pieces(slopes), (_KNOTS[len(slopes) - 1], np.inf, slopes[-1], slopes[-1])]:
        reached = rest >= edge
        start, left = jnp.where(reached, low, start), jnp.where(reached, at_low, left)
        bend, inside = (
            jnp.where(reached, (at_high - at_low) / (high - low), bend),
            jnp.where(reached, rest - edge, inside),
        )
        edge = edge + (at_low + at_high) * ((high - low) / 2)
    slope = jnp.sqrt(jnp.maximum(left**2 + 2 * bend * inside, _LEAST_SLOPE**2))
    return start + 2 * inside / (left + slope), slope


def _pieces(slopes: Sequence[jax.Array]) -> list[tuple[float, float, jax.Array, jax.Array]]:
    """(low, high, slope at low, slope at high) of each piece between two knots."""
    return list(zip(_KNOTS[:-1], _KNOTS[1:], slopes[:-1], slopes[1:], strict=False))
