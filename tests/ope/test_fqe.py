"""Fitted values where they are known: a chain of states whose ends pay."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from sepsis_jax.ope import fqe, logged
from sepsis_jax.ope.estimators import value
from sepsis_jax.ope.logged import Logged
from sepsis_jax.policies import behaviour

STEPS, STAYS = 4, 3000
SETTINGS = fqe.FQESettings(hidden=32, updates=1500, batch_size=256, learning_rate=3e-3, follow=0.05, shrinkage=0.0)
POLICIES = np.zeros((2, 25))
POLICIES[0, [0, 1]], POLICIES[1, [0, 1]] = (0.9, 0.1), (0.2, 0.8)


def chain(gamma=0.9, seed=0):
    """Action 1 leads up, others down; each step up pays 1, and the last one pays the height of 0 to 4 times 2."""
    rng = np.random.default_rng(seed)
    action = rng.integers(0, 2, (STAYS, STEPS)).astype(np.int32)
    before = np.concatenate([np.zeros((STAYS, 1), int), np.cumsum(action, axis=1)[:, :-1]], axis=1)
    reward = action.astype(float)
    reward[:, -1] += 2 * (before + action)[:, -1]
    length = np.full(STAYS, STEPS, np.int32)
    data = Logged(action, reward, length, np.full(action.shape, 0.5), np.arange(STAYS, dtype=np.int32), gamma)
    inputs = np.stack([before, np.broadcast_to(np.arange(STEPS), action.shape)], axis=-1).astype(np.float32)
    return data, inputs, np.broadcast_to(POLICIES[:, None, None], (2, *action.shape, 25))


def exact(policy, gamma):
    """f[STEPS,height,2] by dynamic programming."""
    q = np.zeros((STEPS, STEPS + 1, 2))
    for t in reversed(range(STEPS)):
        for height in range(t + 1):
            for a in range(2):
                if t == STEPS - 1:
                    q[t, height, a] = a + 2 * (height + a)
                else:
                    q[t, height, a] = a + gamma * policy[:2] @ q[t + 1, height + a]
    return q


@pytest.fixture(scope="module")
def fitted():
    data, inputs, probs = chain()
    values = fqe.fit(SETTINGS, data, inputs, probs, jax.random.key(0))
    return data, inputs, np.asarray(fqe.q_values(SETTINGS, values, inputs))


@pytest.mark.parametrize("number", [0, 1])
def test_values_are_those_of_the_policy(fitted, number):
    data, inputs, q = fitted
    height, truth = inputs[..., 0].astype(int), exact(POLICIES[number], data.gamma)
    expected = truth[np.arange(STEPS)[None], height]
    assert np.abs(q[number][..., :2] - expected).mean() < 0.1
    assert np.corrcoef(q[number][..., :2].ravel(), expected.ravel())[0, 1] > 0.995


def test_dm_and_dr_find_the_value_of_the_policy(fitted):
    data, _, q = fitted
    for number, policy in enumerate(POLICIES):
        truth = policy[:2] @ exact(policy, data.gamma)[0, 0]
        probs = np.broadcast_to(policy, (*data.action.shape, 25))
        found = value(data, logged.target(data, probs, q[number]))
        assert abs(found["dm"] - truth) < 0.1
        assert abs(found["dr"] - truth) < 0.15


def test_a_stay_that_was_cut_teaches_nothing_at_its_end():
    data, inputs, probs = chain()
    poisoned = data.replace(reward=np.where(np.arange(STEPS) == STEPS - 1, 1e3, data.reward))
    half = np.arange(STAYS) % 2 == 0
    kept = poisoned.replace(reward=np.where(half[:, None], data.reward, poisoned.reward))
    values = fqe.fit(SETTINGS, kept, inputs, probs, jax.random.key(0), ended=half)
    q = np.asarray(fqe.q_values(SETTINGS, values, inputs))[0, :, -1, :2]
    expected = exact(POLICIES[0], data.gamma)[-1, inputs[:, -1, 0].astype(int)]
    # What the poisoned half earned sets the scale, some hundreds, but nobody's value.
    assert np.abs(q - expected).mean() < 50
    learned = fqe.fit(SETTINGS, kept, inputs, probs, jax.random.key(0))
    assert np.abs(np.asarray(fqe.q_values(SETTINGS, learned, inputs))[0, :, -1, :2] - expected).mean() > 300


def test_strange_actions_cost_what_is_presumed(fitted):
    """Action 1 strange in all states and clinicians choosing it half the time: 0.5 off for it, 0.5 on for action 0."""
    data, inputs, probs = chain()
    doubtful = dataclasses.replace(SETTINGS, doubt=0.3)
    strange = np.zeros((*data.action.shape, 25), np.float32)
    strange[..., 0], strange[..., 1] = -0.5, 0.5
    values = fqe.fit(doubtful, data, inputs, probs, jax.random.key(0), strange=strange)
    q = np.asarray(fqe.q_values(doubtful, values, inputs, strange))
    for number, policy in enumerate(POLICIES):
        cost = 0.3 * float(values.sd) * (0.5 * policy[1] - 0.5 * policy[0])  # at each decision
        expected = cost * sum(data.gamma**t for t in range(STEPS))
        lost = ((fitted[2][number] - q[number])[:, 0] @ policy).mean()
        assert abs(lost - expected) < 0.1 and abs(expected) > 0.5


def test_doubt_leaves_the_clinicians_own_value_alone():
    data, inputs, _ = chain()
    treating = np.zeros((1, *data.action.shape, 25), np.float32)
    treating[..., :2] = 0.995, 0.005
    strange = behaviour.strange(treating[0])
    assert strange[0, 0, 1] == np.float32(0.995)
    few = dataclasses.replace(SETTINGS, updates=50)
    found = []
    for doubt in (0.0, 5.0):
        settings = dataclasses.replace(few, doubt=doubt)
        values = fqe.fit(settings, data, inputs, treating, jax.random.key(0), strange=strange)
        found.append((np.asarray(fqe.q_values(settings, values, inputs, strange))[0] * treating[0]).sum(axis=-1))
    np.testing.assert_allclose(*found, atol=1e-3)


@pytest.mark.slow
def test_what_was_never_given_is_worth_what_its_state_is_worth():
    """Actions 2 to 24 are in no stay: free, the network guesses; shrunk, they lie between the two that are."""
    data, inputs, probs = chain()
    settings = dataclasses.replace(SETTINGS, shrinkage=0.5)
    q = np.asarray(fqe.q_values(settings, fqe.fit(settings, data, inputs, probs, jax.random.key(0)), inputs))[0]
    low, high = q[..., :2].min(axis=-1), q[..., :2].max(axis=-1)
    assert ((q[..., 2:] > low[..., None]) & (q[..., 2:] < high[..., None])).mean() > 0.9
