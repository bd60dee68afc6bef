"""Run the agent over stays: `python agent_loop.py --config configs/demo.yaml [--agent.stays N] [--out FOLDER]`.

Every finished case is kept at once; a run that was stopped goes on with `--resume`.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from sepsis_jax import cli, config, files, pipeline
from sepsis_jax.agent import journal, llm, loop, report, transcripts
from sepsis_jax.agent.backends import Backend, PlannerBackend
from sepsis_jax.agent.prompting import Prompts
from sepsis_jax.config import Config
from sepsis_jax.pipeline import Loaded


@dataclasses.dataclass(frozen=True)
class Flags:
    """Flags of agent_loop.py.

    Attributes:
      episodes: Episodes store; default RUN/episodes.
      checkpoint: world model; default RUN/world_model.
      out: folder for transcripts.jsonl and report.html; default RUN/agent.
      allow_remote_endpoint: send credentialed data to an LLM server on another machine. Data use agreements such as
        MIMIC's forbid it unless you have made sure of the contrary.
      resume: go on with an unfinished run of the same settings.
      retry_failed: run the failed cases of a finished or, with --resume, an unfinished run again.
    """

    episodes: Path | None = None
    checkpoint: Path | None = None
    out: Path | None = None
    allow_remote_endpoint: bool = False
    resume: bool = False
    retry_failed: bool = False


def main(argv: list[str]) -> None:
    settings, flags = config.load(argv, Flags, description="Recommend treatments for stays.")
    out = flags.out or settings.report
    files.check_replaceable(out, transcripts.FILE, "a folder of transcripts")
    loaded = pipeline.load(settings, flags.episodes or settings.episodes, flags.checkpoint or settings.checkpoint)
    rows = loop.choose_stays(loaded.episodes, settings.agent)
    prompts = Prompts(settings.llm.prompts)
    backend = _backend(settings, loaded.manifest.credentialed and not flags.allow_remote_endpoint, prompts)
    bins, simulator = loaded.manifest.action_bins, pipeline.simulator(settings, loaded)
    who = _identity(settings, loaded, rows, flags)
    with journal.open_run(out, who, resume=flags.resume, retry_failed=flags.retry_failed) as log:
        open_rows = [row for row in rows if int(loaded.episodes.stay_id[row]) not in log.done]
        loop.run(loaded.episodes, open_rows, simulator, bins, backend, settings.agent, prompts, log.add)
        cases = [log.done[int(loaded.episodes.stay_id[row])] for row in rows]
    with files.replacing(out, transcripts.FILE, "a folder of transcripts") as folder:
        transcripts.write(folder / transcripts.FILE, cases)
        (folder / journal.RUN).write_text(json.dumps(who))
        report.write(folder / report.FILE, cases, pipeline.describe(settings, loaded.manifest))
    journal.path_of(out).unlink(missing_ok=True)
    cli.console.print(cli.table(transcripts.table(cases), title="Recommendations at the first decision"))
    for kind, stays in transcripts.failures(cases).items():
        cli.console.print(f"Failed, {kind}: {len(stays)} (stays {', '.join(map(str, stays[:10]))})")
    cli.console.print("Research software, not for care.")
    cli.console.print(f"Report: {out / report.FILE}")


def _identity(settings: Config, loaded: Loaded, rows: np.ndarray, flags: Flags) -> dict[str, Any]:
    """Whatever changes what the cases say; how fast and from where they are asked does not."""
    told = {
        "stays": loaded.episodes.take(rows).digest(),
        "agent": dataclasses.asdict(settings.agent) | {"concurrency": None, "stays": None},
        "planner": dataclasses.asdict(settings.planner) | {"block": None},
        "models": pipeline.identity(settings, flags.checkpoint or settings.checkpoint),
    }
    if settings.agent.backend == "llm":
        texts = settings.llm.prompts and files.digests(settings.llm.prompts)
        asked = {"base_urls": None, "timeout_s": None, "retries": None, "prompts": texts}
        told["llm"] = dataclasses.asdict(settings.llm) | asked
    return told


def _backend(settings: Config, private: bool, prompts: Prompts) -> Backend:
    if settings.agent.backend == "planner":
        return PlannerBackend(shield=settings.planner.shield)
    if private:
        llm.check_local(settings.llm)
    return llm.LLMBackend(settings.llm, prompts, samples=settings.planner.samples, seed=settings.agent.seed)


if __name__ == "__main__":
    cli.run(main)
