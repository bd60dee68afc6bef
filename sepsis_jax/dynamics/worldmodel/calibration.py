"""Recalibration after training: one factor a feature on the spread of its distribution.

Networks that have seen their train stays often are a little too sure of themselves. The factor is the one with which
80 % of the measured values of the validation stays fall inside the ensemble's central 80 % interval, one step ahead
(temperature scaling, Guo et al. 2017, for intervals). It moves no median.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr

from sepsis_jax.clinical.features import GCS, INDEX, NUM_FEATURES
from sepsis_jax.data.episodes import Episodes
from sepsis_jax.dynamics.worldmodel import marginals
from sepsis_jax.dynamics.worldmodel.bounds import interval
from sepsis_jax.dynamics.worldmodel.losses import history_of
from sepsis_jax.dynamics.worldmodel.model import Params, WorldModel
from sepsis_jax.dynamics.worldmodel.prediction import with_urine

LEVEL = 0.8
LEAST_VALUES = 400  # of a feature; with fewer, the coverage itself is a guess
_FACTORS = np.exp(np.linspace(-0.2, 0.5, 29)).astype(np.float32)
_IS_GCS = np.isin(np.arange(NUM_FEATURES), [INDEX[name] for name in GCS])
_MOST_STAYS = 1000


def calibrate(model: WorldModel, params: Params, episodes: Episodes, key: jax.Array) -> Params:
    """`params` (leading M) with the spread fitted on the validation stays; `published` is left as it is.

    Consumes `key` (places inside intervals).
    """
    if model.architecture == "published":
        return params
    stays = dataclasses.replace(episodes.subset("validation").take(slice(_MOST_STAYS)), propensity=None)
    inside, counts = jax.tree.map(np.asarray, _coverage(model, params, stays, key))
    coverage = inside / np.maximum(counts, 1)
    factor = _FACTORS[np.abs(coverage - LEVEL).argmin(axis=0)]
    log_spread = np.where((counts < LEAST_VALUES) | _IS_GCS, 0.0, np.log(factor)).astype(np.float32)
    before = params.network["log_spread"]
    return dataclasses.replace(params, network=params.network | {"log_spread": before + log_spread[None]})


@partial(jax.jit, static_argnames="model")
def _coverage(model: WorldModel, params: Params, episodes: Episodes, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Measured values inside the central interval for each factor f32[factors,F], and how many there are f32[F]."""

    def stay(inputs: tuple[Episodes, jax.Array]) -> tuple[jax.Array, jax.Array]:
        episode, number = inputs
        has_next = jnp.arange(len(episode.obs)) < episode.length - 1
        next_obs, next_mask = (jnp.roll(leaf, -1, axis=0) for leaf in (episode.obs, episode.mask))
        measured = with_urine(next_mask, True) & has_next[:, None]
        observed = interval(params.support, next_obs)
        share = jax.random.uniform(jax.random.fold_in(key, number), next_obs.shape)

        def member(index: Any) -> marginals.Marginals:
            own = model.member(params, index)
            states = model.encode_all(own, history_of(episode))
            return jax.vmap(model.decode, (None, 0, 0))(own, states, episode.action).values

        values = jax.lax.map(member, jnp.arange(model.members))

        def inside(factor: jax.Array) -> jax.Array:
            wider = values.replace(log_slope=values.log_slope + jnp.log(factor))
            low, high = (ndtr(end) for end in jax.vmap(marginals.interval_scores, (0, None))(wider, observed))
            place = (low + share[None] * (high - low)).mean(axis=0)
            return ((jnp.abs(place - 0.5) < LEVEL / 2) & measured).sum(axis=0)

        return jax.lax.map(inside, jnp.asarray(_FACTORS)), measured.sum(axis=0)

    each = jax.lax.map(stay, (jax.tree.map(jnp.asarray, episodes), jnp.arange(episodes.num_stays)), batch_size=8)
    return jax.tree.map(lambda leaf: leaf.sum(axis=0).astype(jnp.float32), each)
