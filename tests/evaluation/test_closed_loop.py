"""Policies played in the true simulator, against the record, a plain loop, and each other."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import chex
import jax
import numpy as np
import pytest
from factories import make_episodes

from sepsis_jax.clinical.actions import AI_CLINICIAN_BINS
from sepsis_jax.clinical.features import INDEX
from sepsis_jax.clinical.reward import PUBLISHED
from sepsis_jax.dynamics.patient.cohort import MAX_STEPS, simulate_cohort
from sepsis_jax.dynamics.patient.dynamics import PatientDynamics
from sepsis_jax.dynamics.protocol import Step, history_at, sample_exit, step_noise, trajectory_key
from sepsis_jax.errors import InputError
from sepsis_jax.evaluation import choosers, closed_loop
from sepsis_jax.evaluation.closed_loop import true_stage
from sepsis_jax.evaluation.oracle import oracle
from sepsis_jax.ope.logged import recorded_sofa
from sepsis_jax.policies.planner import PlannerSettings
from sepsis_jax.policies.rules import Fixed, Guideline
from sepsis_jax.simulation.course import World
from sepsis_jax.simulation.rollout import rollout

EPISODES, TRUTH = simulate_cohort(7, seed=3)
DYNAMICS = PatientDynamics(AI_CLINICIAN_BINS)


def play(choose, episodes=EPISODES, **kwargs):
    return closed_loop.play(choose, episodes, true_stage(TRUTH, episodes, AI_CLINICIAN_BINS), **kwargs)


@pytest.fixture(scope="module")
def guideline():
    return play(choosers.follow(Guideline(), None))


def test_the_clinicians_play_their_own_record_again():
    played = play(choosers.clinicians(DYNAMICS, TRUTH.knobs))
    np.testing.assert_array_equal(played.history.length, EPISODES.length)
    np.testing.assert_array_equal(played.history.action, EPISODES.action)
    np.testing.assert_array_equal(played.history.mask, EPISODES.mask)
    np.testing.assert_allclose(played.history.obs, EPISODES.obs, rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(played.exit, EPISODES.exit)
    np.testing.assert_allclose(played.death_90d, TRUTH.death_90d, rtol=1e-4)
    begun = (np.diff(EPISODES.ventilated.astype(int)) > 0).any(axis=1)  # in a course its probability counts
    assert EPISODES.ventilated[~begun, 0].any()
    lactate = EPISODES.obs[..., INDEX["lactate"]]
    paid = PUBLISHED.episode(recorded_sofa(EPISODES, PUBLISHED), lactate, EPISODES.length, played.death_90d)
    np.testing.assert_allclose(played.value[~begun], paid.sum(-1)[~begun], atol=2e-3)


def test_closed_loop_equals_a_plain_loop(guideline):
    """One patient after the other, one step after the other, the rule by hand."""
    dynamics, params = oracle(TRUTH, EPISODES, AI_CLINICIAN_BINS)
    for row in range(3):
        one = jax.tree.map(lambda leaf: leaf[0], history_at(EPISODES, [row], [0]))
        key = trajectory_key(jax.random.key(TRUTH.seed), one.stay_id, 0, 0)
        state, obs, vasopressor, given = dynamics.encode(params, one), np.asarray(one.obs[0]), 0, []
        exit = 0
        while exit == 0 and len(given) < MAX_STEPS:
            pressure, lactate = obs[INDEX["meanbp"]], obs[INDEX["lactate"]]
            vasopressor = min(max(vasopressor + int(pressure < 65) - int(pressure > 75), 0), 4)
            given.append((vasopressor, 3 if pressure < 65 or lactate > 2 else 1))
            noise = step_noise(dynamics, key, len(given) - 1)
            state, step = dynamics.step(params, state, np.array(given[-1], np.int8), noise.dynamics)
            obs, exit = np.asarray(step.obs), int(sample_exit(step.exit_hazard, noise.exit))
        death = 1.0 if exit == 1 else float(dynamics.outcome(params, state))
        assert guideline.history.length[row] == len(given)
        np.testing.assert_array_equal(guideline.history.action[row, : len(given)], given)
        assert guideline.exit[row] == exit
        np.testing.assert_allclose(guideline.death_90d[row], death, rtol=1e-4)


def test_closed_loop_equals_a_rollout_of_the_policy(guideline):
    """The policy asked inside one compiled course, and asked from outside with the record, are the same."""
    dynamics, params = oracle(TRUTH, EPISODES, AI_CLINICIAN_BINS)
    world = World(dynamics, AI_CLINICIAN_BINS, PUBLISHED, Guideline())
    one = jax.tree.map(lambda leaf: leaf[1], history_at(EPISODES, np.arange(7), np.zeros(7, int)))
    key = trajectory_key(jax.random.key(TRUTH.seed), one.stay_id, 0, 0)
    alone = rollout(world, params, None, one, np.zeros((0, 2), np.int8), key, horizon=MAX_STEPS)
    np.testing.assert_allclose(guideline.death_90d[1], alone.death_90d, rtol=1e-4)
    np.testing.assert_allclose(guideline.value[1], alone.value, rtol=1e-4)


def test_the_same_policy_twice_is_the_same(guideline):
    again = play(choosers.follow(Guideline(), None))
    chex.assert_trees_all_equal(guideline, again)


def test_a_policy_in_other_words_makes_no_difference():
    fixed = play(choosers.follow(Fixed(1, 2), None))
    by_hand = play(lambda decision: np.tile(np.eye(25)[7], (len(decision.active), 1)))
    assert (fixed.death_90d - by_hand.death_90d == 0).all()
    treated = np.arange(MAX_STEPS) < fixed.history.length[:, None]
    assert (fixed.history.action[treated] == [1, 2]).all() and not fixed.history.action[~treated].any()


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_batches_change_nothing(guideline, batch_size):
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=2e-6, atol=1e-6),
        guideline,
        play(choosers.follow(Guideline(), None), batch_size=batch_size),
    )


def test_a_chooser_sees_the_past_alone(guideline):
    """Whatever was recorded after the first decision under other treatment is not there, nor what is to come."""
    seen = []

    def choose(decision):
        seen.append(jax.tree.map(np.array, dataclasses.replace(decision, key=np.zeros(0))))
        return choosers.follow(Guideline(), None)(decision)

    play(choose)
    for step, decision in enumerate(seen):
        history = decision.history
        assert (history.length == step + 1).all()
        assert not history.obs[:, step + 1 :].any() and not history.mask[:, step + 1 :].any()
        assert not history.action[:, step:].any()
        here = decision.active
        np.testing.assert_array_equal(here, guideline.history.length > step)
        np.testing.assert_array_equal(history.obs[here, : step + 1], guideline.history.obs[here, : step + 1])
        np.testing.assert_array_equal(history.action[here, :step], guideline.history.action[here, :step])
        np.testing.assert_array_equal(history.obs[here, step], decision.state.obs[here])


@dataclasses.dataclass(frozen=True)
class Wishful:
    """Dynamics that read the record alone, as a world model does: MAP rises by 5 mmHg a vasopressor level."""

    members = 1
    precision = "float32"

    def member(self, params, index):
        return params

    def encode(self, params, history):
        return history.obs[history.length - 1]

    def noise(self, key):
        return jax.random.normal(key)

    def shared(self, params, state):
        return None

    def step(self, params, state, action, noise, shared=None):
        step = Step(state, np.zeros(38, bool), np.float32(0), np.zeros(2, np.float32), state)
        return state.at[INDEX["meanbp"]].add(5.0 * action[0] + noise), step

    def outcome(self, params, state):
        return jax.nn.sigmoid((70.0 - state[INDEX["meanbp"]]) / 10)


SETTINGS = PlannerSettings(samples=4, horizon=2, block=64)


def decisions(number):
    """The first `number` decisions of all patients under the guideline."""
    found = []

    def choose(decision):
        found.append(jax.tree.map(lambda leaf: leaf, decision))
        return choosers.follow(Guideline(), None)(decision)

    play(choose)
    return found[:number]


def test_a_planner_on_a_model_reads_no_truth():
    choose = choosers.plan(World(Wishful(), AI_CLINICIAN_BINS, PUBLISHED, Guideline()), None, None, SETTINGS, 0)
    for decision in decisions(2):
        unknown = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), decision.state)
        blind = choose(dataclasses.replace(decision, state=unknown))
        np.testing.assert_array_equal(choose(decision), blind)


def test_the_planner_with_the_truth_plans_from_the_true_states():
    decision = decisions(3)[2]
    truth = choosers._truth_at(decision, TRUTH.knobs)
    params = choosers.Params(TRUTH.knobs, truth)
    restored = jax.vmap(lambda history: DYNAMICS.encode(params, history))(decision.history)
    chex.assert_trees_all_equal(restored, decision.state)


def test_a_planner_does_not_think_with_the_numbers_that_come(monkeypatch):
    """With the cohort's seed for its own it would otherwise know the luck of the very next step."""
    keys = []

    def note(world, params, policy_params, histories, seed, settings):
        keys.append(jax.random.key_data(seed))
        return SimpleNamespace(action=np.zeros((len(histories.length), 2), np.int8))

    monkeypatch.setattr(choosers, "recommend", note)
    choosers.plan(None, None, None, SETTINGS, TRUTH.seed)(decisions(1)[0])
    assert (keys[0] != jax.random.key_data(jax.random.key(TRUTH.seed))).any()


