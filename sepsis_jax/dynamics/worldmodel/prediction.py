"""What a world model says about the next 4 h, its likelihood, its point forecast and a draw from it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.scipy.special import ndtri

from sepsis_jax.clinical.features import NUM_FEATURES
from sepsis_jax.data.scaler import Scaler
from sepsis_jax.dynamics.worldmodel.bounds import confine


@struct.dataclass
class Prediction:
    """Distribution of one next step; a value that is not measured stays at the carried one.

    Attributes:
      mean, log_sigma: f32[F] (z-scores) Gaussian of each value if it is measured.
      mask_logit: f32[38] of being measured; None: every value is drawn and the mask stays as it was (published).
      vent_logit: f32[] of invasive ventilation.
      exit_logit: f32[2] of death and, for those who live, of discharge at the end of the step; None: not modelled.
    """

    mean: Any
    log_sigma: Any
    mask_logit: Any
    vent_logit: Any
    exit_logit: Any


def log_prob(prediction: Prediction, z: jax.Array) -> jax.Array:
    """f32[...,F]: log density of each value z f32[...,F], had it been measured (nats)."""
    return jax.scipy.stats.norm.logpdf(z, prediction.mean, jnp.exp(prediction.log_sigma))


def median(prediction: Prediction, z: jax.Array) -> jax.Array:
    """f32[...,F]: median of what will stand in the record after the step, the forecast of least absolute error.

    The record holds the carried value z f32[...,F] with probability 1 - p and a draw from N(mean, sigma) with
    probability p; the median of that mixture is z confined to two quantiles of the Gaussian.
    """
    if prediction.mask_logit is None:
        return prediction.mean
    p = with_urine(jax.nn.sigmoid(prediction.mask_logit), 1.0)
    sigma = jnp.exp(prediction.log_sigma)
    lower = prediction.mean + sigma * ndtri(jnp.clip((p - 0.5) / p, 0, 1))
    upper = prediction.mean + sigma * ndtri(jnp.clip(0.5 / p, 0, 1))
    return jnp.clip(z, lower, upper)


def draw(
    prediction: Prediction, scaler: Scaler, obs: jax.Array, mask: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Draw the next observation f32[F] (clinical units) and mask bool[38] after `obs` and `mask`.

    Consumes `key`. Uniforms and normals depend on the key alone, so two actions share them.
    """
    mask_key, value_key = jax.random.split(key)
    value = prediction.mean + jnp.exp(prediction.log_sigma) * jax.random.normal(value_key, (NUM_FEATURES,))
    if prediction.mask_logit is None:
        measured = jnp.ones(NUM_FEATURES, bool)
    else:
        mask = jax.random.uniform(mask_key, mask.shape) < jax.nn.sigmoid(prediction.mask_logit)
        measured = with_urine(mask, True)
    return confine(jnp.where(measured, scaler.denormalize(value), obs), measured), mask


def with_urine(masked: jax.Array, urine: Any) -> jax.Array:
    """[...,38] -> [...,F]: append the entry of urine, which is counted in every step and has no mask bit."""
    return jnp.concatenate([masked, jnp.full_like(masked[..., :1], urine)], axis=-1)
