"""Many courses at once: patients x candidates x samples under common random numbers, in one compiled program.

A *cell* is one candidate of one patient. Its samples lie in *slots* of a fixed number of samples, as many as it
needs, and a *block* of slots is what the program takes: its shapes depend on neither the number of patients nor of
candidates nor, within a factor of 16, of samples; the horizon is a trip count. A *tile* is the part of a block that
one member simulates at a time, from the first step to the last: large enough for its matrices, small enough for the
cache.

What no candidate changes is computed once: the history once a patient and member, the distribution of the first
step once a slot, the noise once for all slots of a tile that share it.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh, PartitionSpec

from sepsis_jax.dynamics.protocol import History, StepNoise, step_noise, trajectory_key
from sepsis_jax.errors import InputError
from sepsis_jax.simulation.course import Course, World, advance, finish, start
from sepsis_jax.simulation.record import Record, Samples
from sepsis_jax.simulation.rollout import pad_plans

BLOCK = 16_384
"""Trajectories in a block."""
_SMALL = 2048  # where no more are asked for; a second program, but not a block for one trajectory
_UNITS = (16, 256, 4096)  # samples of a slot
_MOST_SLOTS = 16  # of a cell
_TILE = 2048  # trajectories
_ROWS = 24  # steps; a horizon beyond needs another program
_AT_A_TIME = 8  # histories to read
_NOISES = 32  # slots to draw noise for at a time: few passes, since one costs as much for 1 as for 32
_BLOCKS = "blocks"
_PROCESS_GB, _BYTES, _LEAST_BLOCK = 1.0, 12_000, 1024  # of a process without a block; of a trajectory, its record too


@dataclasses.dataclass(frozen=True)
class Layout:
    """Static shapes of a block.

    Attributes:
      members: M. tiles: J of each member. slots: in a tile. width: samples of one member in a slot.
      rows: steps that there is room for.
    """

    members: int
    tiles: int
    slots: int
    width: int
    rows: int

    @classmethod
    def of(cls, members: int, samples: int, horizon: int, block: int) -> Layout:
        """For this many samples of a cell; ValueError beyond 65,536."""
        if not 1 <= samples <= _UNITS[-1] * _MOST_SLOTS:
            raise ValueError(f"expected 1 to {_UNITS[-1] * _MOST_SLOTS} samples, found {samples}")
        unit = next(unit for unit in _UNITS if samples <= unit * _MOST_SLOTS)
        width = math.ceil(unit / members)
        slots = max(_NOISES, _TILE // width // _NOISES * _NOISES)
        tiles = math.ceil(max(_MOST_SLOTS, block // unit) / slots)
        return cls(members, tiles, slots, width, _ROWS * math.ceil(horizon / _ROWS))

    @property
    def total(self) -> int:
        """N, slots of a block, and the most cells and patients that it can hold."""
        return self.tiles * self.slots

    def slots_of_cell(self, samples: int) -> int:
        """How many slots the samples of a cell take."""
        return math.ceil(math.ceil(samples / self.members) / self.width)


def block_for(gigabytes: float) -> int:
    """Trajectories of a block that keep the process within this memory; InputError if that is too little."""
    room = gigabytes - _PROCESS_GB
    if not room * 1e9 >= _LEAST_BLOCK * _BYTES:
        least = _PROCESS_GB + _LEAST_BLOCK * _BYTES / 1e9
        raise InputError("--memory", expected=f"at least {least:.1f} GB", found=gigabytes)
    most = BLOCK if jax.default_backend() == "cpu" else 64 * BLOCK  # one block fills a CPU
    return int(min(most, 2 ** math.floor(math.log2(room * 1e9 / _BYTES))))


@struct.dataclass
class Job:
    """What a block is to simulate.

    Attributes:
      histories: History with leading N, of which the first `patients` i32[] count.
      plans: int8[N,rows,2] of each cell. row: i32[N] patient of each cell.
      cell, group: i32[J,slots] of each slot: its cell, and which of the cell's slots it is. live: bool[J,slots].
      source: i32[J,slots] which of the tile's noises a slot has. patient_of, group_of: i32[J,slots] whose noise that
        is, of which the first `noises` i32[J] count.
      samples, horizon: i32[].
    """

    histories: History
    patients: Any
    plans: Any
    row: Any
    cell: Any
    group: Any
    live: Any
    source: Any
    patient_of: Any
    group_of: Any
    noises: Any
    samples: Any
    horizon: Any


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
      block: trajectories simulated at once; bounds the memory and changes nothing else.

    Returns:
      NumPy arrays of `record`, with leading [B,K].
    """
    batch, candidates = plans.shape[:2]
    few = batch * candidates * samples <= _SMALL
    layout = Layout.of(world.dynamics.members, samples, horizon, min(block, _SMALL) if few else block)
    plans = np.asarray(pad_plans(world, plans, horizon, layout.rows)).reshape(batch * candidates, layout.rows, 2)
    patient = np.repeat(np.arange(batch), candidates)
    histories = jax.tree.map(np.asarray, histories)
    groups = layout.slots_of_cell(samples)
    mesh = Mesh(np.array(jax.local_devices()), (_BLOCKS,))
    most = min(layout.total // groups, math.ceil(len(patient) / mesh.size))
    parts = []
    for first in range(0, len(patient), most * mesh.size):
        cells = [slice(first + i * most, min(first + (i + 1) * most, len(patient))) for i in range(mesh.size)]
        jobs = [make_job(layout, histories, patient[part], plans[part], samples, horizon) for part in cells]
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *jobs)
        found = jax.device_get(run_blocks(world, record, layout, mesh, params, policy_params, stacked, seed))
        for i, (job, part) in enumerate(zip(jobs, cells, strict=True)):
            if part.start < part.stop:
                own = jax.tree.map(lambda leaf: leaf[i], found)  # noqa: B023
                slots = place(job, part.stop - part.start, groups)
                parts.append(record.collect(own, slots, samples, horizon))
    return jax.tree.map(lambda *leaves: _join(leaves, batch, candidates), *parts)


