"""Speed of training: one member against the same network, loss and batch in PyTorch, an ensemble against one member.

    python benchmarks/training.py [--stays N] [--batch_size B] [--json FILE]

Runs of the peers alternate, and ratios are medians over pairs, so that other work on the machine meets both. PyTorch
is optional: without it only the ensemble is measured.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
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
from jsonargparse import auto_cli

from sepsis_jax.dynamics.worldmodel import sharding, steps
from sepsis_jax.dynamics.worldmodel.bounds import Support
from sepsis_jax.dynamics.worldmodel.losses import history_of, means
from sepsis_jax.dynamics.worldmodel.settings import TrainSettings

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from factories import fit_scaler, make_episodes

ENSEMBLE = 5


def main(
    hidden: int = 128,
    layers: int = 1,
    batch_size: int = 64,
    num_steps: int = 24,
    updates: int = 4,
    repeats: int = 7,
    json: Path | None = None,
) -> None:
    """Run the benchmark.

    Args:
      hidden, layers: of the GRU.
      batch_size: stays in one update.
      num_steps: T, 4-h steps of a padded stay.
      updates: in one timed run.
      repeats: timed runs of each; the median counts.
      json: where to write the figures as one flat object.
    """
    one = TrainSettings(hidden=hidden, layers=layers, batch_size=batch_size)
    episodes = make_episodes(int(updates * batch_size / 0.7) + 1, num_steps, seed=0)
    mesh = sharding.mesh(jax.devices()[:1])
    stays = steps.stays_of(episodes, "train", mesh)
    runs = {"one": _jax_run(one, episodes, stays, updates)}
    runs["ensemble"] = _jax_run(dataclasses.replace(one, members=ENSEMBLE), episodes, stays, updates)
    runs |= _torch_run(one, episodes, stays, updates)
    seconds = _alternate(runs, repeats)
    figures = _figures(one, seconds, updates) | _parts(one, episodes, stays, repeats, runs["one"], updates)
    report.show(f"training, {hidden} x {layers}, batches of {batch_size} x {num_steps} steps", figures, json)


def _alternate(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every run, taken in turns."""
    for run in runs.values():
        jax.block_until_ready(run())  # compiles
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            seconds[name].append(time.perf_counter() - start)
    return seconds


