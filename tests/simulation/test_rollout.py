"""Rollouts against a plain NumPy loop with the same random numbers, and what must hold for any dynamics."""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from factories import make_episodes
from toy import LACTATE, MAP, ToyDynamics, ToyParams, toy_params, toy_world

from sepsis_jax.clinical import sofa
from sepsis_jax.clinical.actions import AI_CLINICIAN_BINS
from sepsis_jax.clinical.features import INDEX, URINE
from sepsis_jax.clinical.reward import OUTCOME_ONLY, PUBLISHED
from sepsis_jax.dynamics.protocol import history_at, step_keys, trajectory_key
from sepsis_jax.errors import InputError
from sepsis_jax.simulation.batch import BLOCK, simulate
from sepsis_jax.simulation.course import start
from sepsis_jax.simulation.record import Summarize, Trajectories
from sepsis_jax.simulation.rollout import rollout

HORIZON, SAMPLES = 5, 16
SEED = jax.random.key(7)
EPISODES = make_episodes(6, 8, seed=3)
HISTORIES = history_at(EPISODES, [0, 1, 2], [0, 1, 1])


def one(histories, row):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[row], histories)


def one_batch(histories, rows):
    return jax.tree.map(lambda leaf: np.asarray(leaf)[rows], histories)


def run(histories, plans, *, record=Trajectories(), samples=SAMPLES, world=None, params=None, **options):
    world = toy_world() if world is None else world
    params = toy_params() if params is None else params
    plans = jnp.asarray(plans, jnp.int8)
    out = simulate(
        world, params, None, histories, plans, SEED, record=record, samples=samples, horizon=HORIZON, **options
    )
    return jax.tree.map(np.asarray, out)


def full_plans(batch=3, candidates=((0, 0), (1, 2), (4, 4))):
    """int8[batch,K,HORIZON,2]: each candidate held; tests share this shape so that they share one compiled program."""
    plans = np.repeat(np.asarray(candidates)[None, :, None], HORIZON, axis=2)
    return np.broadcast_to(plans, (batch, *plans.shape[1:]))


def oracle(history, plan, sample):
    """The toy world by hand, for one trajectory: a Python loop over steps in plain floats."""
    key = trajectory_key(SEED, history.stay_id, history.length - 1, sample)
    last = int(history.length) - 1
    obs = np.array(history.obs[last], np.float64)
    action = np.array(history.action[last - 1] if last else history.prior_action)
    urine = [float(history.obs[t, URINE]) if t >= 0 else math.nan for t in range(last - 5, last + 1)]
    before = _published_sofa(obs, action[0], urine, ventilated=bool(history.ventilated[last]))
    exit, total, steps = 0, 0.0, []
    for i, action in enumerate(plan):
        keys = step_keys(key, i)
        noise = np.asarray(jax.random.normal(keys.noise, (2,)), np.float64)
        uniform = np.asarray(jax.random.uniform(keys.exit, (2,)))
        lactate = obs[LACTATE]
        obs = obs.copy()
        obs[MAP] += 3 * (int(action[0]) - 1) + 4 * noise[0]
        obs[LACTATE] = max(obs[LACTATE] - 0.2 * (int(action[1]) - 1) + 0.1 * noise[1], 0.1)
        urine = [*urine[1:], obs[URINE]]
        after = _published_sofa(obs, action[0], urine, ventilated=False)
        exit = 1 if uniform[0] < 0.02 * (75 - obs[MAP]) else 2 if uniform[1] < 0.05 else 0
        steps.append(obs)
        if exit:
            break
        total += -0.025 * (after == before > 0) - 0.125 * (after - before) - 2 * math.tanh(obs[LACTATE] - lactate)
        before = after
    died = 1.0 if exit == 1 else 1 / (1 + math.exp(-((65 - obs[MAP]) / 10 + obs[LACTATE] - 3)))
    return np.array(steps), exit, total + 15 * (1 - 2 * died), died


def _published_sofa(obs, level, urine, *, ventilated):
    return float(sofa.published(np.float32(obs), int(level), np.float32(np.nansum(urine)), ventilated))


