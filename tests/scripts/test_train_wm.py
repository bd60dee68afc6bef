"""train_wm.py as people run it: killed and started again, on two processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from factories import fit_scaler, make_episodes

from sepsis_jax.clinical.actions import AI_CLINICIAN_BINS
from sepsis_jax.data import store
from sepsis_jax.dynamics.worldmodel import checkpoint

ROOT = Path(__file__).parents[2]
# The published network compiles faster; carry resumes in tests/dynamics/test_worldmodel_training.py.
TINY = ("architecture=published", "hidden=8", "layers=1", "members=2", "epochs=16", "patience=16", "batch_size=16")


@pytest.fixture(scope="module")
def episodes(tmp_path_factory):
    """A tiny Episodes store."""
    stays, folder = make_episodes(60, 4, seed=0), tmp_path_factory.mktemp("data") / "episodes"
    manifest = store.Manifest("test", "1", {}, AI_CLINICIAN_BINS, fit_scaler(stays), (("all", 60),))
    store.save(folder, stays, manifest)
    return folder


def start(episodes, out, **variables):
    flags = "--xla_backend_optimization_level=0"
    cache = jax.config.values["jax_compilation_cache_dir"]
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_COMPILATION_CACHE_DIR": cache} | variables
    settings = [f"--world_model.{word}" for word in TINY]
    command = [sys.executable, "train_wm.py", f"--episodes={episodes}", f"--out={out}", *settings]
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=-1, stderr=subprocess.STDOUT)


def finish(process):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def assert_same_arrays(left, right, **tolerance):
    left, right = (checkpoint.load(path).arrays for path in (left, right))
    assert left.keys() == right.keys()
    for name, array in left.items():
        if tolerance:
            np.testing.assert_allclose(array, right[name], err_msg=name, **tolerance)
        else:
            np.testing.assert_array_equal(array, right[name], err_msg=name)


@pytest.fixture(scope="module")
def unbroken(episodes, tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken") / "wm"
    finish(start(episodes, out))
    return out


@pytest.mark.slow
@pytest.mark.long
def test_killed_and_started_again_ends_bit_for_bit_as_unbroken(episodes, unbroken, tmp_path):
    out = tmp_path / "wm"
    epochs = tmp_path / "wm.training" / "epochs"
    for epoch in (3, 9):
        process = start(episodes, out)
        while process.poll() is None and max((int(p.name) for p in epochs.glob("[0-9]*[0-9]")), default=0) < epoch:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL and epochs.exists() and not out.exists()
    assert "Going on with the unfinished training" in finish(start(episodes, out))
    assert_same_arrays(out, unbroken)
    assert (out / checkpoint.METRICS).read_text() == (unbroken / checkpoint.METRICS).read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["wm"]


@pytest.mark.slow
@pytest.mark.long
def test_two_processes_train_what_one_trains(episodes, unbroken, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    common = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    out = tmp_path / "wm"
    processes = [start(episodes, out, JAX_PROCESS_ID=str(i), **common) for i in range(2)]
    first, second = (finish(process) for process in processes)
    assert f"World model: {out}" in first and str(tmp_path) not in second  # only the first one writes
    assert_same_arrays(out, unbroken, atol=2e-3)
    assert [path.name for path in tmp_path.iterdir()] == ["wm"]
