"""What stage III pays: what the world model expects of a decision, or what every step of a stay brought."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from sepsis_jax.agent.case import Case
from sepsis_jax.clinical import sofa
from sepsis_jax.clinical.features import INDEX, NAMES
from sepsis_jax.clinical.reward import PUBLISHED
from sepsis_jax.curriculum.settings import RLSettings
from sepsis_jax.data.episodes import Episodes
from sepsis_jax.dynamics.protocol import history_at
from sepsis_jax.policies.planner import PlannerSettings, recommend
from sepsis_jax.simulation.course import World

_PAID = 0x70616964
_COIN = 2.0**-12
"""Rewards are whole numbers of these, so that the float32 mean of equal ones is their value: else Adam would make steps
of full size out of rounding."""


@dataclasses.dataclass(frozen=True)
class Model:
    """A world model and the clinicians in it; `policy_params` are theirs."""

    world: World
    params: Any
    policy_params: Any


def luck_of(seed: int, number: int) -> jax.Array:
    """Key of the courses that pay, anew for each `number`, and never those that a simulation of this seed answers with.

    Else a model would be paid for believing in the noise that it was shown.
    """
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _PAID), number)


def of_decisions(
    model: Model, episodes: Episodes, rows: np.ndarray, steps: np.ndarray, settings: RLSettings, luck: jax.Array
) -> np.ndarray:
    """What each action is worth at recorded decisions, against what clinicians do most often there.

    The expected return over simulated courses under common random numbers, less the planner's caution and a charge
    for a broken guideline rule (`policies.planner`). No action is worth less than no decision.

    Args:
      rows, steps: int[N] stays and their steps. settings: samples, horizon, caution, charges.
      luck: key of the courses, see `luck_of`.

    Returns:
      f64[N,25], from one call of the simulator.
    """
    planner = PlannerSettings(samples=settings.samples, horizon=settings.horizon, caution=settings.caution)
    histories = history_at(episodes, rows, steps)
    found = recommend(model.world, model.params, model.policy_params, histories, luck, planner)
    score = np.asarray(found.score, np.float64) - settings.guideline * ~np.asarray(found.allowed)
    return np.maximum(found.over_usual(score), -settings.unfinished)


def of_stay(case: Case, settings: RLSettings) -> float:
    """The published reward (`clinical.reward`) of a stay, less a charge for each action that breaks G1 or G2.

    A stay that was not played to its end, since a decision failed, is paid as a death, and what it lost so far, but
    nothing that it gained. No stay that was is worth less than one that was given up at once (before faults, `Paid`).
    """
    decisions = case.decisions
    died = case.outcome.death_90d if case.outcome.closed else 1.0
    assert died is not None, "a stay in the world model ends with a probability"
    if not decisions:
        return -PUBLISHED.outcome
    obs = np.array([[one.obs[name] for name in NAMES] for one in decisions], np.float32)
    before = np.array([one.previous[0] for one in decisions])
    urine = sofa.urine_so_far(obs[:, INDEX["output_4hourly"]])
    ventilated = np.array([one.ventilated for one in decisions])
    score = sofa.published(obs, before, urine, ventilated)
    paid = PUBLISHED.episode(score, obs[:, INDEX["lactate"]], np.int32(len(decisions)), np.float32(died))
    worth = float(np.sum(paid)) - settings.guideline * sum("guideline" in one.broken for one in decisions)
    if not case.outcome.closed:
        return min(worth, -PUBLISHED.outcome)
    return max(worth, -PUBLISHED.outcome - settings.unfinished)


@dataclasses.dataclass(frozen=True)
class Paid:
    """What one answer was paid, and for what.

    Attributes:
      reward: in all, to 1/4096.
      malformed: answers without a valid call. simulated: simulations asked for. unfinished: a failure's kind, or ''.
    """

    reward: float
    malformed: int
    simulated: int
    unfinished: str

    @classmethod
    def of(cls, worth: float, case: Case, action: tuple[int, int] | None, failure: str, settings: RLSettings) -> Paid:
        """`worth` less the charges for faults."""
        malformed = sum(case.usage.malformed.values())
        reward = worth - settings.fault * malformed - settings.unfinished * bool(failure)
        prescribed = max(len(case.decisions), int(action is not None))  # a single decision is not lived
        simulated = max(case.usage.requests - malformed - prescribed, 0)
        return cls(float(np.round(reward / _COIN) * _COIN), malformed, simulated, failure)
