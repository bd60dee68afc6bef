"""The safety table: guideline adherence, dosing and Festor hazards of policies, on the same recorded states.

Policies answer with levels; a level means its bin's median dose, for every policy and for the clinicians. The row
`clinicians (raw doses)` shows what the recorded doses themselves give.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import pandas as pd

from sepsis_jax.clinical import guidelines
from sepsis_jax.clinical.actions import ActionBins
from sepsis_jax.clinical.guidelines import Thresholds
from sepsis_jax.data.episodes import Episodes
from sepsis_jax.ope.bootstrap import patient_counts, ratio_interval

CLINICIANS, RAW_DOSES = "clinicians", "clinicians (raw doses)"


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
      policies: name -> levels int8[B,T,2]; the clinicians are added.
      bins: doses behind the levels.
      thresholds: of the rules.
      draws, seed: of the patient bootstrap.

    Returns:
      Columns policy, rule, violated, at_risk, steps (counts), rate (of steps at risk), rate_low, rate_high (95 %),
      rate_all (of all steps).
    """
    counts = patient_counts(np.asarray(episodes.subject_id), draws=draws, seed=seed)
    everyone = {CLINICIANS: np.asarray(episodes.action), **policies}
    answers = {name: (action, np.asarray(bins.doses(action))) for name, action in everyone.items()}
    raw = np.stack([episodes.vaso_dose, episodes.fluid_ml], axis=-1)
    answers[RAW_DOSES] = (np.asarray(episodes.action), raw)
    rows = []
    for name, (action, doses) in answers.items():
        steps = _decided_on_record(episodes, action, doses)
        for rule, flags in guidelines.check(steps, thresholds).items():
            violated, at_risk, valid = (np.asarray(flag).sum(axis=1) for flag in flags)
            low, high = ratio_interval(violated, at_risk, counts)
            total, risk, number = violated.sum(), at_risk.sum(), valid.sum()
            rate = total / risk if risk else np.nan
            rows.append((name, rule, total, risk, number, rate, low, high, total / number))
    columns = ["policy", "rule", "violated", "at_risk", "steps", "rate", "rate_low", "rate_high", "rate_all"]
    return pd.DataFrame(rows, columns=columns)


def _decided_on_record(episodes: Episodes, action: np.ndarray, doses: np.ndarray) -> guidelines.Steps:
    """Steps on recorded states: the level before is the recorded one, whoever decides."""
    recorded = guidelines.steps_of(episodes.obs, episodes.action, episodes.prior_action, doses, episodes.valid)
    return recorded._replace(action=np.asarray(action, np.int32))


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
        prefix = f"{row['policy']}_{row['rule']}".replace(" ", "_").replace("(", "").replace(")", "")
        for name in ("rate", "rate_low", "rate_high", "rate_all", "violated", "at_risk"):
            out[f"{prefix}_{name}"] = float(row[name])
    return out
