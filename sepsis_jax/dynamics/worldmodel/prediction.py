"""What a world model says about the next 4 h, its likelihood, its point forecast and a draw from it."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.scipy.special import ndtr, ndtri

from sepsis_jax.clinical.features import GCS, INDEX, NUM_FEATURES, NUM_MASKED
from sepsis_jax.data.scaler import Scaler
from sepsis_jax.dynamics.worldmodel import copula, marginals
from sepsis_jax.dynamics.worldmodel.bounds import Support, confine, interval
from sepsis_jax.dynamics.worldmodel.marginals import Marginals

_CONTINUOUS = ~np.isin(np.arange(NUM_FEATURES), [INDEX[name] for name in GCS])


@struct.dataclass
class MaskMixture:
    """Which values are measured: a mixture over C patterns (which panels are drawn), independent items in each.

    Attributes:
      log_weight: f32[C] of the patterns, normalised.
      logit: f32[C,38] of each item.
    """

    log_weight: Any
    logit: Any


@struct.dataclass
class Prediction:
    """Distribution of one next step; a value that is not measured stays at the carried one.

    Attributes:
      values: Marginals of the F values, as they would be measured, on the network's axes (`Support`).
      loading: f32[F,R] of the copula between them; None: independent.
      mask: MaskMixture; None: every value is drawn and the mask stays as it was (published).
      vent_logit: f32[] of invasive ventilation.
      exit_logit: f32[2] of death and, for those who live, of discharge at the end of the step; None: not modelled.
    """

    values: Marginals
    loading: Any
    mask: Any
    vent_logit: Any
    exit_logit: Any


class Likelihood(NamedTuple):
    """Log likelihood of what was measured in one step.

    Attributes:
      each: f32[F] of each value by itself (nats; densities per z-score, probabilities at the ends of the support and
        for GCS), 0 where not measured.
      copula: f32[] what knowing the values together adds.
    """

    each: Any
    copula: Any


def value_log_prob(
    prediction: Prediction, support: Support, scaler: Scaler, obs: jax.Array, measured: jax.Array
) -> jax.Array:
    """f32[...,F]: `Likelihood.each` of obs f32[...,F] (clinical units) where `measured` bool[...,F]."""
    observed = interval(support, obs)
    per_z = jnp.where(observed.point, support.log_rate(obs) - scaler.log_rate(obs), 0.0)  # from the network's axis
    return jnp.where(measured, marginals.log_prob(prediction.values, observed) + per_z, 0.0)


def copula_log_density(
    prediction: Prediction, support: Support, obs: jax.Array, measured: jax.Array, key: jax.Array
) -> jax.Array:
    """f32[]: `Likelihood.copula` of obs f32[F] (clinical units) where `measured` bool[F]. Trains only the loadings.

    A value that is only known to lie in an interval of scores enters at a uniform place inside it, which bounds the
    log probability from below in expectation. Consumes `key`.
    """
    if prediction.loading is None:
        return jnp.float32(0)
    score = jax.lax.stop_gradient(_place(prediction.values, interval(support, obs), key))
    return copula.log_density(prediction.loading, score, measured)


def likelihood(
    prediction: Prediction, support: Support, scaler: Scaler, obs: jax.Array, measured: jax.Array, key: jax.Array
) -> Likelihood:
    """Score the next step's obs f32[F] (clinical units) where `measured` bool[F]. Consumes `key`."""
    together = copula_log_density(prediction, support, obs, measured, key)
    return Likelihood(value_log_prob(prediction, support, scaler, obs, measured), together)


def joint_log_density(
    prediction: Prediction, support: Support, scaler: Scaler, obs: jax.Array, measured: jax.Array, key: jax.Array
) -> jax.Array:
    """f32[]: log density of the measured continuous values together (GCS left out); see `likelihood`."""
    scores = likelihood(prediction, support, scaler, obs, measured & _CONTINUOUS, key)
    return scores.each.sum() + scores.copula


def mask_log_prob(mask: MaskMixture, measured: jax.Array) -> jax.Array:
    """f32[]: log probability of measuring exactly `measured` bool[38]."""
    signed = jnp.where(measured, mask.logit, -mask.logit)
    return jax.nn.logsumexp(mask.log_weight + jax.nn.log_sigmoid(signed).sum(axis=-1))


