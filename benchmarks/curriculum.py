"""Speed of the curriculum: `.venv-train/bin/python benchmarks/curriculum.py --model FOLDER [--json FILE]`.

Tokens a second of supervised training, seconds of an update of reinforcement learning with groups of 4, 8 and 16
answers, and the simulator's share of it. `--model` is one that calls tools (`sepsis_jax/checkpoints/tiny_agent`);
patients are simulated, the world model is the package's.
"""

from __future__ import annotations

import dataclasses
import json as json_files
import statistics
import tempfile
from collections import Counter
from pathlib import Path

import report
from jsonargparse import auto_cli

from sepsis_jax import agent_run, checkpoints, config, pipeline
from sepsis_jax.agent import loop
from sepsis_jax.agent_run import Run
from sepsis_jax.curriculum import demonstrations, reinforcement, stage, tuning
from sepsis_jax.curriculum.rewards import Model

GROUPS = (4, 8, 16)


def main(
    model: Path = checkpoints.TINY_AGENT,
    settings: Path = Path("configs/curriculum_tiny.yaml"),
    examples: int = 160,
    updates: int = 4,
    json: Path | None = None,
) -> None:
    """Run the stages for a few updates.

    Args:
      model: where they start. settings: config of the curriculum. examples: of the teacher to learn from.
      updates: of each run of reinforcement learning; the first is not counted, since it compiles.
      json: file for the same numbers as one flat object.
    """
    words = ["--config", str(settings), "--agent.split", "train", "--agent.stays", "0", "--cohort.patients", "300"]
    options, _ = config.load(words, _None, description="")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        pipeline.prepare(options, None, out / "episodes")
        run = agent_run.prepare(options, out / "episodes", checkpoints.CARRY, allow_remote=False)
        numbers = _tuned(run, model, out / "tuned", examples)
        for group in GROUPS:
            numbers |= _reinforced(run, model, out / f"rl {group}", group, updates)
    report.show("Curriculum", numbers, json)


@dataclasses.dataclass(frozen=True)
class _None:
    """No flags of its own."""


def _lines(out: Path) -> list[dict[str, float]]:
    return [json_files.loads(line) for line in (out / stage.LOG).read_text().splitlines()]


def _tuned(run: Run, model: Path, out: Path, examples: int) -> dict[str, float]:
    """Of stage II, whose dialogues are the longest."""
    settings, chosen = run.config.agent, run.config.curriculum
    backend = run.backend(run.config.llm)
    cases = loop.run(run.episodes, run.rows[: examples // 8], run.simulator, run.bins, backend, settings, run.prompts)
    kept = list(demonstrations.accepted(cases, run.asking(run.config.llm), run.bins, Counter()))[:examples]
    tuning.run(kept, model, out, chosen.base, chosen.demonstrations, chosen.seed)
    lines = _lines(out)
    seconds, tokens = lines[-1]["seconds"] - lines[0]["seconds"], lines[-1]["num_tokens"] - lines[0]["num_tokens"]
    share = len(kept) * (len(lines) - 1) / len(lines)
    return {"sft_tokens_per_s": tokens / seconds, "sft_examples_per_s": share / seconds}


def _reinforced(run: Run, model: Path, out: Path, group: int, updates: int) -> dict[str, float]:
    chosen, fewer = run.config.curriculum, {"group": group, "updates": updates, "decisions": 2}
    loaded = run.loaded
    practice = reinforcement.Practice(
        run.episodes,
        run.rows,
        Model(loaded.world, loaded.params, loaded.policy_params),
        run.simulator,
        run.bins,
        run.prompts,
        run.config.llm,
        run.config.planner.samples,
        dataclasses.replace(chosen, rl=dataclasses.replace(chosen.rl, **fewer)),
    )
    reinforcement.run(practice, model, out, run.config.curriculum.base)
    lines = _lines(out)[1:]
    seconds = statistics.median(line["step_time"] for line in lines)
    simulated = statistics.median(line["rewards/seconds_simulated/mean"] / line["step_time"] for line in lines)
    plain = {"rl_step_s": seconds, "simulator_share": simulated} if group == 8 else {}
    return plain | {f"rl_step_s_{group}": seconds, f"rl_answers_per_s_{group}": 2 * group / seconds}


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
