"""Teach a language model: `python train_agent.py --stage data|dynamics|demonstrations|rl --config FILE`.

In the environment of `make llm-train`; the stage `data` needs none of it. Stages build on each other: each starts from
the model that the one before has left in RUN/curriculum, or from `--start`. A stage that was stopped goes on when it is
started again, one that is finished says so.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sepsis_jax import agent_run, cli, config, files
from sepsis_jax.agent import loop, transcripts
from sepsis_jax.agent.settings import LLMSettings
from sepsis_jax.agent_run import Run
from sepsis_jax.config import Config
from sepsis_jax.curriculum import data, demonstrations, dynamics, stage
from sepsis_jax.errors import InputError
from sepsis_jax.evaluation import agents


@dataclasses.dataclass(frozen=True)
class Flags:
    """Flags of train_agent.py.

    Attributes:
      stage: 'data' makes the dialogues of the next two, 'dynamics' and 'demonstrations' learn from them, 'rl' improves
        inside the world model.
      episodes: Episodes store; default RUN/episodes.
      checkpoint: world model; default RUN/world_model.
      teacher: folder of a run of agent_loop.py over train stays to learn from, instead of the planner's.
      start: model that the stage starts from; default that of the stage before, which for the first is made.
      out: folder of a stage that trains; default RUN/curriculum/STAGE.
    """

    stage: Literal["data", "dynamics", "demonstrations", "rl"] = "data"
    episodes: Path | None = None
    checkpoint: Path | None = None
    teacher: Path | None = None
    start: Path | None = None
    out: Path | None = None


BEFORE = {"demonstrations": "dynamics", "rl": "demonstrations"}
NOT_READ = {"data": ("out", "start"), "dynamics": ("teacher",), "demonstrations": ("teacher",), "rl": ("teacher",)}


def main(argv: list[str]) -> None:
    settings, flags = config.load(argv, Flags, description="Teach a language model.")
    settings = dataclasses.replace(settings, agent=dataclasses.replace(settings.agent, split="train", stays=0))
    for name in NOT_READ[flags.stage]:
        if getattr(flags, name) is not None:
            raise InputError(f"--stage {flags.stage}", expected=f"no --{name}", found=getattr(flags, name))
    stages = settings.run / "curriculum"
    out = flags.out or stages / flags.stage
    if flags.stage == "data":
        if stage.PROCESSES > 1:
            hint = "start it with python, not accelerate"
            raise InputError("--stage data", expected="one process", found=stage.PROCESSES, hint=hint)
        if flags.teacher is None:
            _check_planner(settings.llm)
        run = _run(settings, flags)
        with stage.working(out, _made_from(run, flags), leaves=f"demonstrations/{data.FILE}") as finished:
            if finished:
                cli.console.print(f"{out}: this stage is finished")
            else:
                _data(run, out, flags)
        return
    practised = _run(settings, flags) if flags.stage == "rl" else None
    start = flags.start or (stages / BEFORE[flags.stage] / stage.MODEL if flags.stage in BEFORE else None)
    with stage.working(out, _identity(settings, flags, stages, start, practised)) as finished:
        if finished:
            cli.console.print(f"{out}: this stage is finished")
            return
        _train(settings, stages, out, flags, start, practised)
    cli.console.print(f"Research software, not for care. Model: {out / stage.MODEL}")


def _run(settings: Config, flags: Flags) -> Run:
    stays, checkpoint = flags.episodes or settings.episodes, flags.checkpoint or settings.checkpoint
    return agent_run.prepare(settings, stays, checkpoint, allow_remote=True)  # nothing leaves: the model is here


def _check_planner(llm: LLMSettings) -> None:
    """InputError for dialogues that the planner cannot write."""
    hint = "or name another --teacher"
    if not llm.simulator:
        hint = "a model that is to learn without it: --curriculum.alone 1"
    for field, expected in {"simulator": True, "simulation": "distribution"}.items():
        if getattr(llm, field) != expected:
            wanted = f"{expected}, as the planner simulates"
            raise InputError("llm", field=field, expected=wanted, found=getattr(llm, field), hint=hint)


def _made_from(run: Run, flags: Flags) -> dict[str, Any]:
    """Whatever changes the examples."""
    chosen = run.config.curriculum
    return {
        "stage": "data",
        "examples": [chosen.dynamics.examples, chosen.demonstrations.examples],
        "settings": [chosen.stays, chosen.alone, chosen.seed],
        "teacher": flags.teacher and files.digests(flags.teacher).get(transcripts.FILE),
        "run": _asking(run).identity(None),
    }


_SERVED = ("model", "temperature", "top_p", "tool_parser", "serve_options")
"""How a language model is served, which changes nothing of what it learns."""


def _asking(run: Run) -> Run:
    """The same with a language model as the agent, so that what it is told counts."""
    plain = {name: getattr(LLMSettings(), name) for name in _SERVED}
    settings = _with_backend(run.config, "llm")
    return dataclasses.replace(
        run, config=dataclasses.replace(settings, llm=dataclasses.replace(settings.llm, **plain))
    )


def _with_backend(settings: Config, backend: Literal["planner", "llm"]) -> Config:
    return dataclasses.replace(settings, agent=dataclasses.replace(settings.agent, backend=backend))


def _identity(settings: Config, flags: Flags, stages: Path, start: Path | None, run: Run | None) -> dict[str, Any]:
    """Whatever changes what the stage ends with."""
    chosen = settings.curriculum
    if start is not None and flags.start is None and not start.is_dir():
        hint = f"finish --stage {BEFORE[flags.stage]} first, or name a model with --start"
        raise InputError(start, expected="the model of the stage before", found="no such folder", hint=hint)
    told = {
        "stage": flags.stage,
        "start": files.digests(start) if start is not None and start.is_dir() else start,
        "settings": [dataclasses.asdict(chosen.base), dataclasses.asdict(getattr(chosen, flags.stage)), chosen.seed],
    }
    if run is None:
        return told | {"examples": data.digest(stages / "data" / flags.stage)}
    return told | {"alone": chosen.alone, "practice": _asking(run).identity(None)}


def _data(run: Run, out: Path, flags: Flags) -> None:
    """The dialogues of stages I and II."""
    chosen, asking = run.config.curriculum, run.asking(run.config.llm)
    about = {"cohort": run.loaded.manifest.source, "split": "train", "seed": chosen.seed}
    source = dynamics.Source(run.episodes, run.rows, run.simulator, run.bins, run.prompts)
    made = dynamics.examples(source, chosen.dynamics.examples, chosen.seed)
    number = data.write(out / "dynamics", made, about)
    cli.console.print(f"{number} questions about courses: {out / 'dynamics'}")
    refused: Counter[str] = Counter()
    kept = list(demonstrations.accepted(_cases(run, flags), asking, run.bins, refused))
    draw = np.random.default_rng(chosen.seed)
    some = demonstrations.lessons(kept, chosen.demonstrations.examples, draw)
    unaided = run.asking(dataclasses.replace(run.config.llm, simulator=False))
    for at in np.flatnonzero(draw.random(len(some)) < chosen.alone):
        some[at] = demonstrations.alone(some[at], unaided, run.bins)
    counts = {f"decisions {reason}": refused[reason] for reason in demonstrations.REASONS}
    about |= {"teacher": flags.teacher or "planner", **counts}
    number = data.write(out / "demonstrations", some, about)
    said = ", ".join(f"{reason} {refused[reason]}" for reason in demonstrations.REASONS)
    cli.console.print(f"{number} decisions of a teacher ({said}): {out / 'demonstrations'}")


def _cases(run: Run, flags: Flags) -> list[dict[str, Any]]:
    if flags.teacher is not None:
        taught = demonstrations.taught(flags.teacher, np.asarray(run.episodes.stay_id)[run.rows])
        agents.check_cohort(flags.teacher, run.episodes.take(run.rows))
        return taught
    stays = run.config.curriculum.stays or None
    backend = dataclasses.replace(run, config=_with_backend(run.config, "planner")).backend(run.config.llm)
    return loop.run(run.episodes, run.rows[:stays], run.simulator, run.bins, backend, run.config.agent, run.prompts)


def _train(settings: Config, stages: Path, out: Path, flags: Flags, start: Path | None, run: Run | None) -> None:
    """One stage; what it needs is imported here, since it lives in an environment of its own."""
    try:
        from sepsis_jax.curriculum import models, progress, reinforcement, tuning
        from sepsis_jax.curriculum.rewards import Model
    except ImportError as error:
        hint = "make llm-train, then run this script with .venv-train/bin/python"
        raise InputError("train_agent.py", expected="TRL and PyTorch", found=str(error), hint=hint) from error
    progress.check_devices()
    chosen = settings.curriculum
    if start is None:
        start = out / "base"
        if stage.leads() and not (start / "config.json").exists():
            asked, decided = (data.read(stages / "data" / kind) for kind in ("dynamics", "demonstrations"))
            models.make(chosen.base, asked[:: max(1, len(asked) // len(decided))] + decided, start, chosen.seed)
        stage.agreed(True)  # the others wait for it
    if run is None:
        tuned = chosen.dynamics if flags.stage == "dynamics" else chosen.demonstrations
        tuning.run(data.read(stages / "data" / flags.stage), start, out, chosen.base, tuned, chosen.seed)
        return
    practice = reinforcement.Practice(
        run.episodes,
        run.rows,
        Model(run.loaded.world, run.loaded.params, run.loaded.policy_params),
        run.simulator,
        run.bins,
        run.prompts,
        settings.llm,
        settings.planner.samples,
        chosen,
    )
    reinforcement.run(practice, start, out, chosen.base)


if __name__ == "__main__":
    cli.run(main)
