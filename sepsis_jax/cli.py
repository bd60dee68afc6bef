"""What every script shares: one-line errors with exit code 2, and the console."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import jax
from rich.console import Console

from sepsis_jax.errors import InputError

console = Console(highlight=False)


def run(main: Callable[[list[str]], None]) -> None:
    """Run a script's `main(argv)`: bad input ends in one line on stderr and exit code 2, Ctrl-C in exit code 130."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(Path.home() / ".cache" / "sepsis_jax" / "xla"))
    try:
        main(sys.argv[1:])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
