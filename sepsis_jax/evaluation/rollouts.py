"""Free-running roll-outs from recorded decisions, with the recorded actions, scored at 8, 24 and 48 h."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sepsis_jax.clinical.features import GCS, HIGH, INDEX, LOW, NUM_FEATURES
from sepsis_jax.data.episodes import Episodes
from sepsis_jax.data.scaler import Scaler
from sepsis_jax.dynamics.protocol import Dynamics, Step
from sepsis_jax.dynamics.worldmodel.bounds import Support
from sepsis_jax.dynamics.worldmodel.prediction import with_urine
from sepsis_jax.evaluation.courses import (
    Decisions,
    history_of,
    luck,
    over_decisions,
    sample_courses,
    weights_of_staying,
)
from sepsis_jax.evaluation.one_step import measured_entries, sample_figures
from sepsis_jax.evaluation.sample_scores import SampleScores, score
from sepsis_jax.evaluation.scores import Scores, per_stay

HOURS = (8, 24, 48)
HORIZON = HOURS[-1] // 4

_STEPS = np.array([hours // 4 - 1 for hours in HOURS])
_GCS = np.array([INDEX[name] for name in GCS])
_TIES = 2  # stream of the seed for random places, apart from those of the courses


class _Scored(NamedTuple):
    """One decision: scores with leading [3] (HOURS), implausible f32[], at_end f32[H,2,F] shares of the samples."""

    scores: SampleScores
    implausible: Any
    at_end: Any


def implausible(step: Step) -> jax.Array:
    """bool[]: no patient can have this: outside the clinical ranges, pressures out of order, split GCS points."""

    def wrong(obs: jax.Array) -> jax.Array:
        ordered = (obs[INDEX["diabp"]] < obs[INDEX["meanbp"]]) & (obs[INDEX["meanbp"]] < obs[INDEX["sysbp"]])
        return ~((obs >= LOW) & (obs <= HIGH)).all() | ~ordered

    # Points are only asked of new values: before the first one, the record itself holds their mean.
    points = step.value[_GCS]
    return wrong(step.value) | wrong(step.obs) | (points != jnp.round(points)).any()


def roll_out(
    dynamics: Dynamics,
    params: Any,
    episodes: Episodes,
    scaler: Scaler,
    support: Support,
    decisions: Decisions,
    *,
    samples: int,
    seed: int = 0,
    batch_size: int = 32,
) -> Scores:
    """Scores of S courses of 48 h from each decision, at the hours where the stay is still recorded.

    mae_8h (24h, 48h): of the sample median; crps_8h; energy_score_8h; coverage50_8h, 80 and 95, and the same for each
    feature; drift_8h: mean of the samples minus that of the data for each feature; all on measured values, in z-scores,
    the samples weighted by their chance of still being in the ICU. implausible_share: of sampled steps (`implausible`).
    at_bound: share of samples exactly at each end of `support` minus that share of the measured values, over all
    steps. On other ends the comparison would be unfair, so `support` is the same for all models.
    """
    kernel = _RollOut(dynamics, samples)
    arguments = (params, scaler, support, luck(seed))
    out: _Scored = over_decisions(kernel, arguments, episodes, decisions, batch_size=batch_size, title="roll-outs")
    rows, stays = decisions.rows, episodes.num_stays
    later = decisions.steps[:, None] + 1 + np.arange(HORIZON)
    recorded = later < np.asarray(episodes.length)[rows][:, None]
    later = np.minimum(later, episodes.num_steps - 1)
    measured = measured_entries(np.asarray(episodes.mask)[rows[:, None], later]) & recorded[..., None]
    every = np.ones(len(rows))
    result = Scores(means={"implausible_share": per_stay(rows, np.asarray(out.implausible), every, stays)})
    for i, (hours, step) in enumerate(zip(HOURS, _STEPS, strict=True)):
        here = SampleScores(*(leaf[:, i] for leaf in out.scores))
        names = {"error": f"mae_{hours}h", "crps": f"crps_{hours}h", "energy": f"energy_score_{hours}h"}
        result |= sample_figures(here, measured[:, step], rows, stays, names, f"_{hours}h")
        drift = per_stay(rows, np.asarray(here.bias), measured[:, step], stays)
        result |= Scores(features={f"drift_{hours}h": drift})
    obs = np.asarray(episodes.obs)[rows[:, None], later]
    ends = np.stack([obs <= np.asarray(support.low), obs >= np.asarray(support.high)], axis=2)  # [N,H,2,F]
    counts = np.broadcast_to(measured[:, :, None], ends.shape)
    excess = np.where(counts, out.at_end - ends, 0.0).sum(axis=1).reshape(len(rows), -1)
    number = counts.sum(axis=1).reshape(len(rows), -1)
    at_bound = per_stay(rows, np.divide(excess, number, out=np.zeros_like(excess), where=number > 0), number, stays)
    return result | Scores(features={"at_bound": at_bound})


@dataclasses.dataclass(frozen=True)
class _RollOut:
    """Kernel of `roll_out` for one decision."""

    dynamics: Any
    samples: int

    def __call__(self, arguments: tuple[Any, ...], episode: Episodes, step: jax.Array) -> _Scored:
        params, scaler, support, seed = arguments
        history = history_of(episode, step)
        later = jnp.minimum(step + jnp.arange(HORIZON), len(episode.obs) - 1)
        courses = sample_courses(
            self.dynamics, params, history, episode.action[later], seed, samples=self.samples, keep=_value_and_fault
        )
        value, fault = courses.steps
        weight = weights_of_staying(courses.exit_hazard)
        after = jnp.minimum(step + 1 + _STEPS, len(episode.obs) - 1)
        ties = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(seed, _TIES), episode.stay_id), step)
        scores = jax.vmap(score, (1, 1, 0, 0, None, 0))(
            value[:, _STEPS],
            weight[:, _STEPS],
            episode.obs[after],
            with_urine(episode.mask[after], True),
            scaler,
            jax.random.split(ties, len(_STEPS)),
        )
        shape = (1, 1, NUM_FEATURES)
        at_end = jnp.stack([value <= support.low.reshape(shape), value >= support.high.reshape(shape)], axis=2)
        share = (weight[..., None, None] * at_end).sum(axis=0)
        return _Scored(scores, fault.mean(), share)


def _value_and_fault(step: Step) -> tuple[jax.Array, jax.Array]:
    return step.value, implausible(step)
