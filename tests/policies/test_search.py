"""The cross-entropy search on a world whose best plan is known."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from factories import make_episodes
from toy import toy_params, toy_world

from sepsis_jax.clinical.features import INDEX
from sepsis_jax.clinical.reward import OUTCOME_ONLY
from sepsis_jax.dynamics.protocol import history_at
from sepsis_jax.errors import InputError
from sepsis_jax.policies.planner import PlannerSettings, keeps_guideline
from sepsis_jax.policies.search import SearchSettings, search
from sepsis_jax.simulation.batch import simulate
from sepsis_jax.simulation.record import RETURNS

EPISODES = make_episodes(4, 6, seed=3)
HISTORIES = history_at(EPISODES, [0, 1, 2], [0, 1, 1])
WORLD = toy_world(OUTCOME_ONLY)
PARAMS = dataclasses.replace(toy_params(), death=jnp.float32(0), discharge=jnp.float32(0))
PLANNER = PlannerSettings(samples=16, horizon=2, shield=False)
SETTINGS = SearchSettings(steps=2, plans=48, elite=6, iterations=6)


def run(histories=HISTORIES, planner=PLANNER, settings=SETTINGS, seed=1):
    return search(WORLD, PARAMS, None, histories, jax.random.key(seed), planner, settings)


def test_it_finds_the_best_plan():
    """More of both drugs is always better here, so the best plan is (4, 4) throughout."""
    best = np.full((3, 1, 2, 2), 4, np.int8)
    most = simulate(
        WORLD, PARAMS, None, HISTORIES, best, jax.random.key(1), record=RETURNS, samples=16, horizon=2
    ).value[:, 0]
    found = run()
    np.testing.assert_allclose(found.value, most, rtol=0.01)
    assert (np.diff(found.history, axis=0) >= 0).all()
    value = simulate(
        WORLD, PARAMS, None, HISTORIES, found.plan[:, None], jax.random.key(1), record=RETURNS, samples=16, horizon=2
    ).value[:, 0]
    np.testing.assert_allclose(value, found.value, rtol=1e-6)


def test_a_patient_does_not_depend_on_the_others():
    alone = run(jax.tree.map(lambda leaf: np.asarray(leaf)[[2]], HISTORIES))
    together = run()
    np.testing.assert_array_equal(alone.plan[0], together.plan[2])
    np.testing.assert_array_equal(run().plan, together.plan)


def test_the_shield_holds_for_the_first_step():
    """At a MAP of 66 no vasopressor may be begun, which the toy's best plan would do."""
    obs, action = np.array(HISTORIES.obs), np.zeros_like(HISTORIES.action)
    obs[..., INDEX["meanbp"]] = 66.0
    histories = HISTORIES.replace(obs=obs, action=action, prior_action=np.zeros_like(HISTORIES.prior_action))
    allowed = keeps_guideline(histories)
    kept = {}
    for shield in (False, True):
        found = run(histories, dataclasses.replace(PLANNER, shield=shield))
        kept[shield] = allowed[np.arange(3), found.plan[:, 0].astype(int) @ [5, 1]]
    assert kept[True].all() and not kept[False].any()


@pytest.mark.parametrize(("field", "value"), [("elite", 100), ("elite", 0), ("plans", 1), ("smoothing", 1.0)])
def test_bad_settings_are_named(field, value):
    with pytest.raises(InputError, match=field):
        dataclasses.replace(SETTINGS, **{field: value})
