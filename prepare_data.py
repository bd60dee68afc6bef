"""Make an Episodes store: `python prepare_data.py --config configs/demo.yaml [--source FOLDER] [--out FOLDER]`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from rich.table import Table

from sepsis_jax import cli, config, pipeline
from sepsis_jax.evaluation import cohort


@dataclasses.dataclass(frozen=True)
class Flags:
    """Flags of prepare_data.py.

    Attributes:
      source: folder of the raw tables (cohort.source says what they are); not for the simulator.
      out: Episodes store to make; default RUN/episodes.
    """

    source: Path | None = None
    out: Path | None = None


def main(argv: list[str]) -> None:
    settings, flags = config.load(argv, Flags, description="Make an Episodes store.")
    out = flags.out or settings.episodes
    episodes, manifest = pipeline.prepare(settings, flags.source, out)
    attrition = Table("who is left", "stays", title="Attrition")
    for label, count in manifest.attrition:
        attrition.add_row(label, str(count))
    cli.console.print(attrition)
    cli.console.print(cli.table(cohort.table_one(episodes), title="Table 1: median (quartiles) or n (%)"))
    cli.console.print(f"Episodes: {out}")


if __name__ == "__main__":
    cli.run(main)
