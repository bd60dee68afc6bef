"""Shared test set-up: strict rank promotion, eight CPU devices, one compilation cache for all workers."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Fast tests compile much and compute little: without optimisation they take half the time, with the older way to fuse
# loops a third less again. XLA_FLAGS has the last word.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
    + os.environ.get("XLA_FLAGS", "")
)

import hypothesis
import jax
import pytest

hypothesis.settings.register_profile("fast", max_examples=40, deadline=None)
hypothesis.settings.load_profile("fast")

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parent.parent / ".cache" / "xla"))


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)
