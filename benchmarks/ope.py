"""Speed of off-policy evaluation: `python benchmarks/ope.py [--json FILE]`.

All estimators and the patient bootstrap of many policies, against the same as vectorised NumPy (float64, products of
matrices), as NumPy loops (timed on 20 draws of one policy and scaled) and with scope-rl where it is installed (its
seven estimators, timed on one policy and scaled). Ratios are medians over turns taken in the same run.
"""

from __future__ import annotations

import importlib
import importlib.util
import resource
import statistics
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import report
from jsonargparse import auto_cli

from sepsis_jax.ope import bootstrap, logged
from sepsis_jax.ope.estimators import ESTIMATORS
from sepsis_jax.ope.logged import Logged, Target
from sepsis_jax.ope.table import evaluate

FEW = 20  # draws of the loops


def main(
    policies: int = 20, stays: int = 5000, steps: int = 20, draws: int = 2000, turns: int = 3, json: Path | None = None
) -> None:
    """Run the comparisons.

    Args:
      policies: to evaluate. stays: episodes. steps: of each at most. draws: of the bootstrap. turns: of every run.
      json: file for the same numbers as one flat object.
    """
    data, targets, probs, q = _case(policies, stays, steps)
    counts = bootstrap.patient_counts(np.asarray(data.subject_id), draws=draws, seed=0)
    wide = counts.astype(np.float64)
    runs: dict[str, Callable[[], Any]] = {
        "ours": lambda: evaluate(data, targets, draws=draws),
        "vectorised": lambda: [_vectorised(data, one, wide) for one in targets.values()],
        "loops": lambda: _loops(data, targets["0"], counts[:FEW]),
    }
    scaled = {"ours": 1.0, "vectorised": 1.0, "loops": policies * draws / FEW, "scope_rl": float(policies)}
    theirs = _scope_rl()
    if theirs is not None:
        runs["scope_rl"] = lambda: _with_scope_rl(theirs, data, probs, q, draws)
    ours = evaluate(data, targets, draws=draws)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    for name, found in _vectorised(data, targets["0"], wide).items():
        np.testing.assert_allclose(ours["0"][name].value, found[0], rtol=1e-3, atol=1e-4, err_msg=name)
        np.testing.assert_allclose(ours["0"][name].se, found[1], rtol=1e-2, err_msg=name)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(turns):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append((time.perf_counter() - start) * scaled[name])
    each = {name: statistics.median(found) for name, found in seconds.items()}
    figures = {f"{name}_s": found for name, found in each.items()}
    figures |= {"vs_numpy": each["loops"] / each["ours"], "vs_numpy_vectorised": each["vectorised"] / each["ours"]}
    figures["vs_scope_rl"] = each.get("scope_rl", float("nan")) / each["ours"]
    figures["peak_gb"] = peak
    report.show(f"{policies} policies, {stays} stays, {draws} draws; loops and scope-rl scaled from few", figures, json)


def _case(policies: int, stays: int, steps: int) -> tuple[Logged, dict[str, Target], np.ndarray, np.ndarray]:
    """Stays of random length, policies near the treating one, and the first one's probabilities and values."""
    rng = np.random.default_rng(0)
    shape = (stays, steps)
    behaviour = rng.dirichlet(np.full(25, 2.0), shape).astype(np.float32)
    action = (np.cumsum(behaviour, -1) < rng.random((*shape, 1))).sum(-1).clip(0, 24).astype(np.int32)
    given = np.take_along_axis(behaviour, action[..., None], -1)[..., 0]
    length = rng.integers(5, steps + 1, stays).astype(np.int32)
    reward = rng.normal(size=shape).astype(np.float32)
    data = Logged(action, reward, length, given, np.arange(stays, dtype=np.int32))
    targets = {}
    for number in range(policies):
        probs = 0.9 * behaviour + 0.1 * rng.dirichlet(np.full(25, 2.0), shape).astype(np.float32)
        q = rng.normal(size=(*shape, 25)).astype(np.float32)
        targets[str(number)] = logged.target(data, probs, q)
        if number == 0:
            first = probs, q
    return data, targets, *first


def _columns(data: Logged, target: Target) -> dict[str, np.ndarray]:
    """What stays add to the estimators, in float64 and without logarithms."""
    runs, discount = data.valid, data.gamma ** np.arange(data.action.shape[1])
    w = np.cumprod(np.where(runs, target.probability / data.behaviour.astype(float), 1.0), axis=1)
    before = np.concatenate([np.ones((len(w), 1)), w[:, :-1]], axis=1)
    r, taken, v = (np.where(runs, leaf, 0.0) for leaf in (data.reward, target.q, target.v))
    return {
        "one": np.ones((len(w), 1)),
        "w": w,
        "alive": w * runs,
        "whole": w[:, -1:] * (discount * r).sum(axis=1, keepdims=True),
        "paid": discount * w * r,
        "predicted": discount * w * taken,
        "expected": discount * before * v,
        "start": v[:, :1],
    }


