"""What a simulation is given, as arrays of the documented types; or one line about the first that is not."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from sepsis_jax.clinical.features import NUM_FEATURES, NUM_MASKED, STATICS
from sepsis_jax.dynamics.protocol import History
from sepsis_jax.errors import InputError
from sepsis_jax.simulation.course import World
from sepsis_jax.simulation.rollout import check_levels

_STEPS = -1  # of a shape
_FIELDS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "obs": (np.float32, (_STEPS, NUM_FEATURES)),
    "mask": (np.bool_, (_STEPS, NUM_MASKED)),
    "ventilated": (np.bool_, (_STEPS,)),
    "action": (np.int8, (_STEPS, 2)),
    "prior_action": (np.int8, (2,)),
    "static": (np.float32, (len(STATICS),)),
    "weight_kg": (np.float32, ()),
    "length": (np.int32, ()),
    "stay_id": (np.int32, ()),
}


def whole(name: str, given: Any, most: int) -> int:
    """`given` as an int from 1 to `most`; InputError otherwise."""
    number = isinstance(given, int | np.integer) and not isinstance(given, bool)
    if not (number and 1 <= given <= most):
        raise InputError(name, expected=f"a whole number from 1 to {most:,}", found=given)
    return int(given)


def checked_seed(seed: Any) -> jax.Array:
    """The key; InputError unless it is one key of Threefry, whose draws do not depend on the batch."""
    typed = isinstance(seed, jax.Array) and jax.dtypes.issubdtype(seed.dtype, jax.dtypes.prng_key)
    legacy = getattr(seed, "shape", None) == (2,) and getattr(seed, "dtype", None) == np.uint32
    if not legacy and not (typed and seed.shape == () and str(jax.random.key_impl(seed)) == "threefry2x32"):
        raise InputError("seed", expected="one key of Threefry, as jax.random.key(0) gives", found=repr(seed))
    return seed


def checked_histories(histories: History) -> History:
    """NumPy arrays of the documented types with one leading axis. InputError where they are none, or do not fit."""
    lengths = np.asarray(histories.length)
    if lengths.ndim != 1:
        raise InputError("histories", expected="a batch of patients", found=f"length of shape {lengths.shape}")
    if not lengths.size:
        raise InputError("histories", expected="at least one", found="none")
    steps = np.shape(histories.obs)[1] if np.ndim(histories.obs) == 3 else 0
    arrays = {}
    for name, (dtype, shape) in _FIELDS.items():
        given = np.asarray(getattr(histories, name))
        expected = (lengths.size, *(steps if size == _STEPS else size for size in shape))
        fits = given.shape == expected and np.can_cast(given.dtype, dtype, "same_kind")
        array = given.astype(dtype, copy=False) if fits else given
        if not fits or (given.dtype.kind in "iu" and given.dtype != dtype and (array != given).any()):
            wanted = f"{np.dtype(dtype).name}{list(expected)}"
            raise InputError("histories", field=name, expected=wanted, found=f"{given.dtype}{list(given.shape)}")
        arrays[name] = array
    if not ((arrays["length"] >= 1) & (arrays["length"] <= steps)).all():
        found = f"{arrays['length'].min()} to {arrays['length'].max()}"
        raise InputError("histories", field="length", expected=f"1 to {steps} observations", found=found)
    return History(**arrays)


def checked_plans(world: World, plans: Any, batch: int) -> np.ndarray:
    """int8[B,K,P,2]; InputError where they are none, or not of this many histories."""
    expected = f"[B,K,P,2] for B = {batch} histories and at least one candidate"
    try:
        levels = np.asarray(plans)
    except ValueError as error:
        raise InputError("plans", expected=expected, found="lists of unequal length") from error
    if levels.ndim != 4 or levels.shape[0] != batch or not levels.shape[1] or levels.shape[3] != 2:
        raise InputError("plans", expected=expected, found=levels.shape)
    if levels.dtype.kind not in "iu":
        raise InputError("plans", expected="whole levels", found=levels.dtype)
    check_levels(world, levels)
    return levels.astype(np.int8)
