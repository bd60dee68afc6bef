"""Stage I: questions about patients' courses, and their answers from the record.

What comes next after a treatment, in values and in directions, who will die in hospital, who will need a vasopressor
within 24 h; and which of two treatments leads to more of something, which no record can say: the world model does,
over many courses with the same luck for both.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from sepsis_jax.agent.case import Case
from sepsis_jax.agent.conversation import decision_dialogue
from sepsis_jax.agent.prompting import ANSWERED, HOURS_PER_STEP, Prompts, number
from sepsis_jax.agent.questions import AHEAD
from sepsis_jax.agent.simulator import BatchedSimulator
from sepsis_jax.agent.tools import Message
from sepsis_jax.clinical.actions import ALL_ACTIONS, ActionBins
from sepsis_jax.clinical.features import INDEX, NUM_MASKED
from sepsis_jax.data.episodes import Episodes

KINDS = {"mortality": 3, "vasopressor": 3, "values": 1, "directions": 1, "effect": 1}
"""What is asked, and in which proportion: an answer in numbers has many more tokens than a yes or a no, and every
token of an answer counts the same."""
KEY = (*ANSWERED, "creatinine")
"""Features that are asked for."""
MOVED = 0.05
"""Relative change that counts as one."""
FIRST = 0.8
"""Share of the decisions that are the first of a stay, which is where `agent.questions` asks."""
_DRAWS = (20, 200)  # decisions simulated together, at least and at most


@dataclasses.dataclass(frozen=True)
class Source:
    """What examples are made from.

    Attributes:
      episodes: the cohort. rows: int[N] its stays to ask about.
      simulator: says what treatments lead to. bins: of actions. prompts: texts.
    """

    episodes: Episodes
    rows: np.ndarray
    simulator: BatchedSimulator
    bins: ActionBins
    prompts: Prompts


def examples(source: Source, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """`count` dialogues, of each kind its share (`KINDS`), and as many of each answer where there are two.

    Yields:
      kind, answer, stay_id, messages. Deterministic given the seed.
    """
    draw = np.random.default_rng(seed)
    ends = np.rint(count * np.cumsum([0, *KINDS.values()]) / sum(KINDS.values())).astype(int)
    for kind, number_of in zip(KINDS, np.diff(ends).tolist(), strict=True):
        if kind == "effect":
            yield from _effects(source, number_of, draw)
        elif kind in ("mortality", "vasopressor"):
            yield from _yes_or_no(source, kind, number_of, draw)
        else:
            yield from _next(source, kind, number_of, draw)


def _yes_or_no(source: Source, about: str, count: int, draw: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Half of the answers are yes."""
    episodes, (rows, steps) = source.episodes, _decisions(source, 0)
    if about == "mortality":
        truth = np.asarray(episodes.mortality_hospital)[rows]
    else:
        given = np.asarray(episodes.valid) & (np.asarray(episodes.action)[..., 0] > 0)
        ahead = np.cumsum(np.pad(given, ((0, 0), (1, AHEAD))), axis=1)
        truth = (ahead[rows, steps + AHEAD] - ahead[rows, steps] > 0).astype(np.int8)
    task = source.prompts.question(about)
    pools = [_Pool(rows[truth == yes], steps[truth == yes], draw) for yes in (0, 1)]
    for i in range(count):
        if pools[i % 2].size:
            yield _example(about, _case(source, *pools[i % 2].take()), task, ("no", "yes")[i % 2])


def _next(source: Source, about: str, count: int, draw: np.random.Generator) -> Iterator[dict[str, Any]]:
    """One feature that is measured at the next step, as a number, or as a direction if it has been measured before."""
    episodes, pool = source.episodes, _Pool(*_decisions(source, 1), draw)
    for _ in range(count if pool.size else 0):
        row, step = pool.take()
        now, then = np.asarray(episodes.obs[row, step : step + 2])
        told = np.asarray(episodes.mask[row, step + 1])
        if about == "directions":
            told = told & np.asarray(episodes.mask[row, : step + 1]).any(axis=0)
        seen = [name for name in KEY if INDEX[name] >= NUM_MASKED or told[INDEX[name]]]
        asked = seen[draw.integers(len(seen))]
        before, after = float(now[INDEX[asked]]), float(then[INDEX[asked]])
        answer = number(after) if about == "values" else direction(before, after)
        given = [_given(episodes.action[row, step])]
        yield _example(about, _case(source, row, step), source.prompts.question(about, asked), answer, given)


