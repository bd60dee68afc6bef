"""Run the agent over stays: `python agent_loop.py --config configs/demo.yaml [--agent.stays N] [--out FOLDER]`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from sepsis_jax import cli, config, files, pipeline
from sepsis_jax.agent import loop, report, transcripts
from sepsis_jax.agent.backends import PlannerBackend


@dataclasses.dataclass(frozen=True)
class Flags:
    """Flags of agent_loop.py.

    Attributes:
      episodes: Episodes store; default RUN/episodes.
      checkpoint: world model; default RUN/world_model.
      out: folder for transcripts.jsonl and report.html; default RUN/agent.
    """

    episodes: Path | None = None
    checkpoint: Path | None = None
    out: Path | None = None


def main(argv: list[str]) -> None:
    settings, flags = config.load(argv, Flags, description="Recommend treatments for stays.")
    out = flags.out or settings.report
    files.check_replaceable(out, transcripts.FILE, "a folder of transcripts")
    loaded = pipeline.load(settings, flags.episodes or settings.episodes, flags.checkpoint or settings.checkpoint)
    rows = loop.choose_stays(loaded.episodes, settings.agent)
    backend = PlannerBackend(shield=settings.planner.shield)
    bins = loaded.manifest.action_bins
    cases = loop.run(loaded.episodes, rows, pipeline.simulator(settings, loaded), bins, backend, settings.agent)
    with files.replacing(out, transcripts.FILE, "a folder of transcripts") as folder:
        transcripts.write(folder / transcripts.FILE, cases)
        report.write(folder / report.FILE, cases, pipeline.describe(settings, loaded.manifest))
    cli.console.print(cli.table(transcripts.table(cases), title="Recommendations at the first decision"))
    cli.console.print("Research software, not for care.")
    cli.console.print(f"Report: {out / report.FILE}")


if __name__ == "__main__":
    cli.run(main)
