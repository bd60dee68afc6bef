"""Speed of the agent with a language model: `python benchmarks/agent.py --model FOLDER [--json FILE]`.

Decisions a minute with 1, 8 and 32 cases open, the simulator's share of that time, one batched call of the simulator
against one call for each case, and the tokens of one dialogue a decision against one growing dialogue. The model is
served here (`make vllm`, `make demo-llm`); patients are simulated, the world model is the package's.
"""

from __future__ import annotations

import asyncio
import dataclasses
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import report
from jsonargparse import auto_cli

from sepsis_jax import agent_run, checkpoints, config, pipeline
from sepsis_jax.agent import loop
from sepsis_jax.agent.case import Case
from sepsis_jax.agent.settings import LLMSettings
from sepsis_jax.agent.simulator import BatchedSimulator
from sepsis_jax.agent.vllm import MOST, Serving
from sepsis_jax.agent_run import Run

OPEN = (1, 8, 32)


def main(
    model: Path,
    settings: Path = Path("configs/demo_llm.yaml"),
    stays: int = 2,
    turns: int = 3,
    json: Path | None = None,
) -> None:
    """Run the comparisons.

    Args:
      model: folder of the model. settings: config of the run. stays: for each case that is open at once.
      turns: of the simulator's two ways. json: file for the same numbers as one flat object.
    """
    words = ["--config", str(settings), "--agent.backend", "llm", "--agent.follow", "model", "--agent.split", "all"]
    options, _ = config.load(
        [*words, "--agent.stays", "0", "--agent.concurrency", str(max(OPEN))], _None, description=""
    )
    with tempfile.TemporaryDirectory() as folder:
        pipeline.prepare(options, None, Path(folder) / "episodes")
        run = agent_run.prepare(options, Path(folder) / "episodes", checkpoints.CARRY, allow_remote=False)
        numbers = _batched(run, turns)
        with run.served(Serving.of(options.llm, str(model), 1), Path(folder) / "server") as asked:
            _play(run, asked, 1, 1)  # every program is compiled
            for number in OPEN:
                numbers |= _throughput(run, asked, number, stays)
            numbers |= _contexts(run, asked)
    report.show("Agent", numbers, json)


@dataclasses.dataclass(frozen=True)
class _None:
    """No flags."""


def _play(run: Run, asked: LLMSettings, number: int, stays: int, first: int = 0) -> tuple[list[dict[str, Any]], float]:
    agent = dataclasses.replace(run.config.agent, concurrency=number)
    rows = run.rows[first : first + stays]
    began = time.monotonic()
    cases = loop.run(run.episodes, rows, run.simulator, run.bins, run.asking(asked), agent, run.prompts)
    return cases, time.monotonic() - began


def _throughput(run: Run, asked: LLMSettings, number: int, stays: int) -> dict[str, float]:
    before = run.simulator.seconds
    cases, seconds = _play(run, asked, number, max(4, number * stays), first=8)
    decisions = sum(len(one["decisions"]) for one in cases)
    failed = sum(one["failed"] is not None for one in cases)
    return {
        f"decisions_per_min_{number}": 60 * decisions / seconds,
        f"simulator_share_{number}": (run.simulator.seconds - before) / seconds,
        f"failed_{number}": failed,
    }


def _contexts(run: Run, asked: LLMSettings) -> dict[str, float]:
    tokens = {}
    for context in ("step", "episode"):
        # Long cases do not fit where a dialogue grows, so that both take the same short ones.
        short = [row for row in run.rows if run.episodes.length[row] <= 8][:8]
        settings: Any = dataclasses.replace(asked, context=context)
        some = dataclasses.replace(run, rows=np.array(short))
        some = dataclasses.replace(some, config=_following_the_record(run))
        cases, _ = _play(some, settings, 8, 8)
        used = [one["usage"]["prompt_tokens"] + one["usage"]["completion_tokens"] for one in cases]
        tokens[context] = sum(used) / max(1, sum(len(one["decisions"]) for one in cases))
    return {
        "step_vs_episode_tokens": tokens["step"] / tokens["episode"],
        "tokens_per_decision_step": tokens["step"],
        "tokens_per_decision_episode": tokens["episode"],
    }


def _following_the_record(run: Run) -> config.Config:
    return dataclasses.replace(
        run.config, agent=dataclasses.replace(run.config.agent, follow="recorded_until_deviation")
    )


def _batched(run: Run, turns: int) -> dict[str, float]:
    """Seconds of `max(OPEN)` questions to the simulator, gathered and one by one."""
    loaded, planner = run.loaded, run.config.planner
    cases = [Case(run.episodes, int(row), run.simulator, run.bins, "model") for row in run.rows[: max(OPEN)]]

    def simulator(size: int) -> BatchedSimulator:
        parts = (loaded.world, loaded.params, loaded.policy_params, planner)
        return BatchedSimulator(*parts, seed=0, concurrency=size)

    async def ask(one: BatchedSimulator) -> None:
        await asyncio.gather(*(one.foresee(case.history, MOST) for case in cases))

    ways = {"batched": simulator(max(OPEN)), "single": simulator(1)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns + 1):  # the first one compiles
        for name, one in ways.items():
            began = time.monotonic()
            asyncio.run(ask(one))
            if turn:
                seconds[name].append(time.monotonic() - began)
    median = {name: statistics.median(found) for name, found in seconds.items()}
    return {"batched_vs_single": median["single"] / median["batched"], "batched_seconds_32": median["batched"]}


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
