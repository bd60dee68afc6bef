"""Pickles of arrays and plain values, and of nothing else: what a pickle may ask for is answered by stand-ins.

A pickle can run code, and NumPy's own builders trust what they are told (a dtype that holds objects turns bytes into
pointers). So none of them is handed out: stand-ins note kind, shape and bytes, and arrays of numbers are made from
those once everything has been read. Stand-ins cannot be changed from within a pickle.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sepsis_jax.errors import InputError

_KIND = re.compile(r"[<>|=]?(\?|b1|[iu][1248]|f[248])")
_ORDERS = ("<", ">", "|", "=")


class Refused(Exception):
    """A pickle asked for something that is not data."""


def load(file: Path) -> Any:
    """What the pickle holds. InputError if it is none, or holds anything but arrays and plain values."""
    with file.open("rb") as stream:
        try:
            return _made(_Unpickler(stream).load())
        except Refused as refused:
            hint = "it could run code; nothing was loaded"
            raise InputError(file, expected="arrays and plain values", found=refused, hint=hint) from None
        except (Exception, RecursionError) as error:  # a broken pickle can raise anything
            raise InputError(file, expected="a pickle of arrays and plain values", found=repr(error)[:200]) from None


class _Frozen:
    """Callable, and never changed: a pickle can set attributes of whatever it is given."""

    __slots__ = ("_run",)
    _run: Callable[..., Any]

    def __init__(self, run: Callable[..., Any]) -> None:
        object.__setattr__(self, "_run", run)

    def __call__(self, *given: Any) -> Any:
        return self._run(*given)

    def __setattr__(self, name: str, value: Any) -> None:
        raise Refused(f"an attribute {name!r}")


class _Kind:
    """Stands for a dtype of numbers."""

    def __init__(self, text: Any) -> None:
        if not (isinstance(text, str) and _KIND.fullmatch(text)):
            raise Refused(f"values of kind {text!r:.60}")
        self.dtype = np.dtype(text)

    def __setstate__(self, state: Any) -> None:
        plain = isinstance(state, tuple) and len(state) >= 5 and state[2:5] == (None, None, None)
        if not (plain and state[1] in _ORDERS):
            raise Refused("values of a kind with parts")
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands for an array, or a number of one."""

    def __init__(self) -> None:
        self.parts: tuple[Any, ...] = ()

    def __setstate__(self, state: Any) -> None:
        if not (isinstance(state, tuple) and len(state) == 5):
            raise Refused("an array in pieces")
        _, shape, kind, fortran, content = state
        self.parts = (content, kind, shape, "F" if fortran else "C")

    def made(self) -> np.ndarray:
        """The array itself."""
        content, kind, shape, order = self.parts
        if not (isinstance(kind, _Kind) and isinstance(content, bytes | bytearray) and isinstance(shape, tuple)):
            raise Refused("an array of no numbers")
        whole = np.frombuffer(bytes(content), kind.dtype)
        return whole.reshape(shape, order="F" if order == "F" else "C").astype(kind.dtype.newbyteorder("="))


def _reconstruct(kind: Any, shape: Any, code: Any) -> _Array:
    return _Array()


def _frombuffer(content: Any, kind: Any, shape: Any, order: Any, *more: Any) -> _Array:
    found = _Array()
    found.parts = (content, kind, shape, order)
    return found


def _scalar(kind: Any, content: Any) -> _Array:
    return _frombuffer(content, kind, (), "C")


def _latin1(text: str, encoding: str) -> bytes:
    """What pickle protocol 2 calls to rebuild bytes."""
    if encoding != "latin1":
        raise Refused(f"the codec {encoding!r}")
    return text.encode("latin1")


def _ndarray(*given: Any) -> Any:
    raise Refused("a call of numpy.ndarray")


_BUILDERS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _ndarray,
    ("numpy", "dtype"): lambda text, *flags: _Kind(text),
    ("_codecs", "encode"): _latin1,
    ("multiarray", "_reconstruct"): _reconstruct,
    ("multiarray", "scalar"): _scalar,
    ("numeric", "_frombuffer"): _frombuffer,
}


class _Unpickler(pickle.Unpickler):
    """Hands out stand-ins; every other global is refused before it is imported."""

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in of this name, if there is one."""
        package, _, submodule = module.partition(".")
        # NumPy 2 renamed numpy.core to numpy._core; files of both kinds are around.
        core, _, leaf = submodule.partition(".")
        known = (leaf, name) if package == "numpy" and core in ("core", "_core") else (module, name)
        if known not in _BUILDERS or (leaf == "" and known[0] in ("multiarray", "numeric")):
            raise Refused(f"{module}.{name}")
        return _Frozen(_BUILDERS[known])

    def persistent_load(self, pid: Any) -> Any:
        raise Refused("a persistent id")


def _made(value: Any) -> Any:
    """With arrays in the place of their stand-ins."""
    if isinstance(value, _Array):
        array = value.made()
        return array if array.ndim else array[()]
    if isinstance(value, dict):
        return {_made(key): _made(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_made(one) for one in value)
    if isinstance(value, _Kind | _Frozen):
        raise Refused("a part of an array without the rest")
    return value
