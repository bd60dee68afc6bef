"""Teach a language model: `python train_agent.py --stage data|dynamics|demonstrations|rl --config FILE`.

In the environment of `make llm-train`; the stage `data` needs none of it. Stages build on each other: each starts from
the model that the one before has left in RUN/curriculum, or from `--start`. A stage that was stopped goes on when it is
started again, one that is finished says so.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sepsis_jax import agent_run, cli, config, pipeline
from sepsis_jax.agent import loop, transcripts
from sepsis_jax.agent_run import Run
from sepsis_jax.config import Config
from sepsis_jax.curriculum import data, demonstrations, dynamics
from sepsis_jax.errors import InputError

DONE = "done.json"


@dataclasses.dataclass(frozen=True)
class Flags:
    """Flags of train_agent.py.

    Attributes:
      stage: 'data' makes the dialogues of the next two, 'dynamics' and 'demonstrations' learn from them, 'rl' improves
        inside the world model.
      episodes: Episodes store; default RUN/episodes. checkpoint: world model; default RUN/world_model.
      teacher: folder of a run of agent_loop.py over train stays to learn from, instead of the planner's.
      start: model that the stage starts from; default that of the stage before.
      out: folder of the stage; default RUN/curriculum/STAGE.
    """

    stage: Literal["data", "dynamics", "demonstrations", "rl"] = "data"
    episodes: Path | None = None
    checkpoint: Path | None = None
    teacher: Path | None = None
    start: Path | None = None
    out: Path | None = None


BEFORE = {"dynamics": "base", "demonstrations": "dynamics", "rl": "demonstrations"}


def main(argv: list[str]) -> None:
    settings, flags = config.load(argv, Flags, description="Teach a language model.")
    settings = dataclasses.replace(settings, agent=dataclasses.replace(settings.agent, split="train", stays=0))
    stages = settings.run / "curriculum"
    out = flags.out or stages / flags.stage
    if flags.stage == "data":
        _data(_run(settings, flags), stages, flags)
        return
    told = json.loads(json.dumps(_identity(settings, flags, stages), default=str))
    if _done(out, told):
        cli.console.print(f"{out}: this stage is finished")
        return
    _train(settings, stages, out, flags)
    (out / DONE).write_text(json.dumps(told))
    cli.console.print(f"Research software, not for care. Model: {out / 'model'}")


def _run(settings: Config, flags: Flags) -> Run:
    stays, checkpoint = flags.episodes or settings.episodes, flags.checkpoint or settings.checkpoint
    return agent_run.prepare(settings, stays, checkpoint, allow_remote=True)  # nothing leaves: the model is here


def _identity(settings: Config, flags: Flags, stages: Path) -> dict[str, Any]:
    """Whatever changes what the stage ends with."""
    chosen = settings.curriculum
    told = {
        "stage": flags.stage,
        "start": flags.start,
        "settings": [dataclasses.asdict(chosen.base), dataclasses.asdict(getattr(chosen, flags.stage)), chosen.seed],
    }
    if flags.stage != "rl":
        return told | {"examples": data.digest(stages / "data" / flags.stage)}
    models = pipeline.identity(settings, flags.checkpoint or settings.checkpoint)
    return told | {"models": models, "llm": dataclasses.asdict(settings.llm)}


def _done(out: Path, told: Any) -> bool:
    """Whether the stage is finished; an unfinished or finished one of other settings is refused."""
    file = out / DONE
    begun = out / "begun.json"
    for path in (file, begun):
        if path.is_file() and json.loads(path.read_text()) != told:
            raise InputError(out, expected="a stage of these settings", found="one of others", hint="use another --out")
    if not file.is_file():
        out.mkdir(parents=True, exist_ok=True)
        begun.write_text(json.dumps(told))
    return file.is_file()


def _data(run: Run, stages: Path, flags: Flags) -> None:
    """The dialogues of stages I and II."""
    chosen, asking = run.config.curriculum, run.asking(run.config.llm)
    about = {"cohort": run.loaded.manifest.source, "split": "train", "seed": chosen.seed}
    source = dynamics.Source(run.episodes, run.rows, run.simulator, run.bins, run.prompts)
    made = dynamics.examples(source, chosen.dynamics.examples, chosen.seed)
    number = data.write(stages / "data" / "dynamics", made, about)
    cli.console.print(f"{number} questions about courses: {stages / 'data' / 'dynamics'}")
    refused: Counter[str] = Counter()
    kept = list(demonstrations.accepted(_cases(run, flags), asking, run.bins, refused))
    draw = np.random.default_rng(chosen.seed)
    some = [kept[at] for at in draw.permutation(len(kept))[: chosen.demonstrations.examples]]
    unaided = run.asking(dataclasses.replace(run.config.llm, simulator=False))
    for at in np.flatnonzero(draw.random(len(some)) < chosen.alone):
        some[at] = demonstrations.alone(some[at], unaided, run.bins)
    number = data.write(stages / "data" / "demonstrations", some, about | {"teacher": flags.teacher or "planner"})
    counts = ", ".join(f"{reason} {refused[reason]}" for reason in demonstrations.REASONS)
    cli.console.print(f"{number} decisions of a teacher ({counts}): {stages / 'data' / 'demonstrations'}")


def _cases(run: Run, flags: Flags) -> list[dict[str, Any]]:
    if flags.teacher is not None:
        return transcripts.read(flags.teacher / transcripts.FILE)
    stays = run.config.curriculum.stays or None
    planner = dataclasses.replace(run.config, agent=dataclasses.replace(run.config.agent, backend="planner"))
    backend = dataclasses.replace(run, config=planner).backend(run.config.llm)
    return loop.run(run.episodes, run.rows[:stays], run.simulator, run.bins, backend, run.config.agent, run.prompts)


def _train(settings: Config, stages: Path, out: Path, flags: Flags) -> None:
    """One stage; what it needs is imported here, since it lives in an environment of its own."""
    try:
        from sepsis_jax.curriculum import models, reinforcement, tuning
        from sepsis_jax.curriculum.rewards import Model
    except ImportError as error:
        hint = "make llm-train, then run this script with .venv-train/bin/python"
        raise InputError("train_agent.py", expected="TRL and PyTorch", found=str(error), hint=hint) from error
    chosen = settings.curriculum
    start = flags.start or stages / BEFORE[flags.stage] / ("" if flags.stage == "dynamics" else "model")
    if flags.start is None and flags.stage == "dynamics" and not (start / "config.json").exists():
        asked, decided = (data.read(stages / "data" / kind) for kind in ("dynamics", "demonstrations"))
        models.make(chosen.base, asked[:: max(1, len(asked) // max(1, len(decided)))] + decided, start, chosen.seed)
    if flags.stage != "rl":
        tuned = chosen.dynamics if flags.stage == "dynamics" else chosen.demonstrations
        tuning.run(data.read(stages / "data" / flags.stage), start, out, chosen.base, tuned, chosen.seed)
        return
    run = _run(settings, flags)
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
