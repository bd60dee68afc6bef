"""The one error that bad input raises, and how a script shows it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any


class InputError(Exception):
    """Bad input from a person: a file, a field, a value or a setting.

    The message is one line that says where, what was expected, what was found and what to do. Scripts print it
    without a traceback and leave with exit code 2 (`sepsis_jax.cli.run`).

    Args:
      file: the file, folder or setting at fault.
      field: the column, array or key inside it, if one can be named.
      expected: what should have been there.
      found: what was there.
      hint: what to do about it.
    """

    def __init__(self, file: object, *, field: str = "", expected: str, found: object, hint: str = "") -> None:
        where = f"{file}: {field}" if field else str(file)
        message = f"{where}: expected {expected}, found {found}"
        if hint:
            message += f"; {hint}"
        super().__init__(" ".join(message.split()))


def check_range(settings: Any, where: str, **ranges: tuple[float, float]) -> None:
    """Raise InputError unless every named numeric field of `settings` is finite and within (least, most).

    Fields that are declared as int must be whole.
    """
    whole = {one.name for one in dataclasses.fields(settings) if one.type in ("int", int)}
    for field, (least, most) in ranges.items():
        value = getattr(settings, field)
        kind = "a whole number" if field in whole else "a number"
        if not (math.isfinite(value) and least <= value <= most and (field not in whole or value == int(value))):
            expected = f"{kind} from {least:g}" + (f" to {most:g}" if math.isfinite(most) else " on")
            raise InputError(where, field=field, expected=expected, found=value)


SEEDS = (0, 2**31 - 1)
"""Range of a seed."""
