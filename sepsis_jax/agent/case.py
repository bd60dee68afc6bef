"""`Case`: one patient as a dialogue. Observe, simulate candidates, prescribe, until the stay ends.

It is the only owner of dialogue state; the agent's loop and, later, a trainer drive this one class. It never shows
the recorded future: what lies ahead of the decision stays private until it has been lived.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from sepsis_jax.agent.prompting import HOURS_PER_STEP, Prompts, package_prompts
from sepsis_jax.agent.settings import Follow
from sepsis_jax.agent.simulator import BatchedSimulator, Foresight, Next
from sepsis_jax.clinical import guidelines
from sepsis_jax.clinical.actions import LEVELS, ActionBins
from sepsis_jax.clinical.features import FEATURES, NAMES, NUM_MASKED
from sepsis_jax.data.episodes import EXIT_DEATH, EXIT_TRUNCATED, Episodes
from sepsis_jax.dynamics.protocol import History

_check = jax.jit(guidelines.check)
Message = dict[str, Any]
"""Of a dialogue, as the chat completions API has it: role, content, and a model's calls."""


@dataclasses.dataclass(frozen=True)
class Decision:
    """One prescription and what led to it.

    Attributes:
      step: 4-h step; the decision falls at hour 4 * step + 4.
      source: 'record' or 'model': which world the observation comes from.
      obs: name -> value (clinical units). measured: names newly measured.
      previous, action: (vasopressor, fluid) levels before and prescribed.
      clinician: levels recorded at this step, None beyond the record. Not comparable once the worlds have parted.
      considered: simulated candidates.
      rationale: why, in the policy's words.
      broken, clinician_broken: names of the guideline rules that the action, the clinician's, breaks here.
    """

    step: int
    source: str
    obs: dict[str, float]
    measured: list[str]
    previous: tuple[int, int]
    action: tuple[int, int]
    clinician: tuple[int, int] | None
    considered: list[Foresight]
    rationale: str
    broken: list[str]
    clinician_broken: list[str]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a prescription led to.

    Attributes:
      closed: the stay is over.
      deviated: the case lives in the world model.
      exit: 0 in the ICU or cut off, 1 died, 2 discharged.
      death_90d: recorded 0 or 1, or the model's probability after a deviation; None while open or unknown.
    """

    closed: bool
    deviated: bool
    exit: int = EXIT_TRUNCATED
    death_90d: float | None = None


@dataclasses.dataclass
class Usage:
    """What a case has cost: requests answered, tokens, seconds waited, and malformed answers by kind."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    malformed: dict[str, int] = dataclasses.field(default_factory=dict)


