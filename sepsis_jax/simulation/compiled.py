"""How a block is compiled: what XLA is told beyond its defaults on a CPU."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import jax

from sepsis_jax.simulation.block import STATIC, run_blocks

_WIDE = {"xla_cpu_prefer_vector_width": 512}  # where there is AVX-512; elsewhere what there is
_OWN_PRODUCTS = {"xla_cpu_experimental_ynn_fusion_type": ""}  # no YNNPACK, but what XLA had before


@cache
def compiled(precision: str) -> Any:
    """`run_blocks` for a `Dynamics.precision` on this machine.

    On a CPU, wide registers save 4 % and products in float32 are a tenth faster without YNNPACK; those in bfloat16
    need it (docs/decisions.md).
    """
    wanted = [_WIDE] + [_OWN_PRODUCTS] * (precision == "float32")
    options = {name: value for one in wanted if _understood(one) for name, value in one.items()}
    if jax.default_backend() != "cpu" or not options:
        return run_blocks
    return jax.jit(inspect.unwrap(run_blocks), static_argnames=STATIC, compiler_options=options)


def _understood(options: dict[str, Any]) -> bool:
    """Whether this version of XLA has them."""
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
