"""The published system's weights as a world model: `python import_weights.py --source FOLDER --out FOLDER`.

The folder holds `state_model_log` and `outcome` (`.safetensors`, or `.pt` where PyTorch is installed) with
`scaler_params_log.json` and `episode_feature_config.json`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp

from sepsis_jax import cli, config, files
from sepsis_jax.clinical.actions import AI_CLINICIAN_BINS
from sepsis_jax.data import released
from sepsis_jax.data.store import Manifest
from sepsis_jax.dynamics.worldmodel import checkpoint
from sepsis_jax.dynamics.worldmodel.bounds import Support
from sepsis_jax.dynamics.worldmodel.model import Params
from sepsis_jax.dynamics.worldmodel.torch_import import load_networks
from sepsis_jax.errors import InputError

SUFFIXES = (".safetensors", ".pt")


@dataclasses.dataclass(frozen=True)
class Flags:
    """Flags of import_weights.py.

    Attributes:
      source: folder of the four files.
      out: world model to make; default RUN/world_model.
    """

    source: Path | None = None
    out: Path | None = None


def main(argv: list[str]) -> None:
    settings, flags = config.load(argv, Flags, description="Make a world model of the published system's weights.")
    if flags.source is None or not flags.source.is_dir():
        hint = "name the folder of the released files with --source"
        raise InputError(flags.source or "--source", expected="a folder", found="none", hint=hint)
    source, out = flags.source, flags.out or settings.checkpoint
    files.check_replaceable(out, checkpoint.DESCRIPTION, checkpoint.KIND)
    model, network = load_networks(_weights(source, "state_model_log"), _weights(source, "outcome"))
    scaler = released.load_scaler(source / "scaler_params_log.json", source / "episode_feature_config.json")
    scaler, support = jax.tree.map(jnp.asarray, (scaler, Support.plausible(scaler)))
    manifest = Manifest("released", "arXiv 2605.14723", {}, AI_CLINICIAN_BINS, scaler, ())
    model.save(out, Params(network, scaler, support), manifest, training={"imported": True})
    cli.console.print(f"World model: {out} (published, hidden {model.hidden}, {model.layers} layers)")


def _weights(folder: Path, name: str) -> Path:
    """The file of one network, whichever format is there."""
    for suffix in SUFFIXES:
        if (folder / f"{name}{suffix}").is_file():
            return folder / f"{name}{suffix}"
    raise InputError(folder, expected=f"{name}.safetensors or {name}.pt", found="neither")


if __name__ == "__main__":
    cli.run(main)
