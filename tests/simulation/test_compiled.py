"""What a compiled block looks like: its options and its shapes."""

from __future__ import annotations

import pytest

from sepsis_jax.simulation import compiled
from sepsis_jax.simulation.block import run_blocks


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
