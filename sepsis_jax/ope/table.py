"""Many policies on many estimators: values, intervals, and whether they can be believed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from sepsis_jax.clinical.reward import Reward
from sepsis_jax.data.episodes import Episodes
from sepsis_jax.errors import InputError
from sepsis_jax.ope import bootstrap, logged
from sepsis_jax.ope.diagnostics import Diagnosis, diagnose
from sepsis_jax.ope.estimators import ESTIMATORS, estimate, log_weights, terms
from sepsis_jax.ope.logged import Logged, Target

WITH_VALUES = ("dm", "dr", "wdr")
"""Estimators that need a model of values."""
MOST_DRAWS = 0.95
"""Share of the draws that must be numbers for an interval; others had no weight at all."""
LEAST_DRAWS = 40
"""With fewer, no draw lies beyond either end of a 95 % interval."""
Kind = Literal["percentile", "bca"]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What one estimator says of one policy.

    Attributes:
      value: NaN where nothing has weight. se: standard deviation of the bootstrap draws. low, high: 95 % interval.
      diagnosis: of the weights; `dm` uses none, so it is as reliable as its model, which nothing here can tell.
    """

    value: float
    se: float
    low: float
    high: float
    diagnosis: Diagnosis


def evaluate_policies(
    episodes: Episodes,
    policies: Mapping[str, np.ndarray],
    behaviour: np.ndarray,
    reward: Reward | np.ndarray,
    estimators: Sequence[str] = ("wis", "wpdis"),
    *,
    q: Mapping[str, np.ndarray] | None = None,
    clip: float = np.inf,
    draws: int = 2000,
    kind: Kind = "percentile",
    seed: int = 0,
) -> pd.DataFrame:
    """One row a policy and estimator: see `Estimate` and `Diagnosis` for the columns.

    `dm` rests on values alone, so that nothing here can tell whether it is reliable, and it is never called so.

    Args:
      policies: name -> f[B,T,25] probabilities at the recorded decisions.
      behaviour: f[B,T,25] of the treating policy.
      reward: see `logged.log`.
      estimators: names of `estimators.ESTIMATORS`.
      q: name -> f[B,T,25] values of the actions under that policy (`WITH_VALUES` need them).
      clip: largest weight w_t; verdicts are about the weights as they are.
      draws: of the patient bootstrap. kind: of interval. seed: of the draws.

    Raises:
      InputError: see `logged.log` and `logged.target`; no policies, an unknown estimator, one without the values that
        it needs, or an interval that cannot be drawn.
    """
    check_estimators(estimators, policies, q)
    if not policies:
        raise InputError("policies", expected="at least one", found="none")
    for name, given, least in (("draws", draws, LEAST_DRAWS), ("seed", seed, 0)):
        if given < least:
            raise InputError(name, expected=f"at least {least}", found=given)
    if kind not in get_args(Kind):
        raise InputError("kind", expected=f"one of {', '.join(get_args(Kind))}", found=repr(kind))
    data = logged.log(episodes, behaviour, reward)
    targets = {
        name: logged.target(data, probs, None if q is None else q.get(name), name=name)
        for name, probs in policies.items()
    }
    found = evaluate(data, targets, clip=clip, draws=draws, kind=kind, seed=seed)
    rows = []
    for name, of_policy in found.items():
        for estimator in estimators:
            one = of_policy[estimator]
            numbers = {key: getattr(one, key) for key in ("value", "se", "low", "high")}
            asked = ("stays", "patients", "ess", "max_share", "reliable", "reason")
            diagnosis = {key: getattr(one.diagnosis, key) for key in asked}
            verdict = {"reliable": False, "reason": "values alone"} if estimator == "dm" else {}
            rows.append({"policy": name, "estimator": estimator} | numbers | diagnosis | verdict)
    return pd.DataFrame(rows)


def check_estimators(
    estimators: Sequence[str], policies: Mapping[str, np.ndarray], q: Mapping[str, np.ndarray] | None
) -> None:
    """Raises InputError for an unknown estimator, or for one that needs values where a policy has none."""
    for name in estimators:
        if name not in ESTIMATORS:
            raise InputError("estimators", expected=f"some of {', '.join(ESTIMATORS)}", found=repr(name))
    without = [name for name in policies if q is None or name not in q]
    if without and (needing := [name for name in estimators if name in WITH_VALUES]):
        expected = f"values of every policy for {', '.join(needing)}"
        raise InputError("q", expected=expected, found=f"none for {', '.join(without)}", hint="fit them (`ope.fqe`)")


def evaluate(
    data: Logged,
    targets: Mapping[str, Target],
    *,
    clip: float = np.inf,
    draws: int = 2000,
    kind: Kind = "percentile",
    seed: int = 0,
    among: np.ndarray | None = None,
) -> dict[str, dict[str, Estimate]]:
    """Every estimator (policy -> estimator -> Estimate); the policies share the draws, so they can be compared.

    Args:
      data: checked (`logged.check`). For the others see `evaluate_policies`.
      among: bool[B] of the stays that count; None for all.
    """
    some = np.ones(len(data.length), bool) if among is None else np.asarray(among)
    if not some.any():
        raise InputError("among", expected="stays to evaluate on", found="none")
    subject = np.asarray(data.subject_id)
    counts = np.zeros((draws, some.size), np.float32)
    counts[:, some] = bootstrap.patient_counts(subject[some], draws=draws, seed=seed)
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *targets.values())
    if not clip > 0:
        raise InputError("clip", expected="a weight above 0", found=clip)
    log_clip = jnp.log(clip)
    log_w, values, drawn = jax.tree.map(np.asarray, _all(data, stacked, log_clip, counts, some.astype(np.float32)))
    table: dict[str, dict[str, Estimate]] = {}
    for number, name in enumerate(targets):
        diagnosis = diagnose(log_w[number][some], subject[some])
        table[name], without = {}, {}
        if kind == "bca":
            each, scale = _terms(data, targets[name], log_clip)
            without = bootstrap.leave_out(jax.tree.map(lambda leaf: leaf[some], each), scale, subject[some])
        for estimator in ESTIMATORS:
            value, one = float(values[estimator][number]), np.asarray(drawn[estimator][number], np.float64)
            low, high = bootstrap.bca_interval(one, value, without[estimator]) if without else bootstrap.interval(one)
            if np.isfinite(one).mean() < MOST_DRAWS:
                low = high = float("nan")
            spread = float(np.nanstd(one)) if np.isfinite(one).any() else float("nan")
            table[name][estimator] = Estimate(value, spread, low, high, diagnosis)
    return table


_terms = jax.jit(terms)


@jax.jit
def _all(data: Logged, targets: Target, log_clip: jax.Array, counts: jax.Array, some: jax.Array) -> tuple[Any, ...]:
    """log w_t f[P,B,T], and of every estimator: values f[P] and draws f[P,R]."""

    def one(target: Target) -> tuple[Any, ...]:
        each, scale = terms(data, target, log_clip)
        total = jax.tree.map(lambda leaf: jnp.tensordot(some, leaf, 1), each)
        return log_weights(data, target), estimate(total, scale), bootstrap.draw(each, scale, counts)

    return jax.lax.map(one, targets)
