"""Backends: who decides. The planner needs no LLM and speaks through the same `Case` as one."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from sepsis_jax.agent import tools
from sepsis_jax.agent.case import Case
from sepsis_jax.agent.prompting import Prompts
from sepsis_jax.agent.simulator import Foresight
from sepsis_jax.agent.tools import MOST_CANDIDATES, Prescribe, Simulate
from sepsis_jax.clinical.actions import ALL_ACTIONS
from sepsis_jax.policies.planner import PlannerSettings, best, cautious, most_usual


class Failed(Exception):
    """A case that cannot go on.

    Attributes:
      kind: 'malformed answers', 'context overflow', 'timeout', 'no connection', 'rate limit', 'server error' or 'no
        log-probabilities'.
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

    async def close(self) -> None:
        """Let go of what it holds; nobody is asked after that."""
        ...


class PlannerBackend:
    """Simulates all 25 actions and prescribes by expected return, caution and shield, as `policies.planner` does.

    It goes by the numbers that any model is told, in which exits and clinicians' later actions are drawn;
    `policies.planner` takes their expectation, and so scatters less.

    Its dialogue has the words of a model's: it shows three of the actions, among them what it prescribes, what
    clinicians do most often, and what was given last.

    Args:
      prompts: texts. settings: of the planner.
    """

    def __init__(self, prompts: Prompts, settings: PlannerSettings) -> None:
        self._prompts, self._settings = prompts, settings

    async def decide(self, case: Case) -> None:
        """See `Backend.decide`."""
        futures = await case.simulate(ALL_ACTIONS)
        allowed = np.array([future.keeps_guideline for future in futures])
        value, support = (np.array([getattr(one, name) for one in futures]) for name in ("value", "support"))
        score = np.full(len(futures), -np.inf)
        candidates = most_usual(support, allowed, self._settings)
        score[candidates] = cautious(value, support, self._settings.caution)[candidates]
        choice = int(best(score, allowed, shield=self._settings.shield))
        call = Prescribe(futures[choice].action, _rationale(futures, choice))
        shown = self._shown(futures, choice, case.previous, score, allowed)
        answer = self._prompts.simulation(shown, self._settings.samples)
        _speak(case, Simulate(tuple(one.action for one in shown)), answer)
        await case.prescribe(call.action, call.rationale)
        _speak(case, call, tools.given(call))

    async def close(self) -> None:
        """See `Backend.close`."""

    def _shown(
        self,
        futures: list[Foresight],
        choice: int,
        previous: tuple[int, int],
        score: np.ndarray,
        allowed: np.ndarray,
    ) -> list[Foresight]:
        """The choice, the usual one and what was given last, else the next best; their order gives nothing away.

        The last two may break a rule, which who learns from it must have read.
        """
        free = allowed | (not self._settings.shield)
        others = [int(row) for row in np.argsort(-score, kind="stable") if row != choice and free[row]]
        usual = max(futures, key=lambda future: future.support)
        last = [future for future in futures if future.action == previous]
        shown = [futures[choice], usual, *last, *(futures[row] for row in others)]
        different = list({one.action: one for one in shown}.values())[:MOST_CANDIDATES]
        return sorted(different, key=lambda one: one.action)


def _speak(case: Case, call: Simulate | Prescribe, answer: str) -> None:
    said = tools.say(len(case.messages), "", tools.written(call))
    case.messages += [said, *tools.reply(said, answer)]


def _rationale(futures: list[Foresight], choice: int) -> str:
    """Why, from the simulated numbers: against what clinicians do most often here. At most 300 characters."""
    chosen, usual = futures[choice], max(futures, key=lambda future: future.support)
    text = f"Best expected return with caution: {chosen.value:+.2f} (SE {chosen.value_se:.2f}). "
    if usual.action == chosen.action:
        return text + f"Also what clinicians most often do in such states ({chosen.support:.0%})."
    return text + (
        f"Clinicians' usual {tools.level_pair(usual.action)} ({usual.support:.0%}): {usual.value:+.2f}. Chosen against "
        f"usual: 90-day mortality {chosen.death_90d:.1%}, {usual.death_90d:.1%}; P(MAP<65) "
        f"{chosen.map_below_65[0]:.0%}, {usual.map_below_65[0]:.0%}; P(lactate falls) {chosen.lactate_falls[0]:.0%}, "
        f"{usual.lactate_falls[0]:.0%}. Clinicians choose it in {chosen.support:.1%}."
    )