def _join(leaves: tuple[np.ndarray, ...], batch: int, candidates: int) -> np.ndarray:
    joined = np.concatenate(leaves)
    return joined.reshape(batch, candidates, *joined.shape[1:])


def make_job(
    layout: Layout, histories: History, patient: np.ndarray, plans: np.ndarray, samples: int, horizon: int
) -> Job:
    """The job of some cells: ascending `patient` int[C] rows of `histories`, and their plans int8[C,rows,2].

    Slots are ordered by patient, then by group, then by cell, so that those with the same noise are neighbours.
    """
    rows, row = np.unique(patient, return_inverse=True)  # none in a job that fills up the devices
    groups = layout.slots_of_cell(samples)
    cell, group = (axis.ravel() for axis in np.meshgrid(np.arange(len(row)), np.arange(groups), indexing="ij"))
    order = np.lexsort((cell, group, row[cell]))
    cell, group = cell[order], group[order]
    live = np.arange(layout.total) < len(cell)
    pad = partial(_pad, layout.total)
    cell, group, row = pad(cell), pad(group), pad(row)
    by_tile = (layout.tiles, layout.slots)
    source, patient_of, group_of = (np.zeros(by_tile, np.int32) for _ in range(3))
    noises = np.zeros(layout.tiles, np.int32)
    pairs = np.where(live, row[cell] * groups + group, -1).reshape(by_tile)
    for tile, pair in enumerate(pairs):
        known, source[tile] = np.unique(pair, return_inverse=True)
        patient_of[tile, : known.size], group_of[tile, : known.size] = np.maximum(known, 0) // groups, known % groups
        noises[tile] = known.size
    return Job(
        histories=jax.tree.map(lambda leaf: pad(leaf[rows]), histories),
        patients=np.int32(rows.size),
        plans=pad(plans),
        row=row.astype(np.int32),
        cell=cell.astype(np.int32).reshape(by_tile),
        group=group.astype(np.int32).reshape(by_tile),
        live=live.reshape(by_tile),
        source=source,
        patient_of=patient_of,
        group_of=group_of,
        noises=noises,
        samples=np.int32(samples),
        horizon=np.int32(horizon),
    )