def test_trajectories_equal_a_numpy_loop():
    plans = full_plans()
    got = run(HISTORIES, plans)
    exits = set()
    for b in range(3):
        for k in range(3):
            for s in range(SAMPLES):
                steps, exit, value, died = oracle(one(HISTORIES, b), plans[b, k], s)
                exits.add(exit)
                np.testing.assert_allclose(got.steps.obs[b, k, s, : len(steps)], steps, rtol=1e-5, atol=1e-3)
                assert got.steps.exit[b, k, s, -1] == exit
                np.testing.assert_allclose(got.value[b, k, s], value, rtol=1e-4, atol=1e-3)
                np.testing.assert_allclose(got.death_90d[b, k, s], died, rtol=1e-4, atol=1e-5)
    assert exits == {0, 1, 2}, "the case must exercise every kind of end"


@pytest.mark.parametrize(
    ("plans", "options", "message"),
    [
        (full_plans() + 5, {}, "plans: expected whole levels from -1 to 4, found 5 to 9"),
        (full_plans() - 2, {}, "plans: expected whole levels from -1 to 4"),
        (full_plans(2), {}, r"plans: expected \[B,K,P,2\] for B = 3 histories"),
        (full_plans()[:, :0], {}, "at least one candidate"),
        (full_plans(0), {"histories": one_batch(HISTORIES, [])}, "histories: expected at least one, found none"),
        (np.where([True, False], full_plans(), -1), {}, "plans: expected both levels, or -1 for both, found one of"),
        (np.tile(full_plans(), (1, 1, 2, 1)), {}, "plans: expected at most 5 steps, the horizon, found 10"),
        (full_plans(), {"samples": 0}, "samples: expected a whole number from 1 to 65,536, found 0"),
        (full_plans(), {"samples": 2.5}, "samples: expected a whole number"),
    ],
)
def test_impossible_plans_are_refused(plans, options, message):
    with pytest.raises(InputError, match=message):
        run(**({"histories": HISTORIES, "plans": plans} | options))


def test_candidates_share_their_noise():
    """Effects of an action under common random numbers are exact: the toy's are the same for every sample."""
    params = dataclasses.replace(toy_params(), discharge=jnp.float32(0), death=jnp.float32(0))
    got = run(HISTORIES, full_plans(), params=params)
    effect = got.steps.obs[:, :, :, 0, MAP] - got.steps.obs[:, :1, :, 0, MAP]
    expected = 3.0 * np.array([0, 1, 4], np.float32)
    np.testing.assert_allclose(effect, np.broadcast_to(expected[None, :, None], effect.shape), atol=1e-3)


def test_a_stay_does_not_depend_on_its_batch_mates_or_the_block():
    usual = run(HISTORIES, full_plans())
    for rows, block in (([2, 1, 1], BLOCK), ([1, 0, 2], BLOCK), ([0, 2, 1], 64)):
        other = run(one_batch(HISTORIES, rows), full_plans(), block=block)
        position = rows.index(1)
        for a, b in zip(jax.tree.leaves(usual), jax.tree.leaves(other), strict=True):
            np.testing.assert_array_equal(a[1], b[position])


@pytest.mark.parametrize("samples", [SAMPLES, 700])
def test_no_draw_depends_on_how_many_jobs_there_are(samples):
    """60 cells in one job, and in many."""
    plans = full_plans(candidates=[(i % 5, i % 4) for i in range(20)])
    whole, parts = (run(HISTORIES, plans, samples=samples, block=block) for block in (BLOCK, 64))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_array_equal(a, b)


def test_noise_drawn_for_many_equals_noise_drawn_for_few():
    """With few candidates a tile holds many different noises, with many candidates few, which are drawn apart."""
    alone = run(HISTORIES, full_plans(candidates=[(1, 2)]))
    among = run(HISTORIES, full_plans(candidates=[(1, 2)] * 200))
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(among), strict=True):
        np.testing.assert_array_equal(np.broadcast_to(a, b.shape), b)


def test_samples_steps_and_stays_draw_different_noise():
    got = run(HISTORIES, full_plans(3, [(1, 1)]))
    first = (
        got.steps.obs[:, 0, :, 0, MAP]
        - np.asarray([HISTORIES.obs[b, t, MAP] for b, t in ((0, 0), (1, 1), (2, 1))])[:, None]
    )
    assert len(np.unique(first.round(4))) == first.size


