"""Backends: who decides. The planner needs no LLM and speaks through the same `Case` as one."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from sepsis_jax.agent.case import Case
from sepsis_jax.agent.simulator import Foresight
from sepsis_jax.clinical.actions import ALL_ACTIONS
from sepsis_jax.policies.planner import best


class Failed(Exception):
    """A case that cannot go on.

    Attributes:
      kind: 'malformed answers', 'too many simulations', 'context overflow', 'timeout', 'no connection', 'rate limit' or
        'server error'.
    """

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind, self.detail = kind, detail


class Backend(Protocol):
    """Decides one step of one case: any number of simulations, then one prescription."""

    async def decide(self, case: Case) -> None:
        """Answer the open decision of `case` with `case.prescribe`, and add what was said to its messages.

        Raises:
          Failed: there is no answer that could be prescribed.
        """
        ...


class PlannerBackend:
    """Simulates all 25 actions and prescribes the highest expected return, within the guideline if shielded."""

    def __init__(self, *, shield: bool = True) -> None:
        self._shield = shield

    async def decide(self, case: Case) -> None:
        """See `Backend.decide`."""
        futures = await case.simulate(ALL_ACTIONS)
        allowed = np.array([future.keeps_guideline for future in futures])
        choice = int(best(np.array([future.value for future in futures]), allowed, shield=self._shield))
        action, rationale = futures[choice].action, _rationale(futures, choice, shield=self._shield)
        await case.prescribe(action, rationale)
        case.messages.append({"role": "assistant", "content": f"{list(action)}: {rationale}"})


def _rationale(futures: list[Foresight], choice: int, *, shield: bool) -> str:
    """Why, from the simulated numbers: against what clinicians do most often here."""
    chosen = futures[choice]
    usual = max(futures, key=lambda future: future.support)
    number = sum(future.keeps_guideline for future in futures) if shield else len(futures)
    scope = f"the {number} actions that keep the guideline" if shield else f"all {number} actions"
    text = f"Highest expected return of {scope}: {chosen.value:+.2f} (SE {chosen.value_se:.2f}). "
    if usual.action == chosen.action:
        return text + f"It is also what clinicians most often do in such states ({chosen.support:.0%})."
    return text + (
        f"Against ({usual.action[0]},{usual.action[1]}), the clinicians' most frequent choice here "
        f"({usual.support:.0%}): return {usual.value:+.2f}, 90-day mortality {chosen.death_90d:.1%} against "
        f"{usual.death_90d:.1%}, P(MAP < 65 in 4 h) {chosen.map_below_65[0]:.0%} against {usual.map_below_65[0]:.0%}, "
        f"P(lactate falls) {chosen.lactate_falls[0]:.0%} against {usual.lactate_falls[0]:.0%}. "
        f"Support of the choice: {chosen.support:.1%}."
    )
