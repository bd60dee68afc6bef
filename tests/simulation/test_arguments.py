"""What `simulate` accepts, as it is or converted, and the one line about what it does not."""

import dataclasses
import re

import chex
import jax
import numpy as np
import pytest
from factories import make_episodes
from toy import toy_params, toy_world

from sepsis_jax.dynamics.protocol import history_at
from sepsis_jax.errors import InputError
from sepsis_jax.simulation.batch import simulate
from sepsis_jax.simulation.env import SepsisEnv
from sepsis_jax.simulation.record import Trajectories

EPISODES = make_episodes(6, 8, seed=3)
HISTORIES = history_at(EPISODES, [0, 1, 2], [0, 3, 5])
PLANS = np.ones((3, 2, 2, 2), np.int8)
USUAL = {"histories": HISTORIES, "plans": PLANS, "seed": jax.random.key(7), "samples": 4, "horizon": 3, "block": 4096}


def run(params=None, **changes):
    given = USUAL | changes
    histories, plans, seed = given.pop("histories"), given.pop("plans"), given.pop("seed")
    params = toy_params() if params is None else params
    return simulate(toy_world(), params, None, histories, plans, seed, record=Trajectories(), **given)


def altered(**fields):
    return dataclasses.replace(HISTORIES, **fields)


BAD = {
    "samples, yes": ({"samples": True}, "samples: expected a whole number from 1 to 65,536, found True"),
    "samples, none": ({"samples": np.uint8(0)}, "samples: expected a whole number from 1"),
    "horizon, yes": ({"horizon": True}, "horizon: expected a whole number"),
    "block, none": ({"block": 0}, "block: expected a whole number from 1"),
    "block, a half": ({"block": 100.5}, "block: expected a whole number from 1"),
    "seed, a number": ({"seed": 0}, "seed: expected one key of Threefry, as jax.random.key(0) gives, found 0"),
    "seed, nothing": ({"seed": None}, "seed: expected one key"),
    "seed, two": ({"seed": jax.random.split(jax.random.key(0))}, "seed: expected one key"),
    "seed, of another kind": ({"seed": jax.random.key(7, impl="rbg")}, "seed: expected one key of Threefry"),
    "plans, ragged": ({"plans": [[[[1, 2]], [[1]]]] * 3}, "plans: expected [B,K,P,2] for B = 3"),
    "plans, words": ({"plans": np.full((3, 2, 2, 2), "1")}, "plans: expected whole levels, found <U1"),
    "plans, of more patients": ({"plans": PLANS[:2]}, "plans: expected [B,K,P,2] for B = 3"),
    "one patient": (
        {"histories": jax.tree.map(lambda leaf: leaf[0], HISTORIES)},
        "histories: expected a batch of patients, found length of shape ()",
    ),
    "nobody": (
        {"histories": jax.tree.map(lambda leaf: leaf[:0], HISTORIES)},
        "histories: expected at least one, found none",
    ),
    "fewer rows": ({"histories": altered(obs=HISTORIES.obs[:2])}, "histories: obs: expected float32[3, 8, 39], found"),
    "a feature less": (
        {"histories": altered(obs=HISTORIES.obs[..., :38])},
        "histories: obs: expected float32[3, 8, 39]",
    ),
    "fewer actions": ({"histories": altered(action=HISTORIES.action[:, :2])}, "action: expected int8[3, 8, 2], found"),
    "more ids": ({"histories": altered(stay_id=np.arange(9))}, "histories: stay_id: expected int32[3], found int64[9]"),
    "large ids": ({"histories": altered(stay_id=np.array([2**32 + 7, 7, 8]))}, "histories: stay_id: expected int32[3]"),
    "ids, words": (
        {"histories": altered(stay_id=np.array(["a", "b", "c"]))},
        "stay_id: expected int32[3], found <U1[3]",
    ),
    "mask, numbers": ({"histories": altered(mask=HISTORIES.mask.astype(float))}, "mask: expected bool[3, 8, 38]"),
    "length, a half": (
        {"histories": altered(length=HISTORIES.length + 0.5)},
        "length: expected int32[3], found float64[3]",
    ),
    "length, beyond": ({"histories": altered(length=HISTORIES.length + 8)}, "length: expected 1 to 8 observations"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_said_in_one_line(name):
    changes, message = BAD[name]
    with pytest.raises(InputError, match=re.escape(message)) as error:
        run(**changes)
    assert "\n" not in str(error.value)


def test_wider_types_and_lists_are_the_same_request():
    usual = run()
    wide = {name: np.asarray(getattr(HISTORIES, name)) for name in ("obs", "static", "weight_kg")}
    wide = {name: array.astype(np.float64) for name, array in wide.items()}
    long = {name: np.asarray(getattr(HISTORIES, name)) for name in ("action", "prior_action", "length", "stay_id")}
    histories = altered(**wide, **{name: array.astype(np.int64) for name, array in long.items()})
    histories = dataclasses.replace(histories, length=histories.length.tolist())
    for other in (
        run(histories=histories, plans=PLANS.tolist()),
        run(samples=np.uint16(4), horizon=np.int8(3), block=np.uint32(4096)),
        run(seed=jax.random.PRNGKey(7)),
        run(params=jax.device_put(toy_params(), jax.local_devices()[-1])),
    ):
        chex.assert_trees_all_equal(usual, other)


def test_small_types_of_large_numbers_do_not_overflow():
    plans = np.ones((3, 5, 2, 2), np.int8)
    many = run(samples=200, plans=plans)
    chex.assert_trees_all_equal(many, run(samples=np.uint8(200), plans=plans))
    device = jax.device_put(toy_params(), jax.local_devices()[-1])
    chex.assert_trees_all_equal(many, run(params=device, samples=200, plans=plans))


def test_an_environment_says_what_it_was_not_asked():
    with pytest.raises(InputError, match="max_steps: expected a whole number"):
        SepsisEnv(toy_world(), toy_params(), EPISODES, max_steps=True)
    env = SepsisEnv(toy_world(), toy_params(), EPISODES, max_steps=np.int64(3))
    with pytest.raises(InputError, match="options: expected stay_id, found stay"):
        env.reset(options={"stay": 1})
    with pytest.raises(InputError, match="options: stay_id: expected a stay"):
        env.reset(options={"stay_id": EPISODES.stay_id[:2].tolist()})