def test_nothing_happens_after_the_exit():
    params = dataclasses.replace(toy_params(), discharge=jnp.float32(0.5))
    got = run(HISTORIES, full_plans(candidates=[(3, 1)] * 3), params=params)
    left = got.steps.exit[..., :-1] != 0
    assert left.any() and not left.all()
    np.testing.assert_array_equal(got.steps.obs[..., 1:, :][left], got.steps.obs[..., :-1, :][left])
    np.testing.assert_array_equal(got.steps.exit[..., 1:][left], got.steps.exit[..., :-1][left])
    assert not got.steps.mask[..., 1:, :][left].any()
    there = np.concatenate([np.ones_like(left[..., :1]), ~left], axis=-1)
    assert (got.steps.action[there] == (3, 1)).all() and not got.steps.action[~there].any()
    assert (got.steps.vent_prob[there] > 0).all() and not got.steps.vent_prob[~there].any()
    assert (got.steps.reward[got.steps.exit != 0] == 0).all()


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (np.zeros((4, 2), np.int8), "at most 2 steps, the horizon, found 4"),
        (np.array([[7, 0], [0, 0]]), "whole levels from 0 to 4, found 0 to 7"),
        (np.array([[-1, -1], [0, 0]]), "whole levels from 0 to 4, found -1 to 0"),
        (np.array([[0.5, 0], [0, 0]]), "whole levels"),
    ],
)
def test_a_single_course_refuses_bad_plans_too(plan, message):
    patient, alone = jax.tree.map(lambda leaf: leaf[0], HISTORIES), dataclasses.replace(toy_world(), policy=None)
    with pytest.raises(InputError, match=message):
        rollout(alone, toy_params(), None, patient, plan, jax.random.key(0), horizon=2)


def test_a_course_begins_with_the_ventilation_on_record():
    """SOFA before the first step counts it: else the first reward of a ventilated patient would be a rise of SOFA."""
    obs = np.array(HISTORIES.obs)
    obs[..., INDEX["pao2"]], obs[..., INDEX["fio2"]] = 45.0, 50.0  # lungs score 4 with a ventilator, 2 without

    def begun(ventilated):
        known = HISTORIES.replace(obs=obs, ventilated=np.full(obs.shape[:2], ventilated))
        return np.asarray(jax.vmap(partial(start, toy_world(), toy_params(), None))(known).sofa)

    np.testing.assert_array_equal(begun(True) - begun(False), [2, 2, 2])


def test_the_terminal_reward_is_discounted_to_the_exit():
    """With a reward of +-15 alone and gamma 0.9, value = 0.9^(exit step) 15 (1 - 2 p)."""
    world = toy_world(dataclasses.replace(OUTCOME_ONLY, gamma=0.9))
    params = dataclasses.replace(toy_params(), discharge=jnp.float32(0.4))
    got = run(HISTORIES, full_plans(candidates=[(2, 2)] * 3), world=world, params=params)
    step = np.where(got.steps.exit[..., -1] == 0, HORIZON - 1, (got.steps.exit == 0).sum(-1))
    np.testing.assert_allclose(got.value, 0.9**step * 15 * (1 - 2 * got.death_90d), rtol=1e-5)
    assert len(np.unique(step)) > 2


def test_a_plan_gives_way_to_the_policy():
    plans = np.broadcast_to(np.array([4, 4], np.int8), (3, 1, 1, 2))
    got = run(HISTORIES, plans)
    assert (got.steps.action[..., 0, :] == 4).all()
    # The guideline rule moves the vasopressor by at most one level a step.
    change = np.diff(got.steps.action[..., 0].astype(int), axis=-1)[got.steps.exit[..., :-1] == 0]
    assert np.abs(change).max() <= 1 and (change == -1).any()


def test_without_a_policy_the_plan_must_cover_the_horizon():
    with pytest.raises(InputError, match=r"levels for all 5 steps, .*, found 1 steps"):
        run(HISTORIES, np.zeros((3, 1, 1, 2)), world=toy_world(policy=None))


