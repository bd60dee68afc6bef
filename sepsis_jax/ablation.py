"""What the stages of the curriculum changed: what became of patients, and what estimates and worlds expect."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pandas as pd

from sepsis_jax import pipeline
from sepsis_jax.config import Config
from sepsis_jax.curriculum.rewards import Model
from sepsis_jax.dynamics.protocol import Dynamics
from sepsis_jax.errors import InputError
from sepsis_jax.evaluation import agents, closed_loop, contenders, curriculum, foreseen, policies, policy_report
from sepsis_jax.evaluation.oracle import oracle

Numbers = dict[str, float | None]
Found = tuple[dict[str, pd.DataFrame], Numbers]
"""Tables for people by title, and the same numbers as one flat object."""


def lived(settings: Config, path: Path) -> Found:
    """The courses of the runs `policies.agents` in the patient simulator that made the cohort at `path`.

    Raises:
      InputError: no runs are named; the truth of the cohort is not known; runs of other worlds or stays.
    """
    folders, evaluation = settings.policies.agents, settings.evaluation
    if not folders:
        hint = "name their folders in order, e.g. --policies.agents '[RUN/base, RUN/dynamics]'"
        raise InputError("policies", field="agents", expected="runs to compare", found="none", hint=hint)
    runs = {folder.name: curriculum.Run.read(folder) for folder in folders}
    episodes, manifest, truth = pipeline.open_cohort(path)
    if truth is None:
        raise InputError(path, expected="the truth of a simulated cohort", found="none")
    tested = pipeline.part(episodes, "test", path)  # models were taught on others
    for folder in folders:
        agents.check_cohort(folder, tested)
    stage = closed_loop.true_stage(truth, episodes, manifest.action_bins)
    clinicians = contenders.true_clinicians(truth, manifest.action_bins).chances
    table = curriculum.table(runs, episodes, stage, clinicians, draws=evaluation.draws, seed=evaluation.seed)
    numbers: Numbers = {f"{name}_{key}": float(one) for name, row in table.iterrows() for key, one in row.items()}
    return {"Same patients, same luck; gained, saved: on the left": curriculum.wide(table)}, numbers


def on_record(settings: Config, path: Path, checkpoint: Path, report: pipeline.Progress) -> Found:
    """What is to be expected of the runs whose probabilities are at hand, at recorded decisions; nothing without.

    Off-policy estimates, and the gain that the world model at `checkpoint`, the held-out one (`policies.held_out`) and
    the truth expect: a policy that has gained by the errors of one of them does not gain in the others.
    """
    asked = tuple(folder for folder in settings.policies.agents if agents.asked(folder))
    if not asked:
        return {}, {}
    alone = dataclasses.replace(settings, policies=dataclasses.replace(settings.policies, names=(), agents=asked))
    episodes, manifest, truth = pipeline.open_cohort(path)
    inquiry = pipeline.inquiry(alone, pipeline.part(episodes, "test", path), episodes, manifest, checkpoint, report)
    judged = policies.tabulate(inquiry)
    loaded = pipeline.load(settings, path, checkpoint)

    def world(dynamics: Dynamics, params: Any) -> Model:
        return Model(dataclasses.replace(loaded.world, dynamics=dynamics), params, loaded.policy_params)

    worlds = {"world model": world(loaded.world.dynamics, loaded.params)}
    held_out = pipeline.load_held_out(settings, checkpoint, manifest, path)
    if held_out is not None:
        worlds["held-out model"] = world(*held_out)
    if truth is not None:
        worlds["truth"] = world(*oracle(truth, inquiry.tested, manifest.action_bins))
    gained = foreseen.gains(
        worlds,
        {folder.name: agents.read(folder).on_record(inquiry.tested) for folder in asked},
        inquiry.tested,
        samples=settings.planner.samples,
        horizon=settings.planner.horizon,
        draws=settings.evaluation.draws,
        seed=settings.evaluation.seed,
    )
    tables = {
        "Off-policy estimates (95 % by patient)": policy_report.value_table(judged),
        "Return that worlds expect of a decision, over the usual one; more than the row above": foreseen.wide(gained),
    }
    numbers = {
        f"{row['policy']}_{row['world']}_{name}": float(row[name])
        for row in gained.to_dict("records")
        for name in row
        if name not in ("policy", "world")
    }
    return tables, policy_report.flat(judged) | numbers
