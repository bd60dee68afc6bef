"""Settings of a run of the agent."""

from __future__ import annotations

import dataclasses
import math
import urllib.parse
from pathlib import Path
from typing import Literal

from sepsis_jax.errors import SEEDS, InputError, check_range

Follow = Literal["recorded_until_deviation", "model", "truth"]


@dataclasses.dataclass(frozen=True)
class AgentSettings:
    """What the agent runs over, and how.

    Attributes:
      backend: who decides: 'planner' needs no LLM; 'llm' asks the server of `LLMSettings`.
      split: which stays: 'train', 'validation', 'test' or 'all'.
      stays: how many of them, in order; 0 takes every one.
      follow: 'recorded_until_deviation' goes along the record while the actions equal the clinician's and lives in
        the world model from the first deviation on; 'model' lives in it from the first decision (of an ensemble both
        mean the first member); 'truth' lives in the patient simulator that made the cohort, with the luck that each
        patient had.
      concurrency: cases open at once; their simulations are batched.
      seed: of every random number of the run.
    """

    backend: Literal["planner", "llm"] = "planner"
    split: Literal["train", "validation", "test", "all"] = "test"
    stays: int = 6
    follow: Follow = "recorded_until_deviation"
    concurrency: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        check_range(self, "agent", stays=(0, math.inf), concurrency=(1, 4096), seed=SEEDS)


@dataclasses.dataclass(frozen=True)
class LLMSettings:
    """A model behind an OpenAI-compatible server, and how it is asked. Its key, if any, is OPENAI_API_KEY.

    Attributes:
      base_urls: of one server or of several replicas, which share the cases.
      model: name that the server knows it by.
      prompts: folder of templates that replace the package's (system, observation, simulation `.jinja`).
      context: 'step' makes each decision a dialogue of its own that holds the whole history once; 'episode' lets one
        dialogue grow over the stay.
      simulator: offer the simulation; without it the model decides from the record alone.
      simulation: what it answers: the 'distribution' of many courses, or one 'sample' of the next state, as published.
      rationale: let a prescription say why.
      tool_choice: 'required' makes the server enforce a call; 'auto' leaves it to the model.
      temperature: of each answer.
      top_p: of each answer, the nucleus.
      max_tokens: of each answer.
      simulations: of one decision, at most.
      malformed: answers without a valid call in one decision, at most.
      timeout_s: of one try of a request.
      retries: further tries where the server did not answer, with growing waits.
      vllm: environment with vLLM, see `make vllm`, for a server of one's own (--serve).
      tool_parser: vLLM's name of how the model writes calls.
      max_model_len: tokens of context that it serves; 0 computes what the longest case may need.
      serve_options: further ones of vLLM's, each word an item.
    """

    base_urls: tuple[str, ...] = ("http://127.0.0.1:8000/v1",)
    model: str = "model"
    prompts: Path | None = None
    context: Literal["step", "episode"] = "step"
    simulator: bool = True
    simulation: Literal["distribution", "sample"] = "distribution"
    rationale: bool = True
    tool_choice: Literal["required", "auto"] = "required"
    temperature: float = 0.7
    top_p: float = 0.95
    max_tokens: int = 512
    simulations: int = 3
    malformed: int = 3
    timeout_s: float = 120.0
    retries: int = 4
    vllm: Path = Path(".venv-vllm")
    tool_parser: str = "hermes"
    max_model_len: int = 0
    serve_options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_range(self, "llm", temperature=(0, 10), top_p=(1e-6, 1), max_tokens=(1, 1_000_000), retries=(0, 100))
        check_range(self, "llm", simulations=(0, 100), malformed=(0, 100), timeout_s=(0.01, 86400))
        check_range(self, "llm", max_model_len=(0, 10_000_000))
        if self.simulator and not self.simulations:
            hint = "--llm.simulator false decides without"
            raise InputError("llm", field="simulations", expected="at least 1, with the simulator", found=0, hint=hint)
        if not self.base_urls:
            raise InputError("llm", field="base_urls", expected="at least one address", found="none")
        for url in self.base_urls:
            if not _is_address(url):
                raise InputError(
                    "llm",
                    field="base_urls",
                    expected="http://HOST:PORT/v1 or https://..., without a password",
                    found=repr(url),
                )


def _is_address(url: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(url)
        plain = url.isascii() and not any(c.isspace() for c in url) and "@" not in parts.netloc  # goes into reports
        return plain and parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        return False
