"""vLLM for the tests: installed as `make vllm` does, and an untuned tiny Qwen3 that it serves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from factories import make_episodes
from processes import ROOT
from toy import toy_simulator

from sepsis_jax.agent import dialogues, loop
from sepsis_jax.agent.backends import PlannerBackend
from sepsis_jax.agent.llm import LLMBackend
from sepsis_jax.agent.prompting import package_prompts
from sepsis_jax.agent.settings import AgentSettings, LLMSettings
from sepsis_jax.clinical.actions import AI_CLINICIAN_BINS
from sepsis_jax.policies.planner import PlannerSettings

ENVIRONMENT = ROOT / ".venv-vllm"
CANNOT = sys.platform != "linux" or "avx2" not in Path("/proc/cpuinfo").read_text()
only_where_vllm_runs = pytest.mark.skipif(CANNOT, reason="vLLM's build for the CPU wants Linux and AVX2")


def install() -> None:
    """About two minutes, once."""
    command = [sys.executable, "llm/install.py", "vllm", str(ENVIRONMENT)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=580)


def make_tiny(folder: Path) -> Path:
    """Random weights, and tokens learned from what a planner says."""
    prompts, planner = package_prompts(), PlannerBackend(package_prompts(), PlannerSettings(samples=16))
    episodes, settings = make_episodes(8, 6, seed=1), AgentSettings(split="all", stays=0, follow="model")
    cases = loop.run(episodes, range(8), toy_simulator(), AI_CLINICIAN_BINS, planner, settings, prompts)
    asking = LLMBackend(LLMSettings(), prompts, samples=16, seed=0)
    dialogues.write(folder / "dialogues.jsonl", cases, asking, AI_CLINICIAN_BINS)
    command = [str(ENVIRONMENT / "bin" / "python"), "sepsis_jax/curriculum/small_models.py", "tiny"]
    words = ["--dialogues", str(folder / "dialogues.jsonl"), "--out", str(folder / "tiny")]
    subprocess.run([*command, *words], cwd=ROOT, check=True, timeout=300)
    return folder / "tiny"
