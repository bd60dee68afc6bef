"""The compiled program of a block: its way from histories to what a record keeps.

See `layout` for its shapes, and `batch`, whose host side fills a block. What no candidate changes is computed once: the
history once a patient and member, the distribution of the first step once a slot, the noise once for all slots of a
tile that share it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from sepsis_jax.dynamics.protocol import History, StepNoise, step_noise, trajectory_key
from sepsis_jax.simulation.course import Course, Moment, World, advance, finish, start
from sepsis_jax.simulation.layout import TURNS, Job, Layout, Pieces, in_slots, pieces_of, samples_of
from sepsis_jax.simulation.record import Record, Samples
from sepsis_jax.simulation.threefry import unrolled

AXIS = "blocks"
"""Of the mesh of devices."""
STATIC = ("world", "record", "layout", "mesh")
"""Of `run_blocks`."""
_AT_A_TIME = 8  # histories to read


@partial(jax.jit, static_argnames=STATIC)
def run_blocks(
    world: World,
    record: Record,
    layout: Layout,
    mesh: Mesh,
    params: Any,
    policy_params: Any,
    jobs: Job,
) -> Any:
    """`_run_block` of one Job a device (leading axis), each at its own pace."""

    def one(jobs: Job, params: Any, policy_params: Any) -> Any:
        found = _run_block(world, record, layout, params, policy_params, jax.tree.map(lambda leaf: leaf[0], jobs))
        return jax.tree.map(lambda leaf: leaf[None], found)

    specs = (PartitionSpec(AXIS), PartitionSpec(), PartitionSpec())
    divided = jax.shard_map(one, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(AXIS), check_vma=False)
    return divided(jobs, params, policy_params)


def _run_block(world: World, record: Record, layout: Layout, params: Any, policy_params: Any, job: Job) -> Any:
    """What `record` keeps of the steps (leading [rows,N]) and of the ends (leading N) of one block."""
    slots = job.cells * layout.slots_of_cell(job.samples)
    kept, death_90d, value = _run_tiles(world, record, layout, params, policy_params, job)

    def by_slot(leaf: jax.Array) -> jax.Array:
        """[M,T,pieces,chunk,...] -> [N,M,W,...]."""
        flat = leaf.reshape(layout.members, layout.tiles * layout.pieces, *leaf.shape[3:])
        part = partial(jax.lax.dynamic_slice_in_dim, flat, slice_size=layout.slots, axis=1)
        apart = jax.lax.map(lambda number: part(number * slots), jnp.arange(layout.parts))  # [parts,M,N,chunk,...]
        apart = jnp.moveaxis(apart, (2, 1), (0, 1))
        return apart.reshape(layout.slots, layout.members, layout.width, *leaf.shape[4:])

    index = jnp.arange(layout.slots)
    group, cell = jnp.divmod(index, jnp.maximum(job.cells, 1))
    within = in_slots(layout, group, layout.slots_of_cell(job.samples))
    sample = jnp.stack([samples_of(layout, within, member) for member in range(layout.members)], axis=1)
    samples = Samples((index < slots)[:, None, None] & (sample < job.samples), cell)

    def reduce(index: Any, found: Any) -> Any:
        step = record.step(samples, jax.tree.map(lambda leaf: by_slot(leaf[:, :, index]), kept))
        return jax.tree.map(lambda whole, new: whole.at[index].set(new), found, step)

    shapes = jax.eval_shape(lambda: record.step(samples, jax.tree.map(lambda leaf: by_slot(leaf[:, :, 0]), kept)))
    empty = jax.tree.map(lambda leaf: jnp.zeros((layout.rows, *leaf.shape), leaf.dtype), shapes)
    steps = jax.lax.fori_loop(0, job.horizon, reduce, empty)
    return steps, record.end(samples, by_slot(death_90d), by_slot(value))


def _run_tiles(
    world: World, record: Record, layout: Layout, params: Any, policy_params: Any, job: Job
) -> tuple[Any, jax.Array, jax.Array]:
    """What `_tile` gives, with leading [M,T]; zeros for tiles that nobody asked for."""
    now = jax.vmap(lambda history: history.obs[history.length - 1])(job.histories)
    tiles = layout.tiles_of(job.cells, job.samples)

    def of_member(member: Any, room: tuple[Course, Any]) -> tuple[Callable[[Any], Any], tuple[Course, Any]]:
        """What computes a tile of a member, and the starts that it takes, written over `room`."""
        own = world.dynamics.member(params, member)
        starts = _encode(world, own, policy_params, job, room)

        def tile(number: Any) -> Any:
            pieces = pieces_of(layout, job, number)
            samples = samples_of(layout, jnp.add.outer(pieces.sample, jnp.arange(layout.chunk)), member)
            noises = partial(_noise, world, layout, _keys(job, pieces, samples), pieces)
            run = partial(_tile, world, record, layout, own, policy_params, job, starts, now, pieces, noises)
            return _if_any(pieces.live[:, None] & (samples < job.samples), run)

        return tile, starts

    def add_member(member: Any, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        found, room = carry
        tile, starts = of_member(member, room)

        def add(number: Any, found: Any) -> Any:
            return jax.tree.map(lambda whole, new: whole.at[member, number].set(new), found, tile(number))

        return jax.lax.fori_loop(0, tiles, add, found), starts

    read = jax.vmap(partial(_read, world, world.dynamics.member(params, 0), policy_params))
    room = _blank(read, job.histories)
    shapes = jax.eval_shape(lambda: of_member(0, room)[0](0))
    empty = jax.tree.map(lambda leaf: jnp.zeros((layout.members, layout.tiles, *leaf.shape), leaf.dtype), shapes)
    return jax.lax.fori_loop(0, layout.members, add_member, (empty, room))[0]


def _tile(
    world: World,
    record: Record,
    layout: Layout,
    own: Any,
    policy_params: Any,
    job: Job,
    starts: tuple[Course, Any],
    now: jax.Array,
    pieces: Pieces,
    noises: Callable[[Any], StepNoise],
) -> tuple[Any, jax.Array, jax.Array]:
    """One tile of one member from the decision to the horizon: kept [rows,pieces,chunk,...], ends [pieces,chunk].

    Its trajectories are [chunk*pieces], so that what a slot shares is spread over a leading axis.
    """
    plans = job.plans[pieces.cell]

    def each(row: jax.Array) -> jax.Array:
        """[pieces,...] -> [chunk*pieces,...]."""
        return jnp.tile(row, (layout.chunk, *(1,) * (row.ndim - 1)))

    def flat(leaf: jax.Array) -> jax.Array:
        """[chunk,pieces,...] -> [chunk*pieces,...]."""
        return leaf.reshape(layout.chunk * layout.pieces, *leaf.shape[2:])

    def keep(moment: Moment) -> Any:
        return jax.vmap(record.keep)(moment, each(now[pieces.row]))

    def by_piece(leaf: jax.Array, axis: int) -> jax.Array:
        """[...,chunk*pieces,...] -> [...,pieces,chunk,...]."""
        apart = leaf.reshape(*leaf.shape[:axis], layout.chunk, layout.pieces, *leaf.shape[axis + 1 :])
        return apart.swapaxes(axis, axis + 1)

    # Before the first step all samples of a slot are one.
    run = partial(advance, world, own, policy_params)
    first = jax.vmap(jax.vmap(run, (0, 0, 0, None, 0)), (None, None, 0, None, None))
    before, shared = jax.tree.map(lambda leaf: leaf[pieces.row], starts)
    course, moment = jax.tree.map(flat, first(before, plans[:, 0], noises(0), 0, shared))
    kept = jax.tree.map(lambda leaf: jnp.zeros((layout.rows, *leaf.shape), leaf.dtype).at[0].set(leaf), keep(moment))

    def body(index: Any, carry: tuple[Course, Any]) -> tuple[Course, Any]:
        noise = jax.tree.map(flat, noises(index))
        course, moment = jax.vmap(partial(run, index=index))(carry[0], each(plans[:, index]), noise)
        return course, jax.tree.map(lambda whole, new: whole.at[index].set(new), carry[1], keep(moment))

    course, kept = jax.lax.fori_loop(1, job.horizon, body, (course, kept))
    ends = jax.vmap(partial(finish, world, own))(course)
    return jax.tree.map(partial(by_piece, axis=1), kept), *map(partial(by_piece, axis=0), ends)


def _if_any(asked: jax.Array, run: Callable[[], Any]) -> Any:
    """What `run` gives, or zeros where nothing is asked for."""
    return jax.lax.cond(asked.any(), run, lambda: _blank(run))


def _blank(run: Callable[..., Any], *args: Any) -> Any:
    """Zeros of the shapes that `run` gives."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(run, *args))


