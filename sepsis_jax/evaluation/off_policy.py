"""What policies are worth on recorded stays: every estimator, its interval, and whether it can be believed.

A policy may be softened: the clinicians act in its place with some probability, and that mixture is judged. Values Q
are fitted on other patients (`ope.fqe`); intervals come from drawing patients, with Q and the treating policy as they
are. FQE asks no weights, so no number of effective stays warns of it: it is called unreliable where more than a tenth
of what the policy does is what clinicians hardly ever do, where it rests on fewer than 50 patients, and where it
promises more or less than any stay has earned.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd

from sepsis_jax.clinical.actions import encode
from sepsis_jax.clinical.reward import Reward
from sepsis_jax.data.episodes import Episodes
from sepsis_jax.data.scaler import Scaler
from sepsis_jax.evaluation import groups
from sepsis_jax.ope import fqe, logged
from sepsis_jax.ope.diagnostics import LEAST_ESS, Diagnosis, diagnose
from sepsis_jax.ope.estimators import log_weights
from sepsis_jax.ope.fqe import FQESettings
from sepsis_jax.ope.logged import Logged, Target
from sepsis_jax.ope.table import Estimate, evaluate
from sepsis_jax.policies import behaviour, inputs

ESTIMATORS = {"DR": "dr", "WIS": "wis", "WPDIS": "wpdis", "FQE": "dm"}
"""Columns of the table -> `ope.estimators`; FQE is the direct method with fitted values."""
MOST_UNSUPPORTED = 0.1
ALL = "all"


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What policies are judged by.

    Attributes:
      tested: stays that no policy has seen. fitted: stays of other patients, for the values Q.
      treated, treated_fitted: f32[B,T,25] of the treating policy on both.
      scaler: of the inputs. reward: to pay. fqe: settings.
    """

    tested: Episodes
    fitted: Episodes
    treated: np.ndarray
    treated_fitted: np.ndarray
    scaler: Scaler
    reward: Reward
    fqe: FQESettings

    @functools.cached_property
    def data(self) -> Logged:
        """The tested stays with their rewards."""
        return logged.log(self.tested, self.treated, self.reward)

    @functools.cached_property
    def learned(self) -> Logged:
        """The stays of the values with their rewards."""
        return logged.log(self.fitted, self.treated_fitted, self.reward)


@dataclasses.dataclass(frozen=True)
class Decisions:
    """A policy at recorded decisions: f32[B,T,25] on the tested stays and on those that values are fitted on."""

    tested: np.ndarray
    fitted: np.ndarray


def targets(evidence: Evidence, policies: Mapping[str, Decisions], seed: int) -> dict[str, Target]:
    """Every policy with its fitted values. Policies learn side by side, from one draw of batches."""
    train = evidence.learned
    ended = logged.ended(evidence.fitted, evidence.reward)
    stacked = np.stack([one.fitted for one in policies.values()])
    see = inputs.on_record(evidence.fitted, evidence.scaler)
    strange = behaviour.strange(evidence.treated_fitted)
    fitted = fqe.fit(evidence.fqe, train, see, stacked, jax.random.key(seed), strange=strange, ended=ended)
    see, strange = inputs.on_record(evidence.tested, evidence.scaler), behaviour.strange(evidence.treated)
    q = np.asarray(fqe.q_values(evidence.fqe, fitted, see, strange))
    data = evidence.data
    return {name: logged.target(data, one.tested, q[i], name=name) for i, (name, one) in enumerate(policies.items())}


