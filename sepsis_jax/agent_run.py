"""A run of the agent, from a config: who decides, in which world, served by what, and what tells it from other runs."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sepsis_jax import cli, files, pipeline, released_run
from sepsis_jax.agent import llm, loop, server
from sepsis_jax.agent.backends import Backend, PlannerBackend
from sepsis_jax.agent.case import Case
from sepsis_jax.agent.llm import LLMBackend
from sepsis_jax.agent.prompting import Prompts
from sepsis_jax.agent.settings import LLMSettings
from sepsis_jax.agent.simulator import BatchedSimulator, Truth
from sepsis_jax.agent.vllm import MOST, Serving
from sepsis_jax.clinical.actions import ActionBins
from sepsis_jax.clinical.reward import PUBLISHED
from sepsis_jax.config import Config
from sepsis_jax.data.episodes import Episodes
from sepsis_jax.errors import InputError
from sepsis_jax.evaluation.oracle import oracle
from sepsis_jax.pipeline import Loaded
from sepsis_jax.released_run import ReleasedFiles
from sepsis_jax.simulation.course import World

_MARGIN = 1.25
"""Of the longest recorded history: a course that leaves the record may measure more."""
_CORRECTION = 64
"""Tokens that say what was wrong with an answer."""


def own_server(config: Config, model: str | None, replicas: int) -> Serving | None:
    """Servers of one's own for `model`, if it names one. InputError where nobody would ask them; see `Serving.of`."""
    if model is None:
        if replicas != 1:
            raise InputError("--replicas", expected="--serve beside it", found=replicas)
        return None
    if config.agent.backend != "llm":
        raise InputError("--serve", expected="agent.backend llm", found=f"agent.backend {config.agent.backend}")
    return Serving.of(config.llm, model, replicas)


@dataclasses.dataclass(frozen=True)
class Run:
    """What the script works on.

    Attributes:
      config, loaded: settings, cohort and world model. checkpoint: of the latter.
      simulator: answers the cases. prompts: texts. rows: int[N] stays in the cohort.
      private: the cohort may not leave this machine.
    """

    config: Config
    loaded: Loaded
    checkpoint: Path
    simulator: BatchedSimulator
    prompts: Prompts
    rows: np.ndarray
    private: bool

    @property
    def episodes(self) -> Episodes:
        """The cohort."""
        return self.loaded.episodes

    @property
    def bins(self) -> ActionBins:
        """Doses of the levels."""
        return self.loaded.manifest.action_bins

    def asking(self, settings: LLMSettings) -> LLMBackend:
        """A language model as `settings` ask it."""
        config = self.config
        return LLMBackend(settings, self.prompts, samples=config.planner.samples, seed=config.agent.seed)

    def backend(self, settings: LLMSettings) -> Backend:
        """Who decides; `settings` name the servers."""
        if self.config.agent.backend == "planner":
            return PlannerBackend(self.prompts, self.config.planner)
        return self.asking(settings)

    @contextlib.contextmanager
    def served(self, serving: Serving | None, logs: Path) -> Iterator[LLMSettings]:
        """How the model is asked; as long as the block lasts, by servers of one's own if there are to be any.

        Raises:
          InputError: the server does not start; a server elsewhere is named for a private cohort.
        """
        config, settings = self.config, self.config.llm
        if serving is None:
            if self.private and config.agent.backend == "llm":
                llm.check_local(settings)
            yield settings
            return
        length = settings.max_model_len or self._longest(serving)
        cli.console.print(f"Serving {serving.model} with a context of {length} tokens; its log: {logs}")
        with server.serving(serving.command(length), logs, replicas=serving.replicas) as urls:
            yield dataclasses.replace(settings, base_urls=tuple(urls))

    def _longest(self, serving: Serving) -> int:
        """Tokens of the longest dialogue to expect, at most what the model reads; says so if that is not enough."""
        settings, episodes, asking = self.config.llm, self.episodes, self.asking(self.config.llm)
        measured = np.asarray(episodes.mask)[self.rows].sum(axis=(1, 2))
        row = int(self.rows[measured.argmax()])
        last, most = int(episodes.length[row]) - 1, episodes.obs.shape[1]
        case = Case(episodes, row, self.simulator, self.bins, "model", self.prompts, at=last)
        case.observe()
        answer = asyncio.run(asking.simulated(case, MOST))
        history, one, model_limit = serving.count(asking.context(case), asking.tools, answer)
        said = settings.max_tokens + _CORRECTION  # of a malformed answer
        talk = settings.simulations * (one + settings.max_tokens) + settings.malformed * said + settings.max_tokens
        decisions = most if settings.context == "episode" else 1
        wanted = math.ceil((_MARGIN * history * most / (last + 1) + decisions * talk) / 256) * 256
        if wanted > model_limit:
            text = f"The longest case may need {wanted} tokens, the model reads {model_limit}: what outgrows it fails."
            cli.console.print(text)
        return min(wanted, model_limit)

    def identity(self, serving: Serving | None) -> dict[str, Any]:
        """Whatever changes what the cases say; how fast and from where they are asked does not."""
        config = self.config
        told: dict[str, Any] = {
            "stays": self.episodes.take(self.rows).digest(),
            "agent": dataclasses.asdict(config.agent) | {"concurrency": None, "stays": None},
            "planner": dataclasses.asdict(config.planner) | {"block": None},
            "models": pipeline.identity(config, self.checkpoint),
            "clinicians": self.loaded.clinicians,
        }
        if config.agent.backend == "llm":
            texts = config.llm.prompts and files.digests(config.llm.prompts)
            asked = {"base_urls": None, "timeout_s": None, "retries": None, "vllm": None, "prompts": texts}
            told["llm"] = dataclasses.asdict(config.llm) | asked
            folder = serving and Path(serving.model)
            told["served"] = files.digests(folder) if folder and folder.is_dir() else serving and serving.model
        return told

    def describe(self) -> dict[str, str]:
        """Facts of the run for the top of its report."""
        config, manifest, model = self.config, self.loaded.manifest, self.loaded.model
        return {
            "Cohort": f"{manifest.source}, {manifest.source_version}",
            "World model": f"{self.checkpoint.name}: {model.architecture}, hidden {model.hidden}",
            "Backend": _who(config) + f", {config.planner.samples} samples of {config.planner.horizon} steps of 4 h",
            "Clinicians": self.loaded.clinicians,
            "Course": config.agent.follow.replace("_", " "),
            "Seed": str(config.agent.seed),
            "Code": f"sepsis_jax {version('sepsis_jax')}",
        }


