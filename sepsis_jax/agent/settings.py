"""Settings of a run of the agent."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from sepsis_jax.errors import SEEDS, check_range

Follow = Literal["recorded_until_deviation", "model"]


@dataclasses.dataclass(frozen=True)
class AgentSettings:
    """What the agent runs over, and how.

    Attributes:
      backend: who decides; 'planner' needs no LLM.
      split: which stays: 'train', 'validation', 'test' or 'all'.
      stays: how many of them, in order; 0 takes every one.
      follow: 'recorded_until_deviation' goes along the record while the actions equal the clinician's and lives in
        the world model from the first deviation on; 'model' lives in it from the first decision.
      concurrency: cases open at once; their simulations are batched.
      seed: of every random number of the run.
    """

    backend: Literal["planner"] = "planner"
    split: Literal["train", "validation", "test", "all"] = "test"
    stays: int = 6
    follow: Follow = "recorded_until_deviation"
    concurrency: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        check_range(self, "agent", stays=(0, math.inf), concurrency=(1, 4096), seed=SEEDS)