def values(
    evidence: Evidence,
    policies: Mapping[str, Decisions],
    *,
    clip: float,
    draws: int,
    seed: int,
    by: tuple[str, ...] = (),
) -> tuple[pd.DataFrame, dict[str, Diagnosis]]:
    """One row a group, policy and estimator, and the weights of every policy.

    Args:
      policies: by name. clip: largest weight of the column `clipped`. draws, seed: of the patient bootstrap.
      by: groupings besides everyone, see `groups.GROUPINGS`.

    Returns:
      Columns by, level, policy, estimator, value, low, high (95 %), se, clipped (value with clipped weights),
      clipped_share (of the stays, at any step), stays, patients, ess, max_share, reliable, reason.
    """
    data, found = evidence.data, targets(evidence, policies, seed)
    weights = {name: np.asarray(log_weights(data, one), np.float64) for name, one in found.items()}
    strange = {name: behaviour.unsupported(one.tested, evidence.treated) for name, one in policies.items()}
    basis = _basis(evidence.learned)
    rows = []
    for grouping, level, inside in _groups(evidence.tested, by):
        as_is = evaluate(data, found, draws=draws, seed=seed, among=inside)
        clipped = evaluate(data, found, draws=2, seed=seed, among=inside, clip=clip)
        steps = evidence.tested.valid & inside[:, None]
        for name, of_policy in as_is.items():
            for column, estimator in ESTIMATORS.items():
                one = of_policy[estimator]
                reliable, reason = one.diagnosis.reliable, one.diagnosis.reason
                if column == "FQE":
                    reliable, reason = _fqe_verdict(one, float(strange[name][steps].mean()), basis)
                elif reliable and not basis.least <= one.value <= basis.most:
                    reliable, reason = False, _OUTSIDE
                row: dict[str, Any] = {"by": grouping, "level": level, "policy": name, "estimator": column}
                row |= {key: getattr(one, key) for key in ("value", "low", "high", "se")}
                row["clipped"] = clipped[name][estimator].value
                row["clipped_share"] = float((weights[name][inside].max(axis=1) > np.log(clip)).mean())
                row |= {key: getattr(one.diagnosis, key) for key in ("stays", "patients", "ess", "max_share")}
                rows.append(row | {"reliable": reliable, "reason": reason})
    subject = np.asarray(evidence.tested.subject_id)
    return pd.DataFrame(rows), {name: diagnose(log_w, subject) for name, log_w in weights.items()}


_OUTSIDE = "outside of all returns that were seen"


class _Basis(NamedTuple):
    """What fitted values rest on: how many patients, and the least and the largest return among them."""

    patients: int
    least: float
    most: float


def _basis(learned: Logged) -> _Basis:
    discounted = learned.reward * learned.gamma ** np.arange(learned.valid.shape[1])
    returns = np.where(learned.valid, discounted, 0.0).sum(axis=1)
    return _Basis(np.unique(learned.subject_id).size, float(returns.min()), float(returns.max()))


def _fqe_verdict(one: Estimate, strange: float, basis: _Basis) -> tuple[bool, str]:
    reason, patients = "", min(one.diagnosis.patients, basis.patients)
    if patients < LEAST_ESS:
        reason = f"{patients} patients, below {LEAST_ESS:.0f}"
    elif not basis.least <= one.value <= basis.most:
        reason = _OUTSIDE
    elif strange > MOST_UNSUPPORTED:
        reason = f"{100 * strange:.3g} % of its actions are hardly ever seen"
    return not reason, reason


def _groups(episodes: Episodes, by: tuple[str, ...]) -> list[tuple[str, str, np.ndarray]]:
    """Groupings, levels and bool[B]; everyone first, levels without stays left out."""
    found = [(ALL, ALL, np.ones(episodes.num_stays, bool))]
    for grouping in by:
        names, level = groups.levels(episodes, grouping, at_first=True)
        found += [(grouping, name, level == i) for i, name in enumerate(names) if (level == i).any()]
    return found


def softening_sweep(
    evidence: Evidence, policies: Mapping[str, Decisions], shares: tuple[float, ...], *, draws: int, seed: int
) -> pd.DataFrame:
    """WIS of every policy mixed with each share of the clinicians: what can be judged, and how far it is the policy.

    Returns:
      Columns policy, softening, value, low, high, ess, max_share, reliable.
    """
    data, rows = evidence.data, []
    for share in shares:
        mixed = {
            name: logged.target(data, soften(one.tested, evidence.treated, share), name=name)
            for name, one in policies.items()
        }
        for name, of_policy in evaluate(data, mixed, draws=draws, seed=seed).items():
            one = of_policy["wis"]
            row = {"policy": name, "softening": share} | {key: getattr(one, key) for key in ("value", "low", "high")}
            rows.append(row | {key: getattr(one.diagnosis, key) for key in ("ess", "max_share", "reliable")})
    return pd.DataFrame(rows)


def soften(probs: np.ndarray, treated: np.ndarray, share: float) -> np.ndarray:
    """f32[B,T,25]: `probs`, but the treating policy with probability `share`."""
    return ((1 - share) * probs + share * treated).astype(np.float32) if share else probs


def habits(evidence: Evidence, policies: Mapping[str, Decisions]) -> pd.DataFrame:
    """One row a policy: `agreement`, how likely it is to do what was done, and `unsupported`, its share of actions that
    clinicians hardly ever choose; means over the tested decisions."""
    valid, action = evidence.tested.valid, np.asarray(encode(evidence.tested.action))[..., None]
    rows = {}
    for name, one in policies.items():
        given = np.take_along_axis(one.tested, action, -1)[..., 0]
        strange = behaviour.unsupported(one.tested, evidence.treated)
        rows[name] = {"agreement": given[valid].mean(), "unsupported": strange[valid].mean()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(index="policy").reset_index()