def place(job: Job, cells: int, groups: int) -> np.ndarray:
    """int[cells,groups]: the slots of each cell, in the order of the samples."""
    slot = np.zeros((cells, groups), int)
    live = job.live.ravel()
    slot[job.cell.ravel()[live], job.group.ravel()[live]] = np.flatnonzero(live)
    return slot


def _pad(length: int, rows: np.ndarray) -> np.ndarray:
    padded = np.zeros((length, *rows.shape[1:]), rows.dtype)
    padded[: len(rows)] = rows
    return padded


@partial(jax.jit, static_argnames=("world", "record", "layout", "mesh"))
def run_blocks(
    world: World,
    record: Record,
    layout: Layout,
    mesh: Mesh,
    params: Any,
    policy_params: Any,
    jobs: Job,
    seed: jax.Array,
) -> Any:
    """`_run_block` of one Job a device (leading axis), each at its own pace."""

    def one(jobs: Job, params: Any, policy_params: Any, seed: jax.Array) -> Any:
        job = jax.tree.map(lambda leaf: leaf[0], jobs)
        found = _run_block(world, record, layout, params, policy_params, job, seed)
        return jax.tree.map(lambda leaf: leaf[None], found)

    specs = (PartitionSpec(_BLOCKS), PartitionSpec(), PartitionSpec(), PartitionSpec())
    divided = jax.shard_map(one, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(_BLOCKS), check_vma=False)
    return divided(jobs, params, policy_params, seed)


def _run_block(
    world: World, record: Record, layout: Layout, params: Any, policy_params: Any, job: Job, seed: jax.Array
) -> Any:
    """What `record` keeps of the steps (leading [rows,N]) and of the ends (leading N) of one block."""
    starts = _encode(world, params, policy_params, job)
    now = jax.vmap(lambda history: history.obs[history.length - 1])(job.histories)

    def tile(index: jax.Array) -> Any:
        member, number = index // layout.tiles, index % layout.tiles
        run = partial(_tile, world, record, layout, params, policy_params, job, starts, now, seed, member, number)
        blank = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(run))
        return jax.lax.cond(job.live[number].any(), run, lambda: blank)

    kept, death_90d, value = jax.lax.map(tile, jnp.arange(layout.members * layout.tiles))

    def by_slot(leaf: jax.Array) -> jax.Array:
        """[M*J,slots,width,...] -> [N,M,width,...]."""
        return jnp.moveaxis(leaf.reshape(layout.members, layout.total, *leaf.shape[2:]), 0, 1)

    numbers = jnp.stack([_number(layout, job.group.ravel(), member) for member in range(layout.members)], axis=1)
    valid = job.live.ravel()[:, None, None] & (numbers < job.samples)
    group = Samples(valid, job.cell.ravel())

    def reduce(index: Any, found: Any) -> Any:
        step = record.step(group, jax.tree.map(lambda leaf: by_slot(leaf[:, index]), kept))
        return jax.tree.map(lambda whole, new: whole.at[index].set(new), found, step)

    shapes = jax.eval_shape(lambda: record.step(group, jax.tree.map(lambda leaf: by_slot(leaf[:, 0]), kept)))
    empty = jax.tree.map(lambda leaf: jnp.zeros((layout.rows, *leaf.shape), leaf.dtype), shapes)
    steps = jax.lax.fori_loop(0, job.horizon, reduce, empty)
    return steps, record.end(group, by_slot(death_90d), by_slot(value))


