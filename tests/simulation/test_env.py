"""The environment: Gymnasium's own checks, and the batched functions against `rollout`."""

from __future__ import annotations

import dataclasses

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from factories import make_episodes
from gymnasium.utils.env_checker import check_env
from toy import toy_params, toy_world

from sepsis_jax.clinical.actions import encode
from sepsis_jax.clinical.reward import PUBLISHED
from sepsis_jax.dynamics.protocol import history_at
from sepsis_jax.errors import InputError
from sepsis_jax.policies.clinician import Clinician, ClinicianSettings
from sepsis_jax.simulation import env
from sepsis_jax.simulation.rollout import rollout

EPISODES = make_episodes(6, 8, seed=3)
WORLD = toy_world(policy=None)
UNPAID = dataclasses.replace(PUBLISHED, outcome=0.0)


def make_env(**changes):
    return env.SepsisEnv(**{"world": WORLD, "params": toy_params(), "episodes": EPISODES, "max_steps": 5} | changes)


def test_gymnasium_accepts_it():
    check_env(make_env(), skip_render_check=True)


def test_it_is_registered():
    gymnasium.registry.pop(env.ID)
    env.register()
    made = gymnasium.make(f"{env.__name__}:{env.ID}", world=WORLD, params=toy_params(), episodes=EPISODES)
    assert made.reset(seed=0)[0].shape == (80,)


def test_an_episode_is_a_rollout():
    """The functions, scanned, give the trajectory of `rollout` with the same key."""
    histories = history_at(EPISODES, [0, 1, 2], [0, 1, 1])
    keys = jax.random.split(jax.random.key(3), 3)
    plan = np.array([[1, 2], [0, 0], [4, 4], [2, 1], [0, 3]], np.int8)

    def body(state, action):
        return env.step(WORLD, toy_params(), state, jnp.broadcast_to(action, 3), max_steps=5)

    state = env.reset(WORLD, toy_params(), histories, keys)
    _, seen = jax.lax.scan(body, state, jnp.asarray(encode(plan)))
    for b in range(3):
        history = jax.tree.map(lambda leaf: jnp.asarray(leaf)[b], histories)  # noqa: B023
        key = jax.random.split(keys[b])[1]
        alone = rollout(WORLD, toy_params(), None, history, jnp.asarray(plan), key, horizon=5)
        np.testing.assert_allclose(seen.obs[:, b, :39], alone.steps.obs, rtol=1e-5)
        np.testing.assert_array_equal(seen.exit[:, b], alone.steps.exit)
        np.testing.assert_allclose(seen.reward[:, b].sum(), alone.value, rtol=1e-4, atol=1e-3)


def test_a_world_with_clinicians_is_played_by_who_acts():
    def lived(world):
        state = env.reset(world, toy_params(), history_at(EPISODES, [0], [0]), jax.random.split(jax.random.key(3), 1))
        return env.step(world, toy_params(), state, jnp.array([7]), max_steps=5)[1].obs

    clinicians = Clinician(ClinicianSettings())  # cannot do anything without parameters of its own
    np.testing.assert_array_equal(lived(dataclasses.replace(WORLD, policy=clinicians)), lived(WORLD))


@pytest.mark.parametrize(("reward", "paid"), [(PUBLISHED, True), (UNPAID, False)])
def test_the_last_step_truncates_only_what_no_outcome_pays(reward, paid):
    stay = dataclasses.replace(toy_params(), death=jnp.float32(0), discharge=jnp.float32(0))
    made = make_env(world=dataclasses.replace(WORLD, reward=reward), params=stay)
    made.reset(seed=1)
    ends = [made.step(np.int64(0))[2:4] for _ in range(5)]
    assert ends[:4] == [(False, False)] * 4 and ends[4] == (paid, not paid)


def test_nothing_happens_after_the_end():
    gone = dataclasses.replace(toy_params(), discharge=jnp.float32(1))
    made = make_env(params=gone)
    made.reset(seed=1)
    first = made.step(np.int64(3))
    again = made.step(np.int64(24))
    assert first[2] and again[2] and again[1] == 0
    np.testing.assert_array_equal(first[0], again[0])
    assert again[4] == first[4]  # exit and mortality too


def test_seeds_decide():
    made = make_env()
    runs = []
    for seed in (5, 5, 6):
        obs, info = made.reset(seed=seed)
        runs.append((info["stay_id"], obs.sum(), made.step(np.int64(7))[0].sum()))
    assert runs[0] == runs[1] != runs[2]
    assert made.reset(options={"stay_id": int(EPISODES.stay_id[4])})[1]["stay_id"] == EPISODES.stay_id[4]


@pytest.mark.parametrize("action", [-1, 25, 300, 1.7, None, "x", [0], np.nan])
def test_an_action_that_is_none_is_refused(action):
    made = make_env()
    made.reset(seed=1)
    with pytest.raises(InputError, match="action: expected a whole number from 0 to 24"):
        made.step(action)


@pytest.mark.parametrize("wrong", [{"max_steps": 0}, {"max_steps": 1.5}, {"params": None}, {"world": None}])
def test_what_an_environment_cannot_be_made_of_is_refused(wrong):
    with pytest.raises(InputError):
        make_env(**wrong)


def test_a_step_needs_a_reset():
    with pytest.raises(gymnasium.error.ResetNeeded):
        make_env().step(np.int64(0))
