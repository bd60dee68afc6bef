"""Off-policy estimators, all as functions of the same sums over patients.

With ratios rho_t = pi_e(a_t|s_t) / pi_b(a_t|s_t), w_t = rho_0 ... rho_t, w_{-1} = 1 and n stays (Precup 2000;
Jiang & Li 2016; Thomas & Brunskill 2016; Kallus & Uehara 2019, arXiv 1906.03735):

    is     1/n sum_i w_{T-1} G                            pdis   1/n sum_i sum_t g^t w_t r_t
    wis    sum_i w_{T-1} G / sum_i w_{T-1}                wpdis  sum_t g^t (sum_i w_t r_t / sum_i w_t)
    dm     1/n sum_i V(s_0)                               dr     1/n sum_i sum_t g^t (w_t (r_t - Q_t) + w_{t-1} V_t)
    wdr    as dr, with each step's w divided by its mean

After the end of a stay rho = 1 and r = Q = V = 0: its weight stays what it was. `wpdis_alive_normalized` divides by
the weights of the stays that still run, which pays an outcome again for every stay that has left; published tables
seem to hold it, and nothing else speaks for it.

Each estimator is linear in what stays add up to, or a sum of quotients of it. A bootstrap draw is then one more row of
counts in one product of matrices (`bootstrap`). Weights are held relative to the largest of their step, so
that quotients never overflow; means of weights beyond the range of numbers are infinite.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from sepsis_jax.ope.logged import Logged, Target


@struct.dataclass
class Terms:
    """What stays (or patients) add to the estimators: leading B, or none after summing.

    Attributes:
      one: f[...] number of stays.
      weight: f[...,T] w_t. alive: f[...,T] w_t of stays that still run at t. whole: f[...] w_{T-1} G.
      paid: f[...,T] g^t w_t r_t. predicted: f[...,T] g^t w_t Q_t. expected: f[...,T] g^t w_{t-1} V_t.
      start: f[...] V(s_0).
    """

    one: Any
    weight: Any
    alive: Any
    whole: Any
    paid: Any
    predicted: Any
    expected: Any
    start: Any


def log_weights(logged: Logged, target: Target) -> jax.Array:
    """f[B,T] log w_t; minus infinity from the first action that the policy would not have given."""

    def of_stay(logged: Logged, target: Target) -> jax.Array:
        ratio = jnp.log(target.probability) - jnp.log(logged.behaviour)
        return jnp.cumsum(jnp.where(_runs(logged), ratio, 0.0))

    stays, policy = _arrays(logged, target)
    return jax.vmap(of_stay)(stays, policy)


def terms(logged: Logged, target: Target, log_clip: float | jax.Array = jnp.inf) -> tuple[Terms, jax.Array]:
    """Terms with leading B, and the scale f[T] (log) of their weights.

    Args:
      log_clip: logarithm of the largest weight w_t.
    """
    log_w = jnp.minimum(log_weights(logged, target), log_clip)
    largest = log_w.max(axis=0)
    scale = jnp.where(jnp.isfinite(largest), largest, 0.0)
    before = jnp.concatenate([jnp.zeros_like(scale[:1]), scale[:-1]])

    def of_stay(logged: Logged, target: Target, log_w: jax.Array) -> Terms:
        weight, runs = jnp.exp(log_w - scale), _runs(logged)
        weight_before = jnp.exp(jnp.concatenate([jnp.zeros_like(log_w[:1]), log_w[:-1]]) - before)
        discount = logged.gamma ** jnp.arange(len(weight), dtype=weight.dtype)
        reward, q, v = (jnp.where(runs, leaf, 0.0) for leaf in (logged.reward, target.q, target.v))
        return Terms(
            one=jnp.ones_like(weight[0]),
            weight=weight,
            alive=weight * runs,
            whole=weight[-1] * (discount * reward).sum(),
            paid=discount * weight * reward,
            predicted=discount * weight * q,
            expected=discount * weight_before * v,
            start=v[0],
        )

    stays, policy = _arrays(logged, target)
    return jax.vmap(of_stay)(stays, policy, log_w), scale


def _arrays(logged: Logged, target: Target) -> Any:
    return jax.tree.map(jnp.asarray, (logged, target))


def _runs(stay: Logged) -> jax.Array:
    """bool[T] of one stay: decisions, not padding."""
    return jnp.arange(len(stay.action)) < stay.length


def _divide(above: jax.Array, below: jax.Array) -> jax.Array:
    """NaN where nothing has weight."""
    return above / jnp.where(below > 0, below, jnp.nan)


def _mean(total: Terms, scale: jax.Array, sums: jax.Array) -> jax.Array:
    return jnp.where(sums == 0, 0.0, jnp.exp(scale) * sums).sum() / total.one  # nothing at whatever weight


def _dr(total: Terms, scale: jax.Array) -> jax.Array:
    before = jnp.concatenate([jnp.zeros(1, scale.dtype), scale[:-1]])
    return _mean(total, scale, total.paid - total.predicted) + _mean(total, before, total.expected)


def _wdr(total: Terms, scale: jax.Array) -> jax.Array:
    del scale
    before = jnp.concatenate([total.one[None], total.weight[:-1]])
    return (_divide(total.paid - total.predicted, total.weight) + _divide(total.expected, before)).sum()


def _alive(total: Terms, scale: jax.Array) -> jax.Array:
    del scale
    after_all = (total.alive == 0) & (total.weight > 0)
    return jnp.where(after_all, 0.0, _divide(total.paid, total.alive)).sum()


Estimator = Callable[[Terms, jax.Array], jax.Array]
"""Sums (no leading axes) and scale f[T] -> f[]."""

ESTIMATORS: dict[str, Estimator] = {
    "is": lambda total, scale: _mean(total, scale[-1], total.whole),
    "wis": lambda total, scale: _divide(total.whole, total.weight[-1]),
    "pdis": lambda total, scale: _mean(total, scale, total.paid),
    "wpdis": lambda total, scale: _divide(total.paid, total.weight).sum(),
    "wpdis_alive_normalized": _alive,
    "dm": lambda total, scale: total.start / total.one,
    "dr": _dr,
    "wdr": _wdr,
}


def estimate(total: Terms, scale: jax.Array) -> dict[str, jax.Array]:
    """f[] of every estimator, from sums over stays."""
    return {name: one(total, scale) for name, one in ESTIMATORS.items()}


def value(logged: Logged, target: Target, log_clip: float = jnp.inf) -> dict[str, jax.Array]:
    """f[] of every estimator on the recorded stays."""
    each, scale = terms(logged, target, log_clip)
    return estimate(jax.tree.map(lambda leaf: leaf.sum(axis=0), each), scale)
