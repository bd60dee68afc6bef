"""Trajectories of the packaged model against the same network in PyTorch, with the same random numbers."""

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
SEED, HORIZON, SAMPLES, STEP = jax.random.key(5), 6, 100, 3
PLANS = np.array([[[0, 0]] * HORIZON, [[3, 2]] * HORIZON, [[4, 4], [1, 0]] * (HORIZON // 2)], np.int8)


@pytest.fixture(scope="module")
def histories():
    episodes, _ = simulate_cohort(40, seed=2)
    rows = np.flatnonzero(episodes.length > STEP + 1)[:2]
    return history_at(episodes, rows, [STEP, STEP])


@pytest.mark.parametrize("path", [checkpoints.CARRY, checkpoints.PUBLISHED], ids=lambda path: path.name)
def test_trajectories_equal_pytorch_until_something_discrete_differs(histories, path):
    model, params, manifest = WorldModel.from_checkpoint(path)
    world = World(model, manifest.action_bins, PUBLISHED)
    got = simulate(
        world, params, None, histories, np.broadcast_to(PLANS[None], (2, *PLANS.shape)), SEED,
        record=Trajectories(), samples=SAMPLES, horizon=HORIZON,
    )  # fmt: skip
    expected = np.stack([_by_hand(model, params, histories, b) for b in range(2)])
    sd = np.asarray(params.support.sd)
    off = np.abs(got.steps.obs - expected[..., :39]) / np.maximum(np.abs(expected[..., :39]), sd)
    masks = got.steps.mask != expected[..., 39:].astype(bool)
    there = got.steps.exit == 0
    differs = there & (masks.any(axis=-1) | (off > 0.5).any(axis=-1))
    alike = there & ~np.logical_or.accumulate(differs, axis=-1)
    assert np.quantile(off[alike].max(axis=-1), 0.99) < 1e-3
    assert np.median(off[alike].max(axis=-1)) < 2e-5
    trajectories = differs.any(axis=-1)
    assert trajectories.mean() < 0.01, f"{trajectories.sum()} of {trajectories.size}"
    assert alike.mean() > 0.5


def _by_hand(model, params, histories, b):
    """f[K,S,H,77] obs and mask of one patient without exits, member by member in PyTorch."""
    history = jax.tree.map(lambda leaf: jnp.asarray(leaf)[b], histories)
    out = np.zeros((len(PLANS), SAMPLES, HORIZON, 77), np.float32)
    for member in range(model.members):
        own = model.member(params, member)
        state = model.encode(own, history)
        kind = peers.Carry if model.architecture == "carry" else peers.Published
        peer = kind(peers.tensors(own.network), own.support)
        numbers = np.arange(member, SAMPLES, model.members)
        keys = jax.vmap(lambda s: trajectory_key(SEED, history.stay_id, history.length - 1, s))(numbers)
        for k, plan in enumerate(PLANS):
            current = _state(state, len(numbers))
            for h, action in enumerate(plan):
                noise = jax.vmap(lambda key: step_noise(model, key, h).dynamics)(keys)  # noqa: B023
                given = torch.from_numpy(np.array(one_hot(action))).expand(len(numbers), -1)
                with torch.inference_mode():
                    current = peer.step(current, given, _noise(noise))
                mask = current["mask"].numpy()
                out[k, numbers, h] = np.concatenate([current["obs"].numpy(), mask], axis=-1)
    return out


def _state(state, count):
    kept = {f.name: getattr(state.memory, f.name) for f in dataclasses.fields(state.memory) if f.name != "flight"}
    flat = kept | {"static": state.static, "obs": state.obs, "mask": state.mask}
    tensors = {n: torch.from_numpy(np.array(leaf, np.float32)) for n, leaf in flat.items()}
    many = {n: leaf.expand(count, *leaf.shape).clone() for n, leaf in tensors.items()}
    if "hidden" in many:
        many["hidden"] = many["hidden"].transpose(0, 1).contiguous()
        many["steps"] = many["steps"][:, None]
    return many


def _noise(noise):
    normal = np.concatenate([noise.own, noise.factors], axis=-1)
    uniform = np.zeros((len(normal), 39), np.float32) if noise.mask is None else np.array(noise.mask)
    return {"normal": torch.from_numpy(normal), "uniform": torch.from_numpy(uniform)}
