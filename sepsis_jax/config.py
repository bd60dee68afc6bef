"""One typed config for all scripts: a commented YAML, any field of which the command line can override."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from jsonargparse import ArgumentParser, Namespace

from sepsis_jax.agent.settings import AgentSettings, LLMSettings
from sepsis_jax.curriculum.settings import CurriculumSettings
from sepsis_jax.data.builder import BuildSettings
from sepsis_jax.data.mimic import MimicSettings
from sepsis_jax.dynamics.patient.parameters import Knobs
from sepsis_jax.dynamics.worldmodel.training import TrainSettings
from sepsis_jax.errors import SEEDS, InputError, check_range
from sepsis_jax.evaluation.policy_settings import PolicySettings
from sepsis_jax.evaluation.settings import EvaluationSettings
from sepsis_jax.ope.fqe import FQESettings
from sepsis_jax.policies.clinician import ClinicianSettings
from sepsis_jax.policies.offline_rl.training import OfflineSettings
from sepsis_jax.policies.planner import PlannerSettings


@dataclasses.dataclass(frozen=True)
class CohortSettings:
    """Where the patients come from.

    Attributes:
      source: 'simulator' (embedded, needs nothing), 'mimic' (MIMIC-IV folder), 'events' (canonical event tables),
        'released' (files of the published system).
      patients: how many to draw; simulator only.
      seed: of the draw and of the split; simulator only.
      knobs: of the simulator.
    """

    source: Literal["simulator", "mimic", "events", "released"] = "simulator"
    patients: int = 500
    seed: int = 0
    knobs: Knobs = Knobs()

    def __post_init__(self) -> None:
        check_range(self, "cohort", patients=(1, 10_000_000), seed=SEEDS)
        unbounded = dict.fromkeys(vars(self.knobs), (-100.0, 100.0))
        check_range(self.knobs, "cohort.knobs", **unbounded)


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that shapes a run; saved with every checkpoint and result.

    Attributes:
      run: folder where the scripts of one config find each other's output.
      cohort: where the patients come from.
      mimic: how MIMIC-IV tables become sepsis stays.
      build: how stays become Episodes.
      world_model: architecture and training.
      clinician: the estimate of what clinicians do.
      planner: candidates, samples and horizon of the planner.
      agent: the loop over patients.
      llm: the model that decides in it, if one does.
      evaluation: the tables.
      policies: who stands in the policy table, and how policies are judged.
      offline_rl: the policies that learn from recorded decisions.
      fqe: the values behind FQE and the doubly robust estimates.
      curriculum: how a language model is taught.
    """

    run: Path = Path("runs/demo")
    cohort: CohortSettings = CohortSettings()
    mimic: MimicSettings = MimicSettings()
    build: BuildSettings = BuildSettings()
    world_model: TrainSettings = TrainSettings()
    clinician: ClinicianSettings = ClinicianSettings()
    planner: PlannerSettings = PlannerSettings()
    agent: AgentSettings = AgentSettings()
    llm: LLMSettings = LLMSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    policies: PolicySettings = PolicySettings()
    offline_rl: OfflineSettings = OfflineSettings()
    fqe: FQESettings = FQESettings()
    curriculum: CurriculumSettings = CurriculumSettings()

    @property
    def episodes(self) -> Path:
        """Folder of the Episodes store of this run."""
        return self.run / "episodes"

    @property
    def checkpoint(self) -> Path:
        """Folder of the world model of this run."""
        return self.run / "world_model"

    @property
    def report(self) -> Path:
        """Folder of the agent's transcripts and report of this run."""
        return self.run / "agent"


Flags = TypeVar("Flags")


def load(argv: Sequence[str], flags: type[Flags], *, description: str) -> tuple[Config, Flags]:
    """Parse `--config FILE`, overrides such as `--world_model.epochs 5`, and a script's own flags.

    Args:
      argv: command line without the program's name.
      flags: frozen dataclass of the script's own flags.
      description: for `--help`.

    Raises:
      InputError: unknown key, value of the wrong type, unreadable file.
    """
    parser = ArgumentParser(exit_on_error=False, description=description)
    parser.add_argument("--config", action="config", help="YAML file, e.g. configs/demo.yaml")
    parser.add_class_arguments(Config)
    parser.add_class_arguments(flags)
    namespace = _parse(parser, [_usual(word, _switches(flags)) for word in argv])
    return _pick(Config, namespace), _pick(flags, namespace)


def _switches(flags: type[Any]) -> set[str]:
    return {f"--{field.name}" for field in dataclasses.fields(flags) if field.type in (bool, "bool")}


def _usual(word: str, switches: set[str]) -> str:
    """`--dry-run`, a switch, is `--dry_run=true`."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    name = "--" + name[2:].replace("-", "_")
    return f"{name}=true" if name in switches and not equals else name + equals + value


def _pick(kind: type[Any], namespace: Namespace) -> Any:
    return kind(**{field.name: namespace[field.name] for field in dataclasses.fields(kind)})


def _parse(parser: ArgumentParser, argv: Sequence[str]) -> Namespace:
    config = next((argv[i + 1] for i, word in enumerate(argv[:-1]) if word == "--config"), None)
    attempts = [("command line", list(argv))]
    if config is not None:  # alone first, so that a bad file is named as such
        attempts.insert(0, (config, ["--config", config]))
    for file, words in attempts:
        try:
            namespace = parser.parse_args(words)
        except (argparse.ArgumentError, TypeError, ValueError) as error:
            raise _explain(file, str(error)) from error
    try:
        return parser.instantiate(namespace)
    except TypeError as error:  # a section that is a number or a word
        hint = "write each section's fields below its name"
        raise InputError(file, expected="fields in every section", found=str(error), hint=hint) from error


def _explain(file: str, message: str) -> InputError:
    """The parser's message as one line that names file, field, expected and found."""
    hint = "--help lists the fields"
    if match := re.search(r'Parser key "(.+?)":\s*File does not exist', message):
        return InputError(file, expected="a file", found="no such file")
    if match := re.search(r'Parser key "(.+?)":\s*(?:.*\n)*?\s*Expected an? (.+?)\.? Got value: (.*)', message):
        field, expected, found = match.groups()
        return InputError(file, field=field, expected=expected.replace("typing.", ""), found=found, hint=hint)
    if match := re.search(r"Group '(.+?)' does not accept option '(.+?)'", message):
        return InputError(
            file, field=".".join(match.groups()), expected="a known key", found="an unknown one", hint=hint
        )
    if match := re.search(r"Option '(.+?)' is not accepted", message):
        return InputError(file, field=match[1], expected="a known key", found="an unknown one", hint=hint)
    return InputError(file, expected="a valid configuration", found=message, hint=hint)
