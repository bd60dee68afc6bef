"""Run the agent over stays: `python agent_loop.py --config configs/demo.yaml [--agent.stays N] [--out FOLDER]`.

Every finished case is kept at once; a run that was stopped goes on with `--resume`. Two flags treat nobody: with
`--probabilities K` a language model is asked K times at every recorded decision, and how likely each action was goes to
OUT.probabilities, where `evaluate.py --what policies` finds it; with `--questions` it is asked who will
die in hospital and who will need a vasopressor, and its answers go to OUT.questions.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sepsis_jax import agent_run, cli, config, files
from sepsis_jax.agent import (
    dialogues,
    journal,
    loop,
    markdown,
    probabilities,
    published,
    questions,
    report,
    transcripts,
)
from sepsis_jax.agent.settings import LLMSettings
from sepsis_jax.agent_run import Run
from sepsis_jax.errors import InputError
from sepsis_jax.evaluation import intrinsic
from sepsis_jax.released_run import ReleasedFiles


@dataclasses.dataclass(frozen=True)
class Flags:
    """Flags of agent_loop.py.

    Attributes:
      episodes: Episodes store; default RUN/episodes.
      released_episodes: test episodes of the published system (a pickle) to run over instead; clinicians are then
        estimated from `episodes` or, where RUN has none, taken as uniform.
      scaler: their scaler_params_log.json.
      feature_config: their episode_feature_config.json; default beside it.
      checkpoint: world model; default RUN/world_model.
      out: folder for transcripts.jsonl, transcripts.md and report.html; default RUN/agent.
      serve: model (a folder, or a name on a hub) that vLLM serves here for as long as the run lasts.
      replicas: servers that share the cases.
      probabilities: dialogues at each recorded decision, to say how likely each action was; 0 treats instead.
      questions: ask two questions about each patient instead.
      dialogues: also write every decision to this file of JSON lines, as a model reads and writes it, to learn from.
      export: also write results in the layout of the published system to this JSON file.
      allow_remote_endpoint: send credentialed data to an LLM server on another machine. Data use agreements such as
        MIMIC's forbid it unless you have made sure of the contrary.
      resume: go on with an unfinished run of the same settings.
      retry_failed: run the failed cases of a finished or, with --resume, an unfinished run again.
    """

    episodes: Path | None = None
    released_episodes: Path | None = None
    scaler: Path | None = None
    feature_config: Path | None = None
    checkpoint: Path | None = None
    out: Path | None = None
    serve: str | None = None
    replicas: int = 1
    probabilities: int = 0
    questions: bool = False
    dialogues: Path | None = None
    export: Path | None = None
    allow_remote_endpoint: bool = False
    resume: bool = False
    retry_failed: bool = False

    def __post_init__(self) -> None:
        if self.out is not None and not self.out.name:
            raise InputError("--out", expected="a folder with a name", found=self.out)
        if self.probabilities < 0:
            raise InputError("--probabilities", expected="0, or a number of dialogues", found=self.probabilities)
        written = self.dialogues is not None or self.export is not None
        if sum([self.probabilities > 0, self.questions, written]) > 1:
            flags = "--probabilities, --questions, --dialogues or --export"
            raise InputError(flags, expected="one of them", found="several", hint="run the script for each")

    def folder(self, out: Path) -> Path:
        """Where results go, if courses go to `out`."""
        if self.probabilities:
            return probabilities.folder_of(out)
        return questions.folder_of(out) if self.questions else out


def main(argv: list[str]) -> None:
    settings, flags = config.load(argv, Flags, description="Recommend treatments for stays.")
    out = flags.folder(flags.out or settings.report)
    if (flags.probabilities or flags.questions) and settings.agent.backend != "llm":
        expected = "agent.backend llm, for --probabilities and --questions"
        raise InputError("agent", field="backend", expected=expected, found=settings.agent.backend)
    _check_places(out, flags)
    journal.check_open(out, resume=flags.resume)
    serving = agent_run.own_server(settings, flags.serve, flags.replicas)
    stays, checkpoint = flags.episodes or settings.episodes, flags.checkpoint or settings.checkpoint
    released = ReleasedFiles.of(flags.released_episodes, flags.scaler, flags.feature_config)
    run = agent_run.prepare(settings, stays, checkpoint, flags.allow_remote_endpoint, released)
    if released is not None:
        cli.console.print(f"Clinicians: {run.loaded.clinicians}.")
    who = run.identity(serving) | {"dialogues": flags.probabilities, "questions": flags.questions}
    with (
        journal.open_run(out, who, resume=flags.resume, retry_failed=flags.retry_failed) as log,
        run.served(serving, out.with_name(f"{out.name}.server")) as asked,
    ):
        open_rows = [row for row in run.rows if int(run.episodes.stay_id[row]) not in log.done]
        _work(run, flags, asked, open_rows, log.add)
        cases = [log.done[int(run.episodes.stay_id[row])] for row in run.rows]
    with files.replacing(out, transcripts.FILE, "results of this script") as folder:
        transcripts.write(folder / transcripts.FILE, cases)
        (folder / journal.RUN).write_text(json.dumps(who))
        _write(folder, cases, run, flags)
    journal.path_of(out).unlink(missing_ok=True)
    _write_beside(cases, run, flags)
    for kind, failed in transcripts.failures(cases).items():
        cli.console.print(f"Failed, {kind}: {len(failed)} (stays {', '.join(map(str, failed[:10]))})")
    cli.console.print(f"Research software, not for care. Results: {out}")
    if cases and all(one["failed"] is not None for one in cases):
        first = cases[0]["failed"]
        sys.exit(f"every case failed; the first: {first['kind']}, {first['detail']}")


def _check_places(out: Path, flags: Flags) -> None:
    """InputError unless everything can be written, each to a place of its own."""
    files.check_replaceable(out, transcripts.FILE, "results of this script")
    taken = {out.resolve(), journal.path_of(out).resolve()}
    for name, path in (("--export", flags.export), ("--dialogues", flags.dialogues)):
        if path is None:
            continue
        cli.check_file(path)
        if path.resolve() in taken or out.resolve() in path.resolve().parents:
            raise InputError(name, expected="a file outside the results", found=path, hint="choose another")
        taken.add(path.resolve())


def _work(run: Run, flags: Flags, asked: LLMSettings, rows: list[int], finished: Callable[[Any], None]) -> None:
    """What is left to do, each stay handed over as soon as it is done."""
    agent = run.config.agent
    about, many = (run.episodes, np.array(rows, int), run.simulator, run.bins), agent.concurrency
    if flags.probabilities:
        scorer, number = probabilities.Scorer(run.asking(asked), asked), flags.probabilities
        probabilities.run(*about, scorer, run.prompts, dialogues=number, concurrency=many, finished=finished)
    elif flags.questions:
        questions.run(*about, run.asking(asked), run.prompts, concurrency=many, finished=finished)
    else:
        loop.run(*about, run.backend(asked), agent, run.prompts, finished)


def _write(folder: Path, cases: list[dict[str, Any]], run: Run, flags: Flags) -> None:
    """Everything but the transcripts, and what the console says."""
    evaluation = run.config.evaluation
    if flags.probabilities:
        probabilities.write(folder / probabilities.FILE, cases, run.episodes.obs.shape[1])
        cli.console.print(f"{sum(len(one['probs']) for one in cases)} decisions of {len(cases)} stays")
    elif flags.questions:
        answered = questions.answered(run.episodes, cases)
        found = intrinsic.table(answered, draws=evaluation.draws, seed=evaluation.seed)
        found.to_csv(folder / "questions.csv")
        title = "Asked at the first decision, without a simulator (95 % by patient)"
        if not found.empty:
            cli.console.print(cli.table(intrinsic.wide(found), title=title))
    else:
        report.write(folder / report.FILE, cases, run.describe())
        markdown.write(folder / markdown.FILE, cases)
        cli.console.print(cli.table(transcripts.table(cases), title="Recommendations at the first decision"))


def _write_beside(cases: list[dict[str, Any]], run: Run, flags: Flags) -> None:
    """The files that flags ask for, outside the folder of results."""
    if flags.dialogues is not None:
        number = dialogues.write(flags.dialogues, cases, run.asking(run.config.llm), run.bins)
        cli.console.print(f"{number} dialogues: {flags.dialogues}")
    if flags.export is not None:
        number = published.write(flags.export, cases, run.episodes)
        left = f"{len(cases) - number} left out: failed, or of unknown 90-day mortality"
        cli.console.print(f"{number} cases as the published system writes them ({left}): {flags.export}")


if __name__ == "__main__":
    cli.run(main)