def direction(now: float, then: float) -> str:
    """'rose', 'fell' or 'stayed': whether the change is more than `MOVED` of what it was."""
    if abs(then - now) <= MOVED * abs(now):
        return "stayed"
    return "rose" if then > now else "fell"


def _effects(source: Source, count: int, draw: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Two treatments in random order; those that the model cannot tell apart are not asked."""
    pool, made = _Pool(*_decisions(source, 0), draw), 0
    while made < count:
        cases = [_case(source, *pool.take()) for _ in range(np.clip(2 * (count - made), *_DRAWS))]
        pairs = [ALL_ACTIONS[draw.choice(len(ALL_ACTIONS), 2, replace=False)] for _ in cases]
        asked = [KEY[draw.integers(len(KEY))] for _ in cases]
        told = 0
        for case, pair, name, (a, b) in zip(cases, pairs, asked, _foreseen(cases, pairs), strict=True):
            one, other = a.median[name][0], b.median[name][0]
            if made + told < count and abs(one - other) > MOVED / 5 * abs(one):
                told += 1
                words = [f"First: {_levels(pair[0])}. Second: {_levels(pair[1])}."]
                answer = "first" if one > other else "second"
                yield _example("effect", case, source.prompts.question("effect", name), answer, words)
        if not told:
            return
        made += told


def _foreseen(cases: Sequence[Case], pairs: Sequence[np.ndarray]) -> list[Any]:
    async def everyone() -> list[Any]:
        return await asyncio.gather(*(case.simulate(pair) for case, pair in zip(cases, pairs, strict=True)))

    return asyncio.run(everyone())


def _decisions(source: Source, ahead: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and steps of all recorded decisions with `ahead` more steps behind them."""
    length = np.asarray(source.episodes.length)[source.rows]
    at, steps = np.nonzero(np.arange(source.episodes.obs.shape[1])[None] < (length - ahead)[:, None])
    return source.rows[at], steps


class _Pool:
    """Decisions to draw from, rows and steps int[N]: none comes again before all have come."""

    def __init__(self, rows: np.ndarray, steps: np.ndarray, draw: np.random.Generator) -> None:
        self._rows, self._steps, self._draw = rows, steps, draw
        first = np.flatnonzero(steps == 0)
        self.size, self._any_first = rows.size, first.size > 0
        self._first, self._all = _again_and_again(first, draw), _again_and_again(np.arange(rows.size), draw)

    def take(self) -> tuple[int, int]:
        """(row, step): the first of a stay in `FIRST` of the cases."""
        begins = self._any_first and self._draw.random() < FIRST
        at = next(self._first if begins else self._all)
        return int(self._rows[at]), int(self._steps[at])


def _again_and_again(places: np.ndarray, draw: np.random.Generator) -> Iterator[int]:
    while True:
        yield from draw.permutation(places)


def _case(source: Source, row: int, step: int) -> Case:
    case = Case(source.episodes, row, source.simulator, source.bins, "recorded_until_deviation", source.prompts, step)
    case.observe()
    return case


def _example(kind: str, case: Case, task: str, answer: str, more: Sequence[str] = ()) -> dict[str, Any]:
    said: list[Message] = [{"role": "assistant", "content": answer}]
    return {
        "kind": kind,
        "answer": answer if kind in ("mortality", "vasopressor", "effect") else "",
        "stay_id": case.stay_id,
        "messages": decision_dialogue({"role": "system", "content": task}, [*case.observations, *more], said),
    }


def _levels(action: np.ndarray) -> str:
    return f"vasopressor level {action[0]}, IV fluid level {action[1]}"


def _given(action: np.ndarray) -> str:
    return f"Treatment of the next {HOURS_PER_STEP} h: {_levels(action)}."