def _estimate(sums: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """f[R] of every estimator from sums f[R,...]."""
    one, w, paid, predicted, expected = (sums[name] for name in ("one", "w", "paid", "predicted", "expected"))
    before = np.concatenate([one, w[:, :-1]], axis=1)
    return {
        "is": (sums["whole"] / one)[:, 0],
        "wis": sums["whole"][:, 0] / w[:, -1],
        "pdis": (paid / one).sum(axis=1),
        "wpdis": (paid / w).sum(axis=1),
        "wpdis_alive_normalized": (paid / sums["alive"]).sum(axis=1),
        "dm": (sums["start"] / one)[:, 0],
        "dr": ((paid - predicted + expected) / one).sum(axis=1),
        "wdr": ((paid - predicted) / w + expected / before).sum(axis=1),
    }


def _vectorised(data: Logged, target: Target, counts: np.ndarray) -> dict[str, tuple[float, float]]:
    """Value and standard error of every estimator, all draws at once."""
    columns = _columns(data, target)
    whole = _estimate({name: leaf.sum(axis=0, keepdims=True) for name, leaf in columns.items()})
    drawn = _estimate({name: counts @ leaf for name, leaf in columns.items()})
    return {name: (float(whole[name][0]), float(drawn[name].std())) for name in ESTIMATORS}


def _loops(data: Logged, target: Target, counts: np.ndarray) -> list[dict[str, float]]:
    """Every draw as its stays, every stay as its steps."""
    found = []
    for row in counts:
        drawn = np.repeat(np.arange(len(row)), row.astype(int))
        sums = {name: np.zeros((1, data.action.shape[1])) for name in ("w", "alive", "paid", "predicted", "expected")}
        sums |= {name: np.zeros((1, 1)) for name in ("one", "whole", "start")}
        for stay in drawn:
            w, total = 1.0, 0.0
            for t in range(data.action.shape[1]):
                if t < data.length[stay]:
                    sums["expected"][0, t] += data.gamma**t * w * target.v[stay, t]
                    w *= target.probability[stay, t] / data.behaviour[stay, t]
                    sums["alive"][0, t] += w
                    sums["paid"][0, t] += data.gamma**t * w * data.reward[stay, t]
                    sums["predicted"][0, t] += data.gamma**t * w * target.q[stay, t]
                    total += data.gamma**t * data.reward[stay, t]
                sums["w"][0, t] += w
            sums["one"] += 1
            sums["whole"] += w * total
            sums["start"] += target.v[stay, 0]
        found.append({name: float(leaf[0]) for name, leaf in _estimate(sums).items()})
    return found


def _scope_rl() -> Any:
    """scope-rl's estimators without what it imports for training; None where it is not installed."""
    spec = importlib.util.find_spec("scope_rl")
    if spec is None or not spec.submodule_search_locations:
        return None
    root = Path(spec.submodule_search_locations[0])
    for name in ("gym", "d3rlpy", "d3rlpy.preprocessing", "scope_rl", "scope_rl.ope", "scope_rl.ope.discrete"):
        module: Any = types.ModuleType(name)
        module.Env = module.ActionScaler = object
        if name.startswith("scope_rl"):
            module.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        sys.modules.setdefault(name, module)
    return importlib.import_module("scope_rl.ope.discrete.basic_estimators")


def _with_scope_rl(theirs: Any, data: Logged, probs: np.ndarray, q: np.ndarray, draws: int) -> None:
    """Its seven estimators of one policy, with its bootstrap."""
    runs, steps = data.valid, data.action.shape[1]
    given = {
        "step_per_trajectory": steps,
        "action": np.where(runs, data.action, 0).ravel(),
        "reward": np.where(runs, data.reward, 0.0).ravel(),
        "pscore": np.where(runs, data.behaviour, 1.0).ravel(),
        "evaluation_policy_action_dist": np.where(runs[..., None], probs, np.eye(25)[0]).reshape(-1, 25).clip(0, 1),
        "state_action_value_prediction": np.where(runs[..., None], q, 0.0).reshape(-1, 25),
    }
    kinds = ("TrajectoryWiseImportanceSampling", "PerDecisionImportanceSampling", "SelfNormalizedTIS")
    for name in (*kinds, "SelfNormalizedPDIS", "DirectMethod", "DoublyRobust", "SelfNormalizedDR"):
        estimator = getattr(theirs, name)()
        estimator.estimate_policy_value(**given)
        estimator.estimate_interval(**given, n_bootstrap_samples=draws, random_state=0)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", False)
    auto_cli(main, as_positional=False)