def test_a_history_ignores_what_comes_after_it():
    """Rows at or beyond `length` must not matter: they are the future."""
    obs, action = np.array(HISTORIES.obs), np.array(HISTORIES.action)
    obs[0, 1:], action[0, 0:] = 1e6, 3
    changed = HISTORIES.replace(obs=obs, action=action)
    a, b = run(HISTORIES, full_plans()), run(changed, full_plans())
    np.testing.assert_array_equal(a.value[0], b.value[0])


def test_single_rollout_equals_the_batched_one():
    world, params, history = toy_world(), toy_params(), one(HISTORIES, 2)
    plan = jnp.asarray([[1, 2]], jnp.int8)
    key = trajectory_key(SEED, history.stay_id, history.length - 1, 3)
    single = jax.jit(partial(rollout, world, params, None, history, plan, horizon=HORIZON))(key)
    batch = run(HISTORIES, np.broadcast_to(np.asarray(plan), (3, 1, 1, 2)))
    np.testing.assert_allclose(single.steps.obs, batch.steps.obs[2, 0, 3], rtol=1e-5)
    np.testing.assert_allclose(single.value, batch.value[2, 0, 3], rtol=1e-5)


def test_proper_sofa_follows_the_dose():
    """Under the proper version a vasopressor dose scores 3 or 4 cardiovascular points."""
    world = toy_world(dataclasses.replace(PUBLISHED, sofa="proper"))
    plans = full_plans(candidates=[(0, 1), (1, 1), (4, 1)])
    params = ToyParams(*(jnp.float32(v) for v in (0, 0, 0, 0, 0, 0)))  # nothing changes but the dose
    got = run(HISTORIES, plans, world=world, params=params).steps.sofa[..., 0]
    low_map = np.asarray([HISTORIES.obs[b, t, MAP] < 70 for b, t in ((0, 0), (1, 1), (2, 1))])
    assert AI_CLINICIAN_BINS.vaso_dose[1] <= 0.1 < AI_CLINICIAN_BINS.vaso_dose[4]
    np.testing.assert_array_equal(got[:, 1, 0] - got[:, 0, 0], 3 - low_map)
    np.testing.assert_array_equal(got[:, 2, 0] - got[:, 0, 0], 4 - low_map)


class Unmeasured(ToyDynamics):
    """Lactate is never drawn."""

    def step(self, params, state, action, noise, shared=None):
        after, step = super().step(params, state, action, noise)
        kept = dataclasses.replace(step, obs=step.obs.at[LACTATE].set(9.0))
        return after, kept


def test_lactate_falls_whether_or_not_anybody_looks():
    seen, blind = (
        run(HISTORIES, full_plans(), world=dataclasses.replace(toy_world(), dynamics=dynamics), record=Summarize())
        for dynamics in (ToyDynamics(), Unmeasured())
    )
    for name in ("lactate_falls", "lactate_above_2", "map_below_65"):
        np.testing.assert_array_equal(seen.events[name][:, :, 0], blind.events[name][:, :, 0])
    assert (seen.events["lactate_falls"][:, 2, 0] > 0.5).all()
    assert (blind.mean[:, :, 0, LACTATE] == 9).all()


class TwoToys(ToyDynamics):
    """Members that disagree on what a vasopressor does."""

    members = 2
    precision = "float32"

    def member(self, params, index):
        return dataclasses.replace(params, pressor=params.pressor + 4.0 * index)


def test_spread_of_members_is_apart():
    world = dataclasses.replace(toy_world(), dynamics=TwoToys())
    full = run(HISTORIES, full_plans(), world=world)
    got = run(HISTORIES, full_plans(), world=world, record=Summarize(features=("meanbp",)))

    def spreads(values):
        """SD of all, and of the means of both members without what chance adds to it."""
        own = [values[0::2], values[1::2]]
        chance = np.mean([part.var(ddof=1) / part.size for part in own]) / 2
        return values.std(ddof=1), math.sqrt(max(np.var([part.mean() for part in own]) - chance, 0))

    for b, k in np.ndindex(3, 3):
        for name in ("value", "death_90d"):
            sd, members = spreads(np.asarray(getattr(full, name)[b, k], float))
            assert getattr(got, f"{name}_sd_members")[b, k] == pytest.approx(members, rel=1e-2, abs=1e-3), name
            assert name != "value" or got.value_sd[b, k] == pytest.approx(sd, rel=1e-4)
        if (full.steps.exit[b, k, :, 0] == 0).all():
            sd, members = spreads(np.asarray(full.steps.obs[b, k, :, 0, MAP], float))
            assert got.sd[b, k, 0, 0] == pytest.approx(sd, rel=1e-4)
            assert got.sd_members[b, k, 0, 0] == pytest.approx(members, rel=1e-2, abs=1e-3)
    assert got.sd_members[:, 2, 0].min() > 3 > got.sd_members[:, 1, 0].max()  # level 4, and the level that does nothing


