"""Counterfactual sweeps: every stay x decision x candidate, streamed to a labelled Zarr store that can be resumed."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from sepsis_jax.data.episodes import Episodes
from sepsis_jax.dynamics.protocol import History, history_at
from sepsis_jax.simulation.batch import BLOCK, simulate
from sepsis_jax.simulation.candidates import Candidates
from sepsis_jax.simulation.course import World
from sepsis_jax.simulation.layout import Layout
from sepsis_jax.simulation.policy import RARE, Policy, probs_at
from sepsis_jax.simulation.record import Summarize, Summary

KEY_FEATURES: tuple[str, ...] = (
    "meanbp",
    "heart_rate",
    "resp_rate",
    "spo2",
    "lactate",
    "creatinine",
    "platelet",
    "output_4hourly",
)
"""What a sweep describes unless told otherwise."""
ENDS = ("value", "value_sd", "value_sd_members", "value_se", "death_90d", "death_90d_sd_members")
EXITS = ("in_icu", "died", "discharged")

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """All that a sweep computes, without where it goes.

    Attributes:
      world: dynamics, bins, reward; each of `candidates` brings its policy. params: of the dynamics.
      clinician, clinician_params: the estimate that support is judged by.
      episodes: the stays. steps: decisions of each stay; those beyond its length stay NaN.
      candidates: what is compared.
      record: what is kept. samples, horizon: S, H. seed: of the run. block: see `batch.simulate`.
    """

    world: World
    params: Any
    clinician: Policy
    clinician_params: Any
    episodes: Episodes
    steps: Sequence[int]
    candidates: Sequence[Candidates]
    record: Summarize
    samples: int
    horizon: int
    seed: int
    block: int = BLOCK

    @property
    def names(self) -> tuple[str, ...]:
        """Labels of all candidates."""
        return tuple(itertools.chain.from_iterable(group.names for group in self.candidates))

    def decisions(self, region: slice = slice(None)) -> int:
        """How many decisions the stays have among `steps`."""
        return int(sum((np.asarray(self.episodes.length)[region] > step).sum() for step in self.steps))

    @property
    def simulated(self) -> int:
        """Samples of a cell that are computed: S rounded up to whole slots."""
        layout = Layout.of(self.world.dynamics.members, self.samples, self.horizon, self.block)
        return layout.slots_of_cell(self.samples) * layout.width * layout.members

    def sim_steps(self, region: slice = slice(None)) -> int:
        """Trajectories of all decisions, times 4-h steps."""
        return self.decisions(region) * len(self.names) * self.samples * self.horizon

    @property
    def decisions_at_a_time(self) -> int:
        """Decisions that are simulated together: a few blocks, so that none is mostly empty."""
        return max(1, 4 * self.block // (len(self.names) * self.simulated))

    def regions(self) -> list[slice]:
        """Consecutive stays that are simulated and written together."""
        size, total = max(1, self.decisions_at_a_time // len(self.steps)), self.episodes.num_stays
        return [slice(start, min(start + size, total)) for start in range(0, total, size)]

    def shapes(self) -> dict[str, tuple[str, ...]]:
        """Dimensions of each array of a region after (episode, time, candidate)."""
        inner = {"obs": ("horizon", "feature", "statistic"), "events": ("horizon", "event")}
        return inner | dict.fromkeys((*ENDS, "support", "out_of_distribution"), ())

    def run(self, region: slice) -> Arrays:
        """Arrays of some stays, f32 with leading [stays,steps,K]; NaN where a stay has no such decision."""
        length = np.asarray(self.episodes.length)[region]
        sizes = {dim: len(labels) for dim, (_, labels) in coordinates(self).items()}
        leading = (length.size, len(self.steps), len(self.names))
        inner = {name: tuple(sizes[dim] for dim in dims) for name, dims in self.shapes().items()}
        out = {name: np.full(leading + shape, np.nan, np.float32) for name, shape in inner.items()}
        row, column = np.nonzero(length[:, None] > np.asarray(self.steps)[None])
        if row.size:  # a region of short stays may have none
            histories = history_at(self.episodes, row + region.start, np.asarray(self.steps)[column])
            for name, values in self.at(histories).items():
                out[name][row, column] = values
        return out

    def at(self, histories: History) -> Arrays:
        """Arrays of some decisions, f32 with leading [B,K]."""
        parts = [self._simulate(histories, group) for group in self.candidates]
        joined = {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}
        return joined | self._support(histories)

    def _simulate(self, histories: History, group: Candidates) -> Arrays:
        batch = len(np.asarray(histories.length))
        summary: Summary = simulate(
            dataclasses.replace(self.world, policy=group.policy),
            self.params,
            group.policy_params,
            histories,
            np.broadcast_to(group.plans[None], (batch, *group.plans.shape)),
            jax.random.key(self.seed),
            record=self.record,
            samples=self.samples,
            horizon=self.horizon,
            block=self.block,
        )
        moments = np.stack([summary.mean, summary.sd, summary.sd_members], axis=-1)
        exits = [getattr(summary, name) for name in EXITS]
        return {
            "obs": np.concatenate([moments, summary.quantile], axis=-1),
            "events": np.stack([*exits, *(summary.events[event.name] for event in self.record.events)], axis=-1),
            **{name: getattr(summary, name) for name in ENDS},
        }

    def _support(self, histories: History) -> Arrays:
        """How often clinicians begin as each candidate does, in states like these."""
        probs = np.asarray(probs_at(self.clinician, self.clinician_params, histories))
        parts = []
        for group in self.candidates:
            if group.plans.shape[1]:
                parts.append(probs[:, group.plans[:, 0] @ np.array([5, 1])])
            else:  # a policy: the chance that clinicians would have chosen what it chooses
                chosen = np.asarray(probs_at(group.policy, group.policy_params, histories))
                parts.append((probs * chosen).sum(axis=1, keepdims=True))
        support = np.concatenate(parts, axis=1).astype(np.float32)
        return {"support": support, "out_of_distribution": (support < RARE).astype(np.float32)}


def coordinates(sweep: Sweep) -> dict[str, tuple[str, Any]]:
    """Labels of every dimension, and what candidates begin with."""
    record = sweep.record
    first = [plan[0] if len(plan) else (-1, -1) for group in sweep.candidates for plan in group.plans]
    quantiles = [f"q{100 * at:g}" for at in record.at]
    return {
        "episode": ("episode", np.asarray(sweep.episodes.stay_id)),
        "time": ("time", np.asarray(sweep.steps, np.int32)),
        "candidate": ("candidate", sweep.names),
        "vasopressor": ("candidate", np.asarray([levels[0] for levels in first], np.int32)),
        "fluid": ("candidate", np.asarray([levels[1] for levels in first], np.int32)),
        "horizon": ("horizon", 4 * np.arange(1, sweep.horizon + 1, dtype=np.int32)),
        "feature": ("feature", record.features),
        "statistic": ("statistic", ("mean", "sd", "sd_members", *quantiles)),
        "event": ("event", (*EXITS, *(event.name for event in record.events))),
    }


def size_bytes(sweep: Sweep) -> int:
    """Bytes of all numbers before compression."""
    sizes = {dim: len(labels) for dim, (_, labels) in coordinates(sweep).items()}
    one = sum(math.prod(sizes[dim] for dim in inner) for inner in sweep.shapes().values())
    return 4 * one * sweep.decisions() * len(sweep.names)


def steps_per_second(sweep: Sweep, seconds: float = 5.0) -> float:
    """Simulated steps a second, measured on the first decisions after a first, compiling call."""
    lengths = np.asarray(sweep.episodes.length)
    rows, columns = np.nonzero(lengths[:, None] > np.asarray(sweep.steps)[None])
    few = sweep.decisions_at_a_time
    histories = history_at(sweep.episodes, rows[:few], np.asarray(sweep.steps)[columns[:few]])
    sweep.at(histories)
    calls, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        sweep.at(histories)
        calls += 1
    done = calls * min(few, rows.size) * len(sweep.names) * sweep.samples * sweep.horizon
    return done / (time.perf_counter() - start)
