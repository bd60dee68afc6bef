"""The simulator as a causal model: same keys, same world; only the action differs. And its truth on disk."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sepsis_jax.clinical.features import INDEX, NUM_FEATURES
from sepsis_jax.data.episodes import DTYPES
from sepsis_jax.dynamics.patient import observation, truth
from sepsis_jax.dynamics.patient.cohort import simulate_cohort
from sepsis_jax.dynamics.patient.dynamics import Params, PatientDynamics
from sepsis_jax.dynamics.patient.parameters import Knobs
from sepsis_jax.dynamics.protocol import History, history_at, step_keys, trajectory_key
from sepsis_jax.errors import InputError

N, SEED, BATCH = 96, 5, 64
DYNAMICS = PatientDynamics()


@pytest.fixture(scope="module")
def cohort():
    return simulate_cohort(N, seed=SEED)


@jax.jit
def _admit(knobs, seed):
    keys = jax.vmap(lambda stay: trajectory_key(seed, stay, 0, 0))(jnp.arange(BATCH))
    return jax.vmap(DYNAMICS.admit, in_axes=(None, 0))(Params(knobs), keys)


@jax.jit
def _step(knobs, seed, stay, state, action, index):
    def one(stay, state, action, index):
        key = step_keys(trajectory_key(seed, stay, 0, 0), index).noise
        return DYNAMICS.step(Params(knobs), state, action, DYNAMICS.noise(key))

    return jax.vmap(one)(stay, state, action, index)


def follow(plans, knobs=None, seed=0):
    """Patients 0.. under plans int[B,T,2]: (latents [B,T], Step [B,T]) after each step."""
    knobs, key = jax.tree.map(jnp.float32, knobs or Knobs()), jax.random.key(seed)
    state, stay, trace = _admit(knobs, key), jnp.arange(BATCH), []
    for t in range(plans.shape[1]):
        state, step = _step(knobs, key, stay, state, jnp.asarray(plans[:, t], jnp.int8), jnp.full(BATCH, t))
        trace.append(jax.device_get((state.latent, step)))
    return jax.tree.map(lambda *steps: np.stack(steps, axis=1), *trace)


def random_plans(seed):
    return np.random.default_rng(seed).integers(0, 5, (BATCH, 12, 2))


def assert_same(a, b):
    chex.assert_trees_all_equal(a, b)


def test_cohort_keeps_the_contract(cohort):
    episodes, _ = cohort
    sizes = {"B": N, "T": episodes.num_steps}
    for name, (dtype, shape) in DTYPES.items():
        value = getattr(episodes, name)
        assert value.dtype == dtype, name
        assert value.shape == tuple(sizes.get(axis, axis) for axis in shape), name
    valid = episodes.valid
    assert np.isfinite(episodes.obs).all()
    assert not episodes.mask[~valid].any()
    assert not episodes.obs[~valid].any()
    np.testing.assert_allclose(episodes.propensity[valid].sum(-1), 1, rtol=1e-5)
    recorded = episodes.obs[valid]
    assert (recorded >= observation.LOWEST).all() and (recorded <= observation.HIGHEST).all()
    low, mean, high = (recorded[:, INDEX[name]] for name in ("diabp", "meanbp", "sysbp"))
    assert (low < mean).all() and (mean < high).all()
    coma = recorded[:, [INDEX["gcs_eye"], INDEX["gcs_verbal"], INDEX["gcs_motor"]]]
    np.testing.assert_array_equal(coma, np.round(coma))
    assert (episodes.exit[episodes.length < episodes.num_steps] > 0).all()
    assert (episodes.mortality_90d[episodes.exit == 1] == 1).all()


def test_unmeasured_entries_are_carried_forward(cohort):
    episodes, _ = cohort
    kept = ~episodes.mask[:, 1:] & episodes.valid[:, 1:, None]
    np.testing.assert_array_equal(episodes.obs[:, 1:, :38][kept], episodes.obs[:, :-1, :38][kept])
    first = ~episodes.mask[:, 0]
    fill = np.broadcast_to(observation.FILL[:38], first.shape)
    np.testing.assert_array_equal(episodes.obs[:, 0, :38][first], fill[first])


def test_a_patient_does_not_depend_on_the_size_of_the_cohort(cohort):
    few, _ = simulate_cohort(7, seed=SEED)
    assert_same(few.replace(split=0), cohort[0].take(np.arange(7)).replace(split=0))


def test_other_seed_other_cohort(cohort):
    other, _ = simulate_cohort(N, seed=SEED + 1)
    assert not np.array_equal(other.obs, cohort[0].obs)


def test_hidden_causes_hide_the_propensities():
    episodes, known = simulate_cohort(16, seed=0, knobs=Knobs(unmeasured=1.0))
    assert episodes.propensity is None
    np.testing.assert_allclose(known.propensity[episodes.valid].sum(-1), 1, rtol=1e-5)


def test_same_keys_same_future():
    plans = random_plans(0)
    assert_same(follow(plans), follow(plans))


def test_an_action_changes_only_the_future_and_never_the_noise():
    plans = random_plans(1)
    changed = plans.copy()
    changed[:, 4] = 4 - changed[:, 4]
    latent, step = follow(plans)
    other_latent, other_step = follow(changed)
    before = partial(jax.tree.map, lambda x: x[:, :4])
    assert_same(before(latent), before(other_latent))
    assert_same(before(step), before(other_step))
    np.testing.assert_array_equal(latent.trait, other_latent.trait)
    np.testing.assert_array_equal(latent.pressure_noise, other_latent.pressure_noise)
    assert not np.array_equal(latent.lactate[:, 4:], other_latent.lactate[:, 4:])


def test_null_world_ignores_actions():
    null = Knobs(effect_scale=0.0)
    assert_same(follow(random_plans(2), null), follow(random_plans(3), null))


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), severity=st.floats(-2, 2))
def test_bounds_hold_under_extreme_actions(seed, severity):
    plans = np.random.default_rng(seed).choice([0, 4], (BATCH, 60, 2))
    latent, step = follow(plans, Knobs(severity=severity), seed)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((latent, step)))
    assert (step.obs >= observation.LOWEST).all() and (step.obs <= observation.HIGHEST).all()
    assert (step.exit_hazard >= 0).all() and (step.exit_hazard <= 1).all()
    assert (step.vent_prob >= 0).all() and (step.vent_prob <= 1).all()
    assert (step.obs[..., INDEX["diabp"]] < step.obs[..., INDEX["meanbp"]]).all()
    assert (step.obs[..., INDEX["meanbp"]] < step.obs[..., INDEX["sysbp"]]).all()
    assert ((latent.kidney > 0) & (latent.platelet > 0) & (latent.lactate > 0)).all()


def test_encode_restores_the_state_and_the_next_observation(cohort):
    episodes, known = cohort
    known_next = np.argwhere(np.arange(episodes.num_steps) < episodes.length[:, None] - 1)
    rows, steps = np.random.default_rng(0).choice(known_next, BATCH, replace=False).T
    histories, knobs = history_at(episodes, rows, steps), jax.tree.map(jnp.float32, known.knobs)
    state = jax.jit(jax.vmap(DYNAMICS.encode, in_axes=(None, 0)))(Params(knobs, known), histories)
    seed = jax.random.key(known.seed)
    _, step = _step(
        knobs, seed, jnp.asarray(histories.stay_id), state, episodes.action[rows, steps], jnp.asarray(steps)
    )
    np.testing.assert_array_equal(step.mask, episodes.mask[rows, steps + 1])
    # Another program may round the last bit of a float32 differently; the same program never does.
    np.testing.assert_allclose(step.obs, episodes.obs[rows, steps + 1], rtol=1e-5, atol=1e-5)


def test_encode_of_a_foreign_stay_is_nan_and_without_truth_an_error(cohort):
    episodes, known = cohort
    history = jax.tree.map(lambda x: jnp.asarray(x[0]), history_at(episodes, [0], [0]))
    foreign = DYNAMICS.encode(Params(known.knobs, known), history.replace(stay_id=jnp.int32(10_000)))
    assert np.isnan(foreign.latent.lactate)
    with pytest.raises(InputError, match="truth of a simulated cohort"):
        DYNAMICS.encode(Params(Knobs()), history)


def test_truth_survives_the_disk(cohort, tmp_path):
    episodes, known = cohort
    truth.save(tmp_path, known)
    loaded = truth.load(tmp_path, episodes.subset("test"))
    assert loaded.seed == known.seed
    assert_same(jax.tree.map(np.asarray, loaded), jax.tree.map(np.asarray, known))


def test_wrong_or_missing_truth_is_refused_in_one_line(cohort, tmp_path):
    episodes, known = cohort
    with pytest.raises(InputError, match=r"truth.zarr: expected the truth of a simulated cohort, found nothing"):
        truth.load(tmp_path, episodes)
    cases = {
        "stay_id": episodes.replace(stay_id=episodes.stay_id + 50_000),
        "length": episodes.replace(length=episodes.length % 7 + 1),
        "weight": episodes.replace(weight_kg=episodes.weight_kg + 1),
    }
    for field, other in cases.items():
        with pytest.raises(InputError, match=field):
            truth.check(known, other)
    (tmp_path / "truth.zarr").mkdir()
    with pytest.raises(InputError, match="readable truth store"):
        truth.load(tmp_path, episodes)


def test_history_type_is_the_protocols(cohort):
    history = history_at(cohort[0], [0, 1], [0, 0])
    assert isinstance(history, History)
    assert history.obs.shape[-1] == NUM_FEATURES
