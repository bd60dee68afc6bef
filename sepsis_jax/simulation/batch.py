"""Many courses at once: patients x candidates x samples under common random numbers, in one compiled program.

A *cell* is one candidate of one patient. Its samples lie in *slots* of a fixed number of samples, as many as it
needs, and a *block* of slots is what the program takes: its shapes depend on neither the number of patients nor of
candidates nor, within a factor of 16, of samples; the horizon is a trip count. A *tile* is the part of a block that
one member simulates at a time, from the first step to the last: large enough for its matrices, small enough for the
cache. `block` is the program, this is what fills it.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sepsis_jax.clinical.features import NUM_FEATURES
from sepsis_jax.dynamics.protocol import History
from sepsis_jax.errors import InputError
from sepsis_jax.simulation.arguments import checked_histories, checked_plans, checked_seed, whole
from sepsis_jax.simulation.block import AXIS
from sepsis_jax.simulation.compiled import compiled
from sepsis_jax.simulation.course import Moment, World
from sepsis_jax.simulation.layout import LARGE_TILE, MOST_SAMPLES, SMALL_TILE, TILE, Job, Layout, in_slots
from sepsis_jax.simulation.record import Record, Samples
from sepsis_jax.simulation.rollout import pad_plans

BLOCK = 16_384
"""Trajectories in a block."""
MOST_STEPS, MOST_BLOCK = 10_000, 2**31 - 1
_SMALL = 2048  # where no more are asked for: a second program, but not a block on every device for one trajectory
_USUAL_GB = 4.0
_PROCESS_BYTES, _BYTES = 1.2e9, 5_000  # of a process without blocks; of a trajectory without what is kept of it
_ALIGNMENT = 64  # bytes
_COPIES = 16  # of a block's statistics: those of a region's four blocks are joined, labelled and written


def block_for(gigabytes: float | None, record: Record, members: int, samples: int, horizon: int, cells: int = 0) -> int:
    """Trajectories of a block that keep the process within this memory; InputError if that is too little.

    Args:
      gigabytes: None for 4, or where cores are many what the smallest blocks need.
      record, samples, horizon: see `simulate`. members: M of the dynamics.
      cells: whose statistics are kept together at least.
    """
    most = BLOCK if _on_cpu() else 64 * BLOCK  # one block fills a CPU
    for halvings in range(int(math.log2(most)) + 1):
        block = most >> halvings
        layout = Layout.of(members, samples, horizon, block)
        need = _bytes(record, layout, max(0, cells - 4 * layout.slots // layout.slots_of_cell(samples)))
        if need <= (_USUAL_GB if gigabytes is None else gigabytes) * 1e9:
            return block
    if gigabytes is None:
        return block
    expected, devices = f"at least {math.ceil(need / 1e8) / 10} GB", jax.local_device_count()
    hint = f"that is for one block on each of {devices} devices"
    raise InputError("--memory", expected=expected, found=gigabytes, hint=hint if devices > 1 else "")


def _bytes(record: Record, layout: Layout, more: int) -> float:
    """Memory of a process with one block of this layout on every device, and statistics of so many `more` cells."""
    number, small = partial(jax.ShapeDtypeStruct, dtype=np.float32), partial(jax.ShapeDtypeStruct, dtype=np.int8)
    obs, one = number((NUM_FEATURES,)), number(())
    moment = Moment(obs, obs, small((NUM_FEATURES - 1,)), small((2,)), one, one, one, small(()))
    kept = jax.eval_shape(record.keep, moment, obs)
    slot = (1, layout.members, layout.width)
    samples = Samples(jax.ShapeDtypeStruct(slot, bool), jax.ShapeDtypeStruct((1,), np.int32))
    step = jax.eval_shape(
        record.step, samples, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(slot + leaf.shape, leaf.dtype), kept)
    )
    of_kept, of_step = (sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)) for tree in (kept, step))
    of_slot = layout.rows * _COPIES * of_step + math.prod(slot) * (layout.rows * of_kept + _BYTES)
    of_more = more * layout.rows * _COPIES // 4 * of_step
    return _PROCESS_BYTES + jax.local_device_count() * layout.slots * of_slot + of_more


def simulate(
    world: World,
    params: Any,
    policy_params: Any,
    histories: History,
    plans: Any,
    seed: jax.Array,
    *,
    record: Record,
    samples: int,
    horizon: int,
    block: int = BLOCK,
) -> Any:
    """All candidates of all patients under common random numbers.

    Args:
      world: dynamics, bins, reward, policy.
      params: of the dynamics. policy_params: of the policy, or None.
      histories: History with leading B.
      plans: int8[B,K,P,2]; K candidates a patient, whose first P steps are given; the policy draws the rest.
      seed: key of the run (threefry).
      record: what to keep of the samples, e.g. `record.Summarize()`.
      samples: S. horizon: H, 4-h steps.
      block: trajectories simulated at once; bounds the memory and changes no draw, only the last bits of sums.

    Returns:
      NumPy arrays of `record`, with leading [B,K].

    Raises:
      InputError: histories, plans or a seed that are none, or do not fit each other; numbers out of range.
    """
    samples, horizon = whole("samples", samples, MOST_SAMPLES), whole("horizon", horizon, MOST_STEPS)
    block, seed, histories = whole("block", block, MOST_BLOCK), checked_seed(seed), checked_histories(histories)
    plans = checked_plans(world, plans, len(histories.length))
    batch, candidates = plans.shape[:2]
    few = batch * candidates * samples <= _SMALL
    block = min(block, _SMALL) if few else block
    tile = SMALL_TILE if few else TILE if _on_cpu() else min(LARGE_TILE, block)
    layout = Layout.of(world.dynamics.members, samples, horizon, block, tile)
    plans = pad_plans(world, plans, horizon, layout.rows).reshape(batch * candidates, layout.rows, 2)
    patient = np.repeat(np.arange(batch), candidates)
    groups = layout.slots_of_cell(samples)
    mesh = _mesh(1 if few else None)
    params, policy_params = _everywhere(params, mesh), _everywhere(policy_params, mesh)
    rounds = math.ceil(len(patient) / (layout.slots // groups * mesh.size))
    share, rest = divmod(len(patient), rounds * mesh.size)  # cells of a job, and how many jobs have one more
    bounds = [i * share + min(i, rest) for i in range(rounds * mesh.size + 1)]
    run = compiled(world.dynamics.precision)
    parts = []
    for first in range(0, rounds * mesh.size, mesh.size):
        cells = [slice(bounds[i], bounds[i + 1]) for i in range(first, first + mesh.size)]
        jobs = [make_job(histories, patient[part], plans[part], samples, horizon, seed) for part in cells]
        together = jax.device_put(stack(layout, jobs), NamedSharding(mesh, PartitionSpec(AXIS)))
        found = run(world, record, layout, mesh, params, policy_params, together)
        for i, part in enumerate(cells):
            if part.start < part.stop:
                own = jax.tree.map(lambda leaf: np.asarray(leaf.addressable_data(i))[0], found)  # noqa: B023
                parts.append(record.collect(own, _places(layout, part.stop - part.start, groups), samples, horizon))
    return jax.tree.map(lambda *leaves: _join(leaves, batch, candidates), *parts)


def _places(layout: Layout, cells: int, groups: int) -> np.ndarray:
    """See `Record.collect`."""
    slot, place = np.divmod(np.arange(groups * layout.width), layout.width)
    order = np.argsort(in_slots(layout, np.arange(groups), groups), axis=None)
    return np.add.outer(np.arange(cells) * layout.width, (slot * cells * layout.width + place)[order])


def on_devices(params: Any) -> Any:
    """The same arrays on every device of this process: calls of `simulate` that are given these need not copy them."""
    return _everywhere(params, _mesh())


def _everywhere(params: Any, mesh: Mesh) -> Any:
    """On every device of a mesh. To ask first is 20 times faster than to put what is there already."""
    sharding = NamedSharding(mesh, PartitionSpec())
    there = all(getattr(leaf, "sharding", None) == sharding for leaf in jax.tree.leaves(params))
    return params if there else jax.device_put(params, sharding)


def _mesh(devices: int | None = None) -> Mesh:
    return Mesh(np.array(jax.local_devices()[:devices]), (AXIS,))


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def _join(leaves: tuple[np.ndarray, ...], batch: int, candidates: int) -> np.ndarray:
    joined = np.concatenate(leaves)
    return joined.reshape(batch, candidates, *joined.shape[1:])


def make_job(
    histories: History, patient: np.ndarray, plans: np.ndarray, samples: int, horizon: int, seed: jax.Array
) -> Job:
    """The job of some cells: ascending `patient` int[C] rows of `histories`, and their plans int8[C,rows,2].

    Its histories, plans and rows are as many as there are; `stack` fills them up.
    """
    rows, row = np.unique(patient, return_inverse=True)  # none in a job that fills up the devices
    return Job(
        histories=jax.tree.map(lambda leaf: leaf[rows], histories),
        plans=plans,
        row=row.astype(np.int32),
        cells=np.int32(len(row)),
        samples=np.int32(samples),
        horizon=np.int32(horizon),
        seed=np.asarray(jax.random.key_data(seed)),
    )


def stack(layout: Layout, jobs: list[Job]) -> Job:
    """Jobs along a leading axis, each with anything up to the patients and cells that a block has room for."""

    def fill_up(*leaves: np.ndarray) -> np.ndarray:
        whole = _room((len(leaves), layout.slots, *leaves[0].shape[1:]), leaves[0].dtype)
        for row, leaf in zip(whole, leaves, strict=True):
            row[: len(leaf)] = leaf
        return whole

    fields = {}
    for field in dataclasses.fields(Job):
        join = fill_up if field.name in ("histories", "plans", "row") else lambda *leaves: np.stack(leaves)
        fields[field.name] = jax.tree.map(join, *(getattr(job, field.name) for job in jobs))
    return Job(**fields)


def _room(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Uninitialized, where JAX can use it without a copy."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    first = -memory.ctypes.data % _ALIGNMENT
    return memory[first : first + size].view(dtype).reshape(shape)
