"""A sweep over the mechanistic simulator against that simulator played by itself, with other random numbers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sepsis_jax.clinical.features import INDEX
from sepsis_jax.clinical.reward import PUBLISHED
from sepsis_jax.dynamics.patient.cohort import simulate_cohort
from sepsis_jax.dynamics.patient.dynamics import Params, PatientDynamics
from sepsis_jax.dynamics.protocol import history_at
from sepsis_jax.simulation.batch import simulate
from sepsis_jax.simulation.course import World
from sepsis_jax.simulation.record import Summarize

pytestmark = [pytest.mark.slow, pytest.mark.long]
HORIZON, SAMPLES, TRUTH = 6, 4000, 20_000
NAMES = ("meanbp", "lactate", "creatinine", "output_4hourly")
PLANS = np.array([[[0, 0]] * HORIZON, [[3, 2]] * HORIZON], np.int8)
DYNAMICS = PatientDynamics()
SIGMAS = 4.5  # of the difference of two means; some 300 are compared


@pytest.fixture(scope="module")
def case():
    """Histories of three patients at their third decision, and the truth to start from."""
    episodes, truth = simulate_cohort(60, seed=4)
    rows = np.flatnonzero(episodes.length > 4)[:3]
    return history_at(episodes, rows, np.full(3, 2)), Params(truth.knobs, truth)


def played(params, histories, row, plan, key):
    """f64[H,N,G] values, int[H,N] exits, f64[N] 90-day mortality of N plays of one patient."""
    state = DYNAMICS.encode(params, jax.tree.map(lambda leaf: jnp.asarray(leaf)[row], histories))
    state = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (TRUTH, *jnp.shape(leaf))), state)
    step = jax.jit(jax.vmap(DYNAMICS.step, (None, 0, None, 0)))
    columns = [INDEX[name] for name in NAMES]
    exit, died, values, exits = np.zeros(TRUTH, int), np.full(TRUTH, np.nan), [], []
    for action in plan:
        key, drawn, luck = jax.random.split(key, 3)
        state, found = step(params, state, action, jax.vmap(DYNAMICS.noise)(jax.random.split(drawn, TRUTH)))
        dies, leaves = (np.asarray(jax.random.uniform(luck, (TRUTH, 2))) < np.asarray(found.exit_hazard)).T
        outcome = np.asarray(jax.vmap(DYNAMICS.outcome, (None, 0))(params, state))
        now = np.where(dies, 1, np.where(leaves, 2, 0))
        died = np.where((exit == 0) & (now > 0), np.where(dies, 1.0, outcome), died)
        exit = np.where(exit > 0, exit, now)
        values.append(np.asarray(found.obs)[:, columns].astype(np.float64))
        exits.append(exit)
    return np.array(values), np.array(exits), np.where(exit == 0, outcome, died)


def agree(got, truth, sd, count):
    """Means of `count` samples against those of the plays, `truth` f64[N,...] (Bernstein, since a share may be 0)."""
    error = sd * np.sqrt(1 / count + 1 / len(truth))
    np.testing.assert_array_less(np.abs(got - truth.mean(axis=0)), SIGMAS * error + SIGMAS**2 / (3 * count))


def test_statistics_of_a_sweep_are_those_of_the_simulator(case):
    histories, params = case
    world = World(DYNAMICS, DYNAMICS.bins, PUBLISHED)
    plans = np.broadcast_to(PLANS[None], (3, *PLANS.shape))
    got = simulate(
        world, params, None, histories, plans, jax.random.key(0), record=Summarize(NAMES), samples=SAMPLES,
        horizon=HORIZON,
    )  # fmt: skip
    for row in range(3):
        for k, plan in enumerate(PLANS):
            values, exits, died = played(params, histories, row, plan, jax.random.key(100 + 10 * row + k))
            agree(got.death_90d[row, k], died, died.std(), SAMPLES)
            for name, code in (("in_icu", 0), ("died", 1), ("discharged", 2)):
                agree(getattr(got, name)[row, k], (exits == code).T, (exits == code).std(axis=1), SAMPLES)
            for h in range(HORIZON):
                there = values[h][exits[h] == 0]
                count = SAMPLES * got.in_icu[row, k, h]
                agree(got.mean[row, k, h], there, there.std(axis=0), count)
                low = there[:, 0] < 65
                agree(got.events["map_below_65"][row, k, h], low, low.std(), count)
                # A quantile is where the share below it is right.
                for at, value in zip((0.1, 0.5, 0.9), got.quantile[row, k, h].T, strict=True):
                    under, upto = (there < value).mean(axis=0), (there <= value).mean(axis=0)
                    slack = SIGMAS * np.sqrt(at * (1 - at) * (1 / count + 1 / len(there)))
                    assert ((under - slack <= at) & (at <= upto + slack)).all(), (name, at, under, upto)
                np.testing.assert_allclose(got.sd[row, k, h], there.std(axis=0), rtol=0.15)
    assert got.died.max() > 0.01 and got.discharged.max() > 0.01, "the case must exercise both exits"
