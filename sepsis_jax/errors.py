"""The one error that bad input raises, and how a script shows it."""

from __future__ import annotations


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
