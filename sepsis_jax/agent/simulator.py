"""The simulator as the agent sees it: answers about candidate treatments, gathered over concurrent cases.

Requests that arrive within a few milliseconds share one call, so a hundred open cases fill the machine. What a case
is told never depends on who else is asking.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

import jax
import numpy as np

from sepsis_jax.clinical.actions import encode
from sepsis_jax.dynamics.protocol import History
from sepsis_jax.policies.planner import PlannerSettings, keeps_guideline
from sepsis_jax.simulation.batch import simulate
from sepsis_jax.simulation.course import World
from sepsis_jax.simulation.policy import probs_at
from sepsis_jax.simulation.record import Record, Summarize, Summary, Trajectories
from sepsis_jax.simulation.rollout import Trajectory

ANSWER_FEATURES: tuple[str, ...] = ("meanbp", "heart_rate", "lactate", "creatinine", "output_4hourly", "spo2")
"""What an answer describes over time; every other feature stays in the simulation."""

_LIVING_STREAM, _SHOWN_STREAM, _FORESEEN_STREAM = 1, 2, 3
"""The world a deviating case lives in must not be the one its candidates were judged with, nor the one it was shown.
Without any stream, and with the seed of the cohort, a simulation would hold the patient's own luck."""


@dataclasses.dataclass(frozen=True)
class Foresight:
    """The simulated future of one candidate, over S samples under common random numbers.

    Attributes:
      action: (vasopressor, fluid) levels of the next 4 h.
      value, value_se: expected return and its Monte Carlo standard error.
      death_90d: expected 90-day mortality.
      support: how often clinicians choose this action in states like this one (estimate).
      keeps_guideline: breaks neither G1 nor G2.
      low, median, high: name of `ANSWER_FEATURES` -> H values (clinical units): 80 % interval and median.
      map_below_65, lactate_falls, in_icu: H probabilities. sofa: H means.
    """

    action: tuple[int, int]
    value: float
    value_se: float
    death_90d: float
    support: float
    keeps_guideline: bool
    low: dict[str, list[float]]
    median: dict[str, list[float]]
    high: dict[str, list[float]]
    map_below_65: list[float]
    lactate_falls: list[float]
    in_icu: list[float]
    sofa: list[float]


@dataclasses.dataclass(frozen=True)
class Next:
    """One step of the world that a deviating case lives in.

    Attributes:
      obs: f32[F] (clinical units). mask: bool[38]. ventilated: more likely than not.
      exit: 0 in the ICU, 1 died, 2 discharged. death_90d: probability, given all so far.
    """

    obs: np.ndarray
    mask: np.ndarray
    ventilated: bool
    exit: int
    death_90d: float


@dataclasses.dataclass(frozen=True)
class Truth:
    """The simulator that patients come from, see `AgentSettings.follow`.

    Attributes:
      world: its dynamics, bins and reward. params: of the dynamics. seed: key of the patients' luck.
    """

    world: World
    params: Any
    seed: jax.Array


Request = TypeVar("Request")
Answer = TypeVar("Answer")


