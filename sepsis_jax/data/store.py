"""Episodes on disk: one folder with `episodes.zarr` (xarray, units in attributes) and `manifest.json`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from sepsis_jax import files
from sepsis_jax.clinical.actions import LEVELS, ActionBins
from sepsis_jax.clinical.features import NAMES, STATIC_UNITS, STATICS, UNITS
from sepsis_jax.data.episodes import DTYPES, Episodes
from sepsis_jax.data.scaler import Scaler
from sepsis_jax.errors import InputError

SCHEMA_VERSION = 1
EPISODES, MANIFEST, TRUTH = "episodes.zarr", "manifest.json", "truth.zarr"
KIND = "an Episodes store"

_UNITS = {
    "weight_kg": "kg",
    "vaso_dose": "mcg/kg/min norepinephrine equivalents",
    "fluid_ml": "mL per 4 h, tonicity equivalents",
    "length": "4-h steps",
    "sofa": "points",
}
_INNER_DIMS = {
    "obs": ("feature",),
    "mask": ("masked_feature",),
    "static": ("static_feature",),
    "action": ("drug",),
    "prior_action": ("drug",),
    "propensity": ("action_id",),
}


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What the arrays mean and where they come from; written beside them as JSON.

    Attributes:
      source: kind of cohort, e.g. 'simulator', 'mimic-iv', 'events', 'released'.
      source_version: version of the source as far as it is known.
      cohort: definition of the cohort (settings that chose and binned it).
      action_bins: doses behind the levels.
      scaler: fitted on the train split.
      attrition: (label, stays left) in order.
      credentialed: the data may not leave this machine without a data use agreement.
      facts: counts worth keeping (implausible values dropped, doses capped, ...).
      time_step_h, schema_version, code_version: of the store.
    """

    source: str
    source_version: str
    cohort: dict[str, Any]
    action_bins: ActionBins
    scaler: Scaler
    attrition: tuple[tuple[str, int], ...]
    credentialed: bool = False
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    time_step_h: float = 4.0
    schema_version: int = SCHEMA_VERSION
    code_version: str = dataclasses.field(default_factory=lambda: version("sepsis_jax"))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return plain | {"action_bins": self.action_bins._asdict(), "scaler": self.scaler.to_dict()}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Manifest:
        """Inverse of `to_dict`. Raises ValueError for another schema or step."""
        if (plain["schema_version"], plain["time_step_h"]) != (SCHEMA_VERSION, 4.0):
            raise ValueError(f"a manifest of schema {plain['schema_version']} and steps of {plain['time_step_h']} h")
        bins = ActionBins(**{name: tuple(values) for name, values in plain["action_bins"].items()})
        attrition = tuple((label, int(count)) for label, count in plain["attrition"])
        return cls(**plain | {"action_bins": bins, "scaler": Scaler.from_dict(plain["scaler"]), "attrition": attrition})


def save(out: Path, episodes: Episodes, manifest: Manifest, *, extra: Callable[[Path], None] | None = None) -> None:
    """Write the store aside, then rename it to `out`; an older store of ours at `out` is replaced.

    Args:
      out: folder to make.
      extra: writes further files (the simulator's truth) into the folder before it appears.

    Raises:
      InputError: `out` is something else than a store, or cannot be written.
    """
    with files.replacing(out, MANIFEST, KIND) as folder:
        to_dataset(episodes).to_zarr(folder / EPISODES, consolidated=False)
        plain = manifest.to_dict() | {"sha256": files.digests(folder / EPISODES)}
        (folder / MANIFEST).write_text(json.dumps(plain, indent=1) + "\n")
        if extra is not None:
            extra(folder)


def load(path: Path) -> tuple[Episodes, Manifest]:
    """Read a store. Raises InputError for a missing, foreign, damaged or differently versioned one."""
    manifest, digests = _read_manifest(Path(path) / MANIFEST)
    files.check_digests(path / EPISODES, digests, Path(path) / MANIFEST, "prepare the data again")
    try:
        dataset = xr.open_zarr(path / EPISODES, consolidated=False).load()
    except Exception as error:
        raise InputError(path / EPISODES, expected="a readable Zarr store", found=_brief(error)) from error
    return from_dataset(dataset, path / EPISODES), manifest


