"""Offline reinforcement learning: losses against NumPy and rlax, and policies where values are exact."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from factories import fit_scaler, make_episodes
from truths import icu_mdp

from sepsis_jax.dynamics.protocol import history_at
from sepsis_jax.errors import InputError
from sepsis_jax.ope import icu_sepsis
from sepsis_jax.policies import inputs
from sepsis_jax.policies.offline_rl import algorithms, training, transitions
from sepsis_jax.policies.offline_rl.algorithms import Batch
from sepsis_jax.policies.offline_rl.network import Heads
from sepsis_jax.policies.offline_rl.training import Learned, OfflineSettings
from sepsis_jax.simulation.policy import probs_at, probs_on_record

N = 12


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)

    def heads():
        q, logits = rng.normal(size=(2, N, 25))
        return Heads(*(jnp.asarray(part, jnp.float32) for part in (q, rng.normal(size=N), logits)))

    return Batch(
        action=jnp.asarray(rng.integers(0, 25, N)),
        next_action=jnp.asarray(np.where(np.arange(N) % 4, rng.integers(0, 25, N), -1)),
        reward=jnp.asarray(rng.normal(size=N), jnp.float32),
        ongoing=jnp.asarray(np.arange(N) % 4 > 0, jnp.float32),
        sofa=jnp.asarray(rng.uniform(0, 8, N), jnp.float32),
        gamma=jnp.float32(0.9),
        sd=jnp.float32(3),
        now=heads(),
        after=heads(),
        slow_now=heads(),
        slow_after=heads(),
    )


def huber(error):
    return np.where(np.abs(error) <= 1, error**2 / 2, np.abs(error) - 0.5)


def numbers(batch):
    return jax.tree.map(lambda leaf: np.asarray(leaf, leaf.dtype if leaf.dtype.kind == "i" else np.float64), batch)


def test_goals_are_those_of_rlax(batch):
    spec = importlib.util.find_spec("rlax")
    if spec is None:
        pytest.skip("needs the package rlax (pip install --no-deps)")
    root = Path(spec.submodule_search_locations[0])
    stubs = {name: types.ModuleType(name) for name in ("rlax", "rlax._src", "distrax")}  # without what it draws in
    stubs["rlax"].__path__, stubs["rlax._src"].__path__ = [str(root)], [str(root / "_src")]
    with pytest.MonkeyPatch.context() as patch:
        for name, module in stubs.items():
            patch.setitem(sys.modules, name, module)
        theirs = importlib.import_module("rlax._src.value_learning")
    shared = batch.now.q, batch.action, batch.reward, batch.gamma * batch.ongoing
    taken = algorithms.at(batch.now.q, batch.action)
    plain = jax.vmap(theirs.q_learning)(*shared, batch.slow_after.q)
    double = jax.vmap(theirs.double_q_learning)(*shared, batch.slow_after.q, batch.after.q)
    np.testing.assert_allclose(algorithms.q_learning_goal(batch) - taken, plain, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(algorithms.double_q_goal(batch) - taken, double, rtol=1e-5, atol=1e-6)


def test_conservative_term(batch):
    b = numbers(batch)
    gap = np.mean([np.log(np.exp(b.now.q[i]).sum()) - b.now.q[i, b.action[i]] for i in range(N)])
    expected = algorithms.double_dqn(batch) + algorithms.CQL_ALPHA * gap
    assert algorithms.cql(batch) == pytest.approx(float(expected), rel=1e-5)


def test_bcq_values_only_what_clinicians_would_do(batch):
    b, errors, surprise = numbers(batch), [], []
    for i in range(N):
        allowed = b.after.logits[i] >= b.after.logits[i].max() + np.log(algorithms.BCQ_THRESHOLD)
        assert 0 < allowed.sum() < 25
        best = np.where(allowed, b.after.q[i], -np.inf).argmax()
        goal = b.reward[i] + 0.9 * b.ongoing[i] * b.slow_after.q[i, best]
        errors.append(huber(b.now.q[i, b.action[i]] - goal))
        surprise.append(np.log(np.exp(b.now.logits[i]).sum()) - b.now.logits[i, b.action[i]])
    expected = np.mean(errors) + np.mean(surprise) + 1e-2 * (b.now.logits**2).mean()
    assert algorithms.bcq(batch) == pytest.approx(expected, rel=1e-5)
    chosen = np.asarray(algorithms.best_likely(batch.now)).argmax(axis=1)
    likely = b.now.logits - b.now.logits.max(axis=1, keepdims=True) >= np.log(0.3)
    assert likely[np.arange(N), chosen].all()


def test_iql_never_asks_for_another_action(batch):
    b, total = numbers(batch), []
    for i in range(N):
        advantage = b.slow_now.q[i, b.action[i]] - b.now.v[i]
        weight = algorithms.IQL_EXPECTILE if advantage > 0 else 1 - algorithms.IQL_EXPECTILE
        goal = b.reward[i] + 0.9 * b.ongoing[i] * b.after.v[i]
        surprise = np.log(np.exp(b.now.logits[i]).sum()) - b.now.logits[i, b.action[i]]
        counts = min(np.exp(min(algorithms.IQL_TEMPERATURE * advantage, 50)), 100)
        total.append(weight * advantage**2 + huber(b.now.q[i, b.action[i]] - goal) + counts * surprise)
    assert algorithms.iql(batch) == pytest.approx(np.mean(total), rel=1e-5)


def weighted(b, i):
    """Wu et al. 2023: the value of the next state, scalar by scalar."""
    slow = b.slow_after.q[i]
    if b.sofa[i] < 4:
        return slow[b.next_action[i]]
    first, second = b.after.q[i].argmax(), slow.argmax()
    chance = np.exp(b.sd * slow) / np.exp(b.sd * slow).sum()
    share = chance[first] / (chance[first] + chance[second])
    return share * slow[first] + (1 - share) * slow[second]


def test_wd3qne_and_its_missing_axis(batch):
    b = numbers(batch)
    taken = b.now.q[np.arange(N), b.action]
    goals = [b.reward[i] + 0.9 * b.ongoing[i] * weighted(b, i) for i in range(N)]
    assert algorithms.wd3qne(batch) == pytest.approx(huber(taken - goals).mean(), rel=1e-5)
    crossed = [
        huber(taken[j] - (b.reward[j] + 0.9 * b.ongoing[i] * weighted(b, j))) for i in range(N) for j in range(N)
    ]
    assert algorithms.wd3qne_faithful(batch) == pytest.approx(np.mean(crossed), rel=1e-5)


def stays(ended=None):
    rng = np.random.default_rng(1)
    length = np.array([3, 1, 4])
    see, action, reward = rng.normal(size=(3, 4, 2)), rng.integers(0, 25, (3, 4)), rng.normal(size=(3, 4))
    found = transitions.of_stays(see, action, reward, length, gamma=0.5, sofa=reward + 5, ended=ended)
    return see, action, reward, length, jax.tree.map(np.asarray, found)


@pytest.mark.parametrize("ended", [None, np.array([True, False, True])])
def test_transitions_are_the_steps(ended):
    see, action, reward, length, found = stays(ended)
    number = 0
    for i, steps in enumerate(length):
        for t in range(steps):
            last = t == steps - 1
            if last and ended is not None and not ended[i]:
                continue
            np.testing.assert_allclose(found.inputs[found.now[number]], see[i, t], rtol=1e-6)
            np.testing.assert_allclose(found.inputs[found.after[number]], 0 if last else see[i, t + 1], rtol=1e-6)
            assert found.action[number] == action[i, t]
            assert found.next_action[number] == (-1 if last else action[i, t + 1])
            assert found.ongoing[number] == (not last)
            assert found.reward[number] == pytest.approx(reward[i, t])
            assert found.sofa[number] == pytest.approx(reward[i, t] + 5)
            number += 1
    assert number == found.now.size
    returns = [sum(0.5**t * reward[i, t] for t in range(steps)) for i, steps in enumerate(length)]
    assert found.mean == pytest.approx(np.mean(returns), rel=1e-5)
    assert found.sd == pytest.approx(np.std(returns), rel=1e-5)


SMALL = OfflineSettings(hidden=32, updates=600, batch_size=128, learning_rate=3e-3, follow=0.05, seeds=2, reports=3)


def two_steps(stays_=600, seed=0):
    """Action 1 first costs 1 and leads to where action 2 pays 4 and others nothing; elsewhere nothing pays 1."""
    rng = np.random.default_rng(seed)
    action = rng.integers(0, 3, (stays_, 2))
    led = action[:, 0] == 1
    see = np.zeros((stays_, 2, 3))
    see[:, 0, 0], see[:, 1, 1], see[:, 1, 2] = 1, led, ~led
    reward = np.stack([-1.0 * led, np.where(led, 4.0 * (action[:, 1] == 2), 1.0)], axis=1)
    return transitions.of_stays(see, action, reward, np.full(stays_, 2)), np.eye(3, dtype=np.float32)


@pytest.mark.parametrize(
    "name", ["DQN", *(pytest.param(name, marks=pytest.mark.slow) for name in ("D3QN", "CQL", "BCQ", "WD3QNE"))]
)
def test_a_detour_that_pays_is_found(name):
    rows, table = two_steps()
    rows = rows.replace(sofa=jnp.full(rows.sofa.shape, 9.0))  # no expertise: what follows was drawn blindly
    seen = []
    networks = training.fit(name, SMALL, rows, jax.random.key(0), lambda *report: seen.append(report))
    probs = np.asarray(training.probs_of(name, SMALL, networks, table))
    assert probs[0].argmax() == 1 and probs[1].argmax() == 2
    np.testing.assert_allclose(probs.sum(axis=1), 1, rtol=1e-5)
    assert [number for number, _, _ in seen] == [200, 400, 600] and seen[0][2].shape == (2,)
    assert seen[-1][2].mean() < seen[0][2].mean()


@pytest.mark.slow
def test_cloning_does_as_was_done_and_iql_better():
    rows, table = two_steps()
    found = {}
    for name in ("BC", "IQL"):
        networks = training.fit(name, SMALL, rows, jax.random.key(0))
        found[name] = np.asarray(training.probs_of(name, SMALL, networks, table))
    seen = np.asarray(rows.inputs)[rows.now].argmax(axis=1)
    done = np.stack([np.bincount(np.asarray(rows.action)[seen == state], minlength=25) for state in range(3)])
    np.testing.assert_allclose(found["BC"], done / done.sum(axis=1, keepdims=True), atol=0.03)
    assert found["IQL"][1, 2] > 0.6 and found["IQL"][0, 1] > 0.5


def test_seeds_differ_and_keys_decide():
    rows, table = two_steps()
    settings = dataclasses.replace(SMALL, updates=30, reports=1)
    first, again, other = (training.fit("DQN", settings, rows, jax.random.key(key)) for key in (0, 0, 1))
    for one, two, third in zip(*(jax.tree.leaves(found) for found in (first, again, other)), strict=True):
        np.testing.assert_array_equal(one, two)
        assert one.shape[0] == 2 and (one.ndim == 2 or not np.allclose(one[0], one[1]) or not np.any(one))
        assert not np.any(one) or not np.allclose(one, third)
    alone = jax.tree.map(lambda leaf: leaf[1:], first)
    both, second = (training.probs_of("DQN", settings, found, table) for found in (first, alone))
    first_alone = training.probs_of("DQN", settings, jax.tree.map(lambda leaf: leaf[:1], first), table)
    np.testing.assert_allclose(both, (second + first_alone) / 2, rtol=1e-5)


def test_a_learned_policy_plays_what_the_record_says():
    episodes = make_episodes(6, 5, seed=2)
    scaler = fit_scaler(episodes)
    see = inputs.on_record(episodes, scaler)
    rows = transitions.of_stays(see, np.zeros((6, 5), int), np.ones((6, 5)), episodes.length)
    settings = dataclasses.replace(SMALL, updates=20, reports=1)
    params = {"networks": training.fit("IQL", settings, rows, jax.random.key(0)), "scaler": scaler}
    policy, valid = Learned("IQL", settings), episodes.valid
    direct = np.asarray(training.probs_of("IQL", settings, params["networks"], see))
    record = probs_on_record(policy, params, episodes)
    np.testing.assert_allclose(record[valid], direct[valid], rtol=1e-4, atol=1e-6)
    stay, step = np.nonzero(valid)
    played = probs_at(policy, params, history_at(episodes, stay, step))
    np.testing.assert_allclose(played, direct[valid], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda rows: training.fit("PPO", SMALL, rows, jax.random.key(0)), "one of BC, DQN"),
        (lambda rows: training.fit("DQN", SMALL, transitions.kept(rows, slice(0)), jax.random.key(0)), "at least one"),
        (lambda rows: OfflineSettings(updates=0), "updates"),
        (lambda rows: OfflineSettings(updates=5, reports=9), "reports"),
        (lambda rows: OfflineSettings(seeds=0), "seeds"),
    ],
)
def test_bad_input(run, words):
    with pytest.raises(InputError, match=words):
        run(two_steps()[0])


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1200)
def test_exact_values_on_icu_sepsis():
    """20,000 stays of its expert (value .7818); the best policy has .875, chance .7801."""
    mdp = icu_mdp()
    data, states = mdp.draw(20_000, seed=0)
    rows = icu_sepsis.experience(mdp, data, states)
    settings = OfflineSettings(updates=2000, seeds=1, reports=1)
    found = {}
    for name in ("BC", "CQL", "BCQ", "IQL", "WD3QNE"):
        networks = training.fit(name, settings, rows, jax.random.key(0))
        probs = np.asarray(training.probs_of(name, settings, networks, icu_sepsis.one_hot()), np.float64)
        found[name] = mdp.value(probs / probs.sum(axis=1, keepdims=True))
    assert abs(found.pop("BC") - 0.7818) < 0.005
    assert min(found.values()) >= 0.79, found
