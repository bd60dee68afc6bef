"""The policy table: who is judged, on what, by which estimators, and what became true where the truth is known."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd

from sepsis_jax.clinical.actions import ActionBins
from sepsis_jax.clinical.reward import Reward
from sepsis_jax.data.episodes import Episodes
from sepsis_jax.data.scaler import Scaler
from sepsis_jax.dynamics.patient.truth import Truth
from sepsis_jax.errors import InputError
from sepsis_jax.evaluation import contenders, off_policy, policy_table, safety
from sepsis_jax.evaluation.choosers import mix
from sepsis_jax.evaluation.closed_loop import Stage
from sepsis_jax.evaluation.contenders import HELD_OUT, STAGES, TRUTH, Contender, following, true_clinicians
from sepsis_jax.evaluation.keep import kept
from sepsis_jax.evaluation.off_policy import ALL, Decisions, Evidence, soften
from sepsis_jax.evaluation.policy_settings import PolicySettings
from sepsis_jax.evaluation.policy_table import CLINICIANS, Result
from sepsis_jax.ope.fqe import FQESettings
from sepsis_jax.policies import behaviour
from sepsis_jax.policies.clinician import Clinician, ClinicianSettings

SHARES = (0.0, 0.25, 0.5, 0.75, 0.9)
"""Of the clinicians, in the table of softened policies."""


@dataclasses.dataclass(frozen=True)
class Inquiry:
    """What is to be found out.

    Attributes:
      everyone: policies besides the clinicians. clinicians: those who treated; estimated, or as the simulator knows.
      estimate: the network that stands for them in a world model.
      tested, fitted: see `off_policy.Evidence`. scaler, bins, reward: of the cohort.
      settings, fqe: see there. draws, seed: of the bootstrap; the seed also fits the values.
      folder: where finished parts are kept. depends: plain types that tell this cohort and these policies from others.
      held_out: plain types that tell the held-out world model from others.
    """

    everyone: Mapping[str, Contender]
    clinicians: Contender
    estimate: Contender
    tested: Episodes
    fitted: Episodes
    scaler: Scaler
    bins: ActionBins
    reward: Reward
    settings: PolicySettings
    fqe: FQESettings
    draws: int
    seed: int
    folder: Path
    depends: Any
    held_out: Any = None

    def decisions(self) -> dict[str, Decisions]:
        """What everyone, clinicians first, would do at the recorded decisions, not softened."""
        everyone = {CLINICIANS: self.clinicians, **self.everyone}
        parts = {"tested": self.tested, "fitted": self.fitted}
        return {
            name: Decisions(*(self._on_record(name, one, part, some) for part, some in parts.items()))
            for name, one in everyone.items()
        }

    def _on_record(self, name: str, one: Contender, part: str, some: Episodes) -> np.ndarray:
        depends = [self.depends, part, self.settings.behaviour if name == CLINICIANS else None]
        decide = one.on_fitted or one.on_record if part == "fitted" else one.on_record
        return kept(self.folder, f"{name} on record", depends, lambda: {"probs": decide(some)})["probs"]

    def softened(self, decisions: Mapping[str, Decisions]) -> tuple[Evidence, dict[str, Decisions]]:
        """What is judged, and by what."""
        own, share = decisions[CLINICIANS], self.settings.softening
        evidence = Evidence(self.tested, self.fitted, own.tested, own.fitted, self.scaler, self.reward, self.fqe)
        return evidence, {
            name: Decisions(soften(one.tested, own.tested, share), soften(one.fitted, own.fitted, share))
            for name, one in decisions.items()
        }

    def played(self, stage: Stage, clinicians: Contender, name: str) -> dict[str, Result]:
        """What becomes of the tested patients on a stage where `clinicians` are the clinicians."""
        share = self.settings.softening
        mixed = {
            who: dataclasses.replace(one, chances=mix(one.chances, clinicians.chances, share))
            for who, one in self.everyone.items()
            if name in one.stages and not (share and one.stages != STAGES)  # a course that was lived cannot be softened
        }
        depends = [self.depends, share, name, dataclasses.asdict(self.reward)]
        depends += [self.held_out] if name == HELD_OUT else []
        return contenders.play_all({CLINICIANS: clinicians, **mixed}, self.tested, stage, self.folder / name, depends)


def known_outcomes(episodes: Episodes, reward: Reward) -> Episodes:
    """The stays whose 90-day outcome is known, where the reward pays it. InputError if there are none."""
    if not reward.pays_outcome:
        return episodes
    some = episodes.take(np.asarray(episodes.mortality_90d) >= 0)
    if not some.num_stays:
        raise InputError("episodes", field="mortality_90d", expected="known outcomes", found="none")
    return some


def treating(
    settings: PolicySettings, clinician_settings: ClinicianSettings, known: Episodes, scaler: Scaler, fitted: Any
) -> tuple[Contender, Contender]:
    """The clinicians of a cohort and the network that stands for them where nobody is recorded.

    Args:
      known: the cohort with its train split. fitted: what `clinician.fit` found on it.

    Raises:
      InputError: propensities are asked for that the cohort does not know.
    """
    network = following(Clinician(clinician_settings), fitted)
    kind = settings.behaviour
    if kind == "knn":
        nearest = behaviour.fit("knn", clinician_settings, known, scaler, jax.random.key(0))
        return Contender(network.chances, nearest), network
    if kind == "mlp" or (kind == "auto" and known.propensity is None):
        return network, network
    if known.propensity is None:
        hint = "estimate it: policies.behaviour mlp or knn"
        raise InputError("policies", field="behaviour", expected="a cohort with propensities", found="none", hint=hint)
    return Contender(network.chances, lambda some: np.asarray(some.propensity)), network


def tabulate(
    inquiry: Inquiry,
    *,
    by: tuple[str, ...] = (),
    truth: tuple[Stage, Truth] | None = None,
    held_out: Stage | None = None,
) -> Findings:
    """Everything that can be said of the policies.

    Args:
      by: groupings. truth: the simulator that the cohort comes from. held_out: a world model of other patients.
    """
    pure = inquiry.decisions()
    evidence, judged = inquiry.softened(pure)
    draws, seed = inquiry.draws, inquiry.seed
    rows, weights = off_policy.values(evidence, judged, clip=inquiry.settings.clip, draws=draws, seed=seed, by=by)
    everyone = {name: one.tested for name, one in judged.items() if name != CLINICIANS}
    rules = safety.safety_table(inquiry.tested, everyone, inquiry.bins, draws=draws, seed=seed)
    sweep = off_policy.softening_sweep(evidence, pure, SHARES, draws=draws, seed=seed)
    played: dict[str, dict[str, Result]] = {}
    if held_out is not None:
        played["held_out"] = inquiry.played(held_out, inquiry.estimate, HELD_OUT)
    if truth is not None:
        stage, known = truth
        played["true"] = inquiry.played(stage, true_clinicians(known, inquiry.bins), TRUTH)
    outcomes = {
        stage: policy_table.tabulate(results, {}, inquiry.tested.subject_id, draws=draws, seed=seed)
        for stage, results in played.items()
    }
    if "true" in played:
        rows["error"] = np.where(rows["by"] == ALL, rows["value"] - rows["policy"].map(true_values(outcomes)), np.nan)
    calibration = behaviour.calibration(evidence.treated, inquiry.tested)
    return Findings(rows, weights, off_policy.habits(evidence, judged), rules, sweep, calibration, outcomes)


@dataclasses.dataclass(frozen=True)
class Findings:
    """Tables of the policies.

    Attributes:
      values: see `off_policy.values`, with `error` (estimate minus true value) where the truth is known.
      weights: Diagnosis by policy. habits: see `off_policy.habits`. rules: see `safety.safety_table`.
      sweep: see `off_policy.softening_sweep`. calibration: of the treating policy, see `behaviour.calibration`.
      outcomes: `true` and `held_out`, as far as they were played -> see `policy_table.tabulate`.
    """

    values: pd.DataFrame
    weights: Mapping[str, Any]
    habits: pd.DataFrame
    rules: pd.DataFrame
    sweep: pd.DataFrame
    calibration: pd.DataFrame
    outcomes: Mapping[str, pd.DataFrame]


def true_values(outcomes: Mapping[str, pd.DataFrame]) -> pd.Series:
    """Value by policy in the true simulator: the clinicians' over all patients, and what each gained on its own."""
    found = outcomes["true"].set_index("policy")
    return found.loc[CLINICIANS, "value"] + found["gained"]
