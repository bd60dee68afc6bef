"""`WorldModel` as a `Dynamics`: what it may know at a decision, and what a step does."""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from factories import fit_scaler, make_episodes

from sepsis_jax.clinical.features import GCS, HIGH, INDEX, LOW
from sepsis_jax.dynamics.protocol import History, history_at, step_keys
from sepsis_jax.dynamics.worldmodel import marginals
from sepsis_jax.dynamics.worldmodel.bounds import Support
from sepsis_jax.dynamics.worldmodel.model import WorldModel
from sepsis_jax.errors import InputError

STEPS, SAMPLES = 8, 200


class World:
    """One architecture with everything jitted once."""

    def __init__(self, architecture):
        self.episodes = make_episodes(4, STEPS, seed=2)
        self.model = model = WorldModel(architecture, hidden=8, layers=2)
        scaler = fit_scaler(self.episodes)
        params = model.init(scaler, Support.plausible(scaler), jax.random.key(0))
        noise = np.random.default_rng(0)  # heads start at zero: stir them, or actions and histories would not matter
        stirred = jax.tree.map(lambda leaf: leaf + 0.1 * noise.normal(size=leaf.shape).astype(np.float32), params)
        self.params = model.member(dataclasses.replace(params, network=stirred.network), 0)
        self.encode = jax.jit(model.encode)
        self.encode_all = jax.jit(model.encode_all)
        self.advance = jax.jit(model.advance)
        self.step = jax.jit(jax.vmap(model.step, (None, None, 0, 0)))
        self.decode = jax.jit(model.decode)
        self.unroll = jax.jit(model.unroll)

    def history(self, stay, step) -> History:
        return jax.tree.map(lambda leaf: leaf[0], history_at(self.episodes, [stay], [step]))


@pytest.fixture(scope="module", params=["carry", "published"])
def world(request):
    return World(request.param)


def same_keys(key):
    return jnp.broadcast_to(key, (SAMPLES,))


def known(state):
    """What the network keeps; windows in flight depend on where they were prepared (see the published network)."""
    memory = {f.name: getattr(state.memory, f.name) for f in dataclasses.fields(state.memory) if f.name != "flight"}
    return dataclasses.replace(state, memory=memory)


def noises(world, keys):
    return jax.vmap(world.model.noise)(keys)


def assert_same(left, right):
    chex.assert_trees_all_close(left, right, rtol=1e-4, atol=1e-5)


def test_models_are_hashable_and_equal_by_value():
    assert hash(WorldModel("carry", 8, 1, 0.1)) == hash(WorldModel("carry", 8, 1, 0.1))
    assert WorldModel("carry", 8) != WorldModel("carry", 16)


def test_advancing_equals_encoding_one_more_step(world):
    full = world.history(1, STEPS - 1)
    for step in (0, 3, STEPS - 2):
        state = world.encode(world.params, world.history(1, step))
        action = full.action[step]
        after = world.advance(world.params, state, action, full.obs[step + 1], full.mask[step + 1])
        assert_same(known(after), known(world.encode(world.params, world.history(1, step + 1))))


def test_encode_all_gives_every_encode(world):
    states = world.encode_all(world.params, world.history(1, STEPS - 1))
    for step in (0, 2, STEPS - 1):
        state = jax.tree.map(lambda leaf: leaf[step], states)  # noqa: B023
        assert_same(known(state), known(world.encode(world.params, world.history(1, step))))


def test_nothing_after_the_decision_is_read(world):
    step = 3
    history = world.history(2, step)
    rng = np.random.default_rng(0)
    obs, mask, action = history.obs.copy(), history.mask.copy(), history.action.copy()
    obs[step + 1 :] = rng.uniform(1, 50, obs[step + 1 :].shape)
    mask[step + 1 :] = True
    action[step:] = 4
    changed = dataclasses.replace(history, obs=obs, mask=mask, action=action)
    before, after = world.encode(world.params, history), world.encode(world.params, changed)
    chex.assert_trees_all_equal(before, after)


def test_everything_before_the_decision_matters(world):
    history = world.history(1, 4)
    before = world.encode(world.params, history).memory
    for field, row in (("obs", 2), ("action", 3)):
        value = getattr(history, field).copy()
        value[row] = (value[row] + 1) % 5
        after = world.encode(world.params, dataclasses.replace(history, **{field: value})).memory
        assert any(np.abs(a - b).max() > 1e-6 for a, b in zip(*map(jax.tree.leaves, (before, after)), strict=True))


