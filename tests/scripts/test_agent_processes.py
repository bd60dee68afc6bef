"""agent_loop.py as people run it: killed three times, it ends with what an unbroken run ends with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest
from factories import fit_scaler, make_episodes

from sepsis_jax.agent import journal, transcripts
from sepsis_jax.clinical.actions import AI_CLINICIAN_BINS
from sepsis_jax.data import store
from sepsis_jax.dynamics.worldmodel.bounds import Support
from sepsis_jax.dynamics.worldmodel.model import WorldModel

ROOT = Path(__file__).parents[2]
STAYS = 200


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Flags that name a small Episodes store and an untrained world model."""
    stays, folder = make_episodes(STAYS, 3, seed=0), tmp_path_factory.mktemp("inputs")
    scaler = fit_scaler(stays)
    manifest = store.Manifest("test", "1", {}, AI_CLINICIAN_BINS, scaler, (("all", STAYS),))
    store.save(folder / "episodes", stays, manifest)
    model = WorldModel(hidden=8, layers=1, members=2)
    model.save(folder / "model", model.init(scaler, Support.plausible(scaler), jax.random.key(0)), manifest)
    (folder / "run.yaml").write_text("planner: {samples: 4, horizon: 1}\nagent: {split: all, stays: 0}\n")
    return (
        f"--config={folder / 'run.yaml'}",
        f"--episodes={folder / 'episodes'}",
        f"--checkpoint={folder / 'model'}",
        "--clinician.updates=5",
    )


def start(inputs, out, *words):
    environment = os.environ | {
        "XLA_FLAGS": "--xla_backend_optimization_level=1",
        "JAX_COMPILATION_CACHE_DIR": jax.config.values["jax_compilation_cache_dir"],
    }
    command = [sys.executable, "agent_loop.py", f"--out={out}", *inputs, *words]
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=-1, stderr=subprocess.STDOUT)


def finish(process, code=0):
    output, _ = process.communicate(timeout=500)
    assert process.returncode == code, output
    return output


def written(out):
    path = journal.path_of(out)
    return path.read_bytes().count(b"\n") - 1 if path.exists() else 0


@pytest.mark.slow
@pytest.mark.long
def test_a_run_killed_three_times_equals_an_unbroken_one(inputs, tmp_path):
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    for kills in range(3):
        process = start(inputs, broken, *(["--resume"] if kills else []))
        before = written(broken)
        while process.poll() is None and written(broken) < before + 20:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL and not broken.exists()
        assert before + 20 <= written(broken) < STAYS
    assert "--resume goes on" in finish(start(inputs, broken), code=2)
    assert "other agent" in finish(start(inputs, broken, "--resume", "--agent.seed=1"), code=2)
    finish(start(inputs, broken, "--resume", "--agent.concurrency=3"))
    finish(start(inputs, whole))
    assert not journal.path_of(broken).exists()
    one, other = (transcripts.read(folder / transcripts.FILE) for folder in (broken, whole))
    assert len(one) == STAYS == len({case["stay_id"] for case in one})
    assert json.dumps(one) == json.dumps(other)
