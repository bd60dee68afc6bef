"""Settings of an evaluation."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from sepsis_jax.errors import SEEDS, check_range


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """What the tables are computed on.

    Attributes:
      split: stays of 'train', 'validation' or 'test'.
      safety_stays: how many of them the safety table uses, in order; 0 takes every one. The planner simulates at
        each of their decisions, which is what takes the time.
      planner_samples: S of the planner in that table.
      draws: of the patient bootstrap.
      seed: of the bootstrap.
    """

    split: Literal["train", "validation", "test"] = "test"
    safety_stays: int = 0
    planner_samples: int = 64
    draws: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        check_range(self, "evaluation", safety_stays=(0, math.inf), planner_samples=(2, 1_000_000), seed=SEEDS)
        check_range(self, "evaluation", draws=(100, 1_000_000))
