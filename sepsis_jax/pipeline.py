"""What the scripts do, from a config: prepare a cohort, assemble a world, recommend on recorded states."""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sepsis_jax import files
from sepsis_jax.clinical.actions import AI_CLINICIAN_BINS
from sepsis_jax.clinical.reward import PUBLISHED
from sepsis_jax.config import Config
from sepsis_jax.data import builder, mimic, released, store
from sepsis_jax.data.episodes import SPLITS, Episodes
from sepsis_jax.data.scaler import Scaler
from sepsis_jax.data.store import Manifest
from sepsis_jax.dynamics.patient import cohort as patient_cohort
from sepsis_jax.dynamics.patient import truth as patient_truth
from sepsis_jax.dynamics.patient.truth import Truth
from sepsis_jax.dynamics.worldmodel import checkpoint
from sepsis_jax.dynamics.worldmodel.model import Params, WorldModel
from sepsis_jax.errors import InputError
from sepsis_jax.evaluation import agents, contenders, policies, roster
from sepsis_jax.evaluation.policies import Inquiry
from sepsis_jax.evaluation.policy_settings import PLANNER
from sepsis_jax.evaluation.roster import Progress
from sepsis_jax.policies import clinician, planner, rules
from sepsis_jax.simulation.course import World
from sepsis_jax.simulation.policy import Policy, probs_on_record

RELEASED_FILES = ("episodes.pkl", "scaler_params_log.json", "episode_feature_config.json")
"""What a folder of released files must hold."""


def prepare(config: Config, source: Path | None, out: Path) -> tuple[Episodes, Manifest]:
    """Make the Episodes store `out` from the config's kind of source (a folder, except for the simulator)."""
    files.check_replaceable(out, store.MANIFEST, store.KIND)
    files.check_writable(out)
    kind = config.cohort.source
    if kind == "simulator":
        if source is not None:
            hint = "set cohort.source to what the folder holds: mimic, events or released"
            raise InputError("--source", expected="none, as cohort.source is 'simulator'", found=source, hint=hint)
        return _prepare_simulated(config, out)
    if source is None or not source.is_dir():
        hint = f"cohort.source is '{kind}': name its folder with --source"
        raise InputError(source or "--source", expected="a folder", found="none", hint=hint)
    if kind == "released":
        episodes, manifest = released_cohort(*(source / name for name in RELEASED_FILES))
    else:
        episodes, manifest = {"mimic": _prepare_mimic, "events": _prepare_events}[kind](config, source)
    store.save(out, episodes, manifest)
    return episodes, manifest


def _prepare_simulated(config: Config, out: Path) -> tuple[Episodes, Manifest]:
    settings = config.cohort
    episodes, truth = patient_cohort.simulate_cohort(settings.patients, seed=settings.seed, knobs=settings.knobs)
    train = episodes.subset("train")
    if train.num_stays == 0:
        raise InputError("cohort", field="patients", expected="enough for three splits", found=settings.patients)
    manifest = Manifest(
        source="simulator",
        source_version=f"seed {settings.seed}",
        cohort=dataclasses.asdict(settings),
        action_bins=AI_CLINICIAN_BINS,
        scaler=_scaler(train),
        attrition=(("simulated stays", episodes.num_stays),),
    )
    store.save(out, episodes, manifest, extra=lambda folder: patient_truth.save(folder, truth))
    return episodes, manifest


def _scaler(episodes: Episodes) -> Scaler:
    """Fitted on the measured entries of recorded steps; urine is always counted."""
    urine = np.ones((*episodes.valid.shape, 1), bool)
    observed = np.concatenate([episodes.mask, urine], axis=-1) & episodes.valid[..., None]
    return Scaler.fit(episodes.obs, observed, episodes.static)


def _prepare_mimic(config: Config, source: Path) -> tuple[Episodes, Manifest]:
    temp = config.mimic.temp_dir
    if temp is not None and not temp.is_dir():
        raise InputError("mimic", field="temp_dir", expected="a folder", found=temp)
    with tempfile.TemporaryDirectory(prefix="sepsis_jax-", dir=temp) as folder:
        extraction = mimic.extract(source, Path(folder) / "events", config.mimic)
        episodes, built = builder.build(Path(folder) / "events", config.build, attrition=extraction.attrition)
    facts = extraction.facts | built.pop("facts")
    cohort = {"mimic": _definition(config.mimic), "build": built.pop("cohort")}
    version, credentialed = str(facts.pop("version")), bool(facts.pop("credentialed"))
    return episodes, Manifest("mimic-iv", version, cohort=cohort, credentialed=credentialed, facts=facts, **built)


def _prepare_events(config: Config, source: Path) -> tuple[Episodes, Manifest]:
    # Event tables of an own ICU are patient data until someone says otherwise.
    episodes, built = builder.build(source, config.build)
    return episodes, Manifest("events", str(source.name), credentialed=True, **built)


