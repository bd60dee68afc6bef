"""What a compiled block looks like: its options and its shapes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sepsis_jax.simulation import compiled
from sepsis_jax.simulation.block import LARGE_TILE, MOST_SAMPLES, SMALL_TILE, TILE, Layout, run_blocks


@pytest.fixture
def asked_anew():
    compiled.compiled.cache_clear()
    yield
    compiled.compiled.cache_clear()


def test_options_that_xla_does_not_know_are_left_out(monkeypatch, asked_anew):
    monkeypatch.setattr(compiled, "_OWN_PRODUCTS", {"xla_cpu_no_such_option": ""})
    assert compiled.compiled("float32") is not run_blocks  # the other one is known
    compiled.compiled.cache_clear()
    monkeypatch.setattr(compiled, "_WIDE", {"xla_cpu_no_such_option": 1})
    assert compiled.compiled("float32") is run_blocks


def test_accelerators_get_no_option_of_a_cpu(monkeypatch, asked_anew):
    monkeypatch.setattr(compiled.jax, "default_backend", lambda: "gpu")
    assert compiled.compiled("float32") is run_blocks


@given(
    st.integers(1, 12),
    st.integers(1, MOST_SAMPLES),
    st.integers(1, 80),
    st.sampled_from((SMALL_TILE, TILE, LARGE_TILE)),
)
def test_a_layout_has_room_for_every_sample_and_keeps_tiles_small(members, samples, horizon, tile):
    layout = Layout.of(members, samples, horizon, 16_384, tile)
    groups = layout.slots_of_cell(samples)
    assert groups * layout.width * members >= samples
    assert groups <= layout.slots
    assert layout.chunk * layout.pieces <= max(tile, 8 * layout.chunk)
    assert layout.rows >= horizon
    # What is computed beyond the 16, 256 or 4,096 samples of a slot is less than one sample a part and member.
    unit = next(unit for unit in (16, 256, 4096) if samples <= unit * 16)
    assert layout.width * members < unit + members * (layout.parts + 1)
