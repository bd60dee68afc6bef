"""What is evaluated on: recorded decisions with their rewards, and what a policy would have done at each of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from flax import struct

from sepsis_jax.clinical import sofa
from sepsis_jax.clinical.actions import LEVELS, NUM_ACTIONS, encode
from sepsis_jax.clinical.features import INDEX
from sepsis_jax.clinical.reward import Reward
from sepsis_jax.data.episodes import EXIT_TRUNCATED, Episodes
from sepsis_jax.errors import InputError

_SUM = 1e-4  # by how much probabilities may miss 1
_LEAST = np.finfo(np.float32).tiny  # below it a probability has no logarithm in float32


@struct.dataclass
class Logged:
    """B stays of at most T decisions; what stands at or beyond `length` is not looked at.

    Attributes:
      action: i32[B,T] ids 0 to 24. reward: f[B,T]. length: i32[B].
      behaviour: f[B,T] probability of `action` under the treating policy.
      subject_id: i32[B], whose stay it is. gamma: discount per step.
    """

    action: Any
    reward: Any
    length: Any
    behaviour: Any
    subject_id: Any
    gamma: float = struct.field(pytree_node=False, default=1.0)

    @property
    def valid(self) -> np.ndarray:
        """bool[B,T]: decisions, not padding."""
        return np.arange(np.shape(self.action)[1]) < np.asarray(self.length)[:, None]


@struct.dataclass
class Target:
    """A policy at the recorded decisions, and what a model of its values says (zeros without a model).

    Attributes:
      probability: f[B,T] of the action given. q: f[B,T] value of that action. v: f[B,T] value of the state.
    """

    probability: Any
    q: Any
    v: Any


def log(episodes: Episodes, behaviour: np.ndarray, reward: Reward | np.ndarray) -> Logged:
    """Recorded stays with the rewards that they earned.

    Args:
      behaviour: f[B,T,25] probabilities of the treating policy.
      reward: its terminal part is paid by the recorded 90-day mortality; or rewards f[B,T] of your own, undiscounted
        (`Logged.replace(gamma=...)` discounts them).

    Raises:
      InputError: no stays, an unknown outcome where it is paid, probabilities that are none, an action that was given
        with probability 0, or a reward that is not a number.
    """
    if not episodes.num_stays:
        raise InputError("episodes", expected="stays to evaluate on", found="none")
    levels = np.asarray(episodes.action)[episodes.valid]
    if levels.min() < 0 or levels.max() >= LEVELS:
        others = f"{levels.min()} to {levels.max()}"
        raise InputError("episodes", field="action", expected=f"levels 0 to {LEVELS - 1}", found=others)
    paid, gamma = (earned(episodes, reward), reward.gamma) if isinstance(reward, Reward) else (reward, 1.0)
    action = np.asarray(encode(episodes.action), np.int32)
    check_probabilities("behaviour", behaviour, episodes.valid)
    given = np.take_along_axis(np.asarray(behaviour), action[..., None], -1)[..., 0]
    found = Logged(action, np.asarray(paid), episodes.length, given, episodes.subject_id, gamma)
    check(found)
    return found


def earned(episodes: Episodes, reward: Reward) -> np.ndarray:
    """f32[B,T] reward of every recorded decision. InputError for an unknown outcome where it is paid."""
    died = np.asarray(episodes.mortality_90d)
    unknown = (died != 0) & (died != 1)
    if reward.pays_outcome and unknown.any():
        hint = "evaluate on the stays whose outcome is known, or with a reward without outcome"
        others = f"{unknown.sum()} others, the first {died[unknown][0]}"
        raise InputError("episodes", field="mortality_90d", expected="0 or 1", found=others, hint=hint)
    lactate = episodes.obs[..., INDEX["lactate"]]
    paid = np.asarray(reward.episode(recorded_sofa(episodes, reward), lactate, episodes.length, np.maximum(died, 0)))
    if reward.guideline:
        before = episodes.previous_action[..., 0]
        broken = np.asarray(reward.penalty(episodes.obs, before, episodes.action))
        paid = paid + np.where(episodes.valid, broken, 0.0)
    return paid


def check(logged: Logged) -> None:
    """Raises InputError where `logged` holds no stays, an impossible action, or a reward that is not a number."""
    shape, length = np.shape(logged.action), np.asarray(logged.length)
    for name in ("action", "reward", "behaviour"):
        if len(shape) != 2 or np.shape(getattr(logged, name)) != shape or not shape[0]:
            expected = "one number for each of T decisions of B stays, at least one"
            raise InputError("logged", field=name, expected=expected, found=np.shape(getattr(logged, name)))
    for name in ("length", "subject_id"):
        if np.shape(getattr(logged, name)) != shape[:1]:
            expected = f"shape {shape[:1]}"
            raise InputError("logged", field=name, expected=expected, found=np.shape(getattr(logged, name)))
    if length.min() < 1 or length.max() > shape[1]:
        found = f"{length.min()} to {length.max()}"
        raise InputError("logged", field="length", expected=f"1 to {shape[1]} decisions in each stay", found=found)
    if not 0 <= logged.gamma <= 1:
        raise InputError("logged", field="gamma", expected="a discount from 0 to 1", found=logged.gamma)
    valid = logged.valid
    given = np.asarray(logged.action)[valid]
    if given.min() < 0 or given.max() >= NUM_ACTIONS:
        raise InputError("logged", field="action", expected="0 to 24", found=f"{given.min()} to {given.max()}")
    chance = np.asarray(logged.behaviour)
    impossible = valid & ~((chance >= _LEAST) & (chance < 1 + _SUM))
    if impossible.any():
        row, step = np.argwhere(impossible)[0]
        found = f"{chance[row, step]:g} at stay {row}, step {step} ({impossible.sum()} such)"
        hint = "smooth the estimate: an action that was given was possible"
        raise InputError("behaviour", expected="a probability above 0 for every action given", found=found, hint=hint)
    with np.errstate(over="ignore"):
        paid = np.isfinite(np.asarray(logged.reward, np.float32))  # as estimators read them
    if not paid[valid].all():
        row, step = np.argwhere(valid & ~paid)[0]
        other = f"{logged.reward[row, step]} at stay {row}, step {step}"
        raise InputError("reward", expected="numbers that float32 holds", found=other)


def target(logged: Logged, probs: np.ndarray, q: np.ndarray | None = None, *, name: str = "policy") -> Target:
    """A policy of probabilities f[B,T,25], with the values f[B,T,25] of its actions.

    Raises:
      InputError: `probs` are no probabilities.
    """
    valid = logged.valid
    check_probabilities(name, probs, valid)
    index = np.where(valid, logged.action, 0)[..., None]
    given = np.take_along_axis(np.asarray(probs), index, -1)[..., 0]
    if q is None:
        return Target(given, np.zeros_like(given), np.zeros_like(given))
    if np.shape(q) != np.shape(probs) or not np.isfinite(np.asarray(q)[valid]).all():
        other = np.shape(q) if np.shape(q) != np.shape(probs) else "others"
        raise InputError(name, field="q", expected=f"numbers of shape {np.shape(probs)}", found=other)
    taken, mean = np.take_along_axis(np.asarray(q), index, -1)[..., 0], (probs * q).sum(axis=-1)
    return Target(given, np.where(valid, taken, 0.0), np.where(valid, mean, 0.0))


def check_probabilities(name: str, probs: np.ndarray, valid: np.ndarray) -> None:
    """Raises InputError unless f[B,T,25] are probabilities wherever `valid` bool[B,T]."""
    if np.shape(probs) != (*valid.shape, NUM_ACTIONS):
        raise InputError(name, expected=f"shape {(*valid.shape, NUM_ACTIONS)}", found=np.shape(probs))
    rows = np.asarray(probs)[valid]
    wrong = ~((rows >= 0).all(axis=-1) & (np.abs(rows.sum(axis=-1) - 1) < _SUM))
    if wrong.any():
        first, (row, step) = rows[wrong][0], np.argwhere(valid)[np.flatnonzero(wrong)[0]]
        found = f"a sum of {first.sum():g}, least {first.min():g}, at stay {row}, step {step}"
        raise InputError(name, expected="25 probabilities that sum to 1", found=found)


def ended(episodes: Episodes, reward: Reward) -> np.ndarray | None:
    """bool[B] whether the last recorded step ends the stay, None for all: where the reward pays the outcome there."""
    return None if reward.pays_outcome else np.asarray(episodes.exit) != EXIT_TRUNCATED


def recorded_sofa(episodes: Episodes, reward: Reward) -> np.ndarray:
    """f32[B,T] SOFA of the version that `reward` names, as the record has it."""
    if reward.sofa == "proper":
        return np.asarray(episodes.sofa)
    before = episodes.previous_action[..., 0]
    day = sofa.urine_so_far(episodes.obs[..., INDEX["output_4hourly"]])
    return np.asarray(sofa.published(episodes.obs, before, day, episodes.ventilated))