def released_cohort(episodes_file: Path, scaler_file: Path, feature_config: Path) -> tuple[Episodes, Manifest]:
    """Episodes as released, see `data.released`, and a manifest that calls them credentialed."""
    episodes, scaler = released.load(episodes_file, scaler_file, feature_config)
    attrition = (("released episodes", episodes.num_stays),)
    manifest = Manifest("released", "arXiv 2605.14723", {}, AI_CLINICIAN_BINS, scaler, attrition, credentialed=True)
    return episodes, manifest


def _definition(settings: Any) -> dict[str, Any]:
    """Settings as JSON types."""
    plain = dataclasses.asdict(settings)
    return {name: str(value) if isinstance(value, Path) else value for name, value in plain.items()}


@dataclasses.dataclass(frozen=True)
class Loaded:
    """All that simulating on a cohort needs.

    Attributes:
      episodes, manifest: the cohort.
      world: world model, bins, reward and the clinician estimate as the policy that continues plans.
      params, policy_params: numbers of the world model and of the clinician estimate (fitted on train).
      clinicians: where that estimate comes from, in words.
    """

    episodes: Episodes
    manifest: Manifest
    world: World
    params: Any
    policy_params: Any
    clinicians: str = "estimate from the train split of the cohort"

    @property
    def model(self) -> WorldModel:
        """The world model."""
        assert isinstance(self.world.dynamics, WorldModel)
        return self.world.dynamics

    @property
    def policy(self) -> Policy:
        """The clinician estimate."""
        assert self.world.policy is not None
        return self.world.policy


def load(config: Config, episodes_path: Path, checkpoint_path: Path) -> Loaded:
    """Read the cohort and the world model, and fit the clinician estimate on the train split."""
    episodes, manifest = store.load(episodes_path)
    model, params = load_model(checkpoint_path, manifest, episodes_path)
    key = jax.random.key(config.agent.seed)
    policy_params = clinician.fit(config.clinician, episodes, manifest.scaler, key)
    policy = clinician.Clinician(config.clinician)
    world = World(model, manifest.action_bins, PUBLISHED, policy)
    return Loaded(episodes, manifest, world, params, policy_params)


def load_model(path: Path, manifest: Manifest, cohort: object) -> tuple[WorldModel, Params]:
    """Read a world model for a cohort. InputError if its levels stand for other doses."""
    model, params, trained_on = WorldModel.from_checkpoint(path)
    if trained_on.action_bins != manifest.action_bins:
        raise InputError(
            path,
            field="action_bins",
            expected=f"the action bins of {cohort}",
            found="others",
            hint="levels must stand for the same doses, e.g. in a model trained on this cohort with train_wm.py",
        )
    return model, params


def load_held_out(
    config: Config, checkpoint: Path, manifest: Manifest, cohort: object
) -> tuple[WorldModel, Params] | None:
    """The world model that judges (`policies.held_out`), if one is named. InputError if its weights are `checkpoint`'s.

    That it has learned from other patients is for those to see to who name it.
    """
    path = config.policies.held_out
    if path is None:
        return None
    if checkpoint.is_dir() and path.is_dir() and files.digests(path / "arrays") == files.digests(checkpoint / "arrays"):
        hint = "train one on other patients, with another seed"
        raise InputError(path, expected="another world model than the one that policies know", found="it", hint=hint)
    return load_model(path, manifest, cohort)


def open_cohort(path: Path) -> tuple[Episodes, Manifest, Truth | None]:
    """Episodes from a store or from a folder of released files, and their truth where there is one."""
    if all((path / name).is_file() for name in RELEASED_FILES):
        return *released_cohort(*(path / name for name in RELEASED_FILES)), None
    episodes, manifest = store.load(path)
    known = manifest.source == "simulator" and (path / store.TRUTH).is_dir()
    return episodes, manifest, patient_truth.load(path, episodes) if known else None


FRESH_SEED = 2**30
"""Distance between the seed of a simulated cohort and that of fresh test patients."""


def fresh_patients(config: Config, number: int) -> tuple[Episodes, Manifest, Truth]:
    """Simulated patients whom no cohort of this config holds, all of them in the test split."""
    settings = config.cohort
    seed = (settings.seed + FRESH_SEED) % 2**31
    episodes, truth = patient_cohort.simulate_cohort(number, seed=seed, knobs=settings.knobs)
    episodes = dataclasses.replace(episodes, split=np.full_like(episodes.split, SPLITS.index("test")))
    manifest = Manifest(
        source="simulator",
        source_version=f"seed {seed}",
        cohort=dataclasses.asdict(settings),
        action_bins=AI_CLINICIAN_BINS,
        scaler=_scaler(episodes),
        attrition=(("simulated stays", episodes.num_stays),),
    )
    return episodes, manifest, truth


def simulated(config: Config) -> Episodes:
    """The config's simulated cohort, drawn again."""
    settings = config.cohort
    return patient_cohort.simulate_cohort(settings.patients, seed=settings.seed, knobs=settings.knobs)[0]