def mask_prob(mask: MaskMixture) -> jax.Array:
    """f32[...,38]: probability of each item."""
    return (jnp.exp(mask.log_weight)[..., None] * jax.nn.sigmoid(mask.logit)).sum(axis=-2)


def median(prediction: Prediction, seen: jax.Array) -> jax.Array:
    """f32[...,F]: median of what will stand in the record after the step, the forecast of least absolute error.

    On the network's axes. The record holds the carried value `seen` f32[...,F] with probability 1 - p and a draw with
    probability p; the median of that mixture is `seen` confined to two quantiles of the draw.
    """
    if prediction.mask is None:
        return prediction.values.center
    p = with_urine(mask_prob(prediction.mask), 1.0)
    share = jnp.maximum(p, 0.5)  # where most entries are carried forward, so is the median
    lower = marginals.value(prediction.values, _score_at((share - 0.5) / share))
    upper = marginals.value(prediction.values, _score_at(0.5 / share))
    return jnp.where(p > 0.5, jnp.clip(seen, lower, upper), seen)


class Draw(NamedTuple):
    """One drawn step.

    Attributes:
      value: f32[F] (clinical units) every feature as if measured.
      obs: f32[F] (clinical units) the record's new row. mask: bool[38] newly measured.
    """

    value: Any
    obs: Any
    mask: Any


@struct.dataclass
class Noise:
    """Random numbers of one drawn step.

    Attributes:
      own: f32[F], factors: f32[R] standard normals of the values and of the copula; no factors: independent values.
      mask: f32[39] uniforms of the pattern and of each item; None where masks are not modelled.
    """

    own: Any
    factors: Any
    mask: Any


def draw_noise(key: jax.Array, rank: int, masks: bool) -> Noise:
    """`Noise` with R = `rank` factors, and uniforms for masks if asked. Consumes `key`."""
    mask_key, value_key = jax.random.split(key)
    normal = jax.random.normal(value_key, (NUM_FEATURES + rank,))
    uniform = jax.random.uniform(mask_key, (NUM_MASKED + 1,)) if masks else None
    return Noise(normal[:NUM_FEATURES], normal[NUM_FEATURES:], uniform)


def draw(prediction: Prediction, support: Support, obs: jax.Array, mask: jax.Array, noise: Noise) -> Draw:
    """The next observation after `obs` f32[F] (clinical units) and `mask` bool[38], with what `draw_noise` drew."""
    score = noise.own
    if prediction.loading is not None:
        score = copula.correlate(prediction.loading, noise.factors, noise.own)
    every = jnp.ones(NUM_FEATURES, bool)
    value = confine(support, support.denormalize(marginals.value(prediction.values, score)), every)
    if prediction.mask is None:
        return Draw(value, value, mask)
    mask = _draw_mask(prediction.mask, noise.mask)
    measured = with_urine(mask, True)
    return Draw(value, confine(support, jnp.where(measured, value, obs), measured), mask)


def with_urine(masked: jax.Array, urine: Any) -> jax.Array:
    """[...,38] -> [...,F]: append the entry of urine, which is counted in every step and has no mask bit."""
    return jnp.concatenate([masked, jnp.full_like(masked[..., :1], urine)], axis=-1)


def _draw_mask(mask: MaskMixture, uniform: jax.Array) -> jax.Array:
    pattern = (uniform[0] >= jnp.cumsum(jnp.exp(mask.log_weight))[:-1]).sum()
    logit = mask.logit[0]
    for number in range(1, mask.log_weight.shape[-1]):  # in a batch cheaper than a gather, and than a masked sum
        logit = jnp.where(pattern == number, mask.logit[number], logit)
    return uniform[1:] < jax.nn.sigmoid(logit)


def _place(values: Marginals, observed: marginals.Interval, key: jax.Array) -> jax.Array:
    """Normal scores f32[F]: of points; of intervals, at a uniform place inside. Consumes `key`."""
    low, high = marginals.interval_scores(values, observed)
    share = jax.random.uniform(key, low.shape)
    place = _score_at((1 - share) * ndtr(low) + share * ndtr(high))
    return jnp.where(observed.point, low, place)


def _score_at(probability: jax.Array) -> jax.Array:
    return ndtri(jnp.clip(probability, 1e-6, 1 - 1e-6))
