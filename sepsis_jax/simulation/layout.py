"""How what is to be simulated is laid out in a block: slots, their parts, and the tiles that are computed together."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct

from sepsis_jax.dynamics.protocol import History

_UNITS = (16, 256, 4096)  # samples of a slot
_MOST_SLOTS = 16  # of a cell
MOST_SAMPLES = _UNITS[-1] * _MOST_SLOTS
"""Of a cell."""
TILE, SMALL_TILE, LARGE_TILE = 256, 128, 65_536
"""Trajectories of a member that are computed together: what the cache of a core holds; few; an accelerator."""
_ROWS = 24  # steps; a horizon beyond needs another program
TURNS = 8
"""Its pieces are a multiple of this, and it is the most turns in which its noises are drawn."""


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
        parts = width if unit == _UNITS[0] else math.ceil(width * TURNS / tile)
        chunk = math.ceil(width / parts)
        slots, rows = max(_MOST_SLOTS, block // unit), _ROWS * math.ceil(horizon / _ROWS)
        return cls(members, slots, parts, chunk, TURNS * max(1, tile // (TURNS * chunk)), rows)

    @property
    def width(self) -> int:
        """W, samples of one member in a slot."""
        return self.parts * self.chunk

    @property
    def tiles(self) -> int:
        """T, of each member."""
        return math.ceil(self.slots * self.parts / self.pieces)

    def tiles_of(self, cells: Any, samples: Any) -> Any:
        """How many tiles of a member hold all samples (int or i32[]) of so many cells."""
        return -(-(-(-samples // (self.members * self.chunk)) * cells) // self.pieces)

    def slots_of_cell(self, samples: Any) -> Any:
        """How many slots the samples (int or i32[]) of a cell take."""
        return -(-samples // (self.members * self.width))


@struct.dataclass
class Job:
    """What a block is to simulate. Slot i is the (i div C)-th of cell i mod C.

    Attributes:
      histories: History with leading N. plans: int8[N,rows,2] of each cell.
      row: i32[N] patient of each cell, ascending. cells: i32[], C: how many of them count; the rest is anything.
      samples, horizon: i32[]. seed: u32[2], data of the run's key.
    """

    histories: History
    plans: Any
    row: Any
    cells: Any
    samples: Any
    horizon: Any
    seed: Any


@struct.dataclass
class Pieces:
    """Those of one tile, i32[pieces] each.

    Attributes:
      cell, row: of each, and the patient. sample: the first of its samples, counted within a member.
      noise: which of the tile's different noises it has. first: of each noise a piece that has it; the first `noises`
        i32[] count.
      live: bool[pieces].
    """

    cell: Any
    row: Any
    sample: Any
    noise: Any
    first: Any
    noises: Any
    live: Any


def pieces_of(layout: Layout, job: Job, tile: Any) -> Pieces:
    """Of one tile. They are ordered by samples, patient and cell, so that those with the same noise are neighbours."""
    index = tile * layout.pieces + jnp.arange(layout.pieces)
    number, cell = jnp.divmod(index, jnp.maximum(job.cells, 1))
    live, row = number < layout.slots_of_cell(job.samples) * layout.parts, job.row[cell]
    other = (row[1:] != row[:-1]) | (number[1:] != number[:-1])
    noise = jnp.cumsum(jnp.append(False, other))
    first = jnp.searchsorted(noise, jnp.arange(layout.pieces))
    return Pieces(cell, row, number * layout.chunk, noise, first, jnp.where(live, noise, 0).max() + 1, live)


def in_slots(layout: Layout, group: Any, groups: Any) -> Any:
    """i32[N,W]: samples of a member, counted within it, in the `group`-th i32[N] of a cell's `groups` i32[] slots.

    A cell's pieces of a member are numbered part by part, and hold as many consecutive samples each.
    """
    part, place = np.divmod(np.arange(layout.width), layout.chunk)
    return (part[None] * groups + group[:, None]) * layout.chunk + place[None]


def samples_of(layout: Layout, within: Any, member: Any) -> Any:
    """Numbers of the samples that are counted i32[...] within a member; sample s belongs to member s mod M."""
    return within * layout.members + member
