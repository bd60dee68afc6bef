"""Scripts as people start them: one process each, on a tiny cohort and an untrained world model."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
from factories import fit_scaler, make_episodes

from sepsis_jax.clinical.actions import AI_CLINICIAN_BINS
from sepsis_jax.data import store
from sepsis_jax.dynamics.worldmodel.bounds import Support
from sepsis_jax.dynamics.worldmodel.model import WorldModel

ROOT = Path(__file__).parents[1]


def tiny_inputs(folder: Path, stays: int, steps: int) -> tuple[str, ...]:
    """Flags that name a tiny Episodes store and an untrained world model, made in `folder`."""
    episodes = make_episodes(stays, steps, seed=0)
    scaler = fit_scaler(episodes)
    manifest = store.Manifest("test", "1", {}, AI_CLINICIAN_BINS, scaler, (("all", stays),))
    store.save(folder / "episodes", episodes, manifest)
    model = WorldModel(hidden=8, layers=1, members=2)
    model.save(folder / "model", model.init(scaler, Support.plausible(scaler), jax.random.key(0)), manifest)
    return f"--episodes={folder / 'episodes'}", f"--checkpoint={folder / 'model'}", "--clinician.updates=5"


def start(script: str, *words: str, flags: str = "", disk: Any = None, **variables: str) -> subprocess.Popen[str]:
    """A process of a script on one device; `disk` is the context it starts in."""
    cache = jax.config.values["jax_compilation_cache_dir"]
    flags = f"--xla_backend_optimization_level=1 {flags}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_COMPILATION_CACHE_DIR": cache} | variables
    with disk or nullcontext():
        return subprocess.Popen(
            [sys.executable, script, *words], cwd=ROOT, env=environment, text=True, stdout=-1, stderr=subprocess.STDOUT
        )


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    """What it printed, once it has ended with this status."""
    output, _ = process.communicate(timeout=500)
    assert process.returncode == code, output
    return output