def load_manifest(path: Path) -> Manifest:
    """The manifest alone; InputError as in `load`."""
    return _read_manifest(Path(path) / MANIFEST)[0]


def _read_manifest(file: Path) -> tuple[Manifest, Any]:
    """The manifest, and the digests that stand beside it."""
    if not file.is_file():
        raise InputError(file, expected="an Episodes store", found="no such file", hint="make one with prepare_data.py")
    try:
        plain = json.loads(file.read_text())
        schema = plain["schema_version"]
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        raise InputError(file, expected="JSON with a schema_version", found=_brief(error)) from error
    if schema != SCHEMA_VERSION:
        raise InputError(
            file,
            field="schema_version",
            expected=str(SCHEMA_VERSION),
            found=schema,
            hint="prepare the data again with this version",
        )
    digests = plain.pop("sha256", None)
    try:
        return Manifest.from_dict(plain), digests
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(file, expected="the fields of a manifest", found=_brief(error)) from error


def to_dataset(episodes: Episodes) -> xr.Dataset:
    """Episodes as a labelled Dataset: dims (stay, step, feature, ...), units in attrs, stay_id as coordinate."""
    variables = {}
    for name, (_, shape) in DTYPES.items():
        value = getattr(episodes, name)
        if value is None or name == "stay_id":
            continue
        dims = ("stay", "step")[: sum(axis in ("B", "T") for axis in shape)] + _INNER_DIMS.get(name, ())
        attrs = {"units": _UNITS[name]} if name in _UNITS else {}
        variables[name] = (dims, np.asarray(value), attrs)
    coords = {
        "stay": ("stay", np.asarray(episodes.stay_id)),
        "feature": labels("feature", NAMES),
        "feature_units": labels("feature", UNITS),
        "masked_feature": labels("masked_feature", NAMES[:-1]),
        "static_feature": labels("static_feature", STATICS),
        "static_units": labels("static_feature", STATIC_UNITS),
        "drug": labels("drug", ("vasopressor", "fluid")),
    }
    return xr.Dataset(variables, coords, {"schema_version": SCHEMA_VERSION})


def labels(dim: str, names: Sequence[str]) -> tuple[str, np.ndarray]:
    """A text coordinate; objects, because Zarr has no stable format for fixed-width text."""
    return dim, np.array(names, dtype=object)


def from_dataset(dataset: xr.Dataset, file: object = "dataset") -> Episodes:
    """Inverse of `to_dataset`; InputError where a variable is missing or has another shape."""
    if dataset.attrs.get("schema_version") != SCHEMA_VERSION:
        found = dataset.attrs.get("schema_version")
        raise InputError(file, field="schema_version", expected=str(SCHEMA_VERSION), found=found)
    sizes = {"B": dataset.sizes.get("stay"), "T": dataset.sizes.get("step")}
    fields: dict[str, Any] = {}
    for name, (dtype, axes) in DTYPES.items():
        source = "stay" if name == "stay_id" else name
        if source not in dataset:
            if name == "propensity":
                fields[name] = None
                continue
            raise InputError(file, field=name, expected="an array", found="nothing")
        shape = tuple(sizes.get(axis, axis) for axis in axes)
        value = dataset[source].values
        if value.shape != shape:
            raise InputError(file, field=name, expected=f"shape {shape}", found=value.shape)
        fields[name] = value.astype(dtype)
    _check_ranges(fields, fields["obs"].shape[1], file)
    return Episodes(**fields)


def _check_ranges(fields: dict[str, Any], steps: int, file: object) -> None:
    """InputError for values that no writer of ours produces: a damaged or hand-made store."""
    ranges = {"length": (1, steps), "action": (0, LEVELS - 1), "prior_action": (0, LEVELS - 1), "split": (0, 2)}
    labels = dict.fromkeys(("mortality_90d", "mortality_hospital"), (-1, 1))
    for name, (least, most) in (ranges | {"exit": (0, 2)} | labels).items():
        value = fields[name]
        if value.size and (value.min() < least or value.max() > most):
            found = f"{value.min()} to {value.max()}"
            raise InputError(file, field=name, expected=f"values from {least} to {most}", found=found)
    for name, value in fields.items():
        if value is not None and not np.isfinite(value).all():
            raise InputError(file, field=name, expected="finite values", found="NaN or infinity")


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:120]}"
