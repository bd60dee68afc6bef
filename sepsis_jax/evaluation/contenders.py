"""Who is played in the true simulator: the clinicians, simple rules, the planner on the model and on the truth."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sepsis_jax.clinical.actions import ActionBins
from sepsis_jax.data.episodes import Episodes
from sepsis_jax.dynamics.patient.dynamics import PatientDynamics
from sepsis_jax.dynamics.patient.truth import Truth
from sepsis_jax.evaluation import oracle
from sepsis_jax.evaluation.choosers import clinicians, follow, plan, plan_with_truth, thoughts
from sepsis_jax.evaluation.closed_loop import Chances, Stage, play
from sepsis_jax.evaluation.policy_table import CLINICIANS, Result, kept_result
from sepsis_jax.policies.planner import PlannerSettings, planned
from sepsis_jax.policies.rules import Fixed, Guideline, MostLikely
from sepsis_jax.simulation.course import World
from sepsis_jax.simulation.policy import Policy, probs_on_record

BEST_RULE = Guideline(map_target=60.0, map_wean=65.0, fluid_hypoperfused=3)
"""The best of 36 variants of `Guideline` and fixed levels on 3,000 simulated patients who are in no table."""
CAUTION_WITH_TRUTH = 0.3
"""Of the planner on the true simulator, who has only the luck of few samples to fear: the best of 0, 0.3 and 1."""
PLANNER, PLANNER_WITH_TRUTH = "planner, world model", "planner, true simulator"


STAGES = TRUTH, HELD_OUT = "truth", "held out"
OnRecord = Callable[[Episodes], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Contender:
    """One policy.

    Attributes:
      chances: what it does in a closed loop.
      on_record: Episodes -> f32[B,T,25] what it would have done at the recorded decisions (zeros at padding).
      on_fitted: the same for the stays that values are fitted on, if it is too slow to decide on all of them.
      patients: how many it treats in a closed loop, the first ones; None for all.
      planner: settings, if it plans.
      stages: where it can be played.
    """

    chances: Chances
    on_record: OnRecord
    on_fitted: OnRecord | None = None
    patients: int | None = None
    planner: PlannerSettings | None = None
    stages: tuple[str, ...] = STAGES


def following(policy: Policy, params: Any = None) -> Contender:
    """A policy that sees the record."""
    return Contender(follow(policy, params), partial(probs_on_record, policy, params))


def planning(
    world: World, params: Any, policy_params: Any, settings: PlannerSettings, seed: int, patients: int | None = None
) -> Contender:
    """A planner on a model that reads the record; its random numbers come from `seed`."""

    def on_record(episodes: Episodes) -> np.ndarray:
        return planned(world, params, policy_params, episodes, thoughts(seed), settings)

    chances = plan(world, params, policy_params, settings, seed)
    return Contender(chances, on_record, patients=patients, planner=settings)


RULES: dict[str, Policy] = {
    "no treatment": Fixed(),
    "fixed (0, 3)": Fixed(0, 3),
    "fixed (1, 3)": Fixed(1, 3),
    "guideline rule": Guideline(),
    "best simple rule": BEST_RULE,
}
"""Policies that need no patient to learn from, by name."""


def true_clinicians(truth: Truth, bins: ActionBins) -> Contender:
    """Those who made a simulated cohort, with all that they know."""
    chances = clinicians(PatientDynamics(bins), truth.knobs)
    return Contender(chances, lambda some: oracle.propensity(truth, some))


def contenders(
    world: World, params: Any, policy_params: Any, truth: Truth, planner: PlannerSettings, *, patients: int, seed: int
) -> dict[str, Contender]:
    """By name, the clinicians first.

    Args:
      world: world model, bins, reward, and the clinician estimate as its policy. params, policy_params: of them.
      truth: its knobs are known to the clinicians and to the planner on the true simulator.
      planner: settings of both planners (but `CAUTION_WITH_TRUTH`), who treat the first `patients` with random numbers
        from `seed`.
    """
    true_world = dataclasses.replace(world, dynamics=PatientDynamics(world.bins))
    with_truth = dataclasses.replace(planner, caution=CAUTION_WITH_TRUTH)
    best = plan_with_truth(true_world, truth.knobs, policy_params, with_truth, seed)
    assert world.policy is not None
    return {
        CLINICIANS: true_clinicians(truth, world.bins),
        "clinician estimate": following(world.policy, policy_params),
        "clinician estimate, most likely": following(MostLikely(world.policy), policy_params),
        **{name: following(rule) for name, rule in RULES.items()},
        PLANNER: planning(world, params, policy_params, planner, seed, patients),
        PLANNER_WITH_TRUTH: Contender(best, _nothing, patients=patients, planner=with_truth),
    }


def _nothing(episodes: Episodes) -> np.ndarray:
    raise ValueError("who sees the truth decides on no record")


def play_all(
    everyone: Mapping[str, Contender], episodes: Episodes, stage: Stage, folder: Path, depends: Any
) -> dict[str, Result]:
    """Results by name, each kept in `folder` as soon as it is there (see `keep.kept`).

    Args:
      depends: plain types that tell these patients, models and stage from others.
    """
    results = {}
    for name, one in everyone.items():
        some = episodes.take(slice(one.patients))
        key = [depends, some.num_stays, None if one.planner is None else dataclasses.asdict(one.planner)]

        def compute(one: Contender = one, some: Episodes = some, name: str = name) -> Any:
            return play(one.chances, some, stage, title=name)

        results[name] = kept_result(folder, name, key, compute)
    return results
