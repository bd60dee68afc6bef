"""How a block is compiled: which library multiplies its matrices."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import jax

from sepsis_jax.simulation.block import STATIC, run_blocks

_OWN_PRODUCTS = {"xla_cpu_experimental_ynn_fusion_type": ""}  # no YNNPACK, but what XLA had before


@cache
def compiled(precision: str) -> Any:
    """`run_blocks` for a `Dynamics.precision` on this machine.

    On a CPU, products in float32 are a tenth faster without YNNPACK, and those in bfloat16 need it (docs/decisions.md).
    """
    if jax.default_backend() != "cpu" or precision != "float32" or not _understood():
        return run_blocks
    plain = inspect.unwrap(run_blocks)
    return jax.jit(plain, static_argnames=STATIC, compiler_options=_OWN_PRODUCTS)


def _understood() -> bool:
    """Whether this version of XLA has the option."""
    try:
        jax.jit(lambda: 0, compiler_options=_OWN_PRODUCTS).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
