"""Virtual trials: the same simulated patients, with the same noise, under different treatments (test helper)."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sepsis_jax.clinical import actions
from sepsis_jax.clinical.features import INDEX
from sepsis_jax.dynamics.patient import physiology
from sepsis_jax.dynamics.patient.behaviour import propensities
from sepsis_jax.dynamics.patient.cohort import MAX_STEPS
from sepsis_jax.dynamics.patient.dynamics import Params, PatientDynamics
from sepsis_jax.dynamics.patient.parameters import Knobs
from sepsis_jax.dynamics.protocol import exit_uniform, sample_exit, step_keys, trajectory_key

DYNAMICS = PatientDynamics()


class Arm(NamedTuple):
    """A treatment: a vasopressor rule and a fluid rule, each an index or a level 0-4; from `until_h` on, nothing."""

    vaso: int
    fluid: int
    until_h: float = 1e9


CLINICIAN, TITRATED, GUIDELINE, RESTRICTED = 5, 6, 7, 8
ARMS = {
    "clinicians": Arm(CLINICIAN, CLINICIAN),
    "none": Arm(0, 0),
    "max both": Arm(4, 4),
    "max vasopressor": Arm(4, 0),
    "max fluid": Arm(0, 4),
    "titrated, max fluid": Arm(TITRATED, 4),
    "titrated, no fluid": Arm(TITRATED, 0),
    "guideline": Arm(TITRATED, GUIDELINE),
    "restricted": Arm(TITRATED, RESTRICTED),
}


class Trial(NamedTuple):
    """Patients [N] over T decisions; step entries hold the state after each step.

    Attributes: latent, derived [N,T]; obs [N,T,39]; action [N,T,2]; propensity [N,T,25]; exit [N,T] as drawn at each
    step; death_90d [N,T] probability, 1 if the step kills; start: (latent, derived) [N] at the first decision.
    """

    latent: Any
    derived: Any
    obs: Any
    action: Any
    propensity: Any
    exit: Any
    death_90d: Any
    start: Any

    @property
    def length(self) -> np.ndarray:
        """int[N] steps until the exit."""
        ended = self.exit != 0
        return np.where(ended.any(1), ended.argmax(1) + 1, self.exit.shape[1])

    @property
    def mortality(self) -> np.ndarray:
        """f[N] true probability of death within 90 days, seen from the exit."""
        return np.take_along_axis(self.death_90d, self.length[:, None] - 1, 1)[:, 0]

    @property
    def valid(self) -> np.ndarray:
        """bool[N,T] steps up to the exit."""
        return np.arange(self.exit.shape[1]) < self.length[:, None]


def run(arm: Arm, *, n: int, seed: int = 0, knobs: Knobs | None = None, sample: int = 0, tilt: float = 1.0) -> Trial:
    """Treat patients 1..n of the cohort `seed`; only `sample` changes the noise after admission."""
    knobs = jax.tree.map(jnp.float32, knobs or Knobs())
    arm = jax.tree.map(jnp.float32, arm)
    arrays = _run(jax.random.key(seed), jnp.arange(1, n + 1), knobs, arm, jnp.int32(sample), jnp.float32(tilt))
    return jax.device_get(arrays)


@jax.jit
def _run(seed: Any, stays: Any, knobs: Knobs, arm: Arm, sample: Any, tilt: Any) -> Trial:
    return jax.vmap(partial(_one, seed, knobs, arm, sample, tilt))(stays)


def _one(seed: Any, knobs: Knobs, arm: Arm, sample: Any, tilt: Any, stay: Any) -> Trial:
    params = Params(knobs)
    state = DYNAMICS.admit(params, jax.random.fold_in(trajectory_key(seed, stay, 0, 0), 1_000_000))
    key = trajectory_key(seed, stay, 0, sample)

    def decide(carry: Any, index: Any) -> Any:
        state, previous, given = carry
        keys = step_keys(key, index)
        hidden = knobs.unmeasured * state.patient.frailty
        probs = propensities(state.obs, previous, state.hours, given, state.patient.style, hidden)
        tilted = jax.nn.softmax(tilt * jnp.log(probs))
        clinician = actions.decode(jax.random.categorical(keys.action, jnp.log(tilted)))
        action = jnp.where(index < 0, 0, _treat(arm, state, previous, given, clinician))
        after, step = DYNAMICS.step(params, state, action, DYNAMICS.noise(keys.noise))
        exit = sample_exit(step.exit_hazard, exit_uniform(keys))
        death = jnp.where(exit == 1, 1.0, DYNAMICS.outcome(params, after))
        derived = physiology.derive(after.latent, after.patient)
        litres = DYNAMICS.doses(state.patient, action)[1] / 1000.0
        trace = (after.latent, derived, after.obs, action, probs, exit, death)
        return (after, action, given + litres), trace

    _, trace = jax.lax.scan(decide, (state, jnp.zeros(2, jnp.int8), 0.0), jnp.arange(-1, MAX_STEPS))
    start = jax.tree.map(lambda x: x[0], trace[:2])
    return Trial(*jax.tree.map(lambda x: x[1:], trace), start)


def _treat(arm: Arm, state: Any, previous: Any, given: Any, clinician: Any) -> Any:
    pressure, lactate = state.obs[INDEX["meanbp"]], state.obs[INDEX["lactate"]]
    before = previous.astype(jnp.float32)
    move = jnp.where(pressure < 65, 1.0, jnp.where(pressure > 72, -1.0, 0.0))
    titrated = jnp.clip(before[0] + move, 0.0, 4.0)
    needy = (pressure < 65) | (lactate > 2)
    guideline = jnp.where(needy & (given < 2.5), 3.0, jnp.where(needy, 2.0, 1.0))
    restricted = jnp.where(needy & (state.hours < 6), 3.0, jnp.where(needy, 2.0, 0.0))
    vaso = jnp.select([arm.vaso == CLINICIAN, arm.vaso == TITRATED], [clinician[0] * 1.0, titrated], arm.vaso)
    fluid = jnp.select(
        [arm.fluid == CLINICIAN, arm.fluid == GUIDELINE, arm.fluid == RESTRICTED],
        [clinician[1] * 1.0, guideline, restricted],
        arm.fluid,
    )
    going = state.hours < arm.until_h
    return jnp.where(going, jnp.stack([vaso, fluid]), 0.0).astype(jnp.int8)
