"""Finished cases in the layout in which the published system (arXiv 2605.14723) writes its results.

One JSON object of `results`, an item a case, and their `summary`. Rewards are the published ones, for the course as it
was lived and for the record alike, so that the two compare. Guideline violations are counted as published: at the
first decision no earlier vasopressor level is known, so G2 cannot be broken there.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sepsis_jax import files
from sepsis_jax.agent import tools
from sepsis_jax.agent.tools import Message
from sepsis_jax.agent.transcripts import failures
from sepsis_jax.clinical import guidelines
from sepsis_jax.clinical.features import NAMES
from sepsis_jax.clinical.reward import PUBLISHED
from sepsis_jax.data.episodes import Episodes
from sepsis_jax.ope.logged import earned

_OUTCOMES = ("release", "death")
_G1, _G2 = guidelines.hypoperfusion.__name__, guidelines.vasopressor_weaning.__name__


def write(path: Path, cases: Sequence[dict[str, Any]], episodes: Episodes) -> int:
    """Write the file; how many cases are in it. InputError if it cannot be written.

    Args:
      cases: see `agent.transcripts`. episodes: the cohort they come from.
    """
    found = results(cases, episodes)
    failed = {kind: len(stays) for kind, stays in failures(list(cases)).items()}
    whole = {"results": found, "summary": _summary(found, failed) if found else {}}
    files.write(path, (json.dumps(whole, indent=2, allow_nan=False) + "\n").encode())
    return len(found)


def results(cases: Iterable[dict[str, Any]], episodes: Episodes) -> list[dict[str, Any]]:
    """An item a case, in order; failed cases and those of unknown 90-day mortality have none. Arguments as `write`."""
    row_of = {int(stay): row for row, stay in enumerate(episodes.stay_id)}
    known = [one for one in cases if one["failed"] is None and one["record"]["mortality_90d"] >= 0]
    if not known:
        return []
    rows = np.array([row_of[one["stay_id"]] for one in known])
    record = episodes.take(rows)
    lived = _lived(known, record)
    courses = zip(_courses(lived), _courses(record), strict=True)
    return [_result(one, int(row), *both) for one, row, both in zip(known, rows, courses, strict=True)]


def _lived(cases: Sequence[dict[str, Any]], record: Episodes) -> Episodes:
    """The courses of the cases as records of their own, as far as rewards look at them."""
    obs, action = np.zeros_like(record.obs), np.zeros_like(record.action)
    ventilated = np.zeros_like(record.ventilated)
    for row, one in enumerate(cases):
        for step, decision in enumerate(one["decisions"]):
            obs[row, step] = [decision["obs"][name] for name in NAMES]
            action[row, step] = decision["action"]
            ventilated[row, step] = decision["ventilated"]
    length = np.array([len(one["decisions"]) for one in cases], np.int32)
    died = np.array([one["outcome"]["death_90d"] >= 0.5 for one in cases], np.int8)
    return dataclasses.replace(record, obs=obs, action=action, ventilated=ventilated, length=length, mortality_90d=died)


def _courses(episodes: Episodes) -> list[dict[str, Any]]:
    """Total reward, length, outcome and actions of every stay."""
    total = earned(episodes, PUBLISHED).sum(axis=1, dtype=np.float64)
    return [
        {
            "total_reward": float(total[row]),
            "trajectory_length": int(length),
            "outcome": _OUTCOMES[int(episodes.mortality_90d[row])],
            "actions": ",".join(tools.level_pair(action) for action in episodes.action[row, :length]),
        }
        for row, length in enumerate(episodes.length)
    ]


def _result(one: dict[str, Any], row: int, lived: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    decisions = one["decisions"]
    compliance = {
        "total_prescriptions": len(decisions),
        "hypoperfusion_violations": sum(_G1 in decision["broken"] for decision in decisions),
        "vaso_weaning_violations": sum(_G2 in decision["broken"] for decision in decisions[1:]),
    }
    metadata = {"episode_id": row, "stay_id": one["stay_id"], "model": lived, "real": record}
    messages = [said for message in one["messages"] for said in _said(message)]
    return {"metadata": metadata | {"guideline_compliance": compliance}, "messages": messages}


def _said(message: Message) -> Iterator[dict[str, str]]:
    """A message of a chat as the messages of a result: calls stand alone, answers of tools are JSON."""
    if message["role"] == "tool":
        yield {"role": "tool_response", "content": json.dumps({"result": message["content"]})}
    elif message["content"]:
        yield {"role": message["role"], "content": message["content"]}
    for call in message.get("tool_calls", ()):
        yield {"role": "tool_call", "content": tools.called(call)}


def _summary(found: list[dict[str, Any]], failed: dict[str, int]) -> dict[str, Any]:
    compliance = [one["metadata"]["guideline_compliance"] for one in found]
    counts = {name: sum(one[name] for one in compliance) for name in compliance[0]}
    decisions, g1, g2 = counts.values()
    rates = {
        "hypoperfusion_violation_rate": 100 * g1 / decisions,
        "vaso_weaning_violation_rate": 100 * g2 / decisions,
        "full_compliance_rate": 100 * (decisions - g1 - g2) / decisions,  # no decision breaks both
    }
    return {
        "model": _totals([one["metadata"]["model"] for one in found]),
        "real_doctor": _totals([one["metadata"]["real"] for one in found]),
        "failed": {"count": sum(failed.values()), "by_type": failed},
        "guideline_compliance": counts | rates,
    }


def _totals(courses: list[dict[str, Any]]) -> dict[str, Any]:
    rewards = [one["total_reward"] for one in courses]
    deaths = sum(one["outcome"] == "death" for one in courses)
    return {
        "num_episodes": len(courses),
        "avg_reward": float(np.mean(rewards)),
        "std_reward": float(np.std(rewards)),
        "death_count": deaths,
        "death_rate": deaths / len(courses),
    }
