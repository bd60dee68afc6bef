"""Speed of the batched simulation: `python benchmarks/simulation.py [--curves false] [--json FILE]`.

A sim-step is one trajectory advanced 4 h by one member. The peers are the same networks with the same draws in PyTorch
(benchmarks/torch_simulation.py), in f32 unless a name says bf16: a `loop` over single trajectories and a batch over the
25 candidates (`torch_batched`), both with one and with two threads, whichever is faster; and all candidates and samples
of a patient in one batch (`torch_at_once`), the hardest. Ratios are of median rates over turns taken in the same run.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import report
import torch
import torch_simulation
from jsonargparse import auto_cli

from sepsis_jax import checkpoints
from sepsis_jax.clinical.actions import ALL_ACTIONS, one_hot
from sepsis_jax.clinical.features import INDEX, NUM_FEATURES
from sepsis_jax.clinical.reward import PUBLISHED
from sepsis_jax.data.episodes import Episodes
from sepsis_jax.dynamics.patient.cohort import simulate_cohort
from sepsis_jax.dynamics.protocol import history_at
from sepsis_jax.dynamics.worldmodel.model import Precision, WorldModel
from sepsis_jax.dynamics.worldmodel.sharding import one_device_a_core
from sepsis_jax.simulation.batch import on_devices, simulate
from sepsis_jax.simulation.compiled import compiled
from sepsis_jax.simulation.course import World
from sepsis_jax.simulation.record import RETURNS, Record, Summarize, Trajectories
from sepsis_jax.simulation.sweep import KEY_FEATURES

DEFAULT = Summarize(KEY_FEATURES)
SAMPLES = 1000  # as sweep.py's default
Run = Callable[[], Any]


def main(turns: int = 3, patients: int = 2, curves: bool = True, memory: bool = True, json: Path | None = None) -> None:
    """Run the comparisons.

    Args:
      turns: of every run.
      patients: with 25 candidates of 1,000 samples each.
      curves: print time against patients, candidates, samples and horizon.
      memory: measure the resident memory of 10^6 trajectories of 12 steps, in a process of its own.
      json: file for the same numbers as one flat object.
    """
    one_device_a_core()
    episodes, _ = simulate_cohort(max(patients, 1000 if curves else 200), seed=1)
    figures = _against_torch(episodes, patients, turns)
    figures |= _crn(episodes)
    if curves:
        figures |= _curves(episodes)
    if memory:
        figures["rss_gb_1e6"] = _resident()
    report.show(f"simulation, {patients} patients x 25 candidates x {SAMPLES} samples", figures, json)


def load(path: Path, precision: Precision = "float32") -> tuple[World, Any]:
    """World (plans alone) and params of a packaged world model."""
    model, params, manifest = WorldModel.from_checkpoint(path)
    return World(dataclasses.replace(model, precision=precision), manifest.action_bins, PUBLISHED), params


def _ours(
    path: Path,
    episodes: Episodes,
    patients: int,
    horizon: int,
    record: Record,
    *,
    samples: int = SAMPLES,
    precision: Precision = "float32",
) -> Run:
    world, params = load(path, precision)
    params = on_devices(params)
    plans = np.broadcast_to(ALL_ACTIONS[None, :, None], (patients, 25, horizon, 2))
    histories = history_at(episodes, np.arange(patients), np.minimum(np.asarray(episodes.length)[:patients] - 1, 2))
    key = jax.random.key(0)
    return lambda: simulate(
        world, params, None, histories, plans, key, record=record, samples=samples, horizon=horizon
    )  # fmt: skip


def _against_torch(episodes: Episodes, patients: int, turns: int) -> dict[str, float]:
    steps, batch = patients * 25 * SAMPLES, 25 * SAMPLES
    cases: dict[str, tuple[Run, float]] = {}
    for name, path, horizons in (("carry", checkpoints.CARRY, (12,)), ("published", checkpoints.PUBLISHED, (1, 12))):
        for h in horizons:
            cases[f"{name}_core_h{h}"] = (_ours(path, episodes, patients, h, RETURNS), steps * h)
            cases[f"{name}_torch_at_once_h{h}"] = (partial(_torch(path, h, threads=2), batch), batch * h)
            if name == "carry":
                peer = partial(_autocast, _torch(path, h, threads=2), batch)
                cases[f"carry_torch_at_once_bf16_h{h}"] = (peer, batch * h)
            for threads in (1, 2):
                peer = _torch(path, h, threads)
                cases[f"{name}_torch_loop_h{h}_{threads}"] = (lambda peer=peer: [peer(1) for _ in range(30)], 30 * h)
                cases[f"{name}_torch_batched_h{h}_{threads}"] = (
                    lambda peer=peer: [peer(25) for _ in range(10)],
                    250 * h,
                )
    carry = partial(_ours, checkpoints.CARRY, episodes, patients, 12)
    cases["carry_h12"] = (carry(DEFAULT), steps * 12)
    cases["carry_bf16_h12"] = (carry(DEFAULT, precision="bfloat16"), steps * 12)
    cases["carry_core_bf16_h12"] = (carry(RETURNS, precision="bfloat16"), steps * 12)
    windows = _ours(checkpoints.PUBLISHED, episodes, patients, 12, RETURNS, precision="bfloat16")
    cases["published_core_bf16_h12"] = (windows, steps * 12)
    square = jnp.ones((1024, 1024))
    product = jax.jit(lambda a: a @ a)
    dense = torch.ones(1024, 1024)
    # Many, since the first ones after something else are slow.
    cases["gemm_xla"] = (lambda: [jax.block_until_ready(product(square)) for _ in range(50)], 50 * 2 * 1024**3)
    cases["gemm_torch"] = (lambda: [dense @ dense for _ in range(50)], 50 * 2 * 1024**3)
    rate = {name: statistics.median(rates) for name, rates in _alternate(cases, turns).items()}
    for name, h in (("carry", 12), ("published", 1), ("published", 12)):
        for peer in ("torch_loop", "torch_batched"):
            rate[f"{name}_{peer}_h{h}"] = max(rate.pop(f"{name}_{peer}_h{h}_{threads}") for threads in (1, 2))
    flops = 2 * _products(checkpoints.CARRY)
    peers = {"loop": "torch_loop", "torch_batched": "torch_batched", "torch_at_once": "torch_at_once"}
    return {
        **{
            f"published{kind}_vs_{label}_h{h}": rate[f"published_core{kind}_h{h}"] / rate[f"published_{peer}_h{h}"]
            for label, peer in peers.items()
            for kind, h in (("", 1), ("", 12), ("_bf16", 12))
        },
        **{
            f"carry{kind}_vs_{label}": rate[f"carry{kind}_h12"] / rate[f"carry_{peer}_h12"]
            for label, peer in peers.items()
            for kind in ("", "_core", "_bf16", "_core_bf16")
        },
        "carry_bf16_vs_torch_at_once_bf16": rate["carry_bf16_h12"] / rate["carry_torch_at_once_bf16_h12"],
        "carry_core_bf16_vs_torch_at_once_bf16": rate["carry_core_bf16_h12"] / rate["carry_torch_at_once_bf16_h12"],
        "gemm_fraction_xla": rate["carry_core_h12"] * flops / rate["gemm_xla"],
        "gemm_fraction_best": rate["carry_core_h12"] * flops / max(rate["gemm_xla"], rate["gemm_torch"]),
        "gemm_xla_gflops": rate["gemm_xla"] / 1e9,
        "gemm_torch_gflops": rate["gemm_torch"] / 1e9,
        **{f"{name}_sim_steps_per_s": rate[name] for name in rate if name.startswith(("carry", "published"))},
    }


def _alternate(cases: dict[str, tuple[Run, float]], turns: int) -> dict[str, list[float]]:
    """What each case does a second, taken in turns."""
    for run, _ in cases.values():
        run()
    rates: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(turns):
        for name, (run, work) in cases.items():
            rates[name].append(work / _seconds(run))
    return rates


def _seconds(run: Run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _products(path: Path) -> int:
    """Multiplications of one step of `carry`: each weight of a matrix meets each trajectory once."""
    world, params = load(path)
    network = world.dynamics.member(params, 0).network
    cells = [cell[name] for cell in network["gru"]["cells"].values() for name in ("weight_ih", "weight_hh")]
    return sum(leaf.size for leaf in [*cells, *(network[name]["kernel"] for name in ("trunk", "second", "heads"))])


def _torch(path: Path, horizon: int, threads: int) -> Callable[[int], Any]:
    """`run(N)`: N trajectories of the peer and their outcomes, from the same state."""
    world, params = load(path)
    own = world.dynamics.member(params, 0)
    network = torch_simulation.tensors(own.network)
    action = torch.from_numpy(np.array(one_hot(np.array([1, 2]))))
    obs = torch.from_numpy(np.array(own.scaler.mean))
    if world.dynamics.architecture == "carry":
        peer: Any = torch_simulation.Carry(network, own.support)
        hidden = len(own.network["gru"]["cells"][0]["weight_hh"])
        vectors = {name: torch.zeros(NUM_FEATURES) for name in ("level", "number", "since")}
        one = {
            "hidden": torch.zeros(1, hidden),
            "obs": obs,
            "static": torch.zeros(3),
            "steps": torch.zeros(1),
        } | vectors
        rank = network["loading"].shape[1]
    else:
        peer = torch_simulation.Published(network, own.support)
        one = {"rows": torch.zeros(12, 87), "static": torch.zeros(3), "mask": torch.zeros(38)}
        rank = 0

    @torch.inference_mode()
    def run(count: int) -> Any:
        torch.set_num_threads(threads)
        state = {name: leaf.expand(count, *leaf.shape).clone() for name, leaf in one.items()}
        if "hidden" in state:
            state["hidden"] = state["hidden"].transpose(0, 1).contiguous()
        given = action.expand(count, -1)
        for _ in range(horizon):
            state = peer.step(state, given, torch_simulation.draw(count, rank))
        return peer.outcome(state)

    return run


def _autocast(run: Callable[[int], Any], count: int) -> Any:
    """The peer with products in bfloat16."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return run(count)


