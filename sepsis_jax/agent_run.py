"""A run of the agent, from a config: who decides, in which world, served by what, and what tells it from other runs."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sepsis_jax import cli, files, pipeline
from sepsis_jax.agent import llm, server, vllm
from sepsis_jax.agent.backends import Backend, PlannerBackend
from sepsis_jax.agent.case import Case
from sepsis_jax.agent.llm import LLMBackend
from sepsis_jax.agent.prompting import Prompts
from sepsis_jax.agent.settings import LLMSettings
from sepsis_jax.agent.simulator import BatchedSimulator, Truth
from sepsis_jax.clinical.reward import PUBLISHED
from sepsis_jax.config import Config
from sepsis_jax.data.store import Manifest
from sepsis_jax.errors import InputError
from sepsis_jax.evaluation.oracle import oracle
from sepsis_jax.pipeline import Loaded
from sepsis_jax.simulation.course import World

_MARGIN = 1.25
"""Of the longest recorded history: a course that leaves the record may measure more."""


def truth(config: Config, loaded: Loaded, stays: Path) -> Truth | None:
    """The simulator that the cohort comes from, if cases are to live in it. InputError if it comes from none."""
    if config.agent.follow != "truth":
        return None
    known = pipeline.open_cohort(stays)[2]
    if known is None:
        hint = "follow the record or the model"
        raise InputError("agent", field="follow", expected="a simulated cohort with its truth", found=stays, hint=hint)
    bins = loaded.manifest.action_bins
    dynamics, params = oracle(known, loaded.episodes, bins)
    return Truth(World(dynamics, bins, PUBLISHED), params, jax.random.key(known.seed))


def simulator(config: Config, loaded: Loaded, home: Truth | None = None) -> BatchedSimulator:
    """The simulator that the agent's cases ask; `home` if they live in the truth."""
    return BatchedSimulator(
        loaded.world,
        loaded.params,
        loaded.policy_params,
        config.planner,
        seed=config.agent.seed,
        concurrency=config.agent.concurrency,
        truth=home,
    )


def backend(settings: LLMSettings, config: Config, prompts: Prompts) -> Backend:
    """Who decides; `settings` name the servers."""
    samples = config.planner.samples
    if config.agent.backend == "planner":
        return PlannerBackend(prompts, samples=samples, shield=config.planner.shield)
    return LLMBackend(settings, prompts, samples=samples, seed=config.agent.seed)


@contextlib.contextmanager
def served(
    config: Config, model: str | None, replicas: int, private: bool, logs: Path, longest: Longest
) -> Iterator[LLMSettings]:
    """How the model is asked; for as long as the block lasts, by servers of one's own if `model` names one.

    Args:
      private: the cohort may not leave this machine. longest: for the length of context to serve.

    Raises:
      InputError: the server does not start; a server elsewhere is named for a private cohort.
    """
    settings = config.llm
    if model is None:
        if private and config.agent.backend == "llm":
            llm.check_local(settings)
        yield settings
        return
    if config.agent.backend != "llm":
        raise InputError("--serve", expected="agent.backend llm", found=f"agent.backend {config.agent.backend}")
    serving = vllm.Serving.of(settings, model, replicas)
    length = settings.max_model_len or longest.tokens(serving)
    cli.console.print(f"Serving {model} with a context of {length} tokens; its log: {logs}")
    with server.serving(serving.command(length), logs, replicas=replicas) as urls:
        yield dataclasses.replace(settings, base_urls=tuple(urls))


@dataclasses.dataclass(frozen=True)
class Longest:
    """The longest dialogue that a run may need.

    Attributes:
      config, loaded, simulator, prompts: of the run. rows: its stays.
    """

    config: Config
    loaded: Loaded
    simulator: BatchedSimulator
    prompts: Prompts
    rows: np.ndarray

    def tokens(self, serving: vllm.Serving) -> int:
        """Length of context for it, at most what the model can; says so if that is not enough."""
        settings, episodes = self.config.llm, self.loaded.episodes
        asking = LLMBackend(settings, self.prompts, samples=self.config.planner.samples, seed=0)
        measured = np.asarray(episodes.mask)[self.rows].sum(axis=(1, 2))
        row = int(self.rows[measured.argmax()])
        last, most = int(episodes.length[row]) - 1, episodes.obs.shape[1]
        case = Case(episodes, row, self.simulator, self.loaded.manifest.action_bins, "model", self.prompts, at=last)
        case.observe()
        answer = asyncio.run(asking.simulated(case, vllm.MOST))
        history, one, model_limit = serving.count(asking.context(case), asking.tools, answer)
        talk = settings.simulations * (one + settings.max_tokens) + settings.max_tokens
        decisions = most if settings.context == "episode" else 1
        wanted = math.ceil((_MARGIN * history * most / (last + 1) + decisions * talk) / 256) * 256
        if wanted > model_limit:
            text = f"The longest case may need {wanted} tokens, the model reads {model_limit}: what outgrows it fails."
            cli.console.print(text)
        return min(wanted, model_limit)


def identity(config: Config, loaded: Loaded, rows: np.ndarray, checkpoint: Path, model: str | None) -> dict[str, Any]:
    """Whatever changes what the cases say; how fast and from where they are asked does not."""
    told: dict[str, Any] = {
        "stays": loaded.episodes.take(rows).digest(),
        "agent": dataclasses.asdict(config.agent) | {"concurrency": None, "stays": None},
        "planner": dataclasses.asdict(config.planner) | {"block": None},
        "models": pipeline.identity(config, checkpoint),
    }
    if config.agent.backend == "llm":
        texts = config.llm.prompts and files.digests(config.llm.prompts)
        asked = {"base_urls": None, "timeout_s": None, "retries": None, "vllm": None, "prompts": texts}
        told["llm"] = dataclasses.asdict(config.llm) | asked
        told["served"] = files.digests(Path(model)) if model and Path(model).is_dir() else model
    return told


def _who(config: Config) -> str:
    asked = config.llm
    return "planner" if config.agent.backend == "planner" else f"{asked.model}, one dialogue a {asked.context}"


def describe(config: Config, manifest: Manifest) -> dict[str, str]:
    """Facts of a run for the top of its report."""
    return {
        "Cohort": f"{manifest.source}, {manifest.source_version}",
        "World model": f"{config.world_model.architecture}, hidden {config.world_model.hidden}",
        "Backend": _who(config) + f", {config.planner.samples} samples of {config.planner.horizon} steps of 4 h",
        "Course": config.agent.follow.replace("_", " "),
        "Seed": str(config.agent.seed),
        "Code": f"sepsis_jax {manifest.code_version}",
    }