class Batcher(Generic[Request, Answer]):
    """Answers concurrent requests in calls of at most `size`, one call at a time.

    Those that come within a few milliseconds, or while a call runs, share the next one.
    """

    def __init__(self, run: Callable[[list[Request]], Sequence[Answer]], size: int, delay_s: float = 0.005) -> None:
        self._run, self._size, self._delay_s = run, size, delay_s
        self._waiting: list[tuple[Request, asyncio.Future[Answer]]] = []
        self._worker: asyncio.Task[None] | None = None

    async def ask(self, request: Request) -> Answer:
        """The answer to one request; an error of the call reaches every request in it."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        while self._waiting:
            await asyncio.sleep(self._delay_s)
            part, self._waiting = self._waiting[: self._size], self._waiting[self._size :]
            try:
                answers = await asyncio.to_thread(self._run, [request for request, _ in part])
            except Exception as error:
                for _, future in part:
                    if not future.done():  # who asked may have given up
                        future.set_exception(error)
            else:
                for (_, future), answer in zip(part, answers, strict=True):
                    if not future.done():
                        future.set_result(answer)


class BatchedSimulator:
    """Simulates candidates for many cases at once.

    Args:
      world: dynamics, bins, reward and the continuation policy (the clinician estimate), which also gives the support.
      params, policy_params: of the dynamics and of the policy.
      settings: samples, horizon, batch size.
      seed: of the run.
      concurrency: cases asked for in one call.
      truth: the simulator that cases live in if they follow the truth.

    Attributes:
      seconds: spent in simulations.
    """

    def __init__(
        self,
        world: World,
        params: Any,
        policy_params: Any,
        settings: PlannerSettings,
        *,
        seed: int,
        concurrency: int,
        truth: Truth | None = None,
    ) -> None:
        self._world, self._params, self._policy_params = world, params, policy_params
        self._settings = settings
        self._seed = jax.random.key(seed)
        self._truth = truth
        self._foresee = Batcher(self._run_foresee, concurrency)
        self._advance = Batcher(partial(self._run_samples, _LIVING_STREAM), concurrency)
        self._sample = Batcher(partial(self._run_samples, _SHOWN_STREAM), concurrency)
        self._live = Batcher(self._run_truth, concurrency)
        self.seconds = 0.0

    async def foresee(self, history: History, actions: np.ndarray) -> list[Foresight]:
        """Simulated futures of the candidate actions int8[K,2] at the decision of one history."""
        return await self._foresee.ask((history, actions))

    async def sample(self, history: History, actions: np.ndarray) -> list[Next]:
        """One sampled step of the world under each of the actions int8[K,2], with the same luck for all."""
        return await self._sample.ask((history, actions))

    async def advance(self, history: History, action: np.ndarray, *, truth: bool = False) -> Next:
        """One step of the world under `action` int8[2]: sampled, or as it would truly have come."""
        (lived,) = await (self._live if truth else self._advance).ask((history, action[None]))
        return lived

    def _run_foresee(self, requests: list[tuple[History, np.ndarray]]) -> list[list[Foresight]]:
        histories = _stack([history for history, _ in requests])
        plans = _candidates(requests)
        samples, horizon = self._settings.samples, self._settings.horizon
        seed = jax.random.fold_in(self._seed, _FORESEEN_STREAM)
        summary: Summary = self._simulate(histories, plans, seed, Summarize(ANSWER_FEATURES), samples, horizon)
        assert self._world.policy is not None
        support = probs_at(self._world.policy, self._policy_params, histories)
        allowed = keeps_guideline(histories)
        return [
            [_foresight(summary, support[row], allowed[row], row, k, action) for k, action in enumerate(actions)]
            for row, (_, actions) in enumerate(requests)
        ]

    def _run_samples(self, stream: int, requests: list[tuple[History, np.ndarray]]) -> list[list[Next]]:
        histories, plans = _stack([history for history, _ in requests]), _candidates(requests)
        seed = jax.random.fold_in(self._seed, stream)
        lived: Trajectory = self._simulate(histories, plans, seed, Trajectories(), 1, 1)
        return [
            [_next(lived, (row, k, 0, 0)) for k in range(len(actions))] for row, (_, actions) in enumerate(requests)
        ]

    def _run_truth(self, requests: list[tuple[History, np.ndarray]]) -> list[list[Next]]:
        """The patients' true courses from their first decisions on: only those know the state that no record shows."""
        assert self._truth is not None, "the cohort comes from no simulator"
        histories = _stack([history for history, _ in requests])
        at = np.asarray(histories.length) - 1
        horizon = int(at.max()) + 1
        plans = histories.action[:, None, :horizon].copy()
        plans[np.arange(len(at)), 0, at] = [actions[0] for _, actions in requests]
        first = dataclasses.replace(histories, length=np.ones_like(histories.length))
        began = time.monotonic()
        lived: Trajectory = simulate(
            self._truth.world,
            self._truth.params,
            None,
            first,
            plans,
            self._truth.seed,
            record=Trajectories(),
            samples=1,
            horizon=horizon,
            block=self._settings.block,
        )
        self.seconds += time.monotonic() - began
        return [[_next(lived, (row, 0, 0, int(step)))] for row, step in enumerate(at)]

    def _simulate(
        self, histories: History, plans: np.ndarray, seed: jax.Array, record: Record, samples: int, horizon: int
    ) -> Any:
        began = time.monotonic()
        found = simulate(
            self._world,
            self._params,
            self._policy_params,
            histories,
            plans,
            seed,
            record=record,
            samples=samples,
            horizon=horizon,
            block=self._settings.block,
        )
        self.seconds += time.monotonic() - began
        return found


def _candidates(requests: list[tuple[History, np.ndarray]]) -> np.ndarray:
    """int8[B,K,1,2], K the most that one asks for; who asks for fewer has some twice."""
    most = max(len(actions) for _, actions in requests)
    return np.stack([np.resize(actions, (most, 2)) for _, actions in requests])[:, :, None]


def _next(lived: Trajectory, at: tuple[int, int, int, int]) -> Next:
    steps = lived.steps
    ventilated = bool(steps.vent_prob[at] > 0.5)
    return Next(steps.obs[at], steps.mask[at], ventilated, int(steps.exit[at]), float(lived.death_90d[at[:-1]]))


def _stack(histories: list[History]) -> History:
    stacked: History = jax.tree.map(lambda *leaves: np.stack(leaves), *histories)
    return stacked


def _foresight(
    summary: Summary, support: np.ndarray, allowed: np.ndarray, row: int, k: int, action: np.ndarray
) -> Foresight:
    one = jax.tree.map(lambda leaf: leaf[row, k], summary)
    index = int(encode(action))

    def band(number: int) -> dict[str, list[float]]:
        return {name: one.quantile[:, i, number].tolist() for i, name in enumerate(ANSWER_FEATURES)}

    return Foresight(
        action=(int(action[0]), int(action[1])),
        value=float(one.value),
        value_se=float(one.value_se),
        death_90d=float(one.death_90d),
        support=float(support[index]),
        keeps_guideline=bool(allowed[index]),
        low=band(0),
        median=band(1),
        high=band(2),
        map_below_65=one.events["map_below_65"].tolist(),
        lactate_falls=one.events["lactate_falls"].tolist(),
        in_icu=one.in_icu.tolist(),
        sofa=one.events["sofa"].tolist(),
    )
