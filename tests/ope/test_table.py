"""One call for many policies: numbers, intervals, verdicts, and what it refuses."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from factories import make_episodes

from sepsis_jax.clinical.actions import NUM_ACTIONS, encode
from sepsis_jax.clinical.features import INDEX
from sepsis_jax.clinical.reward import OUTCOME_ONLY, PUBLISHED
from sepsis_jax.errors import InputError
from sepsis_jax.ope import logged
from sepsis_jax.ope import table as table_of
from sepsis_jax.ope.estimators import ESTIMATORS
from sepsis_jax.ope.table import evaluate_policies

EPISODES = make_episodes(300, 6, seed=1)
RNG = np.random.default_rng(0)
BEHAVIOUR = RNG.dirichlet(np.full(NUM_ACTIONS, 5.0), EPISODES.action.shape[:2])
OTHER = 0.98 * BEHAVIOUR + 0.02 * RNG.dirichlet(np.full(NUM_ACTIONS, 5.0), EPISODES.action.shape[:2])
Q = RNG.normal(size=(*EPISODES.action.shape[:2], NUM_ACTIONS))
GIVEN = np.eye(NUM_ACTIONS)[np.asarray(encode(EPISODES.action))]


@pytest.fixture(scope="module")
def table():
    never = np.roll(GIVEN, 1, axis=-1)
    policies = {"clinicians": BEHAVIOUR, "other": OTHER, "sure": GIVEN, "never": never}
    return evaluate_policies(EPISODES, policies, BEHAVIOUR, OUTCOME_ONLY, draws=300).set_index(["policy", "estimator"])


def test_clinicians_are_worth_what_they_earned(table):
    died = np.asarray(EPISODES.mortality_90d)
    found = table.loc[("clinicians", "wis")]
    assert found.value == pytest.approx(15 * (1 - 2 * died.mean()), abs=1e-4)
    assert found.value == pytest.approx(table.loc[("clinicians", "wpdis")].value, abs=1e-4)
    assert found.reliable and found.reason == "" and found.ess == pytest.approx(300, rel=1e-4)
    patients = 15 * (1 - 2 * died)
    assert found.se == pytest.approx(patients.std() / np.sqrt(300), rel=0.15)
    assert found.low < found.value < found.high


def test_a_policy_that_the_record_cannot_judge_is_called_so(table):
    sure, never = table.loc[("sure", "wis")], table.loc[("never", "wis")]
    assert not sure.reliable and "ESS" in sure.reason
    assert not never.reliable and np.isnan([never.value, never.low, never.high, never.se]).all()


def test_both_kinds_of_interval_are_near_each_other():
    one = [
        evaluate_policies(EPISODES, {"other": OTHER}, BEHAVIOUR, PUBLISHED, ["wis"], draws=2000, kind=kind).iloc[0]
        for kind in ("percentile", "bca")
    ]
    assert one[0].value == one[1].value
    np.testing.assert_allclose([one[0].low, one[0].high], [one[1].low, one[1].high], atol=0.3 * one[0].se)


def test_one_patient_is_never_reliable():
    one = EPISODES.take([0])
    found = evaluate_policies(one, {"clinicians": BEHAVIOUR[:1]}, BEHAVIOUR[:1], PUBLISHED, ["wis"], draws=100).iloc[0]
    assert not found.reliable and found.reason == "one patient"
    assert np.isnan([found.se, found.low, found.high]).all()


@pytest.mark.parametrize("kind", ["percentile", "bca"])
def test_stays_of_a_patient_that_are_all_alike_say_no_more_than_one(kind):
    def judged(times):
        many = EPISODES.take(np.repeat(np.arange(EPISODES.num_stays), times))
        other, treating, q = (np.repeat(one, times, axis=0) for one in (OTHER, BEHAVIOUR, Q))
        found = evaluate_policies(
            many, {"other": other}, treating, PUBLISHED, list(ESTIMATORS), q={"other": q}, draws=200, kind=kind
        )
        return found[["value", "se", "low", "high", "ess", "patients"]].to_numpy(float)

    np.testing.assert_allclose(judged(3), judged(1), rtol=2e-3, atol=1e-4)


def test_values_alone_are_never_called_reliable():
    q = {"other": np.full(OTHER.shape, 1e6)}
    found = evaluate_policies(EPISODES, {"other": OTHER}, BEHAVIOUR, PUBLISHED, ["dm"], q=q, draws=100).iloc[0]
    assert found.value == pytest.approx(1e6) and not found.reliable and found.reason == "values alone"


def unknown(episodes):
    died = np.asarray(episodes.mortality_90d).copy()
    died[:3] = -1
    return dataclasses.replace(episodes, mortality_90d=died)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"estimators": ["wiss"]}, "estimators: expected some of is, wis, .*, found 'wiss'"),
        ({"estimators": ["dr"]}, "q: expected values of every policy for dr, found none for other"),
        ({"episodes": EPISODES.take([])}, "expected stays to evaluate on, found none"),
        ({"policies": {}}, "policies: expected at least one, found none"),
        ({"draws": 1}, "draws: expected at least 40, found 1"),
        ({"seed": -1}, "seed: expected at least 0, found -1"),
        ({"kind": "BCa"}, "kind: expected one of percentile, bca, found 'BCa'"),
        ({"episodes": EPISODES.replace(action=EPISODES.action + 4)}, "action: expected levels 0 to 4, found 4 to 8"),
        ({"behaviour": np.where(GIVEN > 0, 1e-40, 1 / 24)}, "expected a probability above 0 for every action given"),
        ({"reward": np.full(EPISODES.action.shape[:2], 1e39)}, "reward: expected numbers that float32 holds, found 1e"),
        ({"episodes": unknown(EPISODES)}, "mortality_90d: expected 0 or 1, found 3 others, the first -1"),
        (
            {"behaviour": BEHAVIOUR * (1 - GIVEN) / (BEHAVIOUR * (1 - GIVEN)).sum(-1, keepdims=True)},
            "above 0 for every",
        ),
        ({"behaviour": BEHAVIOUR[:, :3]}, r"behaviour: expected shape \(300, 6, 25\), found \(300, 3, 25\)"),
        ({"policies": {"other": 2 * OTHER}}, "other: expected 25 probabilities that sum to 1, found a sum of 2"),
    ],
)
def test_bad_input_is_one_line(change, message):
    given = {"episodes": EPISODES, "policies": {"other": OTHER}, "behaviour": BEHAVIOUR, "reward": PUBLISHED} | change
    if not given["episodes"].num_stays:
        given |= {"policies": {"other": OTHER[:0]}, "behaviour": BEHAVIOUR[:0]}
    with pytest.raises(InputError, match=message) as caught:
        evaluate_policies(**({"draws": 100} | given))
    assert "\n" not in str(caught.value)


def test_a_group_is_judged_as_if_it_were_alone():
    data = logged.log(EPISODES, BEHAVIOUR, PUBLISHED)
    inside = np.asarray(EPISODES.static)[:, 1] == 1
    alone = jax.tree.map(lambda leaf: np.asarray(leaf)[inside], data)
    for kind in ("percentile", "bca"):
        found, expected = (
            table_of.evaluate(one, {"other": logged.target(one, probs)}, draws=300, kind=kind, among=among)["other"]
            for one, probs, among in ((data, OTHER, inside), (alone, OTHER[inside], None))
        )
        for name in ("wis", "wpdis", "is"):
            for key in ("value", "low", "high", "se"):
                assert getattr(found[name], key) == pytest.approx(getattr(expected[name], key), rel=1e-3), (name, key)
            assert found[name].diagnosis.ess == pytest.approx(expected[name].diagnosis.ess, rel=1e-4)
            assert found[name].diagnosis.stays == inside.sum()
    with pytest.raises(InputError, match="among"):
        table_of.evaluate(data, {"other": logged.target(data, OTHER)}, among=np.zeros(300, bool))


def test_rewards_of_your_own():
    own = RNG.normal(size=EPISODES.valid.shape)
    found = evaluate_policies(EPISODES, {"clinicians": BEHAVIOUR}, BEHAVIOUR, own, ["wis"], draws=100).iloc[0]
    assert found.value == pytest.approx(np.where(EPISODES.valid, own, 0).sum(axis=1).mean(), abs=1e-4)
    own[0, 0] = np.nan
    with pytest.raises(InputError, match="nan at stay 0, step 0"):
        evaluate_policies(EPISODES, {"clinicians": BEHAVIOUR}, BEHAVIOUR, own, ["wis"])


def test_the_guideline_penalty_counts_broken_decisions():
    strict = dataclasses.replace(PUBLISHED, guideline=-2.0)
    taken_off = logged.earned(EPISODES, strict) - logged.earned(EPISODES, PUBLISHED)
    for b in range(40):
        for t in range(6):
            meanbp, lactate = EPISODES.obs[b, t, INDEX["meanbp"]], EPISODES.obs[b, t, INDEX["lactate"]]
            before = EPISODES.action[b, t - 1, 0] if t else EPISODES.prior_action[b, 0]
            vasopressor, fluid = EPISODES.action[b, t]
            first = (lactate > 2 or meanbp < 65) and vasopressor == 0 and fluid == 0
            second = meanbp >= 65 and vasopressor > before
            expected = -2.0 * (first or second) * (t < EPISODES.length[b])
            assert taken_off[b, t] == pytest.approx(expected, abs=1e-5), (b, t)
    assert (taken_off < 0).any()
