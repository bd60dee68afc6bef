"""What a memoryless policy sees at a decision: observation, masks, statics, what was given before, and time."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sepsis_jax.clinical import actions
from sepsis_jax.clinical.features import NUM_FEATURES, NUM_MASKED
from sepsis_jax.data.episodes import Episodes
from sepsis_jax.data.scaler import Scaler
from sepsis_jax.dynamics.protocol import History

WIDTH = NUM_FEATURES + NUM_MASKED + 3 + 2 * actions.LEVELS + 1
_STEPS_PER_DAY = 6.0


def at_decision(scaler: Scaler, obs: Any, mask: Any, static: Any, prev_action: Any, step: Any) -> jax.Array:
    """f32[...,WIDTH].

    Args:
      obs: f32[...,F] (clinical units). mask: bool[...,38]. static: f32[...,3], scaled already.
      prev_action: int[...,2] levels of the step before. step: i32[...] of the decision, from 0.
    """
    parts = [
        scaler.normalize(jnp.asarray(obs)),
        mask.astype(jnp.float32),
        jnp.asarray(static),
        actions.one_hot(prev_action),
        (jnp.asarray(step, jnp.float32) / _STEPS_PER_DAY)[..., None],
    ]
    return jnp.concatenate(parts, axis=-1)


def on_record(episodes: Episodes, scaler: Scaler) -> np.ndarray:
    """f32[B,T,WIDTH] at every recorded decision."""
    previous = episodes.previous_action
    step = np.broadcast_to(np.arange(episodes.num_steps), episodes.valid.shape)
    static = np.broadcast_to(scaler.normalize_static(episodes.static)[:, None], (*step.shape, 3))
    return np.asarray(at_decision(scaler, episodes.obs, episodes.mask, static, previous, step))


Carry = tuple[jax.Array, jax.Array]
"""What a memoryless policy remembers: scaled statics f32[3] and the step i32[] of the decision."""


def remember(scaler: Scaler, history: History) -> Carry:
    """At the decision of one history."""
    return scaler.normalize_static(history.static), history.length - 1


def look(
    scaler: Scaler, carry: Carry, obs: jax.Array, mask: jax.Array, prev_action: jax.Array
) -> tuple[jax.Array, Carry]:
    """f32[WIDTH] at the decision that `carry` is about, and what to remember for the next one."""
    static, step = carry
    return at_decision(scaler, obs, mask, static, prev_action, step), (static, step + 1)