def _ratio(numerator: list[float], denominator: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def _params(settings: TrainSettings, episodes: Any) -> Any:
    scaler = fit_scaler(episodes)
    return steps.first_weights(settings, scaler, Support.fit(episodes.subset("train"), scaler))


def _jax_run(settings: TrainSettings, episodes: Any, stays: steps.Stays, updates: int) -> Callable[[], Any]:
    """`updates` updates of all members, as in an epoch."""
    mesh = sharding.mesh(jax.devices()[:1])
    params = _params(settings, episodes)
    fit = steps.start(settings, params, updates).fit
    keys = jax.random.split(jax.random.key(1), settings.members)

    def run(fit: steps.Fit) -> steps.Fit:
        rows = jnp.arange(updates * settings.batch_size).reshape(updates, 1, -1)
        rows = jnp.broadcast_to(rows, (updates, settings.members, settings.batch_size))

        def step(fit: steps.Fit, at: jax.Array) -> tuple[steps.Fit, None]:
            return steps.update(settings, mesh, params, fit, stays, at, keys, jnp.int32(0))[0], None

        return jax.lax.scan(step, fit, rows)[0]

    compiled = jax.jit(run).lower(fit).compile()
    return lambda: compiled(fit)


def _torch_run(
    settings: TrainSettings, episodes: Any, stays: steps.Stays, updates: int
) -> dict[str, Callable[[], Any]]:
    try:
        import torch
        import torch_twin
    except ImportError:
        print("PyTorch is not installed: pip install -r requirements-torch.txt")
        return {}
    torch.manual_seed(0)
    params = _params(settings, episodes)
    twin = torch_twin.Twin(settings)
    twin.copy(jax.tree.map(lambda leaf: leaf[0], params.network))
    train = episodes.subset("train")
    data = torch_twin.prepare(settings.model, params, train)
    batches = [
        {name: value[i * settings.batch_size : (i + 1) * settings.batch_size] for name, value in data.items()}
        for i in range(updates)
    ]
    _check_same_loss(settings, params, stays, twin, batches[0])
    update = torch_twin.make_update(settings, twin)

    def run(threads: int) -> None:
        torch.set_num_threads(threads)
        for batch in batches:
            update(batch)

    # Its threads wait for each other at every operation, which a busy machine punishes: the faster of both counts.
    return {f"torch, {n} threads": partial(run, n) for n in sorted({1, len(os.sched_getaffinity(0))})}


def _check_same_loss(settings: TrainSettings, params: Any, stays: steps.Stays, twin: Any, batch: Any) -> None:
    """Both compute the same terms from the same weights; the copula's, at random steps, within a tenth."""
    rows = jnp.arange(settings.batch_size)
    first = jax.tree.map(lambda leaf: leaf[rows], stays.episodes)
    keys = jax.random.split(jax.random.key(0), settings.batch_size)
    network = jax.tree.map(lambda leaf: leaf[0], params.network)
    ours = jax.jit(lambda: means(steps._terms(settings, params, network, first, keys, train=False)))()
    twin.eval()
    for name, value in twin.loss(batch).items():
        tolerance = {"atol": 0.1} if name == "copula" else {"rtol": 1e-4}
        np.testing.assert_allclose(value.item(), float(ours[name]), err_msg=name, **tolerance)


def _figures(settings: TrainSettings, seconds: dict[str, list[float]], updates: int) -> dict[str, float]:
    samples = updates * settings.batch_size
    figures = {
        "samples_per_s": samples / statistics.median(seconds["one"]),
        "ensemble5_member_samples_per_s": ENSEMBLE * samples / statistics.median(seconds["ensemble"]),
        "ensemble5_vs_member": _ratio(seconds["ensemble"], seconds["one"]),
    }
    if torch := [times for name, times in seconds.items() if name.startswith("torch")]:
        fastest = min(torch, key=statistics.median)
        figures["torch_samples_per_s"] = samples / statistics.median(fastest)
        figures["member_vs_torch"] = _ratio(fastest, seconds["one"])
    return figures


def _parts(
    settings: TrainSettings, episodes: Any, stays: steps.Stays, repeats: int, whole: Callable[[], Any], updates: int
) -> dict[str, float]:
    """Where the time of an update goes, and its share of what products of matrices reach on this machine."""
    params = _params(settings, episodes)
    rows = jnp.arange(settings.batch_size)
    batch = jax.tree.map(lambda leaf: leaf[rows], stays.episodes)
    keys = jax.random.split(jax.random.key(0), settings.batch_size)
    network = jax.tree.map(lambda leaf: leaf[0], params.network)

    def loss(network: Any) -> jax.Array:
        return means(steps._terms(settings, params, network, batch, keys, train=True))["loss"]

    def gru(network: Any) -> jax.Array:
        with_weights = dataclasses.replace(params, network=network)

        def read(episode: Any) -> jax.Array:
            return settings.model.encode_all(with_weights, history_of(episode)).memory.hidden

        return jax.vmap(read)(batch).sum()

    square = jnp.ones((1024, 1024))
    parts = {
        "forward": jax.jit(loss),
        "forward_backward": jax.jit(jax.grad(loss)),
        "gru_forward_backward": jax.jit(jax.grad(gru)),
    }
    runs: dict[str, Callable[[], Any]] = {name: lambda f=f: f(network) for name, f in parts.items()}
    product = jax.jit(lambda a: a @ a)
    runs |= {"product": lambda: product(square), "updates": whole}
    median = {name: statistics.median(times) for name, times in _alternate(runs, repeats).items()}
    update = median["updates"] / updates
    weights = sum(leaf.size for leaf in jax.tree.leaves(network) if leaf.ndim == 2)
    operations = (
        6 * weights * batch.obs.shape[0] * batch.obs.shape[1]
    )  # forward 2, backward 4, for each weight and step
    limit = 2 * 1024**3 / median["product"]
    return {
        "update_ms": 1e3 * update,
        "forward_ms": 1e3 * median["forward"],
        "forward_backward_ms": 1e3 * median["forward_backward"],
        "gru_forward_backward_ms": 1e3 * median["gru_forward_backward"],
        "matmul_limit_gflops": limit / 1e9,
        "share_of_matmul_limit": operations / update / limit,
    }


if __name__ == "__main__":
    auto_cli(main)
