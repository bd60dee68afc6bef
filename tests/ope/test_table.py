"""One call for many policies: numbers, intervals, verdicts, and what it refuses."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from factories import make_episodes

from sepsis_jax.clinical.actions import NUM_ACTIONS, encode
from sepsis_jax.clinical.reward import OUTCOME_ONLY, PUBLISHED
from sepsis_jax.errors import InputError
from sepsis_jax.ope.table import evaluate_policies

EPISODES = make_episodes(300, 6, seed=1)
RNG = np.random.default_rng(0)
BEHAVIOUR = RNG.dirichlet(np.full(NUM_ACTIONS, 5.0), EPISODES.action.shape[:2])
OTHER = 0.98 * BEHAVIOUR + 0.02 * RNG.dirichlet(np.full(NUM_ACTIONS, 5.0), EPISODES.action.shape[:2])
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
        evaluate_policies(**given, draws=100)
    assert "\n" not in str(caught.value)
