"""One step ahead: likelihoods and point forecasts at every decision, sample-based scores at random ones.

For an ensemble the predictive distribution is the equal mixture of its members, each predicting a whole step: the
log density is that of the mean density, probabilities are means, the point forecast is the mean of the medians.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sepsis_jax.clinical.features import GCS, INDEX, NUM_FEATURES
from sepsis_jax.data.episodes import EXIT_TRUNCATED, Episodes
from sepsis_jax.data.scaler import Scaler
from sepsis_jax.dynamics.protocol import Dynamics
from sepsis_jax.dynamics.worldmodel import marginals
from sepsis_jax.dynamics.worldmodel.bounds import Support, confine, interval
from sepsis_jax.dynamics.worldmodel.model import WorldModel
from sepsis_jax.dynamics.worldmodel.prediction import joint_log_density, median, value_log_prob, with_urine
from sepsis_jax.evaluation.courses import (
    Decisions,
    history_of,
    luck,
    over_decisions,
    over_stays,
    sample_courses,
    weights_of_staying,
)
from sepsis_jax.evaluation.sample_scores import LEVELS, SampleScores, score
from sepsis_jax.evaluation.scores import Labelled, Scores, per_stay

CONTINUOUS = ~np.isin(np.arange(NUM_FEATURES), [INDEX[name] for name in GCS])
"""bool[F]: not a component of the Glasgow Coma Scale."""

_GCS = np.flatnonzero(~CONTINUOUS)
_TIES = 1  # stream of the seed for random places, apart from those of the courses


def analytic(
    model: Any,
    params: Any,
    episodes: Episodes,
    scaler: Scaler,
    support: Support,
    *,
    seed: int = 0,
    batch_size: int = 64,
) -> Scores:
    """Scores of the stays' every decision from the predictive distribution itself.

    mae_1step: of the median on values measured in the next step, and urine; mae_1step_all: of the median of the
    record's entry on every entry. nll: joint density of the measured continuous values per value; nll_interior: of
    those strictly inside `support` alone; gcs_log_prob: of measured Glasgow Coma Scale components, each by itself.
    Everything in z-scores of `scaler`. A `WorldModel` is also asked for ventilation in the next step and for death,
    within 90 days and in hospital, at the last decision: mortality and hospital_mortality given that the stay ends
    there (`at_exit`), mortality_running (90 days) without that knowledge.

    Args:
      model, params: `WorldModel`, or what has `members`, `member`, `encode_all` and `decode` as it does.
      scaler, support: what figures refer to, the same for all models of a comparison.
      seed: of places inside intervals (`prediction.likelihood`).
    """
    kernel = _Analytic(model)
    arguments = (params, scaler, support, jax.random.key(seed))
    out = over_stays(kernel, arguments, episodes, batch_size=batch_size, title="one step ahead")
    means = {name: np.asarray(total, np.float64) for name, total in out["means"].items()}
    labelled = {}
    if isinstance(model, WorldModel):
        stay, step = np.nonzero(has_next_step(episodes))
        labelled["ventilation"] = Labelled(
            stay, np.asarray(episodes.ventilated)[stay, step + 1], out["ventilation"][stay, step].astype(np.float64)
        )
        for i, name in enumerate(("mortality_90d", "mortality_hospital")[: out["death"].shape[-1]]):
            label = np.asarray(getattr(episodes, name))
            known = np.flatnonzero(label >= 0)
            short = ("mortality", "hospital_mortality")[i]
            running = Labelled(known, label[known] == 1, out["death"][known, i].astype(np.float64))
            labelled[short] = at_exit(running, out["exit"][:, [i, -1]], episodes)
            if i == 0:
                labelled["mortality_running"] = running
    return Scores(means=means, labelled=labelled)


def has_next_step(episodes: Episodes) -> np.ndarray:
    """bool[B,T]: steps that another recorded one follows."""
    return np.arange(episodes.num_steps) < np.asarray(episodes.length)[:, None] - 1


@dataclasses.dataclass(frozen=True)
class _Analytic:
    """Kernel of `analytic` for one stay."""

    model: Any

    def __call__(self, arguments: tuple[Any, ...], episode: Episodes, last: jax.Array) -> dict[str, Any]:
        params, scaler, support, seed = arguments
        next_obs, measured = jnp.roll(episode.obs, -1, axis=0), with_urine(jnp.roll(episode.mask, -1, axis=0), True)
        has_next = jnp.arange(len(episode.obs)) < last
        measured &= has_next[:, None]
        inside = measured & interval(support, next_obs).point
        keys = jax.random.split(jax.random.fold_in(seed, episode.stay_id), len(next_obs))

        def member(index: jax.Array) -> dict[str, Any]:
            own = self.model.member(params, index)
            return _of_member(self.model, own, scaler, episode, next_obs, measured, inside, keys, last)

        every = jax.lax.map(member, jnp.arange(self.model.members))
        z = scaler.normalize(next_obs)
        continuous = measured & jnp.asarray(CONTINUOUS)[None]
        everywhere = jnp.broadcast_to(has_next[:, None], measured.shape)
        center = every["center"].mean(axis=0)
        point = jax.vmap(lambda row: confine(support, row, jnp.ones(NUM_FEATURES, bool)))(scaler.denormalize(center))
        out = {
            "means": {
                "mae_1step": _total(jnp.abs(scaler.normalize(point) - z), measured),
                "mae_1step_all": _total(jnp.abs(every["record"].mean(axis=0) - z), everywhere),
                "nll": jnp.stack([-jnp.where(has_next, _mix(every["joint"]), 0).sum(), _count(continuous)]),
                "nll_interior": jnp.stack([-jnp.where(has_next, _mix(every["interior"]), 0).sum(), _count(inside)]),
                "gcs_log_prob": _total(_mix(every["gcs"]), measured[:, _GCS]),
            }
        }
        if isinstance(self.model, WorldModel):
            out |= {name: every[name].mean(axis=0) for name in ("ventilation", "death", "exit")}
        return out


def _of_member(
    model: Any,
    own: Any,
    scaler: Scaler,
    episode: Episodes,
    next_obs: jax.Array,
    measured: jax.Array,
    inside: jax.Array,
    keys: jax.Array,
    last: jax.Array,
) -> dict[str, Any]:
    """What one member says at every step of a stay; leading T."""
    states = model.encode_all(own, history_of(episode, last))
    decoded = jax.vmap(model.decode, (None, 0, 0))(own, states, episode.action)

    def convert(seen: jax.Array) -> jax.Array:
        low, high = (end.reshape(1, -1) for end in (own.support.low, own.support.high))
        return scaler.normalize(jnp.clip(own.support.denormalize(seen), low, high))

    def density(chosen: jax.Array) -> jax.Array:
        joint = jax.vmap(joint_log_density, (0, None, None, 0, 0, 0))
        return joint(decoded, own.support, scaler, next_obs, chosen, keys)

    # Together: on a CPU with two threads, XLA runs two Cholesky factorisations at once into a deadlock.
    joint, interior = jax.vmap(density)(jnp.stack([measured, inside]))
    each = value_log_prob(decoded, own.support, scaler, next_obs, measured)
    out = {
        "center": convert(marginals.value(decoded.values, jnp.zeros_like(next_obs))),
        "record": convert(median(decoded, own.support.normalize(episode.obs))),
        "joint": joint,
        "interior": interior,
        "gcs": each[:, _GCS],
    }
    if isinstance(model, WorldModel):
        hazard = 0.0 if decoded.exit_logit is None else jax.nn.sigmoid(decoded.exit_logit[last, 0])
        later = jax.nn.sigmoid(model.outcome_logits(own, jax.tree.map(lambda leaf: leaf[last], states)))
        leaves = 1.0 if decoded.exit_logit is None else (1 - hazard) * jax.nn.sigmoid(decoded.exit_logit[last, 1])
        exit = jnp.append(hazard + leaves * later, hazard + leaves)
        death = hazard + (1 - hazard) * later
        out |= {"ventilation": jax.nn.sigmoid(decoded.vent_logit), "death": death, "exit": exit}
    return out


def at_exit(unconditional: Labelled, ending: np.ndarray, episodes: Episodes) -> Labelled:
    """Death at the last decision, given that the stay ends with the step that follows.

    A last decision is last because of what happens next, and far more often followed by a death than any other: no
    forecast made without that knowledge is calibrated there. Stays that the record cuts off keep it unconditional.

    Args:
      unconditional: what is predicted without it.
      ending: f32[B,2] probability of leaving with this step and dying (in it or later), and of leaving with it.
    """
    stay = unconditional.stay
    ends = np.asarray(episodes.exit)[stay] != EXIT_TRUNCATED
    given = np.asarray(ending, np.float64)[stay]
    return unconditional._replace(chance=np.where(ends, given[:, 0] / given[:, 1], unconditional.chance))


def _mix(log_density: jax.Array) -> jax.Array:
    """Log of the mean density over the leading M."""
    return jax.nn.logsumexp(log_density, axis=0) - jnp.log(log_density.shape[0])


def _count(counts: jax.Array) -> jax.Array:
    return counts.sum().astype(jnp.float32)


def _total(value: jax.Array, counts: jax.Array) -> jax.Array:
    return jnp.stack([jnp.where(counts, value, 0).sum(), _count(counts)])


def measured_entries(mask: np.ndarray) -> np.ndarray:
    """bool[...,38] -> bool[...,F]: urine is counted in every step."""
    return np.concatenate([mask, np.ones_like(mask[..., :1])], axis=-1)


def sampled(
    dynamics: Dynamics,
    params: Any,
    episodes: Episodes,
    scaler: Scaler,
    decisions: Decisions,
    *,
    samples: int,
    seed: int = 0,
    batch_size: int = 64,
) -> Scores:
    """Scores of S sampled next steps at `decisions`, which need a next step in the record.

    mae_1step_sampled: of the sample median; crps; energy_score; coverage50, 80 and 95 of central intervals, over all
    continuous values (means) and for each feature (features). On values measured in the next step, and urine.
    """
    kernel = _Sampled(dynamics, samples)
    arguments = (params, scaler, luck(seed))
    out = over_decisions(kernel, arguments, episodes, decisions, batch_size=batch_size, title="sampled one step ahead")
    measured = measured_entries(np.asarray(episodes.mask)[decisions.rows, decisions.steps + 1])
    scores = {"error": "mae_1step_sampled", "crps": "crps", "energy": "energy_score"}
    return sample_figures(out, measured, decisions.rows, episodes.num_stays, scores, "")


def sample_figures(
    scores: SampleScores, measured: np.ndarray, rows: np.ndarray, stays: int, names: dict[str, str], suffix: str
) -> Scores:
    """Sums for each stay of SampleScores with leading N, measured bool[N,F].

    Args:
      names: of the figures by field of SampleScores. suffix: of the coverages' names.
    """
    means = {}
    for field, name in names.items():
        value = np.asarray(getattr(scores, field))
        counts = measured if value.ndim == 2 else np.asarray(measured.any(axis=1))
        total = per_stay(rows, value, counts, stays)
        means[name] = total.sum(axis=1) if value.ndim == 2 else total
    features = {}
    for level in LEVELS:
        covered = np.abs(np.asarray(scores.pit) - 0.5) <= level / 2
        name = f"coverage{100 * level:.0f}{suffix}"
        features[name] = per_stay(rows, covered, measured & CONTINUOUS, stays)
        means[name] = features[name].sum(axis=1)
    return Scores(means, features)


@dataclasses.dataclass(frozen=True)
class _Sampled:
    """Kernel of `sampled` for one decision."""

    dynamics: Any
    samples: int

    def __call__(self, arguments: tuple[Any, ...], episode: Episodes, step: jax.Array) -> SampleScores:
        params, scaler, seed = arguments
        history = history_of(episode, step)
        plan = episode.action[step][None]
        courses = sample_courses(
            self.dynamics, params, history, plan, seed, samples=self.samples, keep=lambda drawn: drawn.value
        )
        weight = weights_of_staying(courses.exit_hazard)[:, 0]
        measured = with_urine(episode.mask[step + 1], True)
        ties = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(seed, _TIES), episode.stay_id), step)
        return score(courses.steps[:, 0], weight, episode.obs[step + 1], measured, scaler, ties)
