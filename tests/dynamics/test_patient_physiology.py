"""The physiology and the clinicians against their NumPy oracles."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import patient_oracle
import pytest

from sepsis_jax.clinical import actions
from sepsis_jax.dynamics.patient import behaviour, observation, outcomes, parameters, physiology
from sepsis_jax.dynamics.patient.parameters import Knobs

N = 64
# The events (atrial fibrillation, ventilation) are drawn, and tested by their consequences.
EVENTS = ("fibrillation", "ventilated")


@pytest.fixture(scope="module")
def patients():
    noise = jax.random.normal(jax.random.key(1), (N, parameters.NUM_NOISE))
    start = jax.random.normal(jax.random.key(2), (N, physiology.NUM_INITIAL_NOISE))
    constants = jax.vmap(parameters.draw_patient, in_axes=(0, None))(noise, Knobs())
    return constants, jax.jit(jax.vmap(physiology.initial))(constants, start)


def _as_dict(tree):
    return {f.name: np.asarray(getattr(tree, f.name), np.float64) for f in dataclasses.fields(tree)}


def test_one_step_matches_the_oracle(patients):
    p, x = patients
    rng = np.random.default_rng(0)
    dose, fluid, hours = rng.choice([0, 0.04, 0.27, 0.68], N), rng.uniform(0, 1, N), rng.uniform(0, 80, N)
    noise = rng.standard_normal((N, physiology.NUM_NOISE))
    noise[:, 2] = 8.0  # an event uniform of 1: fibrillation ends or does not begin
    x = x.replace(fluid=jnp.asarray(rng.uniform(0, 3, N), jnp.float32))
    args = [jnp.asarray(a, jnp.float32) for a in (dose, fluid, hours, noise)]
    ours, vent_prob = jax.jit(jax.vmap(physiology.advance))(x, p, *args)
    oracle = patient_oracle.advance(_as_dict(x), _as_dict(p), dose, fluid, hours, noise)
    for name, value in _as_dict(ours).items():
        if name not in EVENTS:
            np.testing.assert_allclose(value, oracle[name], rtol=2e-4, atol=2e-4, err_msg=name)
    assert np.all((vent_prob >= 0) & (vent_prob <= 1))
    assert np.all(np.asarray(ours.fibrillation) == 0)


def test_derived_circulation_matches_the_oracle(patients):
    p, x = patients
    d = jax.vmap(physiology.derive)(x, p)
    ours = (d.response, d.squeeze, d.toxicity, d.filling, d.output, d.map, d.pf, d.sao2, d.hypoperfusion)
    for value, oracle in zip(ours, patient_oracle.flow(_as_dict(x), _as_dict(p)), strict=True):
        np.testing.assert_allclose(value, oracle, rtol=1e-4, atol=1e-5)


def test_hazards_are_probabilities_and_rise_with_damage(patients):
    p, x = patients
    hazard = jax.vmap(outcomes.exit_hazard, in_axes=(0, 0, None))
    better, worse = hazard(x, p, 24.0), hazard(x.replace(damage=x.damage + 1.0), p, 24.0)
    assert np.all((better >= 0) & (better <= 1))
    assert np.all(worse[:, 0] > better[:, 0])
    assert np.all(hazard(x, p, 8.0)[:, 1] == 0), "nobody leaves in the first 12 h"
    assert np.all(hazard(x.replace(dose=x.dose + 0.1), p, 24.0)[:, 1] == 0), "nobody leaves on a vasopressor"
    death = jax.vmap(outcomes.death_90d)
    assert np.all(death(x.replace(damage=x.damage + 1.0), p) > death(x, p))


def test_propensities_match_the_oracle():
    rng = np.random.default_rng(3)
    obs = rng.uniform(observation.LOWEST, observation.HIGHEST, (N, 39)).astype(np.float32)
    previous = rng.integers(0, 5, (N, 2))
    scalars = [rng.uniform(0, 96, N), rng.uniform(0, 12, N), rng.normal(0, 0.5, N), rng.normal(0, 0.5, N)]
    ours = jax.vmap(behaviour.propensities)(obs, previous, *[jnp.asarray(s, jnp.float32) for s in scalars])
    oracle = [patient_oracle.propensities(*row) for row in zip(obs, previous, *scalars, strict=True)]
    np.testing.assert_allclose(ours, oracle, rtol=2e-3, atol=2e-5)
    np.testing.assert_allclose(np.sum(ours, axis=1), 1, rtol=1e-5)
    assert np.min(ours) >= 0.03 / actions.NUM_ACTIONS - 1e-7


def test_a_low_pressure_calls_for_a_vasopressor():
    obs = jnp.asarray(observation.FILL).at[3].set(50.0)
    probs = behaviour.propensities(obs, jnp.zeros(2, jnp.int8), 0.0, 0.0, 0.0, 0.0)
    vasopressor, _ = np.asarray(actions.decode(jnp.argmax(probs)))
    assert vasopressor == 2, "actions are numbered vasopressor first"


def test_record_keeps_the_last_value_and_counts_steps():
    value, last = jnp.full(39, 2.0), jnp.full(39, 1.0)
    since = jnp.arange(5, dtype=jnp.float32)
    chance = jnp.array([1.0, 0.0, 1.0, 0.0, 1.0])
    noise = jnp.zeros(observation.NUM_RECORD_NOISE)
    obs, mask, after = observation.record(value, chance, last, since, Knobs(), noise)
    drawn = np.asarray(chance)[observation._PANEL_OF] > 0
    np.testing.assert_array_equal(mask, drawn)
    np.testing.assert_array_equal(obs, np.where(np.append(drawn, True), 2.0, 1.0))
    np.testing.assert_array_equal(after, [0, 2, 0, 4, 0])
    everything = observation.record(value, chance, last, since, Knobs(missingness=0.0), noise)[1]
    assert np.all(everything), "missingness 0 measures everything"
