"""Train a world model: `python train_wm.py --config configs/demo.yaml [--episodes FOLDER] [--out FOLDER]`.

A run that was stopped, by a kill too, goes on where it was when it is started again with the same settings and stays.
On several hosts, start it on each; see docs/accelerators.md.
"""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from pathlib import Path

from sepsis_jax import cli, config, files
from sepsis_jax.data import store
from sepsis_jax.dynamics.worldmodel import checkpoint, sharding, unfinished
from sepsis_jax.dynamics.worldmodel.events import event_log
from sepsis_jax.dynamics.worldmodel.training import Trained, train, weights_to_adapt


@dataclasses.dataclass(frozen=True)
class Flags:
    """Flags of train_wm.py.

    Attributes:
      episodes: Episodes store; default RUN/episodes.
      out: world model to make; default RUN/world_model. What an unfinished training needs to go on is in OUT.training.
      init: world model whose weights, scaler and ranges to start from, to adapt it to these stays.
      tensorboard: write event files to OUT.events too.
    """

    episodes: Path | None = None
    out: Path | None = None
    init: Path | None = None
    tensorboard: bool = False


def main(argv: list[str]) -> None:
    settings, flags = config.load(argv, Flags, description="Train a world model on an Episodes store.")
    sharding.join_processes()
    out = flags.out or settings.checkpoint
    files.check_replaceable(out, checkpoint.DESCRIPTION, checkpoint.KIND)
    episodes, manifest = store.load(flags.episodes or settings.episodes)
    beside = out.absolute()  # a folder like '.' has a name too
    state = beside.with_name(f"{beside.name}.training")
    if sharding.is_first() and state.exists():
        cli.console.print(f"Going on with the unfinished training in {state}")
    first = None if flags.init is None else weights_to_adapt(settings.world_model, flags.init)
    logging = flags.tensorboard and sharding.is_first()
    events = event_log(beside.with_name(f"{beside.name}.events"), settings.world_model.members)
    with events if logging else nullcontext() as report:
        scaler = manifest.scaler
        trained = train(settings.world_model, episodes, scaler, first=first, unfinished=state, report=report)
    if sharding.is_first():
        training = dataclasses.asdict(settings.world_model)
        trained.model.save(out, trained.params, manifest, training=training, metrics=trained.metrics)
        unfinished.remove(state)
        _print(trained, out)
    sharding.wait_for_all("saved")


def _print(trained: Trained, out: Path) -> None:
    members = range(trained.model.members)
    rows = [[row for row in trained.metrics if row["member"] == member] for member in members]
    best = [min(of_member, key=lambda row: row["validation_loss"]) for of_member in rows]
    epochs = ", ".join(f"{row['epoch']}" for row in best)
    loss = sum(row["validation_loss"] for row in best) / len(best)
    cli.console.print(f"Best of {max(map(len, rows))} epochs: {epochs}, validation loss {loss:.4f}")
    cli.console.print(f"World model: {out}")


if __name__ == "__main__":
    cli.run(main)
