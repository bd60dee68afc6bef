"""`Truth`: what the simulator knows about its own cohort and no record shows, kept beside the cohort as truth.zarr.

Only the evaluation and the true-simulator planner may open it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from flax import struct

from sepsis_jax.data import store
from sepsis_jax.data.episodes import Episodes
from sepsis_jax.data.store import TRUTH
from sepsis_jax.dynamics.patient.parameters import TRAITS, Knobs, Patient
from sepsis_jax.dynamics.patient.physiology import Latent
from sepsis_jax.errors import InputError

_HINT = "make the cohort again with the embedded simulator"


@struct.dataclass
class Truth:
    """Ground truth of B simulated stays; the keys follow from `seed` (`dynamics.protocol.trajectory_key`, `step_keys`).

    Attributes:
      seed: of the cohort. knobs: its world.
      stay_id: i32[B] ascending. length: i32[B] recorded steps.
      patient: Patient with leading B. latent: Latent with leading [B,T], the state at each decision.
      since: f32[B,T,5] steps since each panel was measured.
      propensity: f32[B,T,25] with which actions were drawn, hidden causes included.
      death_90d: f32[B] true probability of death within 90 days at the ICU exit; 1 for a death in the ICU.
    """

    seed: int = struct.field(pytree_node=False)
    knobs: Knobs
    stay_id: Any
    length: Any
    patient: Patient
    latent: Latent
    since: Any
    propensity: Any
    death_90d: Any


def save(folder: Path, truth: Truth) -> None:
    """Write truth.zarr into `folder` (pass it as the `extra` of `data.store.save` for an atomic write)."""
    variables: dict[str, Any] = {
        "length": (("stay",), np.asarray(truth.length)),
        "since": (("stay", "step", "panel"), np.asarray(truth.since)),
        "propensity": (("stay", "step", "action_id"), np.asarray(truth.propensity)),
        "death_90d": (("stay",), np.asarray(truth.death_90d)),
    }
    for group, dims in (("patient", ("stay",)), ("latent", ("stay", "step"))):
        for field in dataclasses.fields(getattr(truth, group)):
            value = np.asarray(getattr(getattr(truth, group), field.name))
            variables[f"{group}_{field.name}"] = ((*dims, "trait")[: value.ndim], value)
    coords = {"stay": ("stay", np.asarray(truth.stay_id)), "trait": store.labels("trait", TRAITS)}
    knobs = {name: float(value) for name, value in dataclasses.asdict(truth.knobs).items()}
    xr.Dataset(variables, coords, {"seed": truth.seed, **knobs}).to_zarr(Path(folder) / TRUTH, consolidated=False)


def load(folder: Path, episodes: Episodes) -> Truth:
    """Truth of the cohort in `folder`, checked to be that of `episodes` (which may be a part of it).

    Raises:
      InputError: there is none, it cannot be read, or it belongs to another cohort.
    """
    file = Path(folder) / TRUTH
    if not file.is_dir():
        hint = "only cohorts made by the embedded simulator have one; use a world model for others"
        raise InputError(file, expected="the truth of a simulated cohort", found="nothing", hint=hint)
    try:
        dataset = xr.open_zarr(file, consolidated=False).load()
        truth = _from_dataset(dataset)
    except Exception as error:
        found = f"{type(error).__name__}: {str(error)[:120]}"
        raise InputError(file, expected="a readable truth store", found=found, hint=_HINT) from error
    check(truth, episodes, file)
    return truth


def check(truth: Truth, episodes: Episodes, file: object = "truth") -> None:
    """Raise InputError unless every stay of `episodes` is one of `truth` with the same length, age and weight."""
    stays = np.asarray(episodes.stay_id)
    missing = np.setdiff1d(stays, truth.stay_id)
    if missing.size:
        found = f"{missing.size} others, first {missing[0]}"
        raise InputError(file, field="stay_id", expected="the stays of the cohort", found=found, hint=_HINT)
    row = np.searchsorted(truth.stay_id, stays)
    pairs = {
        "length": (truth.length, episodes.length),
        "age": (truth.patient.age, np.asarray(episodes.static)[:, 0]),
        "weight": (truth.patient.weight, episodes.weight_kg),
    }
    for field, (ours, theirs) in pairs.items():
        if not np.array_equal(np.asarray(ours)[row], np.asarray(theirs)):
            raise InputError(file, field=field, expected="that of this cohort", found="another cohort's", hint=_HINT)


def _from_dataset(dataset: xr.Dataset) -> Truth:
    def group(cls: Any, prefix: str) -> Any:
        return cls(**{f.name: dataset[f"{prefix}_{f.name}"].values for f in dataclasses.fields(cls)})

    return Truth(
        seed=int(dataset.attrs["seed"]),
        knobs=Knobs(**{f.name: float(dataset.attrs[f.name]) for f in dataclasses.fields(Knobs)}),
        stay_id=dataset["stay"].values,
        patient=group(Patient, "patient"),
        latent=group(Latent, "latent"),
        **{name: dataset[name].values for name in ("length", "since", "propensity", "death_90d")},
    )
