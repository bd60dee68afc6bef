"""Offline reinforcement learning on ICU-Sepsis: `python benchmarks/offline_rl.py [--figure FILE] [--json FILE]`.

Every algorithm learns from stays of the expert over all seeds in one vmapped run; its exact value is known at every
point of the learning curve. One algorithm also learns its seeds one after the other, in the same run: `vs_one_by_one`.
Needs the package icu-sepsis.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import jax
import numpy as np
import report
from jsonargparse import auto_cli
from matplotlib.figure import Figure

from sepsis_jax import plotting
from sepsis_jax.ope import icu_sepsis
from sepsis_jax.policies.offline_rl import training
from sepsis_jax.policies.offline_rl.algorithms import ALGORITHMS
from sepsis_jax.policies.offline_rl.training import OfflineSettings

TIMED = "DQN"


def main(
    stays: int = 20_000, updates: int = 2000, seeds: int = 5, figure: Path | None = None, json: Path | None = None
) -> None:
    """Learn, and compare with the truth.

    Args:
      stays: of the expert. updates: of each algorithm. seeds: side by side.
      figure: file for the learning curves. json: file for the same numbers as one flat object.
    """
    mdp = icu_sepsis.load()
    data, states = mdp.draw(stays, seed=0)
    rows, see = icu_sepsis.experience(mdp, data, states), icu_sepsis.one_hot()
    settings = OfflineSettings(updates=updates, seeds=seeds, reports=10)
    figures: dict[str, float] = {"expert": mdp.value(mdp.expert), "seeds": float(seeds)}
    curves: dict[str, list[tuple[int, np.ndarray]]] = {}
    for name in ALGORITHMS:

        def values(networks: object, name: str = name) -> np.ndarray:
            found = []
            for seed in range(seeds):
                one = jax.tree.map(lambda leaf: leaf[seed : seed + 1], networks)  # noqa: B023
                probs = np.asarray(training.probs_of(name, settings, one, see), np.float64)
                found.append(mdp.value(probs / probs.sum(axis=1, keepdims=True)))
            return np.array(found)

        def note(done: int, networks: object, loss: np.ndarray, name: str = name, values=values) -> None:  # type: ignore[no-untyped-def]
            curves.setdefault(name, []).append((done, values(networks)))

        start = time.perf_counter()
        training.fit(name, settings, rows, jax.random.key(0), note)
        last = curves[name][-1][1]
        figures |= {f"{name}_value": last.mean(), f"{name}_least": last.min(), f"{name}_most": last.max()}
        figures[f"{name}_s"] = time.perf_counter() - start
    figures["vs_one_by_one"] = _ratio(rows, dataclasses.replace(settings, updates=200, reports=2))
    if figure is not None:
        _draw(curves, figures["expert"], figure)
    report.show(f"{stays} stays of ICU-Sepsis, {updates} updates, {seeds} seeds", figures, json)


def _ratio(rows: object, settings: OfflineSettings) -> float:
    """Time of all seeds one after the other, over the time of all together; both compiled before."""
    alone = dataclasses.replace(settings, seeds=1)
    seconds = {}
    for name, one, times in (("together", settings, 1), ("alone", alone, settings.seeds)):
        training.fit(TIMED, one, rows, jax.random.key(0))
        start = time.perf_counter()
        for seed in range(times):
            jax.block_until_ready(training.fit(TIMED, one, rows, jax.random.key(seed)))
        seconds[name] = time.perf_counter() - start
    return seconds["alone"] / seconds["together"]


def _draw(curves: dict[str, list[tuple[int, np.ndarray]]], expert: float, file: Path) -> None:
    figure = Figure(figsize=(7, 3.4), layout="constrained")
    axes = figure.subplots()
    for name, points in curves.items():
        done, values = np.array([point[0] for point in points]), np.stack([point[1] for point in points])
        axes.plot(done, values.mean(axis=1), linewidth=1.4, label=name)
        axes.fill_between(done, values.min(axis=1), values.max(axis=1), alpha=0.15, linewidth=0)
    axes.axhline(expert, color=plotting.RECORD, linewidth=0.8, linestyle=":", label="the expert")
    axes.set_xlabel("updates")
    axes.set_ylabel("exact value (survival)")
    axes.legend(fontsize=7, ncols=2)
    file.write_bytes(plotting.png(figure))


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
