"""Every estimator against a plain loop, and what must hold whatever the data."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from sepsis_jax.errors import InputError
from sepsis_jax.ope import bootstrap, logged
from sepsis_jax.ope.diagnostics import diagnose
from sepsis_jax.ope.estimators import ESTIMATORS, estimate, log_weights, terms, value
from sepsis_jax.ope.logged import Logged

ACTIONS = 25


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def make(stays=40, steps=6, seed=0, gamma=0.9):
    """Logged stays of different lengths, two policies f[B,T,25] and values f[B,T,25]."""
    rng = np.random.default_rng(seed)
    shape = (stays, steps)
    behaviour, policy = rng.dirichlet(np.full(ACTIONS, 2.0), shape), rng.dirichlet(np.full(ACTIONS, 2.0), shape)
    length = rng.integers(1, steps + 1, stays).astype(np.int32)
    length[0] = steps
    action = np.array([[rng.choice(ACTIONS, p=p) for p in row] for row in behaviour], np.int32)
    chance = np.take_along_axis(behaviour, action[..., None], -1)[..., 0]
    data = Logged(action, rng.normal(size=shape), length, chance, np.arange(stays, dtype=np.int32), gamma)
    return data, behaviour, policy, rng.normal(size=(*shape, ACTIONS))


def by_hand(data, policy, q):
    """All estimators as sums over stays and steps, with the padding rule."""
    stays, steps = data.action.shape
    w, taken, v = np.ones((stays, steps)), np.zeros((stays, steps)), np.zeros((stays, steps))
    r, g = np.zeros((stays, steps)), data.gamma ** np.arange(steps)
    for i in range(stays):
        last = 1.0
        for t in range(steps):
            if t < data.length[i]:
                a = data.action[i, t]
                last *= policy[i, t, a] / data.behaviour[i, t]
                r[i, t], taken[i, t] = data.reward[i, t], q[i, t, a]
                v[i, t] = sum(policy[i, t, b] * q[i, t, b] for b in range(ACTIONS))
            w[i, t] = last
    runs = np.arange(steps) < data.length[:, None]
    whole = [sum(g[t] * r[i, t] for t in range(steps)) for i in range(stays)]
    before = np.concatenate([np.ones((stays, 1)), w[:, :-1]], axis=1)
    normal, normal_before = w / w.mean(axis=0), before / before.mean(axis=0)
    return {
        "is": np.mean([w[i, -1] * whole[i] for i in range(stays)]),
        "wis": sum(w[i, -1] * whole[i] for i in range(stays)) / w[:, -1].sum(),
        "pdis": np.mean([sum(g[t] * w[i, t] * r[i, t] for t in range(steps)) for i in range(stays)]),
        "wpdis": sum(g[t] * (w[:, t] @ r[:, t]) / w[:, t].sum() for t in range(steps)),
        "wpdis_alive_normalized": sum(
            g[t] * (w[:, t] @ r[:, t]) / (w[:, t] @ runs[:, t]) for t in range(steps) if runs[:, t].any()
        ),
        "dm": v[:, 0].mean(),
        "dr": (g * (w * (r - taken) + before * v)).sum(axis=1).mean(),
        "wdr": (g * (normal * (r - taken) + normal_before * v)).sum(axis=1).mean(),
    }


@pytest.mark.parametrize("seed", range(3))
def test_estimators_equal_a_plain_loop(seed):
    data, _, policy, q = make(seed=seed)
    found, expected = value(data, logged.target(data, policy, q)), by_hand(data, policy, q)
    assert set(found) == set(ESTIMATORS) == set(expected)
    for name in ESTIMATORS:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-10, err_msg=name)


def test_dr_equals_its_recursion():
    data, _, policy, q = make(seed=3)
    target, total = logged.target(data, policy, q), 0.0
    for i, length in enumerate(data.length):
        rest = 0.0
        for t in reversed(range(length)):
            ratio = target.probability[i, t] / data.behaviour[i, t]
            rest = target.v[i, t] + ratio * (data.reward[i, t] + data.gamma * rest - target.q[i, t])
        total += rest / len(data.length)
    np.testing.assert_allclose(value(data, target)["dr"], total, rtol=1e-10)


def test_on_policy_all_are_the_mean_return():
    data, behaviour, _, _ = make(seed=1)
    target = logged.target(data, behaviour)
    mean = np.mean([(data.gamma ** np.arange(n) * r[:n]).sum() for n, r in zip(data.length, data.reward, strict=True)])
    found = value(data, target)
    for name in ("is", "wis", "pdis", "wpdis", "dr", "wdr"):
        np.testing.assert_allclose(found[name], mean, rtol=1e-12, err_msg=name)
    assert diagnose(log_weights(data, target), data.subject_id).ess == pytest.approx(len(data.length), rel=1e-12)
    assert abs(found["wpdis_alive_normalized"] - mean) > 1e-3, "the case must show what the name warns of"


def test_without_values_dr_is_pdis():
    data, _, policy, _ = make(seed=2)
    found = value(data, logged.target(data, policy))
    np.testing.assert_allclose(found["dr"], found["pdis"], rtol=1e-12)
    np.testing.assert_allclose(found["wdr"], found["wpdis"], rtol=1e-12)


def test_what_stands_beyond_the_end_is_not_looked_at():
    data, _, policy, q = make(seed=4)
    expected, more = value(data, logged.target(data, policy, q)), 5

    def longer(array, fill):
        return np.pad(array, [(0, 0), (0, more), *[(0, 0)] * (array.ndim - 2)], constant_values=fill)

    longer_data = dataclasses.replace(
        data, action=longer(data.action, 7), reward=longer(data.reward, np.nan), behaviour=longer(data.behaviour, 0)
    )
    for t, row in np.argwhere(~longer_data.valid)[:, ::-1]:
        longer_data.reward[row, t] = np.nan
    found = value(longer_data, logged.target(longer_data, longer(policy, np.nan), longer(q, np.nan)))
    for name in ESTIMATORS:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-12, err_msg=name)


def test_the_order_of_the_stays_does_not_matter():
    data, _, policy, q = make(seed=5)
    order = np.random.default_rng(0).permutation(len(data.length))
    found = value(jax.tree.map(lambda leaf: leaf[order], data), logged.target(data, policy, q).replace(
        **{k: v[order] for k, v in vars(logged.target(data, policy, q)).items()}))  # fmt: skip
    for name, expected in value(data, logged.target(data, policy, q)).items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-10)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(-20, 20))
def test_wis_of_a_constant_outcome_is_that_outcome(seed, outcome):
    data, _, policy, _ = make(stays=8, steps=4, seed=seed, gamma=1.0)
    reward = np.where(np.arange(4) == data.length[:, None] - 1, outcome, 0.0)
    found = value(dataclasses.replace(data, reward=reward), logged.target(data, policy))
    np.testing.assert_allclose(found["wis"], outcome, atol=1e-10)


def test_weights_beyond_the_range_of_numbers_do_not_overflow():
    data = make(stays=6, steps=400, seed=6)[0]
    sharp = np.where(np.arange(ACTIONS) == data.action[..., None], 1.0, 0.0)
    found = value(data, logged.target(data, sharp))  # w_T is about 25^400
    assert np.isfinite(found["wis"]) and np.isfinite(found["wpdis"])


def test_a_reward_of_nothing_is_nothing_at_whatever_weight():
    """An outcome alone at the end of long stays: the mean weight overflows, what it multiplies is 0."""
    shape = (3, 900)
    reward, probs = np.zeros(shape), np.zeros((*shape, ACTIONS))
    reward[:, -1] = 1.0
    length, patient = np.full(3, 900, np.int32), np.arange(3, dtype=np.int32)
    wide = Logged(np.zeros(shape, np.int32), reward, length, np.full(shape, 1e-3), patient)
    probs[..., 0] = 1.0
    found = value(wide, logged.target(wide, probs))
    assert found["wis"] == pytest.approx(1.0) and found["wpdis"] == pytest.approx(1.0)
    assert all(np.isposinf(found[name]) for name in ("is", "pdis", "dr"))
    none = value(dataclasses.replace(wide, reward=0 * reward), logged.target(wide, probs))
    assert all(none[name] == 0 for name in ("is", "pdis", "dr"))


def test_actions_beyond_the_end_are_not_looked_at():
    data, _, policy, _ = make(stays=4)
    inside = np.arange(data.action.shape[1]) < data.length[:, None]
    strange = dataclasses.replace(data, action=np.where(inside, data.action, 99))
    expected, found = value(data, logged.target(data, policy)), value(strange, logged.target(strange, policy))
    assert {name: float(one) for name, one in found.items()} == {name: float(one) for name, one in expected.items()}


def test_clipped_weights_are_no_larger():
    data, _, policy, _ = make(seed=7)
    target, limit = logged.target(data, policy), 1.5
    each, scale = terms(data, target, np.log(limit))
    w = np.exp(np.asarray(log_weights(data, target)))
    np.testing.assert_allclose(np.asarray(each.weight) * np.exp(scale), np.minimum(w, limit), rtol=1e-12)


def test_draws_are_the_estimators_of_the_drawn_stays():
    data, _, policy, q = make(seed=8)
    data = dataclasses.replace(data, subject_id=data.subject_id // 2)
    target = logged.target(data, policy, q)
    counts = bootstrap.patient_counts(data.subject_id, draws=5, seed=0).astype(np.float64)
    each, scale = terms(data, target)
    found = bootstrap.draw(each, scale, counts)
    for number, row in enumerate(counts):
        chosen = np.repeat(np.arange(len(row)), row.astype(int))
        drawn = jax.tree.map(lambda leaf: leaf[chosen], (data, target))  # noqa: B023
        for name, expected in value(*drawn).items():
            np.testing.assert_allclose(found[name][number], expected, rtol=1e-9, err_msg=name)
    without = bootstrap.leave_out(each, scale, data.subject_id)
    rest = jax.tree.map(lambda leaf: leaf[data.subject_id != 3], (data, target))
    for name, expected in value(*rest).items():
        np.testing.assert_allclose(without[name][3], expected, rtol=1e-9, err_msg=name)


def test_a_heavy_stay_left_out_leaves_the_others():
    with jax.enable_x64(False):
        data, behaviour, _, _ = make(seed=11)
        heavy = dataclasses.replace(data, behaviour=np.where(np.arange(40)[:, None] == 0, 1e-3, data.behaviour))
        target = logged.target(heavy, behaviour)
        without = bootstrap.leave_out(*terms(heavy, target), heavy.subject_id)
        rest = jax.tree.map(lambda leaf: leaf[1:], (heavy, target))
        for name, expected in value(*rest).items():
            np.testing.assert_allclose(without[name][0], expected, rtol=1e-3, atol=1e-4, err_msg=name)


def test_one_patient_with_many_stays_is_one():
    subject = np.random.default_rng(0).permutation(np.r_[np.zeros(60, int), 1:401])
    found = diagnose(np.zeros((460, 2)), subject)
    assert found.ess == pytest.approx(460**2 / (60**2 + 400)) and found.stays == 460 and found.patients == 401
    assert not found.reliable and "13 %" in found.reason
    few = diagnose(np.zeros((110, 2)), np.repeat(np.arange(11), 10))
    assert few.ess == pytest.approx(11) and "ESS 11 of 11 patients" in few.reason


def test_weights_that_do_not_average_to_one_are_wrong():
    subject = np.arange(100)
    assert diagnose(np.log(np.linspace(0.1, 2.9, 100))[:, None], subject).reliable
    for mean in (0.4, 3.0, 1e300):
        found = diagnose(np.full((100, 1), np.log(mean)), subject)
        assert not found.reliable and found.reason == f"a mean weight of {mean:.3g}, which is 1 for true propensities"


def test_bca_is_percentile_for_a_symmetric_estimate():
    rng = np.random.default_rng(0)
    sample = rng.normal(size=400)
    sample = np.concatenate([sample, -sample])
    counts = rng.multinomial(800, np.full(800, 1 / 800), size=20_000)
    draws = counts @ sample / 800
    without = (sample.sum() - sample) / 799
    found = bootstrap.bca_interval(draws, float(sample.mean()), without)
    np.testing.assert_allclose(found, bootstrap.interval(draws), atol=0.004)


@pytest.mark.parametrize("sign", [1, -1])
def test_bca_of_a_skewed_estimate_is_scipys(sign):
    sample = sign * np.random.default_rng(3).exponential(size=40) ** 2
    draws = np.random.default_rng(4).multinomial(40, np.full(40, 1 / 40), size=200_000) @ sample / 40
    without = (sample.sum() - sample) / 39
    theirs = scipy.stats.bootstrap((sample,), np.mean, n_resamples=200_000, vectorized=True, batch=10_000, rng=5)
    ours, plain = bootstrap.bca_interval(draws, float(sample.mean()), without), bootstrap.interval(draws)
    near = 0.05 * draws.std()
    np.testing.assert_allclose(ours, theirs.confidence_interval, atol=near)
    assert np.abs(np.subtract(ours, plain)).min() > 4 * near


def test_no_weight_is_no_number():
    data, _, _, _ = make(seed=9)
    never = np.zeros((*data.action.shape, ACTIONS))
    np.put_along_axis(never, ((data.action + 1) % ACTIONS)[..., None], 1.0, -1)
    target = logged.target(data, never)
    found = value(data, target)
    assert np.isnan(found["wis"]) and np.isnan(found["wpdis"]) and found["is"] == 0
    diagnosis = diagnose(log_weights(data, target), data.subject_id)
    assert not diagnosis.reliable and diagnosis.ess == 0 and diagnosis.histogram[0] == len(data.length)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d, p: (d, p * 1.1), "25 probabilities that sum to 1, found a sum of 1.1"),
        (lambda d, p: (d, np.where(np.arange(ACTIONS) == 3, -p, p)), "25 probabilities that sum to 1"),
        (lambda d, p: (d, np.full_like(p, np.nan)), "25 probabilities that sum to 1, found a sum of nan"),
        (lambda d, p: (d, p[..., :24]), r"expected shape \(40, 6, 25\)"),
        (lambda d, p: (dataclasses.replace(d, behaviour=d.behaviour * 0), p), "above 0 for every action given"),
        (
            lambda d, p: (dataclasses.replace(d, reward=d.reward * np.nan), p),
            "reward: expected numbers .*, found nan",
        ),
        (lambda d, p: (dataclasses.replace(d, length=d.length * 0), p), "length: expected 1 to 6 .*, found 0 to 0"),
        (lambda d, p: (dataclasses.replace(d, length=d.length + 6), p), "length: expected 1 to 6 decisions in each"),
        (lambda d, p: (dataclasses.replace(d, action=d.action + 25), p), "action: expected 0 to 24"),
        (lambda d, p: (dataclasses.replace(d, behaviour=d.behaviour + 1), p), "above 0 for every action given"),
        (lambda d, p: (dataclasses.replace(d, gamma=1.5), p), "gamma: expected a discount from 0 to 1, found 1.5"),
        (lambda d, p: (dataclasses.replace(d, subject_id=d.subject_id[:3]), p), r"subject_id: expected shape \(40,\)"),
        (lambda d, p: (dataclasses.replace(d, reward=d.reward[:3]), p), "reward: expected one number for each"),
    ],
)
def test_bad_input_is_one_line(change, message):
    data, _, policy, _ = make()
    data, policy = change(data, policy)
    with pytest.raises(InputError, match=message) as caught:
        logged.check(data)
        logged.target(data, policy)
    assert "\n" not in str(caught.value)


def test_estimate_takes_sums():
    data, _, policy, q = make(seed=10)
    each, scale = terms(data, logged.target(data, policy, q))
    twice = jax.tree.map(lambda leaf: 2 * leaf.sum(axis=0), each)
    for name, found in estimate(twice, scale).items():
        np.testing.assert_allclose(found, value(data, logged.target(data, policy, q))[name], rtol=1e-12)
