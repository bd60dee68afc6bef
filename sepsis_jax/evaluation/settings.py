"""Settings of an evaluation."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from sepsis_jax.errors import SEEDS, check_range
from sepsis_jax.simulation.layout import MOST_SAMPLES


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """What the tables are computed on.

    Attributes:
      split: stays of 'train', 'validation' or 'test'.
      fresh_patients: test patients drawn anew from the simulator for the packaged world models; 0 takes the split.
      decisions: random decisions of the sample-based scores one step ahead.
      samples: draws at each.
      rollouts: random decisions of the 48-h roll-outs.
      rollout_samples: courses from each.
      effects: random decisions of the counterfactual accuracy; a compared model is asked at a quarter of them; 0
        leaves it out.
      effect_samples: courses behind each expected outcome.
      safety_stays: how many of them the safety table uses, in order; 0 takes every one. The planner simulates at
        each of their decisions, which is what takes the time.
      planner_samples: S of the planner in that table.
      planner_patients: whom the planners treat in the true simulator; the other policies treat everyone.
      cohorts: simulated cohorts on which policies are ranked.
      draws: of the patient bootstrap.
      seed: of the bootstrap, of the choice of decisions and of all samples.
    """

    split: Literal["train", "validation", "test"] = "test"
    fresh_patients: int = 0
    decisions: int = 10_000
    samples: int = 100
    rollouts: int = 3_000
    rollout_samples: int = 40
    effects: int = 500
    effect_samples: int = 64
    safety_stays: int = 0
    planner_samples: int = 64
    planner_patients: int = 5000
    cohorts: int = 5
    draws: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        check_range(self, "evaluation", safety_stays=(0, math.inf), planner_samples=(2, MOST_SAMPLES), seed=SEEDS)
        check_range(self, "evaluation", draws=(100, 1_000_000), fresh_patients=(0, 10_000_000))
        check_range(self, "evaluation", planner_patients=(1, 10_000_000), cohorts=(1, 1000))
        numbers = dict.fromkeys(("decisions", "rollouts"), (1, 100_000_000))
        check_range(self, "evaluation", effects=(0, 100_000_000), **numbers)
        check_range(
            self, "evaluation", **dict.fromkeys(("samples", "rollout_samples", "effect_samples"), (2, 1_000_000))
        )
