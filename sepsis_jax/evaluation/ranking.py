"""Do estimates put policies in their true order? Kendall's tau over several cohorts of the embedded simulator.

Each cohort has its own patients to learn from and to test on; every policy is mixed with the clinicians, so that there
is something to judge it by. The truth is what each mixture does to the same patients in the simulator.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from sepsis_jax.evaluation import off_policy, policy_table
from sepsis_jax.evaluation.closed_loop import Stage
from sepsis_jax.evaluation.contenders import Contender
from sepsis_jax.evaluation.off_policy import ALL
from sepsis_jax.evaluation.policies import Inquiry, true_values

NAMES = ("guideline rule", "best simple rule", "no treatment", "BC", "CQL", "IQL", "planner")
"""Who is ranked, with the clinicians."""
MIX = 0.5
"""Share of the clinicians in each of them."""
CLOSE = 0.03
"""Policies whose true mortality differs by less are counted apart."""
LEAST = 4
"""Reliable policies that an order of them needs."""


def judge(inquiry: Inquiry, stage: Stage, clinicians: Contender, estimated: Contender | None = None) -> pd.DataFrame:
    """Estimates and truth on one cohort.

    Args:
      inquiry: with everyone mixed (`PolicySettings.softening`). stage: its simulator, where `clinicians` treat.
      estimated: clinicians whose propensities were estimated; the same mixtures are judged again with those. Not asked
        where none are known, since then the first judgement is such a one.

    Returns:
      Columns propensities ('known' or 'estimated'), policy, estimator, value, low, high, reliable, ess, true (value),
      death_90d (true).
    """
    evidence, judged = inquiry.softened(inquiry.decisions())
    results = inquiry.played(stage, clinicians, "truth")
    played = policy_table.tabulate(results, {}, inquiry.tested.subject_id, draws=inquiry.draws, seed=inquiry.seed)
    death = played.set_index("policy")
    death = death["death_90d"].iloc[0] - death["saved"]
    every = {"estimated" if inquiry.tested.propensity is None else "known": evidence}
    if estimated is not None and "known" in every:
        treated = [estimated.on_record(some) for some in (inquiry.tested, inquiry.fitted)]
        every["estimated"] = dataclasses.replace(evidence, treated=treated[0], treated_fitted=treated[1])
    found = []
    for kind, by_whom in every.items():
        rows, _ = off_policy.values(by_whom, judged, clip=inquiry.settings.clip, draws=inquiry.draws, seed=inquiry.seed)
        found.append(rows[rows["by"] == ALL].assign(propensities=kind))
    table = pd.concat(found)
    table["true"] = table["policy"].map(true_values({"true": played}))
    table["death_90d"] = table["policy"].map(death)
    columns = ["propensities", "policy", "estimator", "value", "low", "high", "reliable", "ess", "true", "death_90d"]
    return table[columns].reset_index(drop=True)


def scores(judged: pd.DataFrame) -> dict[str, float]:
    """Of one cohort, by estimator and kind of propensities.

    Returns:
      `tau_<kind>_<estimator>` over all policies, `..._reliable` over those called reliable (NaN below `LEAST`),
      `..._close` over pairs within `CLOSE`, `error_...` mean absolute error, `covered_...` share of true values inside
      the interval, `reliable_...` number of reliable policies.
    """
    out: dict[str, float] = {}
    for (kind, estimator), rows in judged.groupby(["propensities", "estimator"], sort=False):
        key = f"{kind}_{str(estimator).lower()}"
        good = rows[rows["reliable"]]
        out[f"tau_{key}"] = tau(rows)
        out[f"tau_{key}_reliable"] = tau(good) if len(good) >= LEAST else float("nan")
        out[f"tau_{key}_close"] = tau_of_pairs(rows)
        out[f"error_{key}"] = float((rows["value"] - rows["true"]).abs().mean())
        out[f"covered_{key}"] = float(((rows["low"] <= rows["true"]) & (rows["true"] <= rows["high"])).mean())
        out[f"reliable_{key}"] = float(len(good))
    return out


def tau(rows: pd.DataFrame) -> float:
    """Kendall's tau-b between estimated and true values."""
    return float(kendalltau(rows["value"], rows["true"]).statistic)


def tau_of_pairs(rows: pd.DataFrame) -> float:
    """(concordant - discordant) / all, of the pairs whose true mortality differs by less than `CLOSE`."""
    signs = [
        np.sign(one.value - other.value) * np.sign(one.true - other.true)
        for one, other in itertools.combinations(list(rows.itertuples()), 2)
        if abs(one.death_90d - other.death_90d) < CLOSE
    ]
    return float(np.mean(signs)) if signs else float("nan")


def summary(cohorts: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """One row a kind of propensities and estimator: mean over the cohorts (least to most) of each score."""
    table = pd.DataFrame(cohorts).T
    out: dict[str, dict[str, str]] = {}
    for key in [name.removeprefix("error_") for name in table if name.startswith("error_")]:
        kind, estimator = key.split("_")
        figures = {
            "tau": f"tau_{key}",
            "tau, reliable ones": f"tau_{key}_reliable",
            "tau, close pairs": f"tau_{key}_close",
            "mean error": f"error_{key}",
            "covered": f"covered_{key}",
            "reliable": f"reliable_{key}",
        }
        out[f"{estimator.upper()}, {kind}"] = {
            title: _spread(table[name].astype(float)) for title, name in figures.items()
        }
    return pd.DataFrame.from_dict(out, orient="index").rename_axis(index="estimator, propensities")


def _spread(scores: pd.Series) -> str:
    """Mean (least to most), and over how many cohorts if some have no score."""
    known = scores.dropna()
    if known.empty:
        return "-"
    text = f"{known.mean():.2f} ({known.min():.2f} to {known.max():.2f})"
    return text if len(known) == len(scores) else f"{text}, {len(known)} of {len(scores)}"
