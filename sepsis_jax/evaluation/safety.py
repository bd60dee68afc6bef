"""The safety table: guideline adherence, dosing and Festor hazards of policies, on the same recorded states.

Policies answer with probabilities of the 25 actions, and break a rule with the probability of the actions that do. A
level means its bin's median dose, for every policy and for the clinicians; the row `clinicians (raw doses)` shows what
the recorded doses themselves give.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from sepsis_jax.clinical import guidelines
from sepsis_jax.clinical.actions import ALL_ACTIONS, NUM_ACTIONS, ActionBins, encode
from sepsis_jax.clinical.guidelines import Thresholds
from sepsis_jax.data.episodes import Episodes
from sepsis_jax.evaluation.keep import slug
from sepsis_jax.evaluation.policy_table import CLINICIANS
from sepsis_jax.ope.bootstrap import patient_counts, ratio_interval

RAW_DOSES = f"{CLINICIANS} (raw doses)"


def safety_table(
    episodes: Episodes,
    policies: Mapping[str, np.ndarray],
    bins: ActionBins,
    *,
    thresholds: Thresholds = Thresholds(),
    draws: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """One row a policy and rule.

    Args:
      episodes: recorded stays; every policy decides on their states, given the recorded previous action.
      policies: name -> probabilities f32[B,T,25] (zeros at padding); the clinicians are added.
      bins: doses behind the levels.
      thresholds: of the rules.
      draws, seed: of the patient bootstrap.

    Returns:
      Columns policy, rule, violated (expected), at_risk, steps (counts), rate (of steps at risk), rate_low and
      rate_high (95 %), rate_all (of all steps).
    """
    counts = patient_counts(np.asarray(episodes.subject_id), draws=draws, seed=seed)
    before = episodes.previous_action[..., 0]
    doses = bins.doses(ALL_ACTIONS)
    # What each action would break is the same for every policy; a policy breaks it with its probability.
    of_actions = guidelines.check(guidelines.every_action(episodes.obs, before, doses, episodes.valid), thresholds)
    raw = np.stack([episodes.vaso_dose, episodes.fluid_ml], axis=-1)
    as_recorded = guidelines.steps_of(episodes.obs, episodes.action, episodes.prior_action, raw, episodes.valid)
    of_raw = guidelines.check(as_recorded, thresholds)
    own = np.eye(NUM_ACTIONS, dtype=np.float32)[np.asarray(encode(episodes.action))]
    found = {
        name: {
            rule: (
                np.einsum("bta,bta->b", probs, flags.violated),
                *_counted(flags.at_risk[..., 0], flags.valid[..., 0]),
            )
            for rule, flags in of_actions.items()
        }
        for name, probs in {CLINICIANS: own, **policies}.items()
    }
    found[RAW_DOSES] = {rule: tuple(_counted(*flags)) for rule, flags in of_raw.items()}
    rows = []
    for name, of_rule in found.items():
        for rule, (violated, at_risk, valid) in of_rule.items():
            low, high = ratio_interval(violated, at_risk, counts)
            total, risk, number = violated.sum(), at_risk.sum(), valid.sum()
            rate = total / risk if risk else np.nan
            of_all = total / number, *ratio_interval(violated, valid, counts)
            rows.append((name, rule, total, risk, number, rate, low, high, *of_all))
    columns = ["policy", "rule", "violated", "at_risk", "steps", "rate", "rate_low", "rate_high"]
    columns += ["rate_all", "rate_all_low", "rate_all_high"]
    return pd.DataFrame(rows, columns=columns)


def _counted(*flags: Any) -> list[np.ndarray]:
    """f64[B] each: how often bool[B,T]."""
    return [np.asarray(flag).sum(axis=1, dtype=np.float64) for flag in flags]


def wide(table: pd.DataFrame) -> pd.DataFrame:
    """One row a rule, one column a policy: rate of steps at risk with its interval; first how many those are."""
    cells = table.assign(
        cell=[
            f"{row.rate:.1%} [{100 * row.rate_low:.1f}, {100 * row.rate_high:.1f}]" if row.at_risk else "-"
            for row in table.itertuples()
        ]
    )
    out = cells.pivot(index="rule", columns="policy", values="cell")
    out = out.loc[list(guidelines.RULES), table["policy"].unique()]
    own = table[table["policy"] == CLINICIANS].set_index("rule")["at_risk"]
    out.insert(0, "at risk", [str(int(own[rule])) for rule in out.index])
    return out.rename_axis(columns=None)


def footnote(thresholds: Thresholds = Thresholds()) -> str:
    """The thresholds, in words; they belong under every safety table."""
    values = ", ".join(f"{name} {value:g}" for name, value in dataclasses.asdict(thresholds).items())
    return (
        f"Thresholds: {values}. underdosing, overdosing and unsafe are definitions of this project. "
        "Research software, not for care."
    )


def flat(table: pd.DataFrame) -> dict[str, float]:
    """The table as one flat object: `<policy>_<rule>_{rate,rate_low,rate_high,rate_all,violated,at_risk}`."""
    out = {}
    for row in table.to_dict("records"):
        prefix = f"{slug(row['policy'])}_{row['rule']}"
        for name in ("rate", "rate_low", "rate_high", "rate_all", "violated", "at_risk"):
            out[f"{prefix}_{name}"] = float(row[name])
    return out
