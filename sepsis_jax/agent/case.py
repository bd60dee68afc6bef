"""`Case`: one patient as a dialogue. Observe, simulate candidates, prescribe, until the stay ends.

It is the only owner of dialogue state; the agent's loop and, later, a trainer drive this one class. It never shows
the recorded future: what lies ahead of the decision stays private until it has been lived.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from sepsis_jax.agent import tools
from sepsis_jax.agent.prompting import HOURS_PER_STEP, Prompts, measured, package_prompts
from sepsis_jax.agent.settings import Follow
from sepsis_jax.agent.simulator import BatchedSimulator, Foresight, Next
from sepsis_jax.agent.tools import Message
from sepsis_jax.clinical import guidelines
from sepsis_jax.clinical.actions import LEVELS, ActionBins
from sepsis_jax.clinical.features import NAMES, NUM_MASKED
from sepsis_jax.data.episodes import EXIT_DEATH, EXIT_TRUNCATED, Episodes
from sepsis_jax.dynamics.protocol import History

_check = jax.jit(guidelines.check)


@dataclasses.dataclass(frozen=True)
class Decision:
    """One prescription and what led to it.

    Attributes:
      step: 4-h step; the decision falls at hour 4 * step + 4.
      message: number of its observation in the dialogue.
      source: 'record', 'model' or 'truth': which world the observation comes from.
      obs: name -> value (clinical units). measured: names newly measured.
      ventilated: invasively, at the observation; False also where unknown.
      previous, action: (vasopressor, fluid) levels before and prescribed.
      clinician: levels recorded at this step, None beyond the record. Not comparable once the worlds have parted.
      considered: simulated candidates.
      rationale: why, in the policy's words.
      broken, clinician_broken: names of the guideline rules that the action, the clinician's, breaks here.
    """

    step: int
    message: int
    source: str
    obs: dict[str, float]
    measured: list[str]
    ventilated: bool
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
      deviated: the case lives in a simulator: the world model or, if it follows that, the truth.
      exit: 0 in the ICU or cut off, 1 died, 2 discharged.
      death_90d: recorded 0 or 1, or the simulator's probability after a deviation; None while open or unknown.
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
      at: step of the first decision to be made; those before are as recorded, and so stand in the dialogue.

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
        at: int = 0,
    ) -> None:
        self._record: Any = episodes.take(np.array([row]))
        self._simulator = simulator
        self._follow: Follow = follow
        self._obs = np.zeros_like(self._record.obs[0])
        self._mask = np.zeros_like(self._record.mask[0])
        self._action = np.zeros_like(self._record.action[0])
        self._ventilated = np.zeros_like(self._record.ventilated[0])
        self._reveal(0)
        self._step, self._seen, self._message = 0, -1, 0
        self._considered: list[Foresight] = []
        self._prompts = prompts or package_prompts()
        self.bins = bins
        self.messages: list[Message] = []
        self.observations: list[str] = []
        self.usage = Usage()
        self.stay_id = int(self._record.stay_id[0])
        self.outcome = Outcome(closed=False, deviated=False)
        self.decisions: list[Decision] = []
        for _ in range(at):
            self._relive()
        self.outcome = Outcome(closed=False, deviated=follow != "recorded_until_deviation")

    @property
    def history(self) -> History:
        """What is known at the open decision."""
        one = self._record
        return History(
            obs=self._obs.copy(),
            mask=self._mask.copy(),
            ventilated=self._ventilated.copy(),
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
            first=self._step == 0,
            hours=HOURS_PER_STEP * (self._step + 1),
            source=self._source,
            age=round(float(age)),
            sex="male" if gender else "female",
            charlson=round(float(charlson)),
            weight=round(float(self._record.weight_kg[0])),
            previous=self.previous,
            measured=measured(self._obs[self._step], self._mask[self._step]),
        )
        self.observations.append(text)
        self._message = len(self.messages)
        self.messages.append({"role": "user", "content": text})
        return self.messages[-1:]

    def _relive(self) -> None:
        """What was recorded at the open decision, as if it had been prescribed here."""
        recorded = self._recorded_action()
        assert recorded is not None, "there is nothing recorded beyond the record"
        self.observe()
        call = tools.Prescribe(recorded)
        said = tools.say(len(self.messages), "", tools.written(call))
        self.messages += [said, *tools.reply(said, tools.given(call))]
        self._action[self._step] = recorded
        self._step += 1
        self._reveal(self._step)

    def _reveal(self, step: int) -> None:
        self._obs[step], self._mask[step] = self._record.obs[0, step], self._record.mask[0, step]
        self._ventilated[step] = self._record.ventilated[0, step]

    async def sample(self, actions: np.ndarray) -> list[Next]:
        """One sampled next state for each of the candidates int8[K,2] at the open decision."""
        self._check_open()
        return await self._simulator.sample(self.history, np.asarray(actions, np.int8))

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
        self.outcome = await self._live(levels) if deviated else self._go_along()
        self._step, self._considered = self._step + 1, []
        return self.outcome

    def _go_along(self) -> Outcome:
        """The record goes on, or ends as it ended."""
        if self._step + 1 < int(self._record.length[0]):
            self._reveal(self._step + 1)
            return Outcome(closed=False, deviated=False)
        died = int(self._record.mortality_90d[0])
        return Outcome(True, False, int(self._record.exit[0]), None if died < 0 else float(died))

    async def _live(self, action: np.ndarray) -> Outcome:
        """One step in the simulator; the stay ends with an exit or at the longest record."""
        lived: Next = await self._simulator.advance(self.history, action, truth=self._follow == "truth")
        last = self._step + 1 == len(self._obs)
        if not last:
            self._obs[self._step + 1], self._mask[self._step + 1] = lived.obs, lived.mask
            self._ventilated[self._step + 1] = lived.ventilated
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
                message=self._message,
                source=self._source,
                obs=dict(zip(NAMES, obs.tolist(), strict=True)),
                measured=[name for name, seen in zip(NAMES[:NUM_MASKED], mask, strict=True) if seen],
                ventilated=bool(self._ventilated[self._step]),
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
        if not (self.outcome.deviated and self._step):
            return "record"
        return "truth" if self._follow == "truth" else "model"

    def _check_open(self) -> None:
        if self.outcome.closed:
            raise ValueError(f"stay {self.stay_id} is closed")
