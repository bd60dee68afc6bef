"""Evaluate: `python evaluate.py --config configs/demo.yaml [--what world-model|safety|cohort|all] [--json FILE]`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import pandas as pd

from sepsis_jax import cli, config, pipeline
from sepsis_jax.data import store
from sepsis_jax.evaluation import cohort, safety, world_model


@dataclasses.dataclass(frozen=True)
class Flags:
    """Flags of evaluate.py.

    Attributes:
      what: which tables.
      episodes: Episodes store; default RUN/episodes.
      checkpoint: world model; default RUN/world_model.
      json: file for the same numbers as one flat object.
    """

    what: Literal["all", "cohort", "world-model", "safety"] = "all"
    episodes: Path | None = None
    checkpoint: Path | None = None
    json: Path | None = None


def main(argv: list[str]) -> None:
    settings, flags = config.load(argv, Flags, description="Print the tables of a cohort, world model and policies.")
    evaluation = settings.evaluation
    numbers: dict[str, float | None] = {}
    path = flags.episodes or settings.episodes
    if flags.what in ("all", "cohort"):
        episodes, _ = store.load(path)
        cli.console.print(cli.table(cohort.table_one(episodes), title="Table 1: median (quartiles) or n (%)"))
        if flags.what == "cohort":
            cli.console.print(cli.table(cohort.feature_table(episodes), title="Features, measured entries"))
            cli.console.print(cli.table(cohort.action_shares(episodes), title="Share of each action"))
        numbers |= cohort.flat(episodes)
    if flags.what != "cohort":
        loaded = pipeline.load(settings, path, flags.checkpoint or settings.checkpoint)
        part = pipeline.part(loaded.episodes, settings.evaluation.split, path)
    if flags.what in ("all", "world-model"):
        figures = world_model.evaluate(
            loaded.model, loaded.params, part, num_bootstrap=evaluation.draws, seed=evaluation.seed
        )
        title = f"World model on {part.num_stays} {evaluation.split} stays (95 % interval by patient)"
        cli.console.print(cli.table(pd.DataFrame(figures.rows).set_index("metric"), title=title))
        numbers |= figures.metrics
    if flags.what in ("all", "safety"):
        some = part.take(slice(evaluation.safety_stays or None))
        policies = pipeline.policies_on_record(settings, loaded, some)
        bins, draws, seed = loaded.manifest.action_bins, evaluation.draws, evaluation.seed
        rules = safety.safety_table(some, policies, bins, draws=draws, seed=seed)
        cli.console.print(
            cli.table(
                safety.wide(rules), title=f"Rule violations on {some.num_stays} stays, share of steps at risk (95 %)"
            )
        )
        cli.console.print(safety.footnote())
        numbers |= safety.flat(rules)
    if flags.json is not None:
        cli.write_json(flags.json, numbers)


if __name__ == "__main__":
    cli.run(main)
