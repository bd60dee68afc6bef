"""A planner: simulate the 25 actions (or fewer) from one state, go on as clinicians do, choose by expected return.

Candidates share their random numbers, so they differ by their effect. What would only add noise to that difference is
not drawn: exits count in expectation (`dynamics.expected`), and the policy that goes on does what it does most often.
The guideline shield leaves out actions that would break G1 or G2 (`clinical.guidelines`). With some caution an action
must be the better the less clinicians would choose it: with V the return and pi the policy that goes on, the choice is
argmax V(a) + caution log pi(a), the best that can be had at a given distance (Kullback-Leibler) from clinicians.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from flax import struct

from sepsis_jax.clinical import guidelines
from sepsis_jax.clinical.actions import ALL_ACTIONS, encode
from sepsis_jax.data.episodes import Episodes
from sepsis_jax.dynamics.expected import ExpectedExits
from sepsis_jax.dynamics.protocol import History, history_at
from sepsis_jax.errors import InputError, check_range
from sepsis_jax.policies.rules import MostLikely
from sepsis_jax.simulation.batch import BLOCK, on_devices, simulate
from sepsis_jax.simulation.course import World
from sepsis_jax.simulation.layout import MOST_SAMPLES
from sepsis_jax.simulation.policy import probs_at
from sepsis_jax.simulation.record import RETURNS, Summary


@dataclasses.dataclass(frozen=True)
class PlannerSettings:
    """How the planner looks ahead.

    Attributes:
      samples: S, simulated futures a candidate.
      horizon: H, 4-h steps; the candidate's levels are given for the first, the clinician estimate goes on.
      shield: choose only among actions that keep the guideline rules.
      caution: return that an action must bring for each factor e by which clinicians choose it less often; one point
        of 90-day mortality is 0.3, and 0 trusts the model wherever it is asked (docs/planner.md).
      candidates: K, how many of the 25 actions are simulated: those that clinicians choose most often, of those that
        the shield lets pass.
      block: trajectories simulated at once; bounds the memory.
    """

    samples: int = 256
    horizon: int = 6
    candidates: int = len(ALL_ACTIONS)
    shield: bool = True
    caution: float = 1.0
    block: int = BLOCK

    def __post_init__(self) -> None:
        check_range(self, "planner", candidates=(1, len(ALL_ACTIONS)))
        check_range(
            self, "planner", samples=(2, MOST_SAMPLES), horizon=(1, 1000), caution=(0, 1000), block=(1, 10_000_000)
        )


@struct.dataclass
class Recommendation:
    """What the planner found for B patients.

    Attributes:
      action: int8[B,2] the choice.
      candidates: int[B,K] what was simulated: ascending ids, all of `ALL_ACTIONS` unless the settings say less.
      returns: Summary of the ends with leading [B,K], in the order of `candidates`; nobody leaves in it, since exits
        count in expectation.
      score: f32[B,K] what the choice goes by: the expected return, less the caution.
      allowed: bool[B,K] candidates that keep the guideline rules.
      usual: int[B] which of them clinicians choose most often.
    """

    action: Any
    candidates: Any
    returns: Summary
    score: Any
    allowed: Any
    usual: Any

    def over_usual(self, score: np.ndarray) -> np.ndarray:
        """f[B,K]: `score` f[B,K] less that of clinicians' usual action."""
        return score - np.take_along_axis(score, np.asarray(self.usual)[:, None], axis=1)


_NEVER = 1e-9  # what a deterministic policy does not do is still better than what the shield forbids


