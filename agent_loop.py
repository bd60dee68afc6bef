"""Run the agent over stays: `python agent_loop.py --config configs/demo.yaml [--agent.stays N] [--out FOLDER]`.

Every finished case is kept at once; a run that was stopped goes on with `--resume`. With `--probabilities K` nobody is
treated: a language model is asked K times at every recorded decision, and how likely it was to prescribe each action
goes to OUT.probabilities, where `evaluate.py --what policies` finds it.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from sepsis_jax import agent_run, cli, config, files
from sepsis_jax.agent import dialogues, journal, loop, probabilities, report, transcripts
from sepsis_jax.agent_run import Run
from sepsis_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Flags:
    """Flags of agent_loop.py.

    Attributes:
      episodes: Episodes store; default RUN/episodes.
      checkpoint: world model; default RUN/world_model.
      out: folder for transcripts.jsonl and report.html; default RUN/agent.
      serve: model (a folder, or a name on a hub) that vLLM serves here for as long as the run lasts.
      replicas: servers that share the cases.
      probabilities: dialogues at each recorded decision, to say how likely each action was; 0 treats instead.
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
    probabilities: int = 0
    dialogues: Path | None = None
    allow_remote_endpoint: bool = False
    resume: bool = False
    retry_failed: bool = False

    def __post_init__(self) -> None:
        if self.probabilities < 0:
            raise InputError("--probabilities", expected="0, or a number of dialogues", found=self.probabilities)
        if self.probabilities and self.dialogues is not None:
            raise InputError("--dialogues", expected="no --probabilities, which prescribes nothing", found="both")


def main(argv: list[str]) -> None:
    settings, flags = config.load(argv, Flags, description="Recommend treatments for stays.")
    out = flags.out or settings.report
    if flags.probabilities:
        if settings.agent.backend != "llm":
            raise InputError("--probabilities", expected="agent.backend llm", found=settings.agent.backend)
        out = probabilities.folder_of(out)
    files.check_replaceable(out, transcripts.FILE, "results of this script")
    journal.check_open(out, resume=flags.resume)
    stays, checkpoint = flags.episodes or settings.episodes, flags.checkpoint or settings.checkpoint
    run = agent_run.prepare(settings, stays, checkpoint, flags.allow_remote_endpoint)
    who = run.identity(flags.serve) | {"dialogues": flags.probabilities}
    with (
        journal.open_run(out, who, resume=flags.resume, retry_failed=flags.retry_failed) as log,
        run.served(flags.serve, flags.replicas, out.with_name(f"{out.name}.server")) as asked,
    ):
        open_rows = [row for row in run.rows if int(run.episodes.stay_id[row]) not in log.done]
        about = (run.episodes, open_rows, run.simulator, run.bins)
        if flags.probabilities:
            scorer = probabilities.Scorer(run.asking(asked), asked)
            number, many = flags.probabilities, settings.agent.concurrency
            probabilities.run(*about, scorer, run.prompts, dialogues=number, concurrency=many, finished=log.add)
        else:
            loop.run(*about, run.backend(asked), settings.agent, run.prompts, log.add)
        cases = [log.done[int(run.episodes.stay_id[row])] for row in run.rows]
    with files.replacing(out, transcripts.FILE, "results of this script") as folder:
        transcripts.write(folder / transcripts.FILE, cases)
        (folder / journal.RUN).write_text(json.dumps(who))
        (_write_probabilities if flags.probabilities else _write_courses)(folder, cases, run)
    journal.path_of(out).unlink(missing_ok=True)
    if flags.dialogues is not None:
        number = dialogues.write(flags.dialogues, cases, run.asking(settings.llm), run.bins)
        cli.console.print(f"{number} dialogues: {flags.dialogues}")
    for kind, failed in transcripts.failures(cases).items():
        cli.console.print(f"Failed, {kind}: {len(failed)} (stays {', '.join(map(str, failed[:10]))})")
    cli.console.print(f"Research software, not for care. Results: {out}")


def _write_courses(folder: Path, cases: list[dict[str, Any]], run: Run) -> None:
    report.write(folder / report.FILE, cases, run.describe())
    cli.console.print(cli.table(transcripts.table(cases), title="Recommendations at the first decision"))


def _write_probabilities(folder: Path, cases: list[dict[str, Any]], run: Run) -> None:
    probabilities.write(folder / probabilities.FILE, cases, run.episodes.obs.shape[1])
    cli.console.print(f"{sum(len(one['probs']) for one in cases)} decisions of {len(cases)} stays")


if __name__ == "__main__":
    cli.run(main)
