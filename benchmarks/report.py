"""How benchmarks show their figures: a table, and on request the same as one flat JSON object."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.table import Table

from sepsis_jax import cli


def show(title: str, figures: Mapping[str, float], json: Path | None) -> None:
    """Print `figures` as a table under `title`, and write them to `json`."""
    table = Table("figure", "value", title=title)
    for name, value in figures.items():
        table.add_row(name, f"{value:,.4g}" if value < 1000 else f"{value:,.0f}")
    cli.console.print(table)
    if json is not None:
        cli.write_json(json, figures)