def recommend(
    world: World,
    params: Any,
    policy_params: Any,
    histories: History,
    seed: jax.Array,
    settings: PlannerSettings,
) -> Recommendation:
    """Recommend an action for each of B histories. Deterministic given `seed` (key), whatever the batch.

    Raises:
      InputError: `world` has no policy to go on with, or discounts, which exits in expectation cannot.
    """
    if not len(histories.length):
        raise InputError("histories", expected="at least one", found="none")
    if world.policy is None:
        raise InputError("world", field="policy", expected="one that goes on after the planner's step", found="none")
    if world.reward.gamma != 1:
        raise InputError("world", field="reward.gamma", expected="no discount (1)", found=world.reward.gamma)
    allowed = keeps_guideline(histories)
    usual = probs_at(world.policy, policy_params, histories)
    candidates = most_usual(usual, allowed, settings)
    plans = ALL_ACTIONS[candidates][:, :, None]
    found = simulate(
        World(ExpectedExits(world.dynamics), world.bins, world.reward, MostLikely(world.policy)),
        params,
        policy_params,
        histories,
        plans,
        seed,
        record=RETURNS,
        samples=settings.samples,
        horizon=settings.horizon,
        block=settings.block,
    )
    allowed, usual = (np.take_along_axis(table, candidates, axis=1) for table in (allowed, usual))
    score = cautious(np.asarray(found.value), usual, settings.caution)
    choice = best(score, allowed, shield=settings.shield)
    action = ALL_ACTIONS[np.take_along_axis(candidates, choice[:, None], axis=1)[:, 0]]
    return Recommendation(action, candidates, found, score, allowed, usual.argmax(axis=1))


def most_usual(usual: np.ndarray, allowed: np.ndarray, settings: PlannerSettings) -> np.ndarray:
    """Ascending ids int[...,K] of the actions to simulate: those that clinicians choose most often, f32[...,25]."""
    order = np.argsort(-np.where(allowed | (not settings.shield), usual, usual - 1), axis=-1, kind="stable")
    return np.sort(order[..., : settings.candidates], axis=-1)


def cautious(value: np.ndarray, usual: np.ndarray, caution: float) -> np.ndarray:
    """Expected returns f32[...], less the caution about actions that clinicians choose as often as `usual` f32[...]."""
    return value + caution * np.log(np.maximum(usual, _NEVER))


def planned(
    world: World, params: Any, policy_params: Any, episodes: Episodes, seed: jax.Array, settings: PlannerSettings
) -> np.ndarray:
    """f32[B,T,25]: 1 for what is recommended at each recorded decision, given what was done before (else 0)."""
    rows, steps = np.nonzero(episodes.valid)
    probs = np.zeros((*episodes.valid.shape, len(ALL_ACTIONS)), np.float32)
    params = on_devices(params)
    for first in range(0, rows.size, _DECISIONS):  # histories are copies of the record
        some = slice(first, first + _DECISIONS)
        histories = history_at(episodes, rows[some], steps[some])
        chosen = recommend(world, params, policy_params, histories, seed, settings).action
        probs[rows[some], steps[some], np.asarray(encode(chosen))] = 1.0
    return probs


_DECISIONS = 8192


def best(value: np.ndarray, allowed: np.ndarray, *, shield: bool) -> np.ndarray:
    """int[...]: index of the highest value f[...,K], among the allowed bool[...,K] where the shield is on."""
    return np.argmax(np.where(allowed | (not shield), value, -np.inf), axis=-1)


def keeps_guideline(histories: History) -> np.ndarray:
    """bool[B,25]: which actions break neither G1 nor G2 at the decision of each history."""
    number = len(histories.length)
    rows = np.minimum(np.arange(1 << (number - 1).bit_length()), number - 1)  # few shapes: each compiles anew
    last = np.asarray(histories.length)[rows] - 1
    given = np.asarray(histories.action)[rows, np.maximum(last - 1, 0)]
    previous = np.where(last[:, None] > 0, given, np.asarray(histories.prior_action)[rows])[:, 0]
    doses = np.zeros((len(ALL_ACTIONS), 2))  # G1 and G2 look at levels alone
    steps = guidelines.every_action(np.asarray(histories.obs)[rows, last], previous, doses, np.ones(last.size, bool))
    return ~np.asarray(guidelines.check(steps)["guideline"].violated)[:number]
