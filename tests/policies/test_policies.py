"""Rules, the clinician estimate and the planner."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from factories import fit_scaler, make_episodes
from toy import LACTATE, MAP, ToyDynamics, toy_params, toy_world

from sepsis_jax.clinical.actions import ALL_ACTIONS, encode
from sepsis_jax.clinical.features import PUBLISHED_MEAN
from sepsis_jax.clinical.reward import PUBLISHED
from sepsis_jax.data.scaler import Scaler
from sepsis_jax.dynamics.expected import ExpectedExits
from sepsis_jax.dynamics.protocol import history_at
from sepsis_jax.errors import InputError
from sepsis_jax.policies import clinician, planner, rules
from sepsis_jax.policies.clinician import Clinician, ClinicianSettings
from sepsis_jax.policies.planner import PlannerSettings
from sepsis_jax.simulation.batch import simulate
from sepsis_jax.simulation.policy import probs_at, probs_on_record
from sepsis_jax.simulation.record import RETURNS
from sepsis_jax.simulation.rollout import rollout

SETTINGS = PlannerSettings(samples=32, horizon=3, caution=0.0)
EPISODES = make_episodes(12, 6, seed=5)


@pytest.mark.parametrize(
    ("meanbp", "lactate", "previous", "expected"),
    [
        (64.9, 1.0, 0, (1, 3)),
        (65.0, 1.0, 1, (1, 1)),
        (75.1, 1.0, 1, (0, 1)),
        (75.1, 1.0, 0, (0, 1)),
        (60.0, 1.0, 4, (4, 3)),
        (80.0, 2.1, 2, (1, 3)),
        (70.0, 2.0, 2, (2, 1)),
    ],
)
def test_guideline_rule(meanbp, lactate, previous, expected):
    obs = jnp.asarray(PUBLISHED_MEAN).at[MAP].set(meanbp).at[LACTATE].set(lactate)
    probs, _ = rules.Guideline().probs(None, None, obs, jnp.ones(38, bool), jnp.array([previous, 2], jnp.int8))
    assert tuple(ALL_ACTIONS[int(probs.argmax())]) == expected
    assert float(probs.max()) == 1


def test_fixed_rule_gives_its_levels():
    probs, _ = rules.Fixed(2, 3).probs(None, None, None, None, None)
    assert int(probs.argmax()) == 13 and float(probs.sum()) == 1


@pytest.mark.parametrize(
    "make", [lambda: rules.Fixed(0, 7), lambda: rules.Fixed(-1, 0), lambda: rules.Guideline(fluid_hypoperfused=5)]
)
def test_levels_that_do_not_exist_are_refused(make):
    """Encoded, they would be another drug."""
    with pytest.raises(InputError, match="expected a whole number from 0 to 4"):
        make()


def recommend(histories, settings=SETTINGS, **params):
    toy = dataclasses.replace(toy_params(), **{k: jnp.float32(v) for k, v in params.items()})
    return planner.recommend(toy_world(), toy, None, histories, jax.random.key(1), settings)


def histories_with(meanbp, lactate):
    histories = history_at(EPISODES, np.arange(6), np.full(6, 1))
    obs = np.array(histories.obs)
    obs[:, 1, MAP], obs[:, 1, LACTATE] = meanbp, lactate
    return histories.replace(obs=obs)


def test_planner_chooses_the_highest_return_among_the_allowed():
    histories = histories_with(60.0, 3.0)
    got = recommend(histories)
    value = np.where(got.allowed, np.asarray(got.returns.value), -np.inf)
    np.testing.assert_array_equal(encode(got.action), value.argmax(axis=1))
    assert not got.allowed[:, 0].any() and got.allowed[:, 1:].all()  # G1 forbids (0,0) alone


def test_planner_treats_hypotension_where_pressors_help():
    """In the toy world a pressor level raises MAP by 3 and nothing harms: the planner must use it."""
    assert (np.asarray(recommend(histories_with(50.0, 3.0)).action)[:, 0] >= 3).all()


def test_shield_keeps_the_weaning_rule():
    histories = histories_with(66.0, 1.0)
    previous = np.asarray(histories.action)[:, 0, 0]
    shielded = np.asarray(recommend(histories).action)[:, 0]
    free = np.asarray(recommend(histories, dataclasses.replace(SETTINGS, shield=False)).action)[:, 0]
    assert (shielded <= previous).all()
    assert (free > previous).any(), "the shield must have something to hold back"


def test_planner_does_not_depend_on_batch_mates():
    histories = histories_with(60.0, 3.0)
    alone = recommend(jax.tree.map(lambda leaf: np.asarray(leaf)[[2]], histories))
    together = recommend(histories)
    np.testing.assert_array_equal(alone.action[0], together.action[2])
    np.testing.assert_allclose(alone.returns.value[0], together.returns.value[2], rtol=1e-5)  # sums of other blocks


def test_planner_value_is_that_of_simulate():
    histories = histories_with(60.0, 3.0)
    plans = np.broadcast_to(ALL_ACTIONS[None, :, None], (6, 25, 1, 2))
    world = dataclasses.replace(toy_world(), dynamics=ExpectedExits(ToyDynamics()))
    direct = simulate(
        world, toy_params(), None, histories, plans, jax.random.key(1), record=RETURNS, samples=32, horizon=3
    )
    np.testing.assert_allclose(recommend(histories).returns.value, direct.value, rtol=1e-6)


def test_expected_exits_are_the_mean_over_exits():
    """Without noise all courses are one; how it may end, by hand, and what it earns until then."""
    strict = dataclasses.replace(PUBLISHED, guideline=-2.0)
    world, plan = toy_world(policy=None, reward=strict), np.array([[1, 2], [0, 1], [2, 2]], np.int8)
    quiet = dataclasses.replace(toy_params(), noise_map=jnp.float32(0), noise_lactate=jnp.float32(0))
    one = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), histories_with(70.0, 3.0))
    state, here, expected = world.dynamics.encode(quiet, one), 1.0, 0.0
    for action in plan:
        state, step = world.dynamics.step(quiet, state, jnp.asarray(action), jnp.zeros(2))
        death, discharge = (float(hazard) for hazard in step.exit_hazard)
        leaves = (1 - death) * discharge
        expected += here * (death + leaves * float(world.dynamics.outcome(quiet, state)))
        here *= 1 - death - leaves
    expected += here * float(world.dynamics.outcome(quiet, state))
    assert 0.05 < here < 0.95
    without = dataclasses.replace(world, dynamics=ExpectedExits(world.dynamics))
    got = rollout(without, quiet, None, one, plan, jax.random.key(0), horizon=3)
    np.testing.assert_allclose(got.death_90d, expected, rtol=1e-5)
    assert (np.asarray(got.steps.exit) == 0).all()
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = jax.vmap(lambda key: rollout(world, quiet, None, one, plan, key, horizon=3))(keys)
    assert (np.asarray(drawn.steps.reward) != 0).any(axis=0).all()
    for name in ("death_90d", "value"):
        each = np.asarray(getattr(drawn, name))
        np.testing.assert_allclose(getattr(got, name), each.mean(), atol=4 * each.std() / 4000**0.5)


def test_no_digit_depends_on_who_else_asks(fitted):
    settings, episodes, params = fitted
    rows = np.arange(70) % episodes.num_stays
    histories = history_at(episodes, rows, np.zeros(70, int))
    together = probs_at(Clinician(settings), params, histories)
    for number in (1, 3, 17, 40):
        some = jax.tree.map(lambda leaf: leaf[:number], histories)  # noqa: B023
        np.testing.assert_array_equal(probs_at(Clinician(settings), params, some), together[:number])


@pytest.mark.parametrize("shield", [True, False])
def test_fewer_candidates_are_the_usual_ones(fitted, shield):
    """The same numbers for those that are simulated, and never one that the shield forbids."""
    settings, episodes, params = fitted
    histories = history_at(episodes, [0, 1, 2, 3], [0, 0, 1, 0])
    world = toy_world(policy=Clinician(settings))
    few = dataclasses.replace(SETTINGS, candidates=6, shield=shield)
    all_, some = (
        planner.recommend(world, toy_params(), params, histories, jax.random.key(1), own)
        for own in (dataclasses.replace(few, candidates=25), few)
    )
    assert some.candidates.shape == (4, 6) and (all_.candidates == np.arange(25)).all()
    shared = np.take_along_axis(np.asarray(all_.returns.value), some.candidates, axis=1)
    np.testing.assert_allclose(some.returns.value, shared, rtol=1e-5)
    usual = probs_at(Clinician(settings), params, histories)
    eligible = all_.allowed | (not shield)
    for row in range(4):
        inside = np.isin(np.arange(25), some.candidates[row])
        number = min(6, eligible[row].sum())
        assert (inside & eligible[row]).sum() == number  # those that are allowed come first
        best = np.sort(usual[row][eligible[row]])[::-1][:number]
        np.testing.assert_array_equal(np.sort(usual[row][inside & eligible[row]])[::-1], best)


@pytest.mark.parametrize("shield", [True, False])
def test_caution_leads_to_what_clinicians_do(fitted, shield):
    """A little caution moves few choices, all of it gives the most likely action that the shield allows."""
    settings, episodes, params = fitted
    world = toy_world(policy=Clinician(settings))
    histories = history_at(episodes, np.arange(8), np.ones(8, int))
    usual = probs_at(Clinician(settings), params, histories)

    def choose(caution):
        own = PlannerSettings(samples=8, horizon=2, shield=shield, caution=caution)
        return planner.recommend(world, toy_params(), params, histories, jax.random.key(1), own)

    free, bound, some = choose(0.0), choose(1000.0), choose(0.5)
    np.testing.assert_array_equal(free.returns.value, bound.returns.value)
    allowed = np.where(shield, free.allowed, True)
    np.testing.assert_array_equal(encode(bound.action), np.where(allowed, usual, -1).argmax(axis=1))
    score = np.asarray(free.returns.value) + 0.5 * np.log(usual)
    np.testing.assert_array_equal(encode(some.action), np.where(allowed, score, -np.inf).argmax(axis=1))
    assert (free.action != bound.action).any()


def test_caution_and_the_shield_with_a_policy_without_chance():
    """The rule gives what the shield may forbid; then the shield has the last word, and nothing is infinite."""
    histories = histories_with(66.0, 1.0)
    got = recommend(histories, dataclasses.replace(SETTINGS, caution=5.0))
    assert np.take_along_axis(got.allowed, np.asarray(encode(got.action))[:, None], 1).all()


def test_planner_without_a_policy_to_go_on_is_refused():
    with pytest.raises(InputError, match="goes on"):
        planner.recommend(
            toy_world(policy=None), toy_params(), None, histories_with(60.0, 3.0), jax.random.key(1), SETTINGS
        )


def test_most_likely_does_what_the_policy_does_most_often(fitted):
    settings, episodes, params = fitted
    histories = history_at(episodes, np.arange(5), np.zeros(5, int))
    probs = probs_at(rules.MostLikely(Clinician(settings)), params, histories)
    np.testing.assert_array_equal(probs.argmax(-1), probs_at(Clinician(settings), params, histories).argmax(-1))
    assert (probs.max(-1) == 1).all() and (probs.sum(-1) == 1).all()


@pytest.fixture(scope="module")
def fitted():
    """Clinicians who answer low MAP with (3, 2) nine times in ten, and else do (0, 1)."""
    rng = np.random.default_rng(0)
    episodes = make_episodes(300, 6, seed=9)
    low = episodes.obs[..., MAP] < 75
    chance = rng.random(low.shape)
    action = np.where((low & (chance < 0.9))[..., None], [3, 2], [0, 1]).astype(np.int8)
    episodes = episodes.replace(action=np.where(episodes.valid[..., None], action, 0).astype(np.int8))
    observed = np.concatenate([episodes.mask, np.ones_like(episodes.mask[..., :1])], -1) & episodes.valid[..., None]
    scaler = Scaler.fit(episodes.obs, observed, episodes.static)
    settings = ClinicianSettings(updates=300, batch_size=256)
    return settings, episodes, clinician.fit(settings, episodes, scaler, jax.random.key(0))


def test_clinician_estimate_learns_and_is_a_distribution(fitted):
    settings, episodes, params = fitted
    probs = probs_on_record(Clinician(settings), params, episodes)
    np.testing.assert_allclose(probs.sum(-1), episodes.valid, rtol=1e-5)
    assert probs[episodes.valid].min() >= settings.smoothing / 25 * 0.999
    valid, meanbp = episodes.valid, episodes.obs[..., MAP]
    clearly_low, clearly_high = valid & (meanbp < 68), valid & (meanbp > 84)
    assert 0.75 < probs[clearly_low][:, 17].mean() < 0.97  # (3, 2)
    assert probs[clearly_high][:, 1].mean() > 0.9  # (0, 1)


def test_clinician_as_policy_equals_its_table(fitted):
    settings, episodes, params = fitted
    table = probs_on_record(Clinician(settings), params, episodes)
    rows, steps = np.nonzero(episodes.valid)
    got = probs_at(Clinician(settings), params, history_at(episodes, rows[:50], steps[:50]))
    np.testing.assert_allclose(got, table[rows[:50], steps[:50]], rtol=2e-4, atol=1e-6)


def test_clinician_fit_stops_where_the_validation_loss_is_lowest():
    """On actions that are pure chance, a network that memorises the train split must not be the one that is kept."""
    episodes = make_episodes(40, 6, seed=3)
    scaler = fit_scaler(episodes)
    settings = ClinicianSettings(updates=1500, batch_size=64, learning_rate=5e-3, smoothing=0.0)
    held = episodes.subset("validation").replace(split=np.full(4, 1, np.int8))

    def held_loss(data):
        params = clinician.fit(settings, data, scaler, jax.random.key(0))
        probs = probs_on_record(Clinician(settings), params, held)
        chosen = np.take_along_axis(probs, np.asarray(encode(held.action))[..., None], -1)[..., 0]
        return -np.log(chosen[held.valid]).mean()

    memorised = episodes.replace(split=np.where(episodes.split == 1, 2, episodes.split).astype(np.int8))
    assert held_loss(episodes) + 1 < held_loss(memorised)