class Case:
    """One stay in dialogue.

    Args:
      episodes: the cohort. row: which stay.
      simulator: answers about candidates and moves the world after a deviation.
      bins: doses behind the levels, for the dosing rules.
      follow: see `AgentSettings.follow`.
      prompts: how observations are worded; None for the package's.

    Attributes:
      messages: the dialogue so far; who decides appends what was said and answered.
      observations: text of every decision so far, the open one last.
      usage: what it has cost to ask.
      outcome, decisions: what has become of the stay, and what was prescribed.
    """

    def __init__(
        self,
        episodes: Episodes,
        row: int,
        simulator: BatchedSimulator,
        bins: ActionBins,
        follow: Follow,
        prompts: Prompts | None = None,
    ) -> None:
        self._record: Any = episodes.take(np.array([row]))
        self._simulator = simulator
        self._obs = np.zeros_like(self._record.obs[0])
        self._mask = np.zeros_like(self._record.mask[0])
        self._action = np.zeros_like(self._record.action[0])
        self._obs[0], self._mask[0] = self._record.obs[0, 0], self._record.mask[0, 0]
        self._step, self._seen = 0, -1
        self._considered: list[Foresight] = []
        self._prompts = prompts or package_prompts()
        self.bins = bins
        self.messages: list[Message] = []
        self.observations: list[str] = []
        self.usage = Usage()
        self.stay_id = int(self._record.stay_id[0])
        self.outcome = Outcome(closed=False, deviated=follow == "model")
        self.decisions: list[Decision] = []

    @property
    def history(self) -> History:
        """What is known at the open decision."""
        one = self._record
        return History(
            obs=self._obs.copy(),
            mask=self._mask.copy(),
            action=self._action.copy(),
            prior_action=one.prior_action[0],
            static=one.static[0],
            weight_kg=one.weight_kg[0],
            length=np.int32(self._step + 1),
            stay_id=one.stay_id[0],
        )

    @property
    def previous(self) -> tuple[int, int]:
        """(vasopressor, fluid) levels of the last 4 h."""
        levels = self._action[self._step - 1] if self._step else self._record.prior_action[0]
        return int(levels[0]), int(levels[1])

    def observe(self) -> list[Message]:
        """What is new since the last call: the open decision's observation, once. It joins `messages`."""
        if self._seen == self._step or self.outcome.closed:
            return []
        self._seen = self._step
        age, gender, charlson = self._record.static[0]
        text = self._prompts.observation(
            hours=HOURS_PER_STEP * (self._step + 1),
            source=self._source,
            age=round(float(age)),
            sex="male" if gender else "female",
            charlson=round(float(charlson)),
            weight=round(float(self._record.weight_kg[0])),
            previous=self.previous,
            measured=[
                {"name": f.name, "value": f"{self._obs[self._step, i]:.4g}", "unit": f.unit}
                for i, f in enumerate(FEATURES)
                if i >= NUM_MASKED or self._mask[self._step, i]
            ],
        )
        self.observations.append(text)
        self.messages.append({"role": "user", "content": text})
        return self.messages[-1:]

    async def simulate(self, actions: np.ndarray) -> list[Foresight]:
        """Simulated futures of the candidates int8[K,2] at the open decision; kept with the decision."""
        self._check_open()
        futures = await self._simulator.foresee(self.history, np.asarray(actions, np.int8))
        self._considered.extend(futures)
        return futures

    async def prescribe(self, action: tuple[int, int], rationale: str = "") -> Outcome:
        """Give the levels for the next 4 h and live them. Raises ValueError for a level outside 0-4."""
        self._check_open()
        if len(action) != 2 or not all(0 <= level < LEVELS for level in action):
            raise ValueError(f"levels are two integers from 0 to {LEVELS - 1}, got {action}")
        levels = np.array(action, np.int8)
        self._note(levels, rationale)
        clinician = self._recorded_action()
        deviated = self.outcome.deviated or clinician is None or tuple(action) != clinician
        self._action[self._step] = levels
        self.outcome = await self._live(levels) if deviated else self._follow()
        self._step, self._considered = self._step + 1, []
        return self.outcome

    def _follow(self) -> Outcome:
        """The record goes on, or ends as it ended."""
        if self._step + 1 < int(self._record.length[0]):
            self._obs[self._step + 1] = self._record.obs[0, self._step + 1]
            self._mask[self._step + 1] = self._record.mask[0, self._step + 1]
            return Outcome(closed=False, deviated=False)
        died = int(self._record.mortality_90d[0])
        return Outcome(True, False, int(self._record.exit[0]), None if died < 0 else float(died))

    async def _live(self, action: np.ndarray) -> Outcome:
        """One step in the world model; the stay ends with an exit or at the longest record."""
        lived: Next = await self._simulator.advance(self.history, action)
        last = self._step + 1 == len(self._obs)
        if not last:
            self._obs[self._step + 1], self._mask[self._step + 1] = lived.obs, lived.mask
        if last or lived.exit != EXIT_TRUNCATED:
            died = 1.0 if lived.exit == EXIT_DEATH else lived.death_90d
            return Outcome(True, True, lived.exit, died)
        return Outcome(closed=False, deviated=True)

    def _note(self, levels: np.ndarray, rationale: str) -> None:
        obs, mask = self._obs[self._step], self._mask[self._step]
        clinician = self._recorded_action()
        self.decisions.append(
            Decision(
                step=self._step,
                source=self._source,
                obs=dict(zip(NAMES, obs.tolist(), strict=True)),
                measured=[name for name, seen in zip(NAMES[:NUM_MASKED], mask, strict=True) if seen],
                previous=self.previous,
                action=(int(levels[0]), int(levels[1])),
                clinician=clinician,
                considered=self._considered,
                rationale=rationale,
                broken=self._broken(levels),
                clinician_broken=[] if clinician is None else self._broken(np.array(clinician)),
            )
        )

    def _broken(self, levels: np.ndarray) -> list[str]:
        steps = guidelines.steps_of(
            self._obs[self._step][None],
            levels[None],
            np.array(self.previous),
            self.bins.doses(levels)[None],
            np.ones(1, bool),
        )
        return [name for name, flags in _check(steps).items() if bool(flags.violated[0])]

    def _recorded_action(self) -> tuple[int, int] | None:
        if self._step >= int(self._record.length[0]):
            return None
        vasopressor, fluid = self._record.action[0, self._step]
        return int(vasopressor), int(fluid)

    @property
    def _source(self) -> str:
        # The first observation is always the record's: nothing has been prescribed yet.
        return "model" if self.outcome.deviated and self._step else "record"

    def _check_open(self) -> None:
        if self.outcome.closed:
            raise ValueError(f"stay {self.stay_id} is closed")