def test_steps_are_possible_and_follow_the_protocol(world):
    state = world.encode(world.params, world.history(0, 0))
    actions = jnp.tile(jnp.array([[4, 0]]), (SAMPLES, 1))
    for seed in range(3):
        keys = jax.random.split(jax.random.key(seed), SAMPLES)
        states, step = world.step(world.params, state, actions, noises(world, keys))
        obs = np.asarray(step.obs)
        assert (obs >= LOW).all() and (obs <= HIGH).all()
        assert (obs[:, INDEX["diabp"]] < obs[:, INDEX["meanbp"]]).all()
        assert (obs[:, INDEX["meanbp"]] < obs[:, INDEX["sysbp"]]).all()
        for name in GCS:
            points = obs[:, INDEX[name]][np.asarray(step.mask)[:, INDEX[name]]]
            np.testing.assert_array_equal(points, np.round(points))
        assert (
            step.exit_hazard.shape == (SAMPLES, 2) and (step.exit_hazard >= 0).all() and (step.exit_hazard <= 1).all()
        )
        assert (step.vent_prob > 0).all() and (step.vent_prob < 1).all()
        np.testing.assert_array_equal(states.obs, step.obs)
        new = np.asarray(step.mask)[:, INDEX["lactate"]]
        lactate = [np.asarray(value)[new, INDEX["lactate"]] for value in (step.obs, step.value)]
        np.testing.assert_array_equal(*lactate)
        state = jax.tree.map(lambda leaf: leaf[0], states)
    assert state.action.tolist() == [4, 0]


def test_the_action_moves_the_prediction_but_not_the_noise(world):
    state = world.encode(world.params, world.history(0, 2))
    actions = jnp.array([[0, 0], [4, 4]])
    _, step = world.step(
        world.params, state, jnp.tile(actions, (SAMPLES // 2, 1)), noises(world, same_keys(jax.random.key(5)))
    )
    step = jax.tree.map(lambda leaf: leaf[:2], step)
    assert np.abs(step.vent_prob[0] - step.vent_prob[1]) > 0
    decoded = [world.decode(world.params, state, action) for action in actions]
    z = np.asarray(world.params.support.normalize(step.obs))
    obs, mask = np.asarray(step.obs), np.asarray(step.mask)
    drawn = np.append(mask.all(axis=0), True) if world.model.architecture == "carry" else np.ones(39, bool)
    inside = drawn & (obs > LOW + 1e-3).all(axis=0) & (obs < HIGH * 0.999).all(axis=0)
    inside[[INDEX[name] for name in (*GCS, "sysbp", "diabp", "meanbp")]] = False
    noise = [np.asarray(marginals.score(decoded[i].values, z[i])) for i in range(2)]
    assert inside.sum() > 3
    np.testing.assert_allclose(noise[0][inside], noise[1][inside], atol=5e-3)


def test_unroll_repeats_step(world):
    state = world.encode(world.params, world.history(0, 2))
    plan, key = jnp.array([[1, 2], [0, 0], [4, 3]]), jax.random.key(3)
    last, steps = world.unroll(world.params, state, plan, key)
    for i, action in enumerate(plan):
        actions, keys = jnp.tile(action[None], (SAMPLES, 1)), same_keys(step_keys(key, i).noise)
        states, step = world.step(world.params, state, actions, noises(world, keys))
        state = jax.tree.map(lambda leaf: leaf[0], states)
        assert_same(jax.tree.map(lambda leaf: leaf[i], steps), jax.tree.map(lambda leaf: leaf[0], step))  # noqa: B023
    assert_same(last, state)


def test_what_steps_from_one_state_share_is_part_of_each(world, key):
    state, action = world.encode(world.params, world.history(0, 3)), jnp.array([2, 3])
    step = jax.jit(partial(world.model.step, world.params, state, action, world.model.noise(key)))
    shared = jax.jit(world.model.shared)(world.params, state)
    chex.assert_trees_all_close(step(shared), step(), rtol=1e-5, atol=1e-6)
    for other in jax.tree.leaves(shared):
        wrong = jax.tree.map(lambda leaf: leaf + (leaf is other), shared)  # noqa: B023
        assert not np.allclose(step(wrong)[0].memory.hidden, step(shared)[0].memory.hidden, atol=1e-3)
    assert len(jax.tree.leaves(shared)) == (2 if world.model.architecture == "carry" else 0)


def test_members_are_different_networks():
    episodes = make_episodes(3, 4, seed=0)
    model = WorldModel("carry", hidden=8, layers=1, members=3)
    scaler = fit_scaler(episodes)
    params = model.init(scaler, Support.plausible(scaler), jax.random.key(0))
    weights = [model.member(params, i).network["gru"]["cells"][0]["weight_ih"] for i in range(3)]
    assert all(weight.shape == weights[0].shape for weight in weights)
    assert not np.allclose(weights[0], weights[1]) and not np.allclose(weights[1], weights[2])


def test_bfloat16_rounds_products_alone(world, key):
    state = world.encode(world.params, world.history(0, 3))
    rounded = dataclasses.replace(world.model, precision="bfloat16")
    action, noise = jnp.array([2, 3]), world.model.noise(key)
    exact, close = (model.step(world.params, state, action, noise) for model in (world.model, rounded))
    for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(close), strict=True):
        assert a.dtype == b.dtype
    z = [world.params.support.normalize(step.value) for _, step in (exact, close)]
    assert 0 < np.abs(z[0] - z[1]).max() < 0.1


def test_precisions_have_names():
    with pytest.raises(InputError, match="float32 or bfloat16"):
        WorldModel(precision="float16")
