"""What every script shares: one-line errors with exit code 2, and the console."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

import jax
import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sepsis_jax import files
from sepsis_jax.errors import InputError

console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)


def run(main: Callable[[list[str]], None]) -> None:
    """Run a script's `main(argv)`: bad input ends in one line on stderr and exit code 2, Ctrl-C in exit code 130."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(Path.home() / ".cache" / "sepsis_jax" / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    try:
        main(sys.argv[1:])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        _leave(2)
    except OSError as error:
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        _leave(2)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        _leave(130)


def _leave(code: int) -> NoReturn:
    """End this process; one of several at once, since JAX would wait five minutes for the others and then abort."""
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def table(frame: pd.DataFrame, *, title: str) -> Table:
    """A DataFrame for the console: its index as the first column, numbers with four digits."""
    out = Table(title=escape(title), title_justify="left")
    out.add_column(escape(str(frame.index.name or "")))
    for name in frame.columns:
        out.add_column(escape(str(name)), justify="left" if frame[name].dtype.kind in "OUT" else "right")
    for label, row in zip(frame.index, frame.itertuples(index=False), strict=True):
        out.add_row(escape(str(label)), *(escape(_cell(value)) for value in row))
    return out


def _cell(value: object) -> str:
    if isinstance(value, float):
        if not math.isfinite(value):
            return "-"
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def check_file(path: Path) -> None:
    """Raise InputError unless `path` can become a file. Call it before long work."""
    if not path.name or path.is_dir():
        raise InputError(path, expected="a file", found="a folder")
    files.check_writable(path)


def write_json(path: Path, numbers: Mapping[str, float | int | None]) -> None:
    """One flat object of numbers, written aside and renamed; what is not finite becomes null."""
    check_file(path)
    finite = {name: None if value is None or not math.isfinite(value) else value for name, value in numbers.items()}
    files.write(path, (json.dumps(finite, indent=1) + "\n").encode())
