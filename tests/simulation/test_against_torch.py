"""Trajectories of the packaged models against the same networks in PyTorch: float64, the same random numbers."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sepsis_jax import checkpoints
from sepsis_jax.clinical.actions import one_hot
from sepsis_jax.clinical.features import FEATURES, URINE
from sepsis_jax.clinical.reward import PUBLISHED
from sepsis_jax.dynamics.patient.cohort import simulate_cohort
from sepsis_jax.dynamics.protocol import history_at, step_noise, trajectory_key
from sepsis_jax.dynamics.worldmodel.model import WorldModel
from sepsis_jax.simulation.batch import simulate
from sepsis_jax.simulation.course import World
from sepsis_jax.simulation.record import Trajectories

torch = pytest.importorskip("torch", reason="needs the extra [torch]")
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
peers = pytest.importorskip("torch_simulation")

pytestmark = [pytest.mark.slow, pytest.mark.long]
SEED, HORIZON, SAMPLES, STEP = jax.random.key(5), 6, 2000, 3
PLANS = np.array([[[0, 0]] * HORIZON, [[3, 2]] * HORIZON, [[4, 4], [1, 0]] * (HORIZON // 2)], np.int8)
CLOSE = 1e-5  # of a value or of its standard deviation, whichever is larger


@pytest.fixture(scope="module")
def histories():
    episodes, _ = simulate_cohort(40, seed=2)
    rows = np.flatnonzero(episodes.length > STEP + 1)[:2]
    return history_at(episodes, rows, [STEP, STEP])


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("path", [checkpoints.CARRY, checkpoints.PUBLISHED], ids=lambda path: path.name)
def test_trajectories_equal_pytorch_until_something_discrete_differs(histories, path):
    model, params, manifest = WorldModel.from_checkpoint(path)
    world = World(model, manifest.action_bins, PUBLISHED)
    got = simulate(
        world, params, None, histories, np.broadcast_to(PLANS[None], (2, *PLANS.shape)), SEED,
        record=Trajectories(), samples=SAMPLES, horizon=HORIZON,
    )  # fmt: skip
    obs, mask, exit, outcome = (
        np.stack(found) for found in zip(*(_by_hand(model, params, histories, b) for b in range(2)), strict=True)
    )
    # The step of the exit is lived; after it nothing happens.
    lived = np.concatenate([np.ones_like(exit[..., :1]), got.steps.exit[..., :-1] == 0], axis=-1).astype(bool)
    scale = np.maximum(np.abs(obs), np.asarray(params.support.sd))
    off = np.where(lived[..., None], np.abs(got.steps.obs - obs) / scale, 0.0)
    differs = lived & ((got.steps.mask != mask).any(axis=-1) | (got.steps.exit != exit) | (off > 0.1).any(axis=-1))
    assert differs.any(axis=-1).mean() <= 1e-4
    off[np.logical_or.accumulate(differs, axis=-1)] = 0.0
    worst = off.max(axis=(0, 1, 2, 3))
    far = {name: error for name, error in zip(FEATURES, worst, strict=True) if error > CLOSE}
    assert not set(far) - {FEATURES[URINE]}, far
    # Urine just above none is the inverse of a distribution where it is steep: rounding of the logit shows there.
    urine = off[..., URINE].max(axis=-1)
    assert (urine > CLOSE).mean() < 2e-3 and urine.max() < 1e-3
    stayed = (got.steps.exit[..., -1] == 0) & ~differs.any(axis=-1)
    np.testing.assert_allclose(got.death_90d[stayed], outcome[stayed], atol=CLOSE)
    assert stayed.mean() > 0.5
    assert model.architecture == "published" or {1, 2} <= set(exit.ravel()), "the case must exercise every kind of end"


def _by_hand(model, params, histories, b):
    """One patient, member by member: obs f[K,S,H,39], mask bool[K,S,H,38], exit int[K,S,H], outcome f[K,S]."""
    history = jax.tree.map(lambda leaf: jnp.asarray(leaf)[b], histories)
    shape = (len(PLANS), SAMPLES, HORIZON)
    obs, mask = np.zeros((*shape, 39)), np.zeros((*shape, 38), bool)
    exit, outcome = np.zeros(shape, int), np.zeros(shape[:2])
    for member in range(model.members):
        own = model.member(params, member)
        state = model.encode(own, history)
        kind = peers.Carry if model.architecture == "carry" else peers.Published
        peer = kind(peers.tensors(own.network), own.support)
        numbers = np.arange(member, SAMPLES, model.members)
        keys = jax.vmap(lambda s: trajectory_key(SEED, history.stay_id, history.length - 1, s))(numbers)
        for k, plan in enumerate(PLANS):
            current, ended = _state(state, len(numbers)), np.zeros(len(numbers), int)
            for h, action in enumerate(plan):
                noise = jax.vmap(lambda key: step_noise(model, key, h))(keys)  # noqa: B023
                given = peers.tensors(one_hot(action)).expand(len(numbers), -1)
                with torch.inference_mode():
                    current = peer.step(current, given, _noise(noise.dynamics))
                hazard = current["hazard"].numpy() if "hazard" in current else np.zeros((len(numbers), 2))
                death, discharge = (np.asarray(noise.exit) < hazard).T
                ended = np.where(ended > 0, ended, np.where(death, 1, np.where(discharge, 2, 0)))
                obs[k, numbers, h], mask[k, numbers, h] = current["obs"].numpy(), current["mask"].numpy()
                exit[k, numbers, h] = ended
            with torch.inference_mode():
                outcome[k, numbers] = peer.outcome(current).numpy()
    return obs, mask, exit, outcome


def _state(state, count):
    kept = {f.name: getattr(state.memory, f.name) for f in dataclasses.fields(state.memory) if f.name != "flight"}
    flat = kept | {"static": state.static, "obs": state.obs, "mask": state.mask}
    one = {name: np.array(leaf, np.float32) for name, leaf in flat.items()}
    many = {name: leaf.expand(count, *leaf.shape).clone() for name, leaf in peers.tensors(one).items()}
    if "hidden" in many:
        many["hidden"] = many["hidden"].transpose(0, 1).contiguous()
        many["steps"] = many["steps"][:, None]
    return many


def _noise(noise):
    normal = np.concatenate([noise.own, noise.factors], axis=-1)
    uniform = np.zeros((len(normal), 39), np.float32) if noise.mask is None else np.array(noise.mask)
    return peers.tensors({"normal": normal, "uniform": uniform})
