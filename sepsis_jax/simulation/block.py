"""The compiled program of a block: shapes, what it is given, and its way from histories to what a record keeps.

See `batch`, whose host side fills a block. What no candidate changes is computed once: the history once a patient and
member, the distribution of the first step once a slot, the noise once for all slots of a tile that share it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh, PartitionSpec

from sepsis_jax.dynamics.protocol import History, StepNoise, step_noise, trajectory_key
from sepsis_jax.simulation.course import Course, Moment, World, advance, finish, start
from sepsis_jax.simulation.record import Record, Samples

AXIS = "blocks"
"""Of the mesh of devices."""
STATIC = ("world", "record", "layout", "mesh")
"""Of `run_blocks`."""
_UNITS = (16, 256, 4096)  # samples of a slot
_MOST_SLOTS = 16  # of a cell
MOST_SAMPLES = _UNITS[-1] * _MOST_SLOTS
"""Of a cell."""
TILE, SMALL_TILE, LARGE_TILE = 256, 128, 65_536
"""Trajectories of a member that are computed together: what the cache of a core holds; few; an accelerator."""
_ROWS = 24  # steps; a horizon beyond needs another program
_AT_A_TIME = 8  # histories to read
_SHARE = 8  # slots of a tile at least, and the most turns in which its noises are drawn


@dataclasses.dataclass(frozen=True)
class Layout:
    """Static shapes of a block.

    Attributes:
      members: M. tiles: J of each member. slots: in a tile. parts: of a tile, one after the other. chunk: samples of
        each of its slots in a part. rows: steps that there is room for.
    """

    members: int
    tiles: int
    slots: int
    parts: int
    chunk: int
    rows: int

    @classmethod
    def of(cls, members: int, samples: int, horizon: int, block: int, tile: int = TILE) -> Layout:
        """For this many samples of a cell, in tiles of so many trajectories a member; ValueError beyond 65,536."""
        if not 1 <= samples <= MOST_SAMPLES:
            raise ValueError(f"expected 1 to {MOST_SAMPLES} samples, found {samples}")
        unit = next(unit for unit in _UNITS if samples <= unit * _MOST_SLOTS)
        width = math.ceil(unit / members)
        # Of few samples each is a part, since not every member has the last one; but not where few slots are asked for.
        slots = tile if width < _SHARE and tile > SMALL_TILE else max(_SHARE, tile // width // _SHARE * _SHARE)
        parts = math.ceil(width * slots / tile)
        tiles = math.ceil(max(_MOST_SLOTS, block // unit) / slots)
        return cls(members, tiles, slots, parts, math.ceil(width / parts), _ROWS * math.ceil(horizon / _ROWS))

    @property
    def width(self) -> int:
        """W, samples of one member in a slot."""
        return self.parts * self.chunk

    @property
    def total(self) -> int:
        """N, slots of a block, and the most cells and patients that it can hold."""
        return self.tiles * self.slots

    def slots_of_cell(self, samples: int) -> int:
        """How many slots the samples of a cell take."""
        return math.ceil(math.ceil(samples / self.members) / self.width)


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


@partial(jax.jit, static_argnames=STATIC)
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

    specs = (PartitionSpec(AXIS), PartitionSpec(), PartitionSpec(), PartitionSpec())
    divided = jax.shard_map(one, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(AXIS), check_vma=False)
    return divided(jobs, params, policy_params, seed)


def _run_block(
    world: World, record: Record, layout: Layout, params: Any, policy_params: Any, job: Job, seed: jax.Array
) -> Any:
    """What `record` keeps of the steps (leading [rows,N]) and of the ends (leading N) of one block."""
    starts = _encode(world, params, policy_params, job)
    now = jax.vmap(lambda history: history.obs[history.length - 1])(job.histories)

    def of_member(member: jax.Array) -> Any:
        own, before = world.dynamics.member(params, member), jax.tree.map(lambda leaf: leaf[member], starts)

        def tile(number: jax.Array) -> Any:
            run = partial(_tile, world, record, layout, own, policy_params, job, before, now, seed, member, number)
            return _if_any(job.live[number], run)

        return jax.lax.map(tile, jnp.arange(layout.tiles))

    kept, death_90d, value = jax.lax.map(of_member, jnp.arange(layout.members))

    def by_slot(leaf: jax.Array) -> jax.Array:
        """[M,J,slots,width,...] -> [N,M,width,...]."""
        return jnp.moveaxis(leaf.reshape(layout.members, layout.total, *leaf.shape[3:]), 0, 1)

    numbers = jnp.stack([_number(layout, job.group.ravel(), member) for member in range(layout.members)], axis=1)
    valid = job.live.ravel()[:, None, None] & (numbers < job.samples)
    group = Samples(valid, job.cell.ravel())

    def reduce(index: Any, found: Any) -> Any:
        step = record.step(group, jax.tree.map(lambda leaf: by_slot(leaf[:, :, index]), kept))
        return jax.tree.map(lambda whole, new: whole.at[index].set(new), found, step)

    shapes = jax.eval_shape(lambda: record.step(group, jax.tree.map(lambda leaf: by_slot(leaf[:, :, 0]), kept)))
    empty = jax.tree.map(lambda leaf: jnp.zeros((layout.rows, *leaf.shape), leaf.dtype), shapes)
    steps = jax.lax.fori_loop(0, job.horizon, reduce, empty)
    return steps, record.end(group, by_slot(death_90d), by_slot(value))


def _tile(
    world: World,
    record: Record,
    layout: Layout,
    own: Any,
    policy_params: Any,
    job: Job,
    starts: Course,
    now: jax.Array,
    seed: jax.Array,
    member: jax.Array,
    number: jax.Array,
) -> tuple[Any, jax.Array, jax.Array]:
    """One tile of one member from the decision to the horizon: kept [rows,slots,width,...], ends [slots,width]."""
    cell = job.cell[number]
    row = job.row[cell]
    before = jax.tree.map(lambda leaf: leaf[row], starts)
    keys = _keys(layout, job, seed, member, number)
    asked = job.live[number][:, None] & (_number(layout, job.group[number], member) < job.samples)

    def part(inputs: tuple[jax.Array, jax.Array]) -> Any:
        keys, asked = inputs
        noises = partial(_noise, world, layout, job, keys, number)
        run = partial(
            _part, world, record, layout, own, policy_params, before, now[row], job.plans[cell], noises, job.horizon
        )
        return _if_any(asked, run)

    def apart(leaf: jax.Array) -> jax.Array:
        """[width,slots] -> [parts,chunk,slots]."""
        return leaf.reshape(layout.parts, layout.chunk, layout.slots)

    def by_slot(leaf: jax.Array) -> jax.Array:
        """[parts,chunk*slots] -> [slots,width]."""
        return leaf.reshape(layout.width, layout.slots).swapaxes(0, 1)

    def rows_by_slot(leaf: jax.Array) -> jax.Array:
        """[parts,rows,chunk*slots,...] -> [rows,slots,width,...]."""
        apart = leaf.reshape(layout.parts, layout.rows, layout.chunk, layout.slots, *leaf.shape[3:])
        apart = jnp.moveaxis(apart, 3, 0).swapaxes(1, 2).swapaxes(0, 1)  # [rows,slots,parts,chunk,...]
        return apart.reshape(layout.rows, layout.slots, layout.width, *leaf.shape[3:])

    kept, *ends = jax.lax.map(part, (apart(keys), apart(asked.T)))
    return jax.tree.map(rows_by_slot, kept), *map(by_slot, ends)


def _part(
    world: World,
    record: Record,
    layout: Layout,
    own: Any,
    policy_params: Any,
    before: Course,
    now: jax.Array,
    plans: jax.Array,
    noises: Callable[[Any], StepNoise],
    horizon: jax.Array,
) -> tuple[Any, jax.Array, jax.Array]:
    """Some samples of a tile's slots: kept [rows,chunk*slots,...], ends [chunk*slots].

    Its trajectories are [chunk*slots], so that what a slot shares (`before`, `now` and `plans`, leading [slots]) is
    spread over a leading axis.
    """

    def each(row: jax.Array) -> jax.Array:
        """[slots,...] -> [chunk*slots,...]."""
        return jnp.tile(row, (layout.chunk, *(1,) * (row.ndim - 1)))

    def flat(leaf: jax.Array) -> jax.Array:
        """[chunk,slots,...] -> [chunk*slots,...]."""
        return leaf.reshape(layout.chunk * layout.slots, *leaf.shape[2:])

    def keep(moment: Moment) -> Any:
        return jax.vmap(record.keep)(moment, each(now))

    # Before the first step all samples of a slot are one.
    run = partial(advance, world, own, policy_params)
    first = jax.vmap(jax.vmap(partial(run, index=0)), (None, None, 0))
    course, moment = jax.tree.map(flat, first(before, plans[:, 0], noises(0)))
    kept = jax.tree.map(lambda leaf: jnp.zeros((layout.rows, *leaf.shape), leaf.dtype).at[0].set(leaf), keep(moment))

    def body(index: Any, carry: tuple[Course, Any]) -> tuple[Course, Any]:
        course, moment = jax.vmap(partial(run, index=index))(
            carry[0], each(plans[:, index]), jax.tree.map(flat, noises(index))
        )
        return course, jax.tree.map(lambda whole, part: whole.at[index].set(part), carry[1], keep(moment))

    course, kept = jax.lax.fori_loop(1, horizon, body, (course, kept))
    return kept, *jax.vmap(partial(finish, world, own))(course)


def _if_any(asked: jax.Array, run: Callable[[], Any]) -> Any:
    """What `run` gives, or zeros where nothing is asked for."""
    blank = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(run))
    return jax.lax.cond(asked.any(), run, lambda: blank)


def _number(layout: Layout, group: jax.Array, member: Any) -> jax.Array:
    """i32[...,width]: samples of a member in a slot; sample s belongs to member s mod M."""
    return jnp.add.outer(group * layout.width, jnp.arange(layout.width)) * layout.members + member


def _keys(layout: Layout, job: Job, seed: jax.Array, member: jax.Array, number: jax.Array) -> jax.Array:
    """key[width,slots] of the tile's different noises."""
    patient = job.patient_of[number]
    stay, last = job.histories.stay_id[patient], job.histories.length[patient] - 1
    of_slot = jax.vmap(trajectory_key, (None, None, None, 0))
    return jax.vmap(of_slot, (None, 0, 0, 0), 1)(seed, stay, last, _number(layout, job.group_of[number], member))


def _noise(world: World, layout: Layout, job: Job, keys: jax.Array, number: jax.Array, index: Any) -> StepNoise:
    """StepNoise with leading [chunk,slots] of one step: of `keys` [chunk,slots] only those that the tile has."""
    draw = jax.vmap(jax.vmap(lambda key: step_noise(world.dynamics, key, index)))
    few = layout.slots // _SHARE

    def turn(number: jax.Array, drawn: StepNoise) -> StepNoise:
        new = draw(jax.lax.dynamic_slice_in_dim(keys, number * few, few, axis=1))
        put = partial(jax.lax.dynamic_update_slice_in_dim, start_index=number * few, axis=1)
        return jax.tree.map(put, drawn, new)

    blank = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(draw, keys))
    drawn = jax.lax.fori_loop(0, -(-job.noises[number] // few), turn, blank)
    return jax.tree.map(lambda leaf: leaf[:, job.source[number]], drawn)


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
