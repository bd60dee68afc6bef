"""sweep.py as people run it: killed, on a full disk, on two processes, on eight devices; the store stays the same."""

from __future__ import annotations

import importlib
import signal
import socket
import time
from collections import namedtuple

import numpy as np
import processes
import pytest
import xarray as xr
from disks import full_disk
from processes import ROOT, finish, tiny_inputs

from sepsis_jax.errors import InputError
from sepsis_jax.files import digests

STAYS, REGIONS = 20, 4
SMALL = (
    "--steps=0",
    "--samples=256",
    "--horizon=2",
    "--features=meanbp,lactate",
    "--memory=1.3",
)
EIGHT_BLOCKS = "--memory=1.6"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Flags of a small sweep."""
    return *tiny_inputs(tmp_path_factory.mktemp("inputs"), STAYS, 4), *SMALL


def start(inputs, out, *words, **options):
    return processes.start("sweep.py", f"--out={out}", *inputs, *words, **options)


def pair(inputs, out, *words):
    """Two processes of one sweep."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        common = {"JAX_COORDINATOR_ADDRESS": f"localhost:{free.getsockname()[1]}", "JAX_NUM_PROCESSES": "2"}
    return [start(inputs, out, *words, JAX_PROCESS_ID=str(i), **common) for i in range(2)]


def marks(out):
    """Of the regions that are whole."""
    return {path.name for path in out.with_name(f"{out.name}.unfinished").glob(".done/*")}


def kill_after_a_region(process, out):
    while process.poll() is None and not marks(out):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not out.exists()


def assert_same_store(left, right):
    """The same files with the same bytes, and so the same decoded arrays."""
    assert digests(left) == digests(right)
    xr.testing.assert_identical(*(xr.open_zarr(path, consolidated=False).load() for path in (left, right)))


@pytest.fixture(scope="module")
def unbroken(inputs, tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken") / "sweep.zarr"
    assert "sim-steps a second" in finish(start(inputs, out))
    return out


@pytest.mark.slow
@pytest.mark.long
def test_killed_then_out_of_disk_then_resumed_is_as_unbroken(inputs, unbroken, tmp_path):
    out = tmp_path / "sweep.zarr"
    kill_after_a_region(start(inputs, out), out)
    before = marks(out)
    assert 0 < len(before) < REGIONS
    no_writing = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1000"}  # of half programs into the tests' cache
    said = finish(start(inputs, out, "--resume", disk=full_disk(100), **no_writing), code=2)
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "File too large; make room, then run the same command with --resume" in errors[0]
    assert "Traceback" not in said and marks(out) == before and not out.exists()
    finish(start(inputs, out, "--resume"))
    assert_same_store(out, unbroken)
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.zarr"]


@pytest.mark.slow
@pytest.mark.long
def test_two_processes_sweep_what_one_sweeps(inputs, unbroken, tmp_path):
    out = tmp_path / "sweep.zarr"
    first, second = (finish(process) for process in pair(inputs, out))
    assert f"Sweep: {out}" in first and "Sweep" not in second  # only the first one prints
    assert_same_store(out, unbroken)


@pytest.mark.slow
@pytest.mark.long
def test_bad_input_ends_both_processes_at_once(inputs, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    first, second = pair(inputs, tmp_path)
    assert "expected a new folder or a sweep, found something else; choose another --out" in finish(first, code=2)
    second.communicate(timeout=60)
    assert second.returncode != 0


@pytest.mark.slow
@pytest.mark.long
def test_the_other_process_ends_and_leaves_what_one_can_go_on_with(inputs, unbroken, tmp_path):
    out = tmp_path / "sweep.zarr"
    processes = pair(inputs, out, "--resume")
    kill_after_a_region(processes[1], out)
    start_of_wait = time.perf_counter()
    said = processes[0].communicate(timeout=180)[0]
    assert processes[0].returncode != 0 and "another task died" in said  # JAX's own words
    assert time.perf_counter() - start_of_wait < 150
    assert marks(out) and not out.exists()
    finish(start(inputs, out, "--resume"))
    assert_same_store(out, unbroken)


@pytest.mark.slow
@pytest.mark.long
def test_eight_devices_sweep_what_one_sweeps(inputs, unbroken, tmp_path):
    out = tmp_path / "sweep.zarr"
    finish(start(inputs, out, "--resume", EIGHT_BLOCKS, flags="--xla_force_host_platform_device_count=8"))
    one, eight = (xr.open_zarr(path, consolidated=False) for path in (unbroken, out))
    for name in one.data_vars:
        close = np.isclose(eight[name], one[name], rtol=1e-5, atol=1e-6, equal_nan=True)
        assert (~close).mean() <= 1e-4, name  # sums in another order may turn a discrete event


Disk = namedtuple("Disk", "free")


@pytest.mark.slow
@pytest.mark.parametrize("words", [(), ("--dry-run",)])
def test_a_disk_that_is_too_small_is_refused_at_the_start(inputs, tmp_path, monkeypatch, words):
    monkeypatch.syspath_prepend(ROOT)
    script = importlib.import_module("sweep")
    monkeypatch.setattr(script.shutil, "disk_usage", lambda folder: Disk(free=1000))
    with pytest.raises(InputError, match=r"sweep.zarr: expected .* GB of free disk, found 0.00 GB; choose fewer"):
        script.main([f"--out={tmp_path / 'sweep.zarr'}", *inputs, EIGHT_BLOCKS, *words])
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--features=meanbp,lactate,meanbp",), "--features: expected each name once, found meanbp twice"),
        (("--features=magic",), "--features: expected names of features, or all, found magic"),
        (("--hold=5", "--horizon=2"), "--hold: expected at most --horizon, 2, found 5"),
        (("--hold=2", "--candidates=untreated"), "--hold: expected --candidates all, found untreated"),
        (("--split=Test",), "split"),
        (("--out=/",), "the root of the file system"),
        (("--episodes=/tmp", "--out=/tmp/sweep.zarr"), "expected a place outside the episodes"),
        (("--out=/dev/null/sweep.zarr",), "/dev/null/sweep.zarr: expected a place that can be written"),
    ],
)
def test_bad_flags_are_refused_before_anything_is_read(monkeypatch, words, message):
    monkeypatch.syspath_prepend(ROOT)
    with pytest.raises(InputError, match=message):
        importlib.import_module("sweep").main(["--episodes=missing", "--checkpoint=missing", *words])