def _keys(job: Job, pieces: Pieces, samples: jax.Array) -> jax.Array:
    """key[chunk,pieces] of a tile's different noises, from the numbers of its `samples` i32[pieces,chunk]."""
    seed = jax.random.wrap_key_data(job.seed, impl="threefry2x32")
    seed = unrolled(seed) if jax.default_backend() == "cpu" else seed
    patient = pieces.row[pieces.first]
    stay, last = job.histories.stay_id[patient], job.histories.length[patient] - 1
    of_piece = jax.vmap(trajectory_key, (None, None, None, 0))
    return jax.vmap(of_piece, (None, 0, 0, 0), 1)(seed, stay, last, samples[pieces.first])


def _noise(world: World, layout: Layout, keys: jax.Array, pieces: Pieces, index: Any) -> StepNoise:
    """StepNoise with leading [chunk,pieces] of one step: only those that the tile has are drawn."""
    draw = jax.vmap(jax.vmap(lambda key: step_noise(world.dynamics, key, index)))
    few = layout.pieces // TURNS

    def turn(number: jax.Array, drawn: StepNoise) -> StepNoise:
        new = draw(jax.lax.dynamic_slice_in_dim(keys, number * few, few, axis=1))
        put = partial(jax.lax.dynamic_update_slice_in_dim, start_index=number * few, axis=1)
        return jax.tree.map(put, drawn, new)

    drawn = jax.lax.fori_loop(0, -(-pieces.noises // few), turn, _blank(draw, keys))
    return jax.tree.map(lambda leaf: leaf[:, pieces.noise], drawn)


def _encode(world: World, own: Any, policy_params: Any, job: Job, room: tuple[Course, Any]) -> tuple[Course, Any]:
    """`_read` of each patient, written over `room` (leading [N]); rows beyond the patients stay as they are."""
    read = jax.vmap(partial(_read, world, own, policy_params))
    patients = jnp.where(job.cells > 0, job.row[job.cells - 1] + 1, 0)

    def some(part: jax.Array, found: Any) -> Any:
        rows = jnp.minimum(part * _AT_A_TIME + jnp.arange(_AT_A_TIME), patients - 1)
        new = read(jax.tree.map(lambda leaf: leaf[rows], job.histories))
        return jax.tree.map(lambda whole, new: whole.at[rows].set(new), found, new)

    return jax.lax.fori_loop(0, -(-patients // _AT_A_TIME), some, room)


def _read(world: World, own: Any, policy_params: Any, history: History) -> tuple[Course, Any]:
    """Course at the decision of one patient, and what `Dynamics.shared` gives for it."""
    course = start(world, own, policy_params, history)
    return course, world.dynamics.shared(own, course.state)