def identity(config: Config, checkpoint_path: Path) -> dict[str, Any]:
    """Plain types that tell the clinician estimate and the world model of one run from those of another."""
    description = (checkpoint_path / checkpoint.DESCRIPTION).read_bytes()
    return {
        "cohort": dataclasses.asdict(config.cohort),
        "clinician": dataclasses.asdict(config.clinician),
        "estimate_seed": config.agent.seed,
        "world_model": hashlib.sha256(description).hexdigest(),
        "code": version("sepsis_jax"),
    }


def part(episodes: Episodes, split: str, path: Path) -> Episodes:
    """The stays of one split; InputError when there is none."""
    chosen = episodes.subset(split)
    if chosen.num_stays == 0:
        raise InputError(path, field="split", expected=f"{split} stays", found="none")
    return chosen


def policies_on_record(config: Config, loaded: Loaded, episodes: Episodes) -> dict[str, np.ndarray]:
    """Probabilities f32[B,T,25] of the built-in policies on recorded states, by name."""
    most_likely = rules.MostLikely(loaded.policy)
    return {
        "clinician estimate, most likely": probs_on_record(most_likely, loaded.policy_params, episodes),
        "no treatment": probs_on_record(rules.Fixed(), None, episodes),
        "guideline rule": probs_on_record(rules.Guideline(), None, episodes),
        "planner": _planned(config, loaded, episodes),
    }


def _planned(config: Config, loaded: Loaded, episodes: Episodes) -> np.ndarray:
    settings = dataclasses.replace(config.planner, samples=config.evaluation.planner_samples)
    seed = jax.random.key(config.agent.seed)
    return planner.planned(loaded.world, loaded.params, loaded.policy_params, episodes, seed, settings)


def teaching(train: Episodes, number: int) -> tuple[Episodes, Episodes]:
    """The stays that policies learn from, and those that values are fitted on; no patient has stays in both."""
    if not number:
        return train, train
    subject = np.asarray(train.subject_id)
    learned = np.isin(subject, subject[:number])
    if learned.all():
        expected = f"fewer than the {train.num_stays} train stays, so that other patients are left for values"
        raise InputError("policies", field="learn_stays", expected=expected, found=number)
    return train.take(learned), train.take(~learned)


def inquiry(
    config: Config,
    tested: Episodes,
    known: Episodes,
    manifest: Manifest,
    checkpoint_path: Path,
    report: Progress | None,
) -> Inquiry:
    """What the policy table is to find out.

    Args:
      tested: stays that no policy has seen. known: the cohort whose train split teaches policies and values.
      checkpoint_path: world model of the planner; read only if it is asked for.
      report: of learned policies.
    """
    settings, reward, seed = config.policies, config.policies.to_pay(), config.evaluation.seed
    known = policies.known_outcomes(known, reward)
    for folder in settings.agents:
        agents.check_cohort(folder, tested)
    answers = {folder: agents.read(folder) for folder in settings.agents}
    tested = agents.judged(policies.known_outcomes(tested, reward), list(answers.values()))
    train = part(known, "train", config.run)
    scaler = jax.tree.map(jax.numpy.asarray, _scaler(train))  # fresh patients have one of their own, which is not ours
    fitted = clinician.fit(config.clinician, known, scaler, jax.random.key(config.agent.seed))
    clinicians, estimate = policies.treating(settings, config.clinician, known, scaler, fitted)
    lesson, rest = teaching(train, settings.learn_stays)
    everyone = roster.naive(lesson) | roster.learned(config.offline_rl, lesson, scaler, reward, seed, report)
    described = [dataclasses.asdict(one) for one in (config.offline_rl, config.clinician, config.cohort)]
    depends: list[Any] = [manifest.source, manifest.source_version, tested.digest(), known.digest(), seed]
    depends += [settings.learn_stays, settings.fit_stays, config.agent.seed, version("sepsis_jax")]
    depends += [dataclasses.asdict(reward), *described]
    if PLANNER in settings.names:
        model, params = load_model(checkpoint_path, manifest, "the cohort")
        world = World(model, manifest.action_bins, reward, clinician.Clinician(config.clinician))
        itself = contenders.planning(world, params, fitted, config.planner, seed, settings.played)
        roughly = roster.imitated(itself.on_record, settings.planner_stays, config.offline_rl, scaler, seed)
        everyone[PLANNER] = dataclasses.replace(itself, on_fitted=roughly)
        depends += [settings.planner_stays, dataclasses.asdict(config.planner), identity(config, checkpoint_path)]
    for folder, one in answers.items():
        own = one.on_record(tested)
        imitation = roster.imitating(own, tested, config.offline_rl, scaler, seed)
        everyone[folder.name] = agents.contender(one, imitation)
        depends += [folder.name, one.digest]
    return Inquiry(
        everyone={name: everyone[name] for name in (*settings.names, *(folder.name for folder in answers))},
        clinicians=clinicians,
        estimate=estimate,
        tested=tested,
        fitted=rest.take(slice(settings.fit_stays)),
        scaler=scaler,
        bins=manifest.action_bins,
        reward=reward,
        settings=settings,
        fqe=config.fqe,
        draws=config.evaluation.draws,
        seed=seed,
        folder=config.run / "policies" / "kept",
        depends=depends,
        held_out=settings.held_out and identity(config, settings.held_out),
    )
