"""`PatientDynamics`: the simulator behind the `Dynamics` protocol, with its own ground truth to restore from."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from sepsis_jax.clinical.actions import AI_CLINICIAN_BINS, ActionBins
from sepsis_jax.clinical.features import NUM_FEATURES
from sepsis_jax.dynamics.patient import observation, outcomes, parameters, physiology
from sepsis_jax.dynamics.patient.parameters import Knobs, Patient
from sepsis_jax.dynamics.patient.physiology import STEP_H, Latent
from sepsis_jax.dynamics.patient.truth import Truth
from sepsis_jax.dynamics.protocol import History, Step
from sepsis_jax.errors import InputError


@struct.dataclass
class PatientState:
    """One simulated patient at a decision.

    Attributes:
      patient: constants. latent: what moves.
      obs: f32[39] (clinical units) the record's last row. since: f32[5] steps since each panel was measured.
      hours: f32[] since admission.
    """

    patient: Patient
    latent: Latent
    obs: Any
    since: Any
    hours: Any


@struct.dataclass
class Params:
    """Attributes: knobs of the world; truth of a recorded cohort, needed by `PatientDynamics.encode` only."""

    knobs: Knobs
    truth: Truth | None = None


@dataclasses.dataclass(frozen=True)
class PatientDynamics:
    """Satisfies `dynamics.protocol.Dynamics`.

    Attributes:
      bins: doses that the levels stand for; fluid scales with (weight / 81 kg)^(1/4).
    """

    bins: ActionBins = AI_CLINICIAN_BINS
    members: ClassVar[int] = 1
    precision: ClassVar[str] = "float32"

    def member(self, params: Params, index: Any) -> Params:
        """There is one truth."""
        del index
        return params

    def admit(self, params: Params, key: jax.Array) -> PatientState:
        """Draw a new patient, one step (without treatment) before the first observation. Consumes `key`."""
        constants, start = _noise(key, (parameters.NUM_NOISE, physiology.NUM_INITIAL_NOISE))
        patient = parameters.draw_patient(constants, params.knobs)
        latent = physiology.initial(patient, start)
        last, since = jnp.asarray(observation.FILL), jnp.asarray(observation.NEVER)
        return PatientState(patient, latent, last, since, -STEP_H * jnp.ones(()))

    def encode(self, params: Params, history: History) -> PatientState:
        """The true state at a recorded decision of one patient.

        A stay that is not part of `params.truth` gives a state of NaN; `truth.load` refuses such a cohort beforehand.

        Raises:
          InputError: `params` holds no truth.
        """
        if params.truth is None:
            raise InputError(
                "simulator state",
                expected="the truth of a simulated cohort",
                found="none",
                hint="only a cohort made by the embedded simulator can be restored; use a world model for others",
            )
        truth: Truth = jax.tree.map(jnp.asarray, params.truth)
        step = history.length - 1
        row = jnp.clip(jnp.searchsorted(truth.stay_id, history.stay_id), 0, truth.stay_id.shape[0] - 1)
        known = (truth.stay_id[row] == history.stay_id) & (step < truth.length[row])
        patient = jax.tree.map(lambda x: jnp.where(known, x[row], jnp.nan), truth.patient)
        latent = jax.tree.map(lambda x: jnp.where(known, x[row, step], jnp.nan), truth.latent)
        since = jnp.where(known, truth.since[row, step], jnp.nan)
        return PatientState(patient, latent, history.obs[step], since, STEP_H * step.astype(jnp.float32))

    def noise(self, key: jax.Array) -> list[jax.Array]:
        """Standard normals of the physiology, of the readings and of what is recorded. Consumes `key`."""
        return _noise(key, (physiology.NUM_NOISE, NUM_FEATURES, observation.NUM_RECORD_NOISE))

    def shared(self, params: Params, state: PatientState) -> None:
        """Nothing."""
        del params, state

    @partial(jax.jit, static_argnums=0)  # traced once for all that use it
    def step(
        self, params: Params, state: PatientState, action: jax.Array, noise: list[jax.Array], shared: None = None
    ) -> tuple[PatientState, Step]:
        """Advance 4 h under `action` int[2] (vasopressor, fluid) with what `noise` drew."""
        del shared
        process, reading, drawing = noise
        p, knobs = state.patient, params.knobs
        dose, fluid = self.doses(p, action) * knobs.effect_scale
        latent, vent_prob = physiology.advance(state.latent, p, dose, fluid / 1000.0, state.hours, process)
        hours = state.hours + STEP_H
        value = observation.measure(latent, p, reading)
        chance = observation.panel_chance(latent, p, state.since)
        obs, mask, since = observation.record(value, chance, state.obs, state.since, knobs, drawing)
        hazard = outcomes.exit_hazard(latent, p, hours)
        return PatientState(p, latent, obs, since, hours), Step(obs, mask, vent_prob, hazard, value)

    def outcome(self, params: Params, state: PatientState) -> jax.Array:
        """f32[]: probability of death within 90 days of someone who leaves the ICU alive in this state."""
        return outcomes.death_90d(state.latent, state.patient)

    def doses(self, patient: Patient, action: jax.Array) -> jax.Array:
        """f32[2]: (mcg/kg/min, mL/4 h) given to this patient under int[2] levels."""
        vaso, fluid = self.bins.doses(action)
        return jnp.stack([vaso, fluid * jnp.sqrt(jnp.sqrt(patient.weight / 81.0))])


def _noise(key: jax.Array, sizes: tuple[int, ...]) -> list[jax.Array]:
    """Independent standard normal vectors f32[size]. One draw in all: each further one costs compile time."""
    return jnp.split(jax.random.normal(key, (sum(sizes),)), np.cumsum(sizes)[:-1])
