"""Train a world model: `python train_wm.py --config configs/demo.yaml [--episodes FOLDER] [--out FOLDER]`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from sepsis_jax import cli, config, files
from sepsis_jax.data import store
from sepsis_jax.dynamics.worldmodel import checkpoint
from sepsis_jax.dynamics.worldmodel.training import train


@dataclasses.dataclass(frozen=True)
class Flags:
    """Flags of train_wm.py.

    Attributes:
      episodes: Episodes store; default RUN/episodes.
      out: world model to make; default RUN/world_model.
    """

    episodes: Path | None = None
    out: Path | None = None


def main(argv: list[str]) -> None:
    settings, flags = config.load(argv, Flags, description="Train a world model on an Episodes store.")
    out = flags.out or settings.checkpoint
    files.check_replaceable(out, checkpoint.DESCRIPTION, checkpoint.KIND)
    episodes, manifest = store.load(flags.episodes or settings.episodes)
    trained = train(settings.world_model, episodes, manifest.scaler)
    training = dataclasses.asdict(settings.world_model)
    trained.model.save(out, trained.params, manifest, training=training, metrics=trained.metrics)
    best = min(trained.metrics, key=lambda row: row["validation_loss"])
    cli.console.print(
        f"Best of {len(trained.metrics)} epochs: {best['epoch']}, validation loss {best['validation_loss']:.4f}"
        f" (nll {best['validation_nll']:.4f} per measured value, mortality {best['validation_mortality']:.4f})"
    )
    cli.console.print(f"World model: {out}")


if __name__ == "__main__":
    cli.run(main)