def prepare(
    config: Config, stays: Path, checkpoint: Path, allow_remote: bool, released: ReleasedFiles | None = None
) -> Run:
    """Read what a run needs. InputError for whatever cannot be read, or has no such stays or truth.

    Args:
      stays: store of the cohort. checkpoint: world model.
      allow_remote: credentialed data may leave this machine.
      released: the cohort, instead; from `stays`, clinicians are then estimated.
    """
    if released is None:
        loaded = pipeline.load(config, stays, checkpoint)
    else:
        loaded = released_run.load(config, released, stays, checkpoint)
    simulator = BatchedSimulator(
        loaded.world,
        loaded.params,
        loaded.policy_params,
        config.planner,
        seed=config.agent.seed,
        concurrency=config.agent.concurrency,
        truth=_truth(config, loaded, stays),
    )
    rows = loop.choose_stays(loaded.episodes, config.agent)
    private = loaded.manifest.credentialed and not allow_remote
    return Run(config, loaded, checkpoint, simulator, Prompts(config.llm.prompts), rows, private)


def _truth(config: Config, loaded: Loaded, stays: Path) -> Truth | None:
    if config.agent.follow != "truth":
        return None
    source = loaded.manifest.source
    known = pipeline.open_cohort(stays)[2] if source == "simulator" else None
    if known is None:
        expected, hint = "a simulated cohort with its truth", "follow the record or the model"
        raise InputError("agent", field="follow", expected=expected, found=f"{source} stays without", hint=hint)
    dynamics, params = oracle(known, loaded.episodes, loaded.manifest.action_bins)
    return Truth(World(dynamics, loaded.manifest.action_bins, PUBLISHED), params, jax.random.key(known.seed))


def _who(config: Config) -> str:
    asked = config.llm
    return "planner" if config.agent.backend == "planner" else f"{asked.model}, one dialogue a {asked.context}"