def _tile(
    world: World,
    record: Record,
    layout: Layout,
    params: Any,
    policy_params: Any,
    job: Job,
    starts: Course,
    now: jax.Array,
    seed: jax.Array,
    member: jax.Array,
    number: jax.Array,
) -> tuple[Any, jax.Array, jax.Array]:
    """One tile of one member from the decision to the horizon: kept [rows,slots,width,...], ends [slots,width]."""
    own, cell = world.dynamics.member(params, member), job.cell[number]
    row = job.row[cell]
    keys = _keys(layout, job, seed, member, number)

    def step(index: Any, course: Course, whose: Any) -> tuple[Course, Any]:
        noise = _noise(world, layout, job, keys, number, index)
        run = partial(advance, world, own, policy_params, index=index)
        course, moment = jax.vmap(jax.vmap(run, (whose, None, 0)))(course, job.plans[cell, index], noise)
        return course, jax.vmap(jax.vmap(record.keep, (0, None)))(moment, now[row])

    # Before the first step all samples of a slot are one.
    course, first = step(0, jax.tree.map(lambda leaf: leaf[member, row], starts), None)
    kept = jax.tree.map(lambda leaf: jnp.zeros((layout.rows, *leaf.shape), leaf.dtype).at[0].set(leaf), first)

    def body(index: Any, carry: tuple[Course, Any]) -> tuple[Course, Any]:
        course, new = step(index, carry[0], 0)
        return course, jax.tree.map(lambda whole, part: whole.at[index].set(part), carry[1], new)

    course, kept = jax.lax.fori_loop(1, job.horizon, body, (course, kept))
    return kept, *jax.vmap(jax.vmap(partial(finish, world, own)))(course)


def _number(layout: Layout, group: jax.Array, member: Any) -> jax.Array:
    """i32[...,width]: samples of a member in a slot; sample s belongs to member s mod M."""
    return jnp.add.outer(group * layout.width, jnp.arange(layout.width)) * layout.members + member


def _keys(layout: Layout, job: Job, seed: jax.Array, member: jax.Array, number: jax.Array) -> jax.Array:
    """key[slots,width] of the tile's different noises."""
    patient = job.patient_of[number]
    stay, last = job.histories.stay_id[patient], job.histories.length[patient] - 1
    of_slot = jax.vmap(trajectory_key, (None, None, None, 0))
    return jax.vmap(of_slot, (None, 0, 0, 0))(seed, stay, last, _number(layout, job.group_of[number], member))


def _noise(world: World, layout: Layout, job: Job, keys: jax.Array, number: jax.Array, index: Any) -> StepNoise:
    """StepNoise with leading [slots,width] of one step: each different one is drawn once, then shared."""
    draw = jax.vmap(jax.vmap(lambda key: step_noise(world.dynamics, key, index)))
    shapes = jax.eval_shape(draw, keys)
    empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def some(part: Any, found: StepNoise) -> StepNoise:
        at = part * _NOISES
        new = draw(jax.lax.dynamic_slice_in_dim(keys, at, _NOISES))
        return jax.tree.map(lambda whole, leaf: jax.lax.dynamic_update_slice_in_dim(whole, leaf, at, 0), found, new)

    drawn = jax.lax.fori_loop(0, -(-job.noises[number] // _NOISES), some, empty)
    return jax.tree.map(lambda leaf: leaf[job.source[number]], drawn)


def _encode(world: World, params: Any, policy_params: Any, job: Job) -> Course:
    """Course with leading [M,N] at the decision of each patient; rows beyond `job.patients` are not computed."""

    def members(history: History) -> Course:
        def one(index: jax.Array) -> Course:
            return start(world, world.dynamics.member(params, index), policy_params, history)

        return jax.lax.map(one, jnp.arange(world.dynamics.members))

    def some(part: jax.Array, found: Course) -> Course:
        rows = part * _AT_A_TIME + jnp.arange(_AT_A_TIME)
        read = jax.vmap(members, out_axes=1)(jax.tree.map(lambda leaf: leaf[rows], job.histories))
        return jax.tree.map(lambda whole, new: whole.at[:, rows].set(new), found, read)

    shapes = jax.eval_shape(jax.vmap(members, out_axes=1), job.histories)
    empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.fori_loop(0, -(-job.patients // _AT_A_TIME), some, empty)
