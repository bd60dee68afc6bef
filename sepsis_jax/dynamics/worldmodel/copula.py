"""How values move together: a Gaussian copula of low rank.

Normal scores g = λ f + d ε with factors f ~ N(0, I_R), ε ~ N(0, I) and d² = 1 - |λ|², so that each score is standard
normal by itself and their correlation is λ λᵀ + diag(d²). Its density over any measured subset costs one Cholesky
factor of [R,R] (Woodbury identity).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

_LEAST_OWN = 1e-3  # share of a score's variance that no factor explains


def loadings(free: jax.Array) -> jax.Array:
    """Any f32[...,N,R] -> λ f32[...,N,R] with |λ|² < 1 in each row."""
    squared = (free**2).sum(axis=-1, keepdims=True)
    return free * jnp.sqrt((1 - _LEAST_OWN) / (1 + squared))


def correlate(loading: jax.Array, factors: jax.Array, own: jax.Array) -> jax.Array:
    """Correlated scores f32[N] from standard normals `factors` f32[R] and `own` f32[N]; loading f32[N,R]."""
    return loading @ factors + jnp.sqrt(1 - (loading**2).sum(axis=-1)) * own


def log_density(loading: jax.Array, score: jax.Array, counts: jax.Array) -> jax.Array:
    """f32[]: log copula density of the scores f32[N] where `counts` bool[N], relative to independence."""
    weight = counts.astype(score.dtype)
    variance = 1 - (loading**2).sum(axis=-1)
    scaled = loading * (weight / variance)[:, None]
    inner = jnp.eye(loading.shape[-1]) + scaled.T @ loading
    factor = jnp.linalg.cholesky(inner)
    half = jax.scipy.linalg.solve_triangular(factor, scaled.T @ score, lower=True)
    quadratic = (weight * score**2 * (1 / variance - 1)).sum() - (half**2).sum()
    log_det = (weight * jnp.log(variance)).sum() + 2 * jnp.log(jnp.diagonal(factor)).sum()
    return -0.5 * (quadratic + log_det)
