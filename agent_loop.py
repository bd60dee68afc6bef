"""Run the agent over stays: `python agent_loop.py --config configs/demo.yaml [--agent.stays N] [--out FOLDER]`.

Every finished case is kept at once; a run that was stopped goes on with `--resume`.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from sepsis_jax import agent_run, cli, config, files, pipeline
from sepsis_jax.agent import dialogues, journal, loop, report, transcripts
from sepsis_jax.agent.llm import LLMBackend
from sepsis_jax.agent.prompting import Prompts


@dataclasses.dataclass(frozen=True)
class Flags:
    """Flags of agent_loop.py.

    Attributes:
      episodes: Episodes store; default RUN/episodes.
      checkpoint: world model; default RUN/world_model.
      out: folder for transcripts.jsonl and report.html; default RUN/agent.
      serve: model (a folder, or a name on a hub) that vLLM serves here for as long as the run lasts.
      replicas: servers that share the cases.
      dialogues: also write every decision to this file of JSON lines, as a model reads and writes it, to learn from.
      allow_remote_endpoint: send credentialed data to an LLM server on another machine. Data use agreements such as
        MIMIC's forbid it unless you have made sure of the contrary.
      resume: go on with an unfinished run of the same settings.
      retry_failed: run the failed cases of a finished or, with --resume, an unfinished run again.
    """

    episodes: Path | None = None
    checkpoint: Path | None = None
    out: Path | None = None
    serve: str | None = None
    replicas: int = 1
    dialogues: Path | None = None
    allow_remote_endpoint: bool = False
    resume: bool = False
    retry_failed: bool = False


def main(argv: list[str]) -> None:
    settings, flags = config.load(argv, Flags, description="Recommend treatments for stays.")
    out, checkpoint = flags.out or settings.report, flags.checkpoint or settings.checkpoint
    files.check_replaceable(out, transcripts.FILE, "a folder of transcripts")
    journal.check_open(out, resume=flags.resume)
    stays = flags.episodes or settings.episodes
    loaded = pipeline.load(settings, stays, checkpoint)
    rows = loop.choose_stays(loaded.episodes, settings.agent)
    prompts, bins = Prompts(settings.llm.prompts), loaded.manifest.action_bins
    simulator = agent_run.simulator(settings, loaded, agent_run.truth(settings, loaded, stays))
    who = agent_run.identity(settings, loaded, rows, checkpoint, flags.serve)
    private = loaded.manifest.credentialed and not flags.allow_remote_endpoint
    longest = agent_run.Longest(settings, loaded, simulator, prompts, rows)
    logs = out.with_name(f"{out.name}.server")
    with (
        journal.open_run(out, who, resume=flags.resume, retry_failed=flags.retry_failed) as log,
        agent_run.served(settings, flags.serve, flags.replicas, private, logs, longest) as asked,
    ):
        backend = agent_run.backend(asked, settings, prompts)
        open_rows = [row for row in rows if int(loaded.episodes.stay_id[row]) not in log.done]
        loop.run(loaded.episodes, open_rows, simulator, bins, backend, settings.agent, prompts, log.add)
        cases = [log.done[int(loaded.episodes.stay_id[row])] for row in rows]
    with files.replacing(out, transcripts.FILE, "a folder of transcripts") as folder:
        transcripts.write(folder / transcripts.FILE, cases)
        (folder / journal.RUN).write_text(json.dumps(who))
        report.write(folder / report.FILE, cases, agent_run.describe(settings, loaded.manifest))
    journal.path_of(out).unlink(missing_ok=True)
    if flags.dialogues is not None:
        asking = LLMBackend(settings.llm, prompts, samples=settings.planner.samples, seed=settings.agent.seed)
        number = dialogues.write(flags.dialogues, cases, asking, bins)
        cli.console.print(f"{number} dialogues: {flags.dialogues}")
    cli.console.print(cli.table(transcripts.table(cases), title="Recommendations at the first decision"))
    for kind, failed in transcripts.failures(cases).items():
        cli.console.print(f"Failed, {kind}: {len(failed)} (stays {', '.join(map(str, failed[:10]))})")
    cli.console.print("Research software, not for care.")
    cli.console.print(f"Report: {out / report.FILE}")


if __name__ == "__main__":
    cli.run(main)
