"""Layouts of a block: room for every sample, and tiles that hold each sample once."""

import collections

import jax
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sepsis_jax.simulation.layout import (
    LARGE_TILE,
    MOST_SAMPLES,
    SMALL_TILE,
    TILE,
    TURNS,
    Job,
    Layout,
    pieces_of,
    samples_of,
)

MEMBERS, TILES = st.integers(1, 12), st.sampled_from((SMALL_TILE, TILE, LARGE_TILE))


@given(MEMBERS, st.integers(1, MOST_SAMPLES), st.integers(1, 80), TILES)
def test_a_layout_has_room_for_every_sample_and_keeps_tiles_small(members, samples, horizon, tile):
    layout = Layout.of(members, samples, horizon, 16_384, tile)
    groups = layout.slots_of_cell(samples)
    assert groups * layout.width * members >= samples
    assert groups <= layout.slots
    assert layout.chunk * layout.pieces <= max(tile, TURNS * layout.chunk)
    assert layout.pieces * layout.tiles >= layout.parts * layout.slots
    assert layout.pieces % TURNS == 0  # so that turns of noise fill a tile, and go no further
    assert layout.rows >= horizon
    # What is computed beyond the 16, 256 or 4,096 samples of a slot is less than one sample a part and member.
    unit = next(unit for unit in (16, 256, 4096) if samples <= unit * 16)
    assert layout.width * members < unit + members * (layout.parts + 1)


@given(
    st.integers(1, 4),
    st.integers(1, 600),
    st.lists(st.integers(1, 3), min_size=1, max_size=5),
    st.sampled_from((SMALL_TILE, TILE)),
)
def test_tiles_hold_every_sample_once_and_share_noise_between_the_cells_of_a_patient(members, samples, cells, tile):
    layout = Layout.of(members, samples, 1, 4096, tile)
    row = np.repeat(np.arange(len(cells)), cells)[: layout.slots // layout.slots_of_cell(samples)]
    filled = np.pad(row, (0, layout.slots - len(row)), constant_values=77)  # what is beyond is anything
    job = Job(None, None, filled, np.int32(len(row)), np.int32(samples), np.int32(1), None)
    seen: collections.Counter[tuple[int, int]] = collections.Counter()
    tiles = layout.tiles_of(len(row), samples)
    assert tiles <= layout.tiles
    for number in range(tiles):
        pieces = jax.tree.map(np.asarray, pieces_of(layout, job, number))
        shared: dict[int, set[tuple[int, int]]] = collections.defaultdict(set)
        for i in np.flatnonzero(pieces.live):
            assert pieces.row[i] == row[pieces.cell[i]]
            assert pieces.noise[i] < pieces.noises
            mine = pieces.row[i], pieces.sample[i]
            shared[int(pieces.noise[i])].add(mine)
            first = pieces.first[pieces.noise[i]]
            assert (pieces.row[first], pieces.sample[first]) == mine
            for member in range(members):
                of_piece = samples_of(layout, pieces.sample[i] + np.arange(layout.chunk), member)
                seen.update((int(pieces.cell[i]), int(sample)) for sample in of_piece if sample < samples)
        assert all(len(different) == 1 for different in shared.values())
        assert len(shared) == len(set.union(*shared.values(), set()))  # none is drawn twice
    assert seen == {(cell, sample): 1 for cell in range(len(row)) for sample in range(samples)}
