"""The same numbers on any number of devices, and programs that TPU and CUDA take, without having one."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from factories import fit_scaler, make_episodes
from jax.sharding import Mesh

from sepsis_jax.clinical.actions import AI_CLINICIAN_BINS
from sepsis_jax.clinical.reward import PUBLISHED
from sepsis_jax.dynamics.worldmodel import sharding, steps
from sepsis_jax.dynamics.worldmodel.bounds import Support
from sepsis_jax.dynamics.worldmodel.losses import history_of
from sepsis_jax.dynamics.worldmodel.settings import TrainSettings
from sepsis_jax.errors import InputError
from sepsis_jax.simulation.batch import make_job, stack
from sepsis_jax.simulation.block import run_blocks
from sepsis_jax.simulation.course import World
from sepsis_jax.simulation.layout import Layout
from sepsis_jax.simulation.record import Summarize

CARRY = TrainSettings(hidden=8, layers=2, members=2, batch_size=12)


def prepared(settings, num_devices):
    """mesh, params, state, train stays and validation stays of a small training."""
    episodes = make_episodes(60, 4, seed=1)
    scaler = fit_scaler(episodes)
    mesh = sharding.mesh(jax.devices()[:num_devices])
    stays = [steps.stays_of(episodes, split, mesh) for split in ("train", "validation")]
    params = steps.first_weights(settings, scaler, Support.fit(episodes, scaler))
    state = steps.start(settings, params, stays[0].batches(settings.batch_size))
    return mesh, *sharding.replicate(jax.tree.map(np.asarray, (params, state)), mesh), *stays


def test_batches_are_filled_up_to_whole_devices():
    rows = jnp.arange(20).reshape(2, 10)
    mesh = sharding.mesh(jax.devices()[:4])
    filled = sharding.fill_up(rows, mesh, 99)
    np.testing.assert_array_equal(filled, np.concatenate([rows, np.full((2, 2), 99)], axis=1))
    np.testing.assert_array_equal(sharding.fill_up(rows, sharding.mesh(jax.devices()[:5]), 99), rows)


def test_replicated_arrays_come_back():
    mesh = sharding.mesh(jax.devices()[:4])
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    everywhere = sharding.replicate({"a": array}, mesh)
    assert everywhere["a"].is_fully_replicated and len(everywhere["a"].devices()) == 4
    np.testing.assert_array_equal(sharding.to_host(everywhere)["a"], array)


def test_a_wrong_process_number_is_named(monkeypatch):
    monkeypatch.setenv(sharding.COORDINATOR, "localhost:1")
    monkeypatch.setenv(sharding.PROCESSES, "two")
    with pytest.raises(InputError, match="JAX_NUM_PROCESSES: expected a whole number, found two"):
        sharding.join_processes()


@pytest.mark.slow
@pytest.mark.long
def test_losses_do_not_depend_on_the_number_of_devices():
    settings = dataclasses.replace(CARRY, architecture="published", layers=1, members=1)  # compiles faster
    update = jax.jit(steps.update, static_argnames=("settings", "mesh"))
    rows, keys = jnp.arange(24).reshape(2, 1, 12), jax.random.split(jax.random.key(0), 1)
    seen = {}
    for num_devices in (1, 2, 4, 8):  # 12 stays in a batch: 8 devices need filling up
        mesh, params, state, train, _ = prepared(settings, num_devices)
        fit, seen[num_devices] = state.fit, []
        for i in range(2):  # the second one sees what the first gradient has done
            fit, losses = update(settings, mesh, params, fit, train, rows[i], keys, jnp.int32(9))
            seen[num_devices].append(sharding.to_host(sharding.replicate(losses, mesh)))
    for num_devices in (2, 4, 8):
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4), seen[num_devices], seen[1])
    assert seen[1][0]["loss"] != seen[1][1]["loss"]


def exported(function, *arguments):
    """StableHLO of `function` for both platforms."""
    program = jax.export.export(function, platforms=("tpu", "cuda"))(*arguments)
    return program, program.mlir_module()


def assert_runs_on_accelerators(text):
    assert "f64" not in text and "callback" not in text and "complex" not in text


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(("num_devices", "precision"), [(1, "float32"), (8, "bfloat16")])
def test_the_training_epoch_lowers_for_tpu_and_cuda(num_devices, precision):
    settings = dataclasses.replace(CARRY, precision=precision)
    mesh, *arguments = prepared(settings, num_devices)
    program, text = exported(jax.jit(partial(steps.run_epoch, settings, mesh)), *arguments)
    assert program.nr_devices == num_devices
    assert_runs_on_accelerators(text)
    assert ("rhs_precision_type = bf16" in text) == (precision == "bfloat16")
    assert "tensor<f32>" in text and "xbf16>" not in text  # weights, sums and losses stay float32


@pytest.mark.slow
@pytest.mark.long
def test_the_rollout_lowers_for_tpu_and_cuda():
    episodes = make_episodes(2, 4, seed=1)
    model = CARRY.model
    scaler = fit_scaler(episodes)
    params = model.init(scaler, Support.plausible(scaler), jax.random.key(0))
    world = World(model, AI_CLINICIAN_BINS, PUBLISHED)
    layout = Layout.of(model.members, samples=16, horizon=2, block=256)
    job = make_job(
        history_of(episodes), np.array([0, 0, 1]), np.zeros((3, layout.rows, 2), np.int8), 16, 2, jax.random.key(0)
    )
    mesh = Mesh(np.array(jax.devices()[:1]), ("blocks",))
    run = jax.jit(lambda params, jobs: run_blocks(world, Summarize(), layout, mesh, params, None, jobs))
    _, text = exported(run, params, jax.tree.map(jnp.asarray, stack(layout, [job])))
    assert_runs_on_accelerators(text)
