"""Evaluate: `python evaluate.py --config configs/demo.yaml [--what world-model|safety|cohort|policies|...]`.

With evaluation.fresh_patients (configs/embedded.yaml) the packaged world models are scored on patients drawn anew.
`--case ID` shows one stay, recorded against predicted. Four are not part of `all`: `--what policies` judges policies by
off-policy evaluation (docs/evaluation.md), and where the truth is known by it; `--what ranking` asks on several
simulated cohorts whether estimates order policies rightly; `--what planner` plays policies in the true simulator;
`--what curriculum` compares runs of language models, `policies.agents`, in the order given (docs/curriculum.md).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import jax

from sepsis_jax import ablation, checkpoints, cli, config, files, pipeline
from sepsis_jax.clinical.reward import PUBLISHED
from sepsis_jax.config import Config
from sepsis_jax.data import store
from sepsis_jax.data.episodes import Episodes
from sepsis_jax.data.store import Manifest
from sepsis_jax.dynamics.patient.truth import Truth
from sepsis_jax.dynamics.worldmodel import sharding
from sepsis_jax.dynamics.worldmodel.model import WorldModel
from sepsis_jax.errors import InputError
from sepsis_jax.evaluation import (
    case_view,
    closed_loop,
    cohort,
    contenders,
    folds,
    groups,
    policies,
    policy_report,
    policy_table,
    ranking,
    safety,
    world_model,
)
from sepsis_jax.evaluation.discrimination import calibration
from sepsis_jax.evaluation.world_model import MODEL, Scored
from sepsis_jax.policies import clinician
from sepsis_jax.policies.clinician import Clinician
from sepsis_jax.simulation.course import World

Numbers = dict[str, float | None]
ALL = ("cohort", "world-model", "safety")
READS: dict[str, tuple[str, ...]] = {
    "all": ("episodes", "checkpoint", "compare", "by"),
    "cohort": ("episodes",),
    "world-model": ("episodes", "checkpoint", "compare", "by", "folds"),
    "safety": ("episodes", "checkpoint"),
    "policies": ("episodes", "checkpoint", "by", "out"),
    "ranking": (),
    "planner": ("episodes", "checkpoint"),
    "curriculum": ("episodes", "checkpoint"),
}
"""Which flags each table reads; others are refused."""


@dataclasses.dataclass(frozen=True)
class Flags:
    """Flags of evaluate.py.

    Attributes:
      what: which tables; `all` leaves out `policies`, `ranking`, `planner` and `curriculum`.
      episodes: Episodes store; for the cohort, the world model and --case also a folder of released files; default
        RUN/episodes.
      checkpoint: world model; default RUN/world_model, with fresh patients the packaged one.
      compare: another world model on the same stays, with paired differences; with fresh patients the packaged
        published one.
      by: comma-separated groups: sex, age_band, charlson_band, ventilated, any_vasopressor.
      case: stay_id of one stay to show instead of tables.
      steps: 4-h steps of that stay to forecast.
      folds: train and test in that many folds by patient instead of using a checkpoint; 0 does not.
      out: folder for the policy table as CSV, Markdown, LaTeX and figures; default RUN/policies.
      json: file for the same numbers as one flat object.
    """

    what: Literal["all", "cohort", "world-model", "safety", "policies", "ranking", "planner", "curriculum"] = "all"
    episodes: Path | None = None
    checkpoint: Path | None = None
    compare: Path | None = None
    by: str | None = None
    case: int | None = None
    steps: int = 5
    folds: int = 0
    out: Path | None = None
    json: Path | None = None

    def __post_init__(self) -> None:
        _ = groups.parse(self.by) if self.by is not None else ()  # raises for an unknown one
        if self.steps < 1:
            raise InputError("--steps", expected="a positive number", found=self.steps)
        if self.folds < 0 or self.folds == 1:
            raise InputError("--folds", expected="0, or 2 and more", found=self.folds)
        where, reads = f"--what {self.what}", READS[self.what]
        if self.case is not None:
            where, reads = "--case", ("episodes", "checkpoint", "case", "steps")
        elif self.folds and self.what == "world-model":
            where, reads = "--folds", ("episodes", "by", "folds")
        for one in dataclasses.fields(self):
            if one.name not in ("what", "json", *reads) and getattr(self, one.name) != one.default:
                expected = f"no flags but {', '.join(f'--{name}' for name in reads) or '--json'}"
                raise InputError(where, expected=expected, found=f"--{one.name}")


def main(argv: list[str]) -> None:
    settings, flags = config.load(argv, Flags, description="Print the tables of a cohort, world model and policies.")
    numbers: Numbers = {}
    if flags.json is not None:
        cli.check_file(flags.json)
    if flags.case is not None:
        numbers = _case(settings, flags, flags.case)
        _write(flags, numbers)
        return
    if flags.what == "all":
        WorldModel.from_checkpoint(flags.checkpoint or settings.checkpoint)  # its last part needs one: said at once
    if flags.what in ("policies", "ranking", "planner"):
        sharding.one_device_a_core()
    for part in ALL if flags.what == "all" else (flags.what,):
        numbers |= PARTS[part](settings, flags)
        _write(flags, numbers)  # what follows may fail


def _write(flags: Flags, numbers: Numbers) -> None:
    if flags.json is not None:
        cli.write_json(flags.json, numbers)


def _fresh(settings: Config, flags: Flags) -> bool:
    """Whether test patients are drawn anew."""
    return settings.evaluation.fresh_patients > 0 and settings.cohort.source == "simulator" and flags.episodes is None


def _cohort(settings: Config, flags: Flags) -> Numbers:
    episodes, *_ = pipeline.open_cohort(flags.episodes or settings.episodes)
    cli.console.print(cli.table(cohort.table_one(episodes), title="Table 1: median (quartiles) or n (%)"))
    if flags.what == "cohort":
        cli.console.print(cli.table(cohort.feature_table(episodes), title="Features, measured entries"))
        cli.console.print(cli.table(cohort.action_shares(episodes), title="Share of each action"))
    return cohort.flat(episodes)


def _world_model(settings: Config, flags: Flags) -> Numbers:
    evaluation = settings.evaluation
    if flags.folds:
        episodes, _ = store.load(flags.episodes or settings.episodes)
        scored, tested = folds.cross_validate(settings.world_model, episodes, evaluation, flags.folds)
        return _print_world_model(settings, flags, scored, tested, f"{flags.folds}-fold cross-validation")
    tested, known, manifest, truth = _stays(settings, flags)
    fresh = _fresh(settings, flags)
    cohort_name = "the embedded cohort" if fresh else flags.episodes or settings.episodes
    path = flags.checkpoint or (checkpoints.CARRY if fresh else settings.checkpoint)
    model, params = pipeline.load_model(path, manifest, cohort_name)
    other = flags.compare or (checkpoints.PUBLISHED if fresh else None)
    compared = None if other is None else pipeline.load_model(other, manifest, cohort_name)
    bins = manifest.action_bins
    scored = world_model.score(
        model, params, tested, evaluation, compared=compared, train=known.subset("train"), truth=truth, bins=bins
    )
    kind = "freshly drawn" if fresh else evaluation.split
    return _print_world_model(settings, flags, scored, tested, f"{path} on {tested.num_stays} {kind} stays")


def _stays(settings: Config, flags: Flags) -> tuple[Episodes, Episodes, Manifest, Truth | None]:
    """Stays to test on, the cohort whose train split estimates are fitted on, their manifest and truth."""
    if _fresh(settings, flags):
        tested, manifest, truth = pipeline.fresh_patients(settings, settings.evaluation.fresh_patients)
        return tested, pipeline.simulated(settings), manifest, truth
    path = flags.episodes or settings.episodes
    episodes, manifest, known = pipeline.open_cohort(path)
    return pipeline.part(episodes, settings.evaluation.split, path), episodes, manifest, known


def _print_world_model(settings: Config, flags: Flags, scored: Scored, tested: Episodes, title: str) -> Numbers:
    evaluation = settings.evaluation
    figures = world_model.tabulate(scored, evaluation)
    details = ("effect_", "coverage80_")
    summary = ("coverage80_min", "coverage80_max", "coverage80_8h", "coverage80_24h", "coverage80_48h")
    main = [row for row in figures.rows if not row["metric"].startswith(details) or row["metric"].startswith(summary)]
    cli.console.print(cli.table(world_model.wide(main), title=f"{title} (95 % interval by patient)"))
    if scored.effects:
        effects = world_model.wide_effects(figures.rows)
        cli.console.print(cli.table(effects, title="Effects of actions, predicted against true; likely: over 1 %"))
    for name, given in (("mortality", ", given that the stay ends there"), ("mortality_running", "")):
        labelled = scored.scores[MODEL].labelled[name]
        if labelled.label.size:
            curve = calibration(labelled.label, labelled.chance)
            cli.console.print(cli.table(curve, title=f"90-day mortality at the last decision{given}, by tenths"))
    numbers = dict(figures.metrics)
    if flags.by is not None:
        found = groups.group_rows(scored.scores[MODEL], tested, groups.parse(flags.by), evaluation)
        cli.console.print(cli.table(groups.wide(found), title="Groups (bias: mean predicted minus observed)"))
        numbers |= groups.flat(found)
    return numbers


def _safety(settings: Config, flags: Flags) -> Numbers:
    evaluation, path = settings.evaluation, flags.episodes or settings.episodes
    loaded = pipeline.load(settings, path, flags.checkpoint or settings.checkpoint)
    some = pipeline.part(loaded.episodes, evaluation.split, path).take(slice(evaluation.safety_stays or None))
    policies = pipeline.policies_on_record(settings, loaded, some)
    bins, draws, seed = loaded.manifest.action_bins, evaluation.draws, evaluation.seed
    rules = safety.safety_table(some, policies, bins, draws=draws, seed=seed)
    title = f"Rule violations on {some.num_stays} stays, share of steps at risk (95 %)"
    cli.console.print(cli.table(safety.wide(rules), title=title))
    cli.console.print(safety.footnote())
    return safety.flat(rules)


def _planner(settings: Config, flags: Flags) -> Numbers:
    evaluation, fresh, path = settings.evaluation, _fresh(settings, flags), flags.episodes or settings.episodes
    tested, known, manifest, truth = _stays(settings, flags)
    if truth is None:
        hint = "policies can only be played where the truth is known: a cohort of the embedded simulator"
        raise InputError(path, expected="the truth of a simulated cohort", found="none", hint=hint)
    checkpoint = flags.checkpoint or (checkpoints.CARRY if fresh else settings.checkpoint)
    model, params = pipeline.load_model(checkpoint, manifest, "the embedded cohort" if fresh else path)
    estimate = clinician.fit(settings.clinician, known, params.scaler, jax.random.key(settings.agent.seed))
    world = World(model, manifest.action_bins, PUBLISHED, Clinician(settings.clinician))
    number, seed = min(evaluation.planner_patients, tested.num_stays), evaluation.seed
    everyone = contenders.contenders(world, params, estimate, truth, settings.planner, patients=number, seed=seed)
    stays = [tested.digest(), known.digest(), dataclasses.asdict(truth.knobs)]
    depends = [manifest.source_version, evaluation.split, seed, *stays, pipeline.identity(settings, checkpoint)]
    stage = closed_loop.true_stage(truth, tested, manifest.action_bins, PUBLISHED)
    results = contenders.play_all(everyone, tested, stage, settings.run / "planner", depends)
    planners = {name: one.planner for name, one in everyone.items() if one.planner is not None}
    found = policy_table.tabulate(results, planners, tested.subject_id, draws=evaluation.draws, seed=seed)
    title = "90-day mortality in the true simulator; saved: points fewer than clinicians, same patients and luck (95 %)"
    cli.console.print(cli.table(policy_table.wide(found), title=title))
    cli.console.print(f"Finished policies are kept in {settings.run / 'planner'}. Research software, not for care.")
    return dict(policy_table.flat(found))


def _policies(settings: Config, flags: Flags) -> Numbers:
    evaluation, path = settings.evaluation, flags.episodes or settings.episodes
    fresh, wanted, out = _fresh(settings, flags), settings.policies, flags.out or settings.run / "policies"
    if not fresh and evaluation.split != "test":
        expected = "test, the only stays that teach neither policies nor values"
        raise InputError("evaluation", field="split", expected=expected, found=evaluation.split)
    files.check_writable(out / "policies.csv")
    tested, known, manifest, truth = _stays(settings, flags)
    checkpoint = flags.checkpoint or (checkpoints.CARRY if fresh else settings.checkpoint)
    held_out, judge = None, pipeline.load_held_out(settings, checkpoint, manifest, path)
    if judge is not None:
        stage_world = World(judge[0], manifest.action_bins, wanted.to_pay())
        held_out = closed_loop.Stage(stage_world, judge[1], jax.random.key(evaluation.seed + 1))
    asked = pipeline.inquiry(settings, tested, known, manifest, checkpoint, _note)
    real = None
    if truth is not None:
        real = closed_loop.true_stage(truth, asked.tested, manifest.action_bins, asked.reward), truth
    by = groups.parse(flags.by) if flags.by is not None else ()
    found = policies.tabulate(asked, by=by, truth=real, held_out=held_out)
    for title, table in policy_report.tables(found).items():
        cli.console.print(cli.table(table, title=title))
    unknown = tested.num_stays - policies.known_outcomes(tested, asked.reward).num_stays
    footer = (
        f"{asked.tested.num_stays} stays ({unknown} of unknown outcome left out); behaviour {wanted.behaviour}, "
        f"softening {wanted.softening:g}, reward {wanted.reward}, guideline penalty {wanted.guideline_penalty:g}. "
        f"{safety.footnote()}"
    )
    written = policy_report.write(found, out, footer)
    cli.console.print(f"{policy_report.NOTE} {footer}")
    cli.console.print(f"Written: {', '.join(str(file) for file in written)}")
    return policy_report.flat(found)


def _ranking(settings: Config, flags: Flags) -> Numbers:
    behaviour = settings.policies.behaviour
    if behaviour not in ("auto", "known"):
        hint = "the estimate is judged beside what is known"
        raise InputError("policies", field="behaviour", expected="auto or known", found=behaviour, hint=hint)
    if settings.cohort.source != "simulator":
        raise InputError("cohort", field="source", expected="simulator, whose truth is known", found="another")
    if not settings.evaluation.fresh_patients:
        expected = "patients to judge policies on, e.g. configs/policies.yaml"
        raise InputError("evaluation", field="fresh_patients", expected=expected, found=0)
    wanted = dataclasses.replace(settings.policies, names=ranking.NAMES, softening=ranking.MIX)
    found, numbers = {}, {}
    for number in range(1, settings.evaluation.cohorts + 1):
        own = dataclasses.replace(
            settings,
            policies=wanted,
            cohort=dataclasses.replace(settings.cohort, seed=settings.cohort.seed + number),
            run=settings.run / f"cohort {number}",
        )
        tested, manifest, truth = pipeline.fresh_patients(own, settings.evaluation.fresh_patients)
        known = pipeline.simulated(own)
        asked = pipeline.inquiry(own, tested, known, manifest, checkpoints.CARRY, _note)
        stage = closed_loop.true_stage(truth, asked.tested, manifest.action_bins, asked.reward)
        treating = contenders.true_clinicians(truth, manifest.action_bins)
        judged = ranking.judge(asked, stage, treating, asked.estimate)
        wide = judged.pivot(index="policy", columns=["propensities", "estimator"], values="value")
        wide.columns = [f"{estimator}, {kind}" for kind, estimator in wide.columns]
        truths = judged.groupby("policy")[["true", "death_90d"]].first()
        cli.console.print(
            cli.table(truths.join(wide).sort_values("true"), title=f"Cohort {number}: mixed half and half")
        )
        found[str(number)] = ranking.scores(judged)
        numbers |= {f"cohort{number}_{name}": value for name, value in found[str(number)].items()}
    cli.console.print(cli.table(ranking.summary(found), title=f"Mean over {len(found)} cohorts (least to most)"))
    cli.console.print("Research software, not for care.")
    return numbers


def _curriculum(settings: Config, flags: Flags) -> Numbers:
    path = flags.episodes or settings.episodes
    shown, numbers = ablation.lived(settings, path)
    for title, table in shown.items():
        cli.console.print(cli.table(table, title=title))
    more, others = ablation.on_record(settings, path, flags.checkpoint or settings.checkpoint, _note)
    for title, table in more.items():
        cli.console.print(cli.table(table, title=title))
    cli.console.print(f"95 % intervals by patient; {policy_report.MARK} not reliable. Research software, not for care.")
    return numbers | others


def _note(name: str, updates: int, loss: float) -> None:
    cli.console.print(f"{name}: {updates} updates, loss {loss:.3g}")


def _case(settings: Config, flags: Flags, stay_id: int) -> Numbers:
    fresh = _fresh(settings, flags)
    path = flags.episodes or settings.episodes
    if fresh:
        number = settings.evaluation.fresh_patients
        if not 1 <= stay_id <= number:
            raise InputError("--case", expected=f"a stay from 1 to {number}", found=stay_id)
        episodes, manifest, _ = pipeline.fresh_patients(settings, stay_id)  # those behind it do not change it
    else:
        episodes, manifest, _ = pipeline.open_cohort(path)
    row = case_view.find(episodes, stay_id, path)
    checkpoint = flags.checkpoint or (checkpoints.CARRY if fresh else settings.checkpoint)
    model, params = pipeline.load_model(checkpoint, manifest, path)
    seed = settings.evaluation.seed
    seen = case_view.view(model, params, episodes, row, steps=flags.steps, seed=seed)
    cli.console.print(cli.table(seen.table, title=f"{seen.facts.pop('Stay')}: forecast from the first decision"))
    for label, text in seen.facts.items():
        cli.console.print(f"{label}: {text}")
    cli.console.print("Research software, not for care.")
    return seen.numbers


PARTS = {
    "cohort": _cohort,
    "world-model": _world_model,
    "safety": _safety,
    "planner": _planner,
    "policies": _policies,
    "ranking": _ranking,
    "curriculum": _curriculum,
}


if __name__ == "__main__":
    cli.run(main)
