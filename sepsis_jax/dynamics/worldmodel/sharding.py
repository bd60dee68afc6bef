"""Where training runs: every device of every process, with the weights on all of them and each batch divided.

The numbers do not depend on the number of devices but for the order of sums: a batch is the same stays everywhere.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sepsis_jax.errors import InputError

COORDINATOR, PROCESSES, PROCESS = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
_STAYS = "stays"


def join_processes() -> None:
    """Join the other processes of the run where the environment names their coordinator. Call it before any JAX.

    Number and index of the processes come from the environment too; on Slurm, Open MPI, Kubernetes and Cloud TPU JAX
    finds them itself.

    Raises:
      InputError: a variable is no number, or the coordinator cannot be reached.
    """
    address = os.environ.get(COORDINATOR)
    if address is None or jax.distributed.is_initialized():
        return
    number, index = (_whole(name) for name in (PROCESSES, PROCESS))
    try:
        jax.distributed.initialize(address, number, index)
    except (RuntimeError, ValueError, TypeError) as error:
        hint = f"set {PROCESSES} and {PROCESS} too"
        raise InputError(
            COORDINATOR, expected="a coordinator to join", found=f"{address}: {error}", hint=hint
        ) from None


def one_device_a_core() -> None:
    """Let JAX see every core as a device of its own; does nothing where the user chose, or once JAX has begun.

    Two programs side by side keep two cores busy; one program, each operation of which waits for both, does not.
    """
    chosen = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not chosen and jax.config.jax_num_cpu_devices < 0:  # type: ignore[attr-defined]
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", _cores())


def _cores() -> int:
    """That this process may use: a job is often given a few of a machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _whole(name: str) -> int | None:
    value = os.environ.get(name)
    if value is not None and not value.isdigit():
        raise InputError(name, expected="a whole number", found=value)
    return None if value is None else int(value)


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def place() -> tuple[int, int]:
    """Index of this process, and how many there are."""
    return jax.process_index(), jax.process_count()


def mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """One row of devices; None takes all of them, of all processes."""
    return Mesh(np.array(jax.devices() if devices is None else devices), (_STAYS,))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Put host arrays, the same in every process, on every device."""
    everywhere = NamedSharding(mesh, PartitionSpec())

    def put(leaf: Any) -> jax.Array:
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, everywhere, lambda index: leaf[index])

    return jax.tree.map(put, tree)


def to_host(tree: Any) -> Any:
    """NumPy arrays of replicated ones; also where other processes hold copies."""
    return jax.tree.map(lambda leaf: np.asarray(leaf.addressable_data(0)), tree)


def from_first(tree: Any) -> Any:
    """What the first process holds, in every process; NumPy arrays of the same shapes everywhere."""
    return multihost_utils.broadcast_one_to_all(tree) if jax.process_count() > 1 else tree


def same_everywhere(text: str) -> bool:
    """Whether every process came here with this text, of equal length."""
    if jax.process_count() == 1:
        return True
    own = np.frombuffer(text.encode(), np.uint8)
    return bool((multihost_utils.process_allgather(own) == own).all())


def wait_for_all(name: str) -> None:
    """Return when every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def keep_replicated(tree: Any, mesh: Mesh) -> Any:
    """Inside a compiled function: hold `tree` on every device."""
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec()))


def divide(tree: Any, mesh: Mesh, *, axis: int) -> Any:
    """Inside a compiled function: divide the stays, which lie along `axis` of every leaf, among the devices."""
    spec = PartitionSpec(*[None] * axis, _STAYS)
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, spec))


def fill_up(rows: jax.Array, mesh: Mesh, empty: int) -> jax.Array:
    """i32[...,b] -> i32[...,b']: b' is a multiple of the number of devices, filled up with the row of an empty stay."""
    missing = -rows.shape[-1] % mesh.size
    return jnp.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, missing)], constant_values=empty)