def _crn(episodes: Episodes, states: int = 200, samples: int = 64) -> dict[str, float]:
    """How much common random numbers narrow a difference from no treatment, in variance.

    Medians over states and contrasts: of MAP after 4 h, and of the return after 24 h.
    """
    got = _ours(checkpoints.CARRY, episodes, states, 6, Trajectories(), samples=samples)()

    def narrowing(values: np.ndarray) -> float:
        """f64[B,25,S]."""
        apart = values[:, 1:].var(axis=2) + values[:, :1].var(axis=2)
        return float(np.median(apart / (values[:, 1:] - values[:, :1]).var(axis=2)))

    pressure = got.steps.obs[:, :, :, 0, INDEX["meanbp"]].astype(np.float64)
    return {
        "crn_variance_ratio": narrowing(pressure),
        "crn_variance_ratio_return_24h": narrowing(got.value.astype(np.float64)),
    }


def _curves(episodes: Episodes) -> dict[str, float]:
    """Microseconds a trajectory and step along each axis; the largest over the smallest from 10^4 trajectories on.

    The best of three turns of half a second or more each: what other processes take of the machine only adds.
    """
    run_blocks = compiled("float32")
    before = run_blocks._cache_size()
    axes: dict[str, tuple[int, ...]] = {
        "patients": (1, 4, 16, 64, 250, 1000),
        "candidates": (1, 5, 25, 100, 400),
        "samples": (1, 16, 64, 256, 1000, 4096),
        "horizon": (1, 3, 6, 12, 24),
    }
    usual = {"patients": 40, "candidates": 25, "samples": 16, "horizon": 6}
    figures: dict[str, float] = {}
    for axis, values in axes.items():
        points: dict[int, tuple[int, int, Run]] = {}
        for value in values:
            here = usual | {axis: value}
            if axis == "samples":
                here["patients"] = max(1, usual["patients"] * 64 // max(value, 64))
            run = _point(episodes, **here)
            run()
            count = here["patients"] * here["candidates"] * here["samples"]
            points[value] = count, here["horizon"], run
            figures[f"rss_gb_{axis}_{value}"] = _peak_gb()
        each = dict.fromkeys(values, math.inf)
        for _ in range(3):
            for value, (count, horizon, run) in points.items():
                each[value] = min(each[value], _least(run) / count / horizon * 1e6)
        beyond = [each[value] for value, (count, _, _) in points.items() if count >= 10_000]
        figures |= {f"us_{axis}_{value}": found for value, found in each.items()}
        figures[f"spread_{axis}"] = max(beyond) / min(beyond)
    figures["compile_count"] = run_blocks._cache_size() - before
    return figures


def _least(run: Run, lasting: float = 0.5) -> float:
    """Seconds of the fastest of so many runs as fit."""
    times = [_seconds(run)]
    while sum(times) < lasting:
        times.append(_seconds(run))
    return min(times)


def _point(episodes: Episodes, patients: int, candidates: int, samples: int, horizon: int) -> Run:
    world, params = load(checkpoints.CARRY)
    params = on_devices(params)
    plans = np.zeros((patients, candidates, horizon, 2), np.int8)
    plans[:] = np.random.default_rng(0).integers(0, 5, (1, candidates, 1, 2))
    histories = history_at(episodes, np.arange(patients), np.zeros(patients, int))
    key = jax.random.key(0)
    return lambda: simulate(
        world, params, None, histories, plans, key, record=RETURNS, samples=samples, horizon=horizon
    )  # fmt: skip


def _resident() -> float:
    """Gigabytes of a fresh process that simulates 10^6 trajectories of 12 steps with the default record."""
    code = "import simulation; simulation.million()"
    folder = Path(__file__).parent
    found = subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, capture_output=True, text=True)
    return float(found.stdout.split()[-1])


def million() -> None:
    """Simulate 10^6 trajectories and print the peak of this process."""
    one_device_a_core()
    episodes, _ = simulate_cohort(40, seed=1)
    _ours(checkpoints.CARRY, episodes, 40, 12, DEFAULT)()
    print(_peak_gb())


def _peak_gb() -> float:
    """Gigabytes that this process has held at most. Not `ru_maxrss`, which begins with that of the parent."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e9


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
