"""Recorded stays as transitions: what offline reinforcement learning and fitted Q evaluation learn from."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct


@struct.dataclass
class Transitions:
    """N transitions between the rows of one table of M states and a last row of zeros, where stays end.

    Attributes:
      inputs: f32[M+1,D] what is known at each recorded decision.
      now, after: i32[N] rows of the state and of the next one; `after` is M at an end.
      action: i32[N] ids 0 to 24. next_action: i32[N]; -1 at an end.
      reward: f32[N]. ongoing: f32[N] 0 at an end, else 1.
      sofa: f32[N] at the decision.
      mean, sd: f32[] of the discounted returns of the stays, the scale of values. gamma: f32[] discount.
    """

    inputs: Any
    now: Any
    after: Any
    action: Any
    next_action: Any
    reward: Any
    ongoing: Any
    sofa: Any
    mean: Any
    sd: Any
    gamma: Any


def of_stays(
    inputs: Any,
    action: Any,
    reward: Any,
    length: Any,
    *,
    gamma: float = 1.0,
    sofa: Any = None,
    ended: Any = None,
) -> Transitions:
    """All transitions of B stays, as JAX arrays.

    Args:
      inputs: f32[B,T,D]. action: i32[B,T]. reward: f[B,T]. length: i32[B]. sofa: f[B,T]; None for zeros.
      ended: bool[B] whether the last recorded step ends the stay, as it does wherever the reward pays the outcome
        (None for all). The last step of the others has no successor and is left out.
    """
    valid = np.arange(np.shape(action)[1]) < np.asarray(length)[:, None]
    stay, step = np.nonzero(valid)
    row = np.arange(stay.size)
    last = step == np.asarray(length)[stay] - 1
    paid = np.asarray(reward)
    total = np.where(valid, paid * gamma ** np.arange(valid.shape[1]), 0.0).sum(axis=1)
    table = np.asarray(inputs, np.float32)[stay, step]
    taken = np.asarray(action)[stay, step]
    found = Transitions(
        inputs=np.concatenate([table, np.zeros_like(table[:1])]),
        now=row,
        after=np.where(last, stay.size, row + 1),
        action=taken,
        next_action=np.where(last, -1, np.append(taken[1:], -1)),
        reward=paid[stay, step].astype(np.float32),
        ongoing=(~last).astype(np.float32),
        sofa=np.zeros(stay.size, np.float32) if sofa is None else np.asarray(sofa, np.float32)[stay, step],
        mean=np.float32(total.mean()),
        sd=np.float32(max(total.std(), 1e-6)),
        gamma=np.float32(gamma),
    )
    if ended is not None:
        found = kept(found, ~last | np.asarray(ended)[stay])
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.int32 if leaf.dtype.kind == "i" else jnp.float32), found)


_OF_TRANSITION = ("now", "after", "action", "next_action", "reward", "ongoing", "sofa")


def kept(transitions: Transitions, which: Any) -> Transitions:
    """Those of the transitions (int[K] or bool[N]), between the same states."""
    return transitions.replace(**{name: getattr(transitions, name)[which] for name in _OF_TRANSITION})  # type: ignore[attr-defined]
