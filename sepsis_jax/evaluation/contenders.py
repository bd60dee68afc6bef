"""Who is played in the true simulator: the clinicians, simple rules, the planner on the model and on the truth."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sepsis_jax.data.episodes import Episodes
from sepsis_jax.dynamics.patient.dynamics import PatientDynamics
from sepsis_jax.dynamics.patient.truth import Truth
from sepsis_jax.evaluation.closed_loop import Chooser, clinicians, follow, plan, plan_with_truth, play
from sepsis_jax.evaluation.policy_table import CLINICIANS, Result, kept
from sepsis_jax.policies.planner import PlannerSettings
from sepsis_jax.policies.rules import Fixed, Guideline, MostLikely
from sepsis_jax.simulation.course import World
from sepsis_jax.simulation.policy import Policy

BEST_RULE = Guideline(map_target=60.0, map_wean=65.0, fluid_hypoperfused=3)
"""The best of 36 variants of `Guideline` and fixed levels on 3,000 simulated patients who are in no table."""
CAUTION_WITH_TRUTH = 0.3
"""Of the planner on the true simulator, who has only the luck of few samples to fear: the best of 0, 0.3 and 1."""
PLANNER, PLANNER_WITH_TRUTH = "planner, world model", "planner, true simulator"


@dataclasses.dataclass(frozen=True)
class Contender:
    """One policy.

    Attributes:
      choose: what it does. patients: how many it treats, the first ones; None for all.
      planner: settings, if it plans.
    """

    choose: Chooser
    patients: int | None = None
    planner: PlannerSettings | None = None


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
    simulator = PatientDynamics(world.bins)
    true_world = dataclasses.replace(world, dynamics=simulator)
    rules: dict[str, Policy] = {
        "no treatment": Fixed(),
        "fixed (0, 3)": Fixed(0, 3),
        "fixed (1, 3)": Fixed(1, 3),
        "guideline rule": Guideline(),
        "best simple rule": BEST_RULE,
    }
    with_truth = dataclasses.replace(planner, caution=CAUTION_WITH_TRUTH)
    assert world.policy is not None
    return {
        CLINICIANS: Contender(clinicians(simulator, truth.knobs)),
        "clinician estimate": Contender(follow(world.policy, policy_params)),
        "clinician estimate, most likely": Contender(follow(MostLikely(world.policy), policy_params)),
        **{name: Contender(follow(rule, None)) for name, rule in rules.items()},
        PLANNER: Contender(plan(world, params, policy_params, planner, seed), patients, planner),
        PLANNER_WITH_TRUTH: Contender(
            plan_with_truth(true_world, truth.knobs, policy_params, with_truth, seed), patients, with_truth
        ),
    }


def play_all(
    everyone: Mapping[str, Contender], episodes: Episodes, truth: Truth, world: World, folder: Path, depends: Any
) -> dict[str, Result]:
    """Results by name, each kept in `folder` as soon as it is there (see `policy_table.kept`).

    Args:
      world: the reward and bins of its plays.
      depends: plain types that tell these patients and models from others.
    """
    simulator, results = PatientDynamics(world.bins), {}
    for name, one in everyone.items():
        some = episodes.take(slice(one.patients))
        key = [depends, some.num_stays, None if one.planner is None else dataclasses.asdict(one.planner)]

        def compute(one: Contender = one, some: Episodes = some, name: str = name) -> Any:
            return play(one.choose, some, truth, simulator, reward=world.reward, title=name)

        results[name] = kept(folder, name, key, compute)
    return results
