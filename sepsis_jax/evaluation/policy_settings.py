"""Settings of the policy table."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from sepsis_jax.clinical.reward import OUTCOME_ONLY, PUBLISHED, Reward
from sepsis_jax.errors import InputError, check_range
from sepsis_jax.evaluation.contenders import RULES
from sepsis_jax.evaluation.keep import slug
from sepsis_jax.evaluation.policy_table import CLINICIANS
from sepsis_jax.evaluation.safety import RAW_DOSES
from sepsis_jax.policies.offline_rl.algorithms import ALGORITHMS

RANDOM, FREQUENT, PLANNER = "random", "most frequent", "planner"
NAMES = (RANDOM, FREQUENT, *RULES, *ALGORITHMS, PLANNER)
"""Every policy that the table knows besides the clinicians."""


@dataclasses.dataclass(frozen=True)
class PolicySettings:
    """What the policy table holds, and how policies are judged.

    Attributes:
      names: of the policies; the clinicians always come first.
      behaviour: how likely clinicians' actions were: 'known' to the simulator, or estimated on the train split ('mlp',
        'knn'); 'auto' takes what is known, else 'mlp'.
      softening: share of the clinicians mixed into every policy before it is judged; the policy judged is that mixture.
      reward: 'published' (SOFA, lactate and the outcome) or 'outcome' alone.
      guideline_penalty: taken off at each decision that breaks a guideline rule.
      learn_stays: first stays of the train split (and all others of their patients) that alone teach policies, so that
        values are fitted on others: what a policy has learned from flatters it. 0 lets all teach both.
      fit_stays: of the train split, on which values are fitted.
      planner_stays: of those, on which the planner itself decides; on the others a network does that imitates it there.
      clip: largest weight of a stay in the columns of clipped estimates.
      played: patients whom a planner treats in a simulator or in the held-out world model; other policies treat all.
      agents: runs of `agent_loop.py` whose models stand in the table too, by the names of their folders; only the stays
        that all of them were asked about are judged. Each needs its probabilities beside it (--probabilities).
      held_out: world model of other patients and another seed than any policy has seen, for expected mortality.
    """

    names: tuple[str, ...] = NAMES
    behaviour: Literal["auto", "known", "mlp", "knn"] = "auto"
    softening: float = 0.0
    reward: Literal["published", "outcome"] = "published"
    guideline_penalty: float = 0.0
    learn_stays: int = 0
    fit_stays: int = 8000
    planner_stays: int = 8000
    clip: float = 100.0
    played: int = 2000
    held_out: Path | None = None
    agents: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        check_range(self, "policies", softening=(0, 1), guideline_penalty=(0, 1000), clip=(1, 1e12))
        check_range(self, "policies", learn_stays=(0, 10_000_000), fit_stays=(1, 10_000_000))
        check_range(self, "policies", planner_stays=(1, 10_000_000), played=(1, 10_000_000))
        for name in self.names:
            if name not in NAMES:
                raise InputError("policies", field="names", expected=f"some of {', '.join(NAMES)}", found=repr(name))
        own = [one.name for one in self.agents]
        taken = [slug(name) for name in (*own, *NAMES, CLINICIANS, RAW_DOSES)]
        if len(set(taken)) < len(taken):
            expected = "folders of different names that no other policy has"
            raise InputError("policies", field="agents", expected=expected, found=", ".join(own))
        if len(set(self.names)) < len(self.names):
            raise InputError("policies", field="names", expected="each policy once", found=", ".join(self.names))

    def to_pay(self) -> Reward:
        """What a trajectory is worth."""
        base = PUBLISHED if self.reward == "published" else OUTCOME_ONLY
        return dataclasses.replace(base, guideline=-self.guideline_penalty)
