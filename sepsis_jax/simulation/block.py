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
_SHARE = 8  # pieces of a tile at least, and the most turns in which its noises are drawn


@dataclasses.dataclass(frozen=True)
class Layout:
    """Static shapes of a block.

    Attributes:
      members: M. slots: N of the block, and the most cells and patients that it can hold. parts: of a slot's samples
        of one member. chunk: samples of a part; this part of one slot is a piece. pieces: of a tile. rows: steps that
        there is room for.
    """

    members: int
    slots: int
    parts: int
    chunk: int
    pieces: int
    rows: int

    @classmethod
    def of(cls, members: int, samples: int, horizon: int, block: int, tile: int = TILE) -> Layout:
        """For this many samples of a cell, in tiles of so many trajectories a member; ValueError beyond 65,536."""
        if not 1 <= samples <= MOST_SAMPLES:
            raise ValueError(f"expected 1 to {MOST_SAMPLES} samples, found {samples}")
        unit = next(unit for unit in _UNITS if samples <= unit * _MOST_SLOTS)
        width = math.ceil(unit / members)
        # A chunk shares the first step. Few samples are apart, so that none is computed that nobody asked for.
        parts = width if unit == _UNITS[0] else math.ceil(width * _SHARE / tile)
        chunk = math.ceil(width / parts)
        slots, rows = max(_MOST_SLOTS, block // unit), _ROWS * math.ceil(horizon / _ROWS)
        return cls(members, slots, parts, chunk, max(_SHARE, tile // chunk), rows)

    @property
    def width(self) -> int:
        """W, samples of one member in a slot."""
        return self.parts * self.chunk

    @property
    def tiles(self) -> int:
        """T, of each member."""
        return math.ceil(self.slots * self.parts / self.pieces)

    def slots_of_cell(self, samples: Any) -> Any:
        """How many slots the samples (int or i32[]) of a cell take."""
        return -(-samples // (self.members * self.width))


@struct.dataclass
class Job:
    """What a block is to simulate. Slot i is the (i div C)-th of cell i mod C.

    Attributes:
      histories: History with leading N. plans: int8[N,rows,2] of each cell. row: i32[N] patient of each cell, ascending.
      cells: i32[], C: how many of them count. samples, horizon: i32[].
    """

    histories: History
    plans: Any
    row: Any
    cells: Any
    samples: Any
    horizon: Any


@struct.dataclass
class Pieces:
    """Those of one tile, i32[pieces] each.

    Attributes:
      cell, row: of each, and the patient. group, part: which of the cell's slots it is part of, and which part.
      noise: which of the tile's different noises it has. first: of each noise a piece that has it; the first `noises`
        i32[] count.
      live: bool[pieces].
    """

    cell: Any
    row: Any
    group: Any
    part: Any
    noise: Any
    first: Any
    noises: Any
    live: Any


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
    now = jax.vmap(lambda history: history.obs[history.length - 1])(job.histories)
    slots = job.cells * layout.slots_of_cell(job.samples)
    asked = jnp.minimum(layout.parts, -(-job.samples // (layout.members * layout.chunk)))

    def begin(member: Any) -> Callable[[Any], Any]:
        own = world.dynamics.member(params, member)
        starts = _encode(world, own, policy_params, job)
        return partial(_tile, world, record, layout, own, policy_params, job, starts, now, seed, member)

    def of_member(member: Any, found: Any) -> Any:
        tile = begin(member)

        def put(number: Any, found: Any) -> Any:
            return jax.tree.map(lambda whole, new: whole.at[member, number].set(new), found, tile(number))

        return jax.lax.fori_loop(0, -(-slots * asked // layout.pieces), put, found)

    shapes = jax.eval_shape(lambda: begin(0)(0))
    empty = jax.tree.map(lambda leaf: jnp.zeros((layout.members, layout.tiles, *leaf.shape), leaf.dtype), shapes)
    kept, death_90d, value = jax.lax.fori_loop(0, layout.members, of_member, empty)

    def by_slot(leaf: jax.Array) -> jax.Array:
        """[M,T,pieces,chunk,...] -> [N,M,W,...]."""
        flat = leaf.reshape(layout.members, layout.tiles * layout.pieces, *leaf.shape[3:])
        part = partial(jax.lax.dynamic_slice_in_dim, flat, slice_size=layout.slots, axis=1)
        apart = jax.lax.map(lambda number: part(number * slots), jnp.arange(layout.parts))  # [parts,M,N,chunk,...]
        apart = jnp.moveaxis(apart, (2, 1), (0, 1))
        return apart.reshape(layout.slots, layout.members, layout.width, *leaf.shape[4:])

    index = jnp.arange(layout.slots)
    group, cell = jnp.divmod(index, jnp.maximum(job.cells, 1))
    first = group * layout.width
    numbers = [_numbers(layout, first, layout.width, member) for member in range(layout.members)]
    valid = (index < slots)[:, None, None] & (jnp.stack(numbers, axis=1) < job.samples)
    samples = Samples(valid, cell)

    def reduce(index: Any, found: Any) -> Any:
        step = record.step(samples, jax.tree.map(lambda leaf: by_slot(leaf[:, :, index]), kept))
        return jax.tree.map(lambda whole, new: whole.at[index].set(new), found, step)

    shapes = jax.eval_shape(lambda: record.step(samples, jax.tree.map(lambda leaf: by_slot(leaf[:, :, 0]), kept)))
    empty = jax.tree.map(lambda leaf: jnp.zeros((layout.rows, *leaf.shape), leaf.dtype), shapes)
    steps = jax.lax.fori_loop(0, job.horizon, reduce, empty)
    return steps, record.end(samples, by_slot(death_90d), by_slot(value))


def _pieces(layout: Layout, job: Job, number: Any) -> Pieces:
    """Of one tile. They are ordered by part, group, patient and cell, so that those with the same noise are neighbours."""
    cells = jnp.maximum(job.cells, 1)
    index = number * layout.pieces + jnp.arange(layout.pieces)
    part, slot = jnp.divmod(index, cells * layout.slots_of_cell(job.samples))
    group, cell = jnp.divmod(slot, cells)
    live, row = part < layout.parts, job.row[cell]
    same = [axis[1:] == axis[:-1] for axis in (part, group, row)]
    noise = jnp.cumsum(jnp.append(False, ~jnp.stack(same).all(axis=0)))
    first = jnp.searchsorted(noise, jnp.arange(layout.pieces))
    return Pieces(cell, row, group, part, noise, first, jnp.where(live, noise, 0).max() + 1, live)


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
    member: Any,
    number: Any,
) -> tuple[Any, jax.Array, jax.Array]:
    """One tile of one member from the decision to the horizon: kept [rows,pieces,chunk,...], ends [pieces,chunk].

    Its trajectories are [chunk*pieces], so that what a slot shares is spread over a leading axis.
    """
    pieces = _pieces(layout, job, number)
    numbers = _numbers(layout, pieces.group * layout.width + pieces.part * layout.chunk, layout.chunk, member)
    noises = partial(_noise, world, layout, _keys(layout, job, seed, pieces, numbers), pieces)
    plans = job.plans[pieces.cell]

    def each(row: jax.Array) -> jax.Array:
        """[pieces,...] -> [chunk*pieces,...]."""
        return jnp.tile(row, (layout.chunk, *(1,) * (row.ndim - 1)))

    def flat(leaf: jax.Array) -> jax.Array:
        """[chunk,pieces,...] -> [chunk*pieces,...]."""
        return leaf.reshape(layout.chunk * layout.pieces, *leaf.shape[2:])

    def keep(moment: Moment) -> Any:
        return jax.vmap(record.keep)(moment, each(now[pieces.row]))

    def run() -> tuple[Any, jax.Array, jax.Array]:
        # Before the first step all samples of a slot are one.
        one = partial(advance, world, own, policy_params)
        first = jax.vmap(jax.vmap(partial(one, index=0)), (None, None, 0))
        before = jax.tree.map(lambda leaf: leaf[pieces.row], starts)
        course, moment = jax.tree.map(flat, first(before, plans[:, 0], noises(0)))

        def body(index: Any, carry: tuple[Course, Any]) -> tuple[Course, Any]:
            noise = jax.tree.map(flat, noises(index))
            course, moment = jax.vmap(partial(one, index=index))(carry[0], each(plans[:, index]), noise)
            return course, jax.tree.map(lambda whole, new: whole.at[index].set(new), carry[1], keep(moment))

        def begin(leaf: jax.Array) -> jax.Array:
            return jnp.zeros((layout.rows, *leaf.shape), leaf.dtype).at[0].set(leaf)

        course, kept = jax.lax.fori_loop(1, job.horizon, body, (course, jax.tree.map(begin, keep(moment))))
        ends = jax.vmap(partial(finish, world, own))(course)
        return jax.tree.map(partial(by_piece, axis=1), kept), *map(partial(by_piece, axis=0), ends)

    def by_piece(leaf: jax.Array, axis: int) -> jax.Array:
        """[...,chunk*pieces,...] -> [...,pieces,chunk,...]."""
        apart = leaf.reshape(*leaf.shape[:axis], layout.chunk, layout.pieces, *leaf.shape[axis + 1 :])
        return apart.swapaxes(axis, axis + 1)

    return _if_any(pieces.live[:, None] & (numbers < job.samples), run)


def _if_any(asked: jax.Array, run: Callable[[], Any]) -> Any:
    """What `run` gives, or zeros where nothing is asked for."""
    blank = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(run))
    return jax.lax.cond(asked.any(), run, lambda: blank)


def _numbers(layout: Layout, first: jax.Array, count: int, member: Any) -> jax.Array:
    """i32[...,count]: samples of a member from its `first` i32[...]; sample s belongs to member s mod M."""
    return jnp.add.outer(first, jnp.arange(count)) * layout.members + member


def _keys(layout: Layout, job: Job, seed: jax.Array, pieces: Pieces, numbers: jax.Array) -> jax.Array:
    """key[chunk,few*_SHARE] of the tile's different noises, from the `numbers` i32[pieces,chunk] of its samples."""
    first = jnp.resize(pieces.first, _SHARE * _few(layout))
    patient = pieces.row[first]
    stay, last = job.histories.stay_id[patient], job.histories.length[patient] - 1
    of_piece = jax.vmap(trajectory_key, (None, None, None, 0))
    return jax.vmap(of_piece, (None, 0, 0, 0), 1)(seed, stay, last, numbers[first])


def _noise(world: World, layout: Layout, keys: jax.Array, pieces: Pieces, index: Any) -> StepNoise:
    """StepNoise with leading [chunk,pieces] of one step: only those that the tile has are drawn."""
    draw = jax.vmap(jax.vmap(lambda key: step_noise(world.dynamics, key, index)))
    few = _few(layout)

    def turn(number: jax.Array, drawn: StepNoise) -> StepNoise:
        new = draw(jax.lax.dynamic_slice_in_dim(keys, number * few, few, axis=1))
        put = partial(jax.lax.dynamic_update_slice_in_dim, start_index=number * few, axis=1)
        return jax.tree.map(put, drawn, new)

    blank = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(draw, keys))
    drawn = jax.lax.fori_loop(0, -(-pieces.noises // few), turn, blank)
    return jax.tree.map(lambda leaf: leaf[:, pieces.noise], drawn)


def _few(layout: Layout) -> int:
    """Noises that are drawn in a turn."""
    return math.ceil(layout.pieces / _SHARE)


def _encode(world: World, own: Any, policy_params: Any, job: Job) -> Course:
    """Course with leading [N] at the decision of each patient; rows beyond them are not computed."""
    read = jax.vmap(partial(start, world, own, policy_params))

    def some(part: jax.Array, found: Course) -> Course:
        rows = part * _AT_A_TIME + jnp.arange(_AT_A_TIME)
        new = read(jax.tree.map(lambda leaf: leaf[rows], job.histories))
        return jax.tree.map(lambda whole, new: whole.at[rows].set(new), found, new)

    shapes = jax.eval_shape(read, job.histories)
    empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    patients = jnp.where(job.cells > 0, job.row[job.cells - 1] + 1, 0)
    return jax.lax.fori_loop(0, -(-patients // _AT_A_TIME), some, empty)
