"""`simulate_cohort`: the embedded cohort, as `Episodes` and their `Truth`."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from sepsis_jax.clinical import actions, sofa
from sepsis_jax.clinical.actions import AI_CLINICIAN_BINS, ActionBins
from sepsis_jax.clinical.features import NUM_MASKED, URINE
from sepsis_jax.data import splits
from sepsis_jax.data.episodes import EXIT_DEATH, EXIT_TRUNCATED, Episodes
from sepsis_jax.dynamics.patient.behaviour import propensities
from sepsis_jax.dynamics.patient.dynamics import Params, PatientDynamics, PatientState
from sepsis_jax.dynamics.patient.parameters import Knobs, Patient
from sepsis_jax.dynamics.patient.physiology import Latent
from sepsis_jax.dynamics.patient.truth import Truth
from sepsis_jax.dynamics.protocol import exit_uniform, sample_exit, step_keys, trajectory_key

MAX_STEPS = 24
"""4-h steps after which a stay ends administratively (exit 0)."""

_CHUNK = 512  # patients a compiled call; results do not depend on it
_HOSPITAL_SHARE = 0.70  # of the deaths after the ICU and within 90 days: published hospital against 90-day mortality
# Streams of a trajectory beyond those of its steps.
_ADMISSION, _OUTCOME = 1_000_000, 1_000_001


class _Decision(NamedTuple):
    """One recorded step; `exit` and `death_90d` belong to its end."""

    obs: Any
    mask: Any
    latent: Latent
    since: Any
    action: Any
    dose: Any
    propensity: Any
    exit: Any
    death_90d: Any


@struct.dataclass
class _Stay:
    patient: Patient
    steps: _Decision  # leading T
    outcome_uniform: Any


def simulate_cohort(
    n: int, *, seed: int = 0, knobs: Knobs | None = None, bins: ActionBins = AI_CLINICIAN_BINS
) -> tuple[Episodes, Truth]:
    """Simulate n patients under the clinicians' treatment.

    Patient i has stay_id and subject_id i + 1 and the same record whatever n is. With `knobs.unmeasured` above 0 the
    propensities are not those of the record: `Episodes.propensity` is None, and only the truth keeps them.

    Args:
      n: patients, at least 1.
      seed: of everything random.
      knobs: of the world; default as designed.
      bins: doses that the levels stand for.
    """
    knobs = Knobs() if knobs is None else knobs
    traced = jax.tree.map(jnp.float32, knobs)
    stay_id = np.arange(1, n + 1, dtype=np.int32)
    padded = np.arange(1, -(-n // _CHUNK) * _CHUNK + 1, dtype=np.int32).reshape(-1, _CHUNK)
    run = partial(_simulate_chunk, PatientDynamics(bins), jax.random.key(seed), knobs=traced)
    chunks = [jax.device_get(run(chunk)) for chunk in padded]
    stays: _Stay = jax.tree.map(lambda *parts: np.concatenate(parts)[:n], *chunks)
    length = _length(stays.steps.exit)
    truth = Truth(
        seed=seed,
        knobs=knobs,
        stay_id=stay_id,
        length=length,
        patient=stays.patient,
        latent=_padded(stays.steps.latent, length),
        since=_padded(stays.steps.since, length),
        propensity=_padded(stays.steps.propensity, length),
        death_90d=np.take_along_axis(stays.steps.death_90d, length[:, None] - 1, axis=1)[:, 0],
    )
    return _episodes(stays, truth), truth


@partial(jax.jit, static_argnames="dynamics")
def _simulate_chunk(dynamics: PatientDynamics, seed: jax.Array, stay_id: jax.Array, knobs: Knobs) -> _Stay:
    return jax.vmap(lambda stay: _simulate_stay(dynamics, trajectory_key(seed, stay, 0, 0), Params(knobs)))(stay_id)


def _simulate_stay(dynamics: PatientDynamics, key: jax.Array, params: Params) -> _Stay:
    """One stay of MAX_STEPS decisions; the steps after the exit are cut off later. Consumes `key`.

    The scan starts one step before the first decision, without treatment: it makes the first observation.
    """
    state = dynamics.admit(params, jax.random.fold_in(key, _ADMISSION))
    patient = state.patient

    def decide(carry: tuple[PatientState, Any, Any, Any], index: Any) -> tuple[Any, _Decision]:
        state, mask, previous, given = carry
        keys = step_keys(key, index)
        hidden = params.knobs.unmeasured * patient.frailty
        probs = propensities(state.obs, previous, state.hours, given, patient.style, hidden)
        drawn = actions.decode(jax.random.categorical(keys.action, jnp.log(probs)))
        action = jnp.where(index < 0, 0, drawn)
        dose = dynamics.doses(patient, action)
        after, step = dynamics.step(params, state, action, dynamics.noise(keys.noise))
        exit = sample_exit(step.exit_hazard, exit_uniform(keys))
        death_90d = jnp.where(exit == EXIT_DEATH, 1.0, dynamics.outcome(params, after))
        record = _Decision(state.obs, mask, state.latent, state.since, action, dose, probs, exit, death_90d)
        return (after, step.mask, action, given + dose[1] / 1000.0), record

    start = (state, jnp.zeros(NUM_MASKED, bool), jnp.zeros(2, jnp.int8), jnp.zeros(()))
    _, steps = jax.lax.scan(decide, start, jnp.arange(-1, MAX_STEPS))
    steps = jax.tree.map(lambda x: x[1:], steps)
    return _Stay(patient, steps, jax.random.uniform(jax.random.fold_in(key, _OUTCOME)))


def _length(exit: np.ndarray) -> np.ndarray:
    """int8[B,T] exits as drawn at every step -> i32[B] steps up to and with the first."""
    ended = exit != EXIT_TRUNCATED
    return np.where(ended.any(axis=1), ended.argmax(axis=1) + 1, exit.shape[1]).astype(np.int32)


def _padded(tree: Any, length: np.ndarray) -> Any:
    """Zero everything [B,T,...] at or beyond `length`."""
    valid = np.arange(MAX_STEPS) < length[:, None]
    return jax.tree.map(
        lambda x: np.where(valid.reshape(valid.shape + (1,) * (x.ndim - 2)), x, 0).astype(x.dtype), tree
    )


def _episodes(stays: _Stay, truth: Truth) -> Episodes:
    steps, patient, length = stays.steps, stays.patient, truth.length
    last = length[:, None] - 1
    ventilated = steps.latent.ventilated > 0
    before = np.pad(steps.dose[:, :-1, 0], ((0, 0), (1, 0)))  # the dose that ran while obs[t] was recorded
    score = sofa.proper(steps.obs, ventilated, before, sofa.urine_24h(steps.obs[..., URINE]))
    died = (stays.outcome_uniform < truth.death_90d).astype(np.int8)
    exit = np.take_along_axis(steps.exit, last, axis=1)[:, 0]
    in_hospital = (exit == EXIT_DEATH) | (stays.outcome_uniform < _HOSPITAL_SHARE * truth.death_90d)
    hidden = float(truth.knobs.unmeasured) > 0
    recorded = partial(_padded, length=length)
    return Episodes(
        obs=recorded(steps.obs),
        mask=recorded(steps.mask),
        static=np.stack([patient.age, patient.male, patient.charlson], axis=1),
        weight_kg=patient.weight,
        action=recorded(steps.action),
        prior_action=np.zeros((length.size, 2), np.int8),
        vaso_dose=recorded(steps.dose[..., 0]),
        fluid_ml=recorded(steps.dose[..., 1]),
        length=length,
        exit=exit,
        ventilated=recorded(ventilated),
        sofa=recorded(np.asarray(score)),
        mortality_90d=died,
        mortality_hospital=in_hospital.astype(np.int8),
        subject_id=truth.stay_id,
        stay_id=truth.stay_id,
        split=splits.assign(truth.stay_id, died, seed=truth.seed),
        propensity=None if hidden else truth.propensity,
    )