def test_summary_equals_numpy_statistics():
    params = dataclasses.replace(toy_params(), discharge=jnp.float32(0.3))
    full = run(HISTORIES, full_plans(), params=params)
    got = run(HISTORIES, full_plans(), params=params, record=Summarize())
    there = full.steps.exit == 0
    np.testing.assert_allclose(got.in_icu, there.mean(2), rtol=1e-6)
    np.testing.assert_allclose(got.died, (full.steps.exit == 1).mean(2), rtol=1e-6)
    np.testing.assert_allclose(got.discharged, (full.steps.exit == 2).mean(2), rtol=1e-6)
    np.testing.assert_allclose(got.value, full.value.mean(2), rtol=1e-5)
    np.testing.assert_allclose(got.value_se, full.value.std(2, ddof=1) / math.sqrt(SAMPLES), rtol=1e-3)
    np.testing.assert_allclose(got.death_90d, full.death_90d.mean(2), rtol=1e-5)
    for b, k, h in np.ndindex(3, 3, HORIZON):
        alive = full.steps.obs[b, k, there[b, k, :, h], h]
        if len(alive) == 0:
            assert np.isnan(got.quantile[b, k, h, :, 1]).all() and np.isnan(got.events["map_below_65"][b, k, h])
            continue
        np.testing.assert_allclose(got.quantile[b, k, h, :, 0], np.quantile(alive, 0.1, axis=0), rtol=1e-4)
        np.testing.assert_allclose(got.quantile[b, k, h, :, 1], np.median(alive, axis=0), rtol=1e-4)
        np.testing.assert_allclose(got.quantile[b, k, h, :, 2], np.quantile(alive, 0.9, axis=0), rtol=1e-4)
        np.testing.assert_allclose(got.mean[b, k, h], alive.mean(axis=0), rtol=1e-4)
        np.testing.assert_allclose(got.events["map_below_65"][b, k, h], (alive[:, MAP] < 65).mean(), rtol=1e-6)
        np.testing.assert_allclose(got.events["lactate_above_2"][b, k, h], (alive[:, LACTATE] > 2).mean(), rtol=1e-6)
        now = HISTORIES.obs[b, HISTORIES.length[b] - 1, LACTATE]
        np.testing.assert_allclose(got.events["lactate_falls"][b, k, h], (alive[:, LACTATE] < now).mean(), rtol=1e-6)
        np.testing.assert_allclose(got.events["ventilated"][b, k, h], 0.25, rtol=1e-6)


def test_a_guideline_penalty_is_paid_at_each_broken_decision():
    """No treatment: every lived step in hypoperfusion, as the course itself saw it."""
    strict = dataclasses.replace(PUBLISHED, guideline=-2.0)
    patient = one(HISTORIES, 0)
    plan, key = np.zeros((6, 2), np.int8), trajectory_key(jax.random.key(0), 1, 0, 0)
    mild, hard = (
        rollout(toy_world(reward), toy_params(), None, patient, plan, key, horizon=6) for reward in (PUBLISHED, strict)
    )
    seen = np.concatenate([np.asarray(patient.obs)[None, 0], np.asarray(hard.steps.obs)[:-1]])
    there = np.concatenate([[True], np.asarray(hard.steps.exit)[:-1] == 0])
    broken = there & ((seen[:, LACTATE] > 2) | (seen[:, MAP] < 65))
    np.testing.assert_allclose(hard.value - mild.value, -2.0 * broken.sum(), atol=1e-4)
    assert broken.any()