def test_a_planner_is_asked_about_those_in_the_icu_alone(monkeypatch):
    def note(world, params, policy_params, histories, seed, settings):
        return SimpleNamespace(action=np.full((len(histories.length), 2), 3, np.int8))

    monkeypatch.setattr(choosers, "recommend", note)
    decision = dataclasses.replace(decisions(1)[0], active=np.arange(7) % 2 == 0)
    given = choosers.plan(None, None, None, SETTINGS, 0)(decision)
    np.testing.assert_array_equal(given.argmax(axis=1), np.where(decision.active, 18, 0))


def test_a_mixture_asks_both():
    decision = decisions(2)[1]
    mixed = choosers.mix(choosers.follow(Fixed(1, 2), None), choosers.clinicians(DYNAMICS, TRUTH.knobs), 0.25)(decision)
    own = choosers.clinicians(DYNAMICS, TRUTH.knobs)(decision)
    np.testing.assert_allclose(mixed, 0.75 * np.eye(25)[7] + 0.25 * own, rtol=1e-5)


@dataclasses.dataclass(frozen=True)
class Two(Wishful):
    """Two members, whose outcomes tell them apart."""

    members = 2
    precision = "float32"

    def member(self, params, index):
        return params[index]

    def outcome(self, params, state):
        return params


def test_members_of_a_model_share_the_patients():
    stage = closed_loop.Stage(World(Two(), AI_CLINICIAN_BINS, PUBLISHED), np.float32([0.2, 0.7]), jax.random.key(0))
    for size in (3, 100):
        played = closed_loop.play(choosers.follow(Fixed(), None), EPISODES, stage, batch_size=size)
        np.testing.assert_allclose(played.death_90d, np.where(np.arange(7) % 2, 0.7, 0.2))
        np.testing.assert_array_equal(played.history.stay_id, EPISODES.stay_id)


def test_the_truth_of_other_patients_is_refused():
    with pytest.raises(InputError, match="truth"):
        play(choosers.follow(Fixed(), None), make_episodes(4, 5, seed=0))
