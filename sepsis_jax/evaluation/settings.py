"""Settings of an evaluation."""

from __future__ import annotations

import dataclasses
from typing import Literal

from sepsis_jax.errors import InputError


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
        for name, least in (("safety_stays", 0), ("planner_samples", 2), ("draws", 100)):
            if getattr(self, name) < least:
                raise InputError("evaluation", field=name, expected=f"at least {least}", found=getattr(self, name))
