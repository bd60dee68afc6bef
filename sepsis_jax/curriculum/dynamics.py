"""Stage I: questions about patients' courses, and their answers from the record.

What comes next after a treatment, in values and in directions, who will die in hospital, who will need a vasopressor
within 24 h; and which of two treatments leads to more of something, which no record can say: the world model does,
over many courses with the same luck for both.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterator, Sequence
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

KINDS = ("mortality", "vasopressor", "values", "directions", "effect")
KEY = (*ANSWERED, "creatinine")
"""Features that are asked for."""
MOVED = 0.05
"""Relative change that counts as one."""
FIRST = 0.5
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
    """`count` dialogues: as many of each of `KINDS`, and of each answer where there are two.

    Yields:
      kind, answer, stay_id, messages. Deterministic given the seed.
    """
    draw = np.random.default_rng(seed)
    makers: dict[str, Callable[[int, np.random.Generator], Iterator[dict[str, Any]]]] = {
        "mortality": lambda n, draw: _yes_or_no(source, "mortality", n, draw),
        "vasopressor": lambda n, draw: _yes_or_no(source, "vasopressor", n, draw),
        "values": lambda n, draw: _next(source, "values", n, draw),
        "directions": lambda n, draw: _next(source, "directions", n, draw),
        "effect": lambda n, draw: _effects(source, n, draw),
    }
    for at, kind in enumerate(KINDS):
        yield from makers[kind](len(range(at, count, len(KINDS))), draw)


def _yes_or_no(source: Source, about: str, count: int, draw: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Half of the answers are yes."""
    episodes, (rows, steps) = source.episodes, _decisions(source, 0)
    if about == "mortality":
        truth = np.asarray(episodes.mortality_hospital)[rows]
    else:
        given = np.asarray(episodes.valid) & (np.asarray(episodes.action)[..., 0] > 0)
        ahead = np.cumsum(np.pad(given, ((0, 0), (1, AHEAD))), axis=1)
        truth = (ahead[rows, steps + AHEAD] - ahead[rows, steps] > 0).astype(np.int8)
    for i in range(count):
        answer = ("no", "yes")[i % 2]
        found = np.flatnonzero(truth == i % 2)
        if not found.size:
            continue
        at = _pick(found, steps, draw)
        yield _example(source, about, int(rows[at]), int(steps[at]), source.prompts.question(about), answer)


def _next(source: Source, about: str, count: int, draw: np.random.Generator) -> Iterator[dict[str, Any]]:
    """What is newly measured at the next step, in numbers or as a direction."""
    episodes, (rows, steps) = source.episodes, _decisions(source, 1)
    every = np.arange(len(rows))
    for _ in range(count if every.size else 0):
        at = _pick(every, steps, draw)
        row, step = int(rows[at]), int(steps[at])
        now, then = np.asarray(episodes.obs[row, step : step + 2])
        seen = [name for name in KEY if INDEX[name] >= NUM_MASKED or episodes.mask[row, step + 1, INDEX[name]]]
        pairs = [(name, float(now[INDEX[name]]), float(then[INDEX[name]])) for name in seen]
        words = [f"{name} {number(b) if about == 'values' else direction(a, b)}" for name, a, b in pairs]
        task = source.prompts.question(about, KEY)
        yield _example(source, about, row, step, task, ", ".join(words), [_given(episodes.action[row, step])])


def direction(now: float, then: float) -> str:
    """'rose', 'fell' or 'stayed': whether the change is more than `MOVED` of what it was."""
    if abs(then - now) <= MOVED * abs(now):
        return "stayed"
    return "rose" if then > now else "fell"


def _effects(source: Source, count: int, draw: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Two treatments in random order; those that the model cannot tell apart are not asked."""
    rows, steps = _decisions(source, 0)
    every, made = np.arange(len(rows)), 0
    while made < count:
        some = [_pick(every, steps, draw) for _ in range(np.clip(2 * (count - made), *_DRAWS))]
        pairs = [ALL_ACTIONS[draw.choice(len(ALL_ACTIONS), 2, replace=False)] for _ in some]
        asked = [KEY[draw.integers(len(KEY))] for _ in some]
        futures = _foreseen(source, [(int(rows[at]), int(steps[at])) for at in some], pairs)
        told = 0
        for at, pair, name, (a, b) in zip(some, pairs, asked, futures, strict=True):
            one, other = a.median[name][0], b.median[name][0]
            if made + told < count and abs(one - other) > MOVED / 5 * abs(one):
                told += 1
                words = [f"First: {_levels(pair[0])}. Second: {_levels(pair[1])}."]
                answer = "first" if one > other else "second"
                task = source.prompts.question("effect", name)
                yield _example(source, "effect", int(rows[at]), int(steps[at]), task, answer, words)
        if not told:
            return
        made += told


def _foreseen(source: Source, where: Sequence[tuple[int, int]], pairs: Sequence[np.ndarray]) -> list[Any]:
    async def everyone() -> list[Any]:
        cases = [_case(source, row, step) for row, step in where]
        asked = zip(cases, pairs, strict=True)
        return await asyncio.gather(*(source.simulator.foresee(case.history, pair) for case, pair in asked))

    return asyncio.run(everyone())


def _decisions(source: Source, ahead: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and steps of all recorded decisions with `ahead` more steps behind them."""
    length = np.asarray(source.episodes.length)[source.rows]
    at, steps = np.nonzero(np.arange(source.episodes.obs.shape[1])[None] < (length - ahead)[:, None])
    return source.rows[at], steps


def _pick(found: np.ndarray, steps: np.ndarray, draw: np.random.Generator) -> int:
    """One of the decisions `found`, the first of a stay in `FIRST` of the cases."""
    first = found[steps[found] == 0]
    return int(draw.choice(first if first.size and draw.random() < FIRST else found))


def _case(source: Source, row: int, step: int) -> Case:
    case = Case(source.episodes, row, source.simulator, source.bins, "recorded_until_deviation", source.prompts, step)
    case.observe()
    return case


def _example(
    source: Source, kind: str, row: int, step: int, task: str, answer: str, more: Sequence[str] = ()
) -> dict[str, Any]:
    case, system = _case(source, row, step), {"role": "system", "content": task}
    said: list[Message] = [{"role": "assistant", "content": answer}]
    return {
        "kind": kind,
        "answer": answer if kind in ("mortality", "vasopressor", "effect") else "",
        "stay_id": case.stay_id,
        "messages": decision_dialogue(system, [*case.observations, *more], said),
    }


def _levels(action: np.ndarray) -> str:
    return f"vasopressor level {action[0]}, IV fluid level {action[1]}"


def _given(action: np.ndarray) -> str:
    return f"Treatment of the next {HOURS_PER_STEP} h: {_levels(action)}."
