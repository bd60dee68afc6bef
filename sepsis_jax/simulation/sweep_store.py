"""A sweep on disk: a labelled Zarr store, written region by region.

    OUT.unfinished/         the store while it grows; its attributes say which sweep this is
    OUT.unfinished/.done/N  an empty file: the region that begins with the N-th stay is whole
    OUT                     the same folder, renamed when the last region is there

A region is computed from its stays alone and written by one process, so that a killed sweep goes on with what has no
mark, and gives the same bytes as one that was never stopped.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from zarr.codecs import BloscCodec, BloscShuffle

from sepsis_jax import files
from sepsis_jax.clinical.features import NAMES, UNITS
from sepsis_jax.errors import InputError
from sepsis_jax.simulation.policy import RARE
from sepsis_jax.simulation.sweep import Arrays, Sweep, coordinates

DONE, KIND = ".done", "a sweep"
_GROUP = "zarr.json"
LEADING = ("episode", "time", "candidate")
_UNITS = {
    "value": "return",
    "value_sd": "return",
    "value_sd_members": "return",
    "value_se": "return",
    "death_90d": "probability",
    "death_90d_sd_members": "probability",
    "support": "probability",
    "out_of_distribution": f"1 where support is below {RARE:.0%}",
    "obs": "see feature_units",
    "events": "probability; sofa: score",
}
_DESCRIPTION = (
    "Features (obs) and events from map_below_65 on are of the samples still in the ICU, who differ between "
    "candidates; in_icu, died, discharged, value and death_90d are of all. Features are as on record, carried forward "
    "where nothing is measured; events look at what would be measured. sofa is that of the reward: 'published' "
    "contains the vasopressor level. Research software, not for care."
)
_CAUSES = {
    "block": "block follows --memory and the number of devices: go on with as many",
    "clinician": "the estimate is made anew by every process, and other processors give other last digits: go on with "
    "the same kind",
}


class Unfinished:
    """The store of one sweep while it grows.

    The first of several processes calls `check`, `create` and `finish`; each calls `check_same` once it is made, and
    writes regions of its own.

    Args:
      out: where it will stand.
    """

    def __init__(self, out: Path) -> None:
        self.out = out.resolve()  # through a link, so that the link stays
        if not self.out.name:
            raise InputError(out, expected="a folder to make", found="the root of the file system")
        self.folder = self.out.with_name(f"{self.out.name}.unfinished")

    def check(self, *, resume: bool) -> None:
        """Call it before long work.

        Raises:
          InputError: the place is taken or cannot be written; an unfinished sweep is there and not to be resumed.
        """
        _check_replaceable(self.out)
        files.check_writable(self.out)
        unfinished = _attributes(self.folder) is not None
        if self.folder.exists() and not unfinished:
            hint = "remove it, or choose another --out"
            raise InputError(self.folder, expected="an unfinished sweep", found="something else", hint=hint)
        if resume and not unfinished and _attributes(self.out) is not None:
            hint = "leave --resume out to make it anew"
            raise InputError(self.folder, expected="an unfinished sweep", found="a finished one", hint=hint)
        if unfinished and not resume:
            hint = "add --resume to go on with it, or remove it"
            raise InputError(self.folder, expected="nothing", found="an unfinished sweep", hint=hint)

    def create(self, sweep: Sweep, identity: dict[str, Any]) -> None:
        """Make the store, with what makes it this one (JSON types by name), unless there is one.

        Raises:
          InputError: the disk does not take it.
        """
        if self.folder.exists():
            return
        with files.replacing(self.folder, _GROUP, "an unfinished sweep") as aside:
            _labels(sweep).to_zarr(aside, mode="w", consolidated=False)
            group = zarr.open_group(aside, mode="r+")
            group.attrs.update(identity | {"kind": KIND, "description": _DESCRIPTION})
            for name, dims, shape in _arrays(sweep):
                group.create_array(
                    name,
                    shape=shape,
                    chunks=(1, *shape[1:]),  # one patient's read
                    dtype="float32",
                    fill_value=np.nan,
                    dimension_names=dims,
                    # Bytes of like weight side by side compress well; one flat file a chunk instead of a folder each.
                    compressors=BloscCodec(cname="zstd", clevel=5, shuffle=BloscShuffle.shuffle),
                    chunk_key_encoding={"name": "default", "separator": "."},
                    attributes={"units": _UNITS[name]} if name in _UNITS else {},
                )
            (aside / DONE).mkdir()

    def check_same(self, sweep: Sweep, identity: dict[str, Any]) -> None:
        """InputError unless the store is there and of this sweep, whichever host asks."""
        before, anew = _attributes(self.folder), f"remove {self.folder} to begin anew"
        if before is None:
            hint = "name an --out that all hosts see"
            raise InputError(self.folder, expected="the unfinished sweep", found="none", hint=hint)
        for name, found in json.loads(json.dumps(identity)).items():
            if before.get(name) != found:
                expected = f"the unfinished sweep's {before.get(name)}"
                hint = f"{_CAUSES.get(name, 'give it the same flags')}, or {anew}"
                raise InputError(self.folder, field=name, expected=expected, found=found, hint=hint)
        for name, _, shape in _arrays(sweep):
            try:
                found = zarr.open_array(self.folder / name, mode="r").shape
            except (OSError, ValueError, KeyError) as error:
                raise InputError(self.folder, field=name, expected="an array", found=error, hint=anew) from error
            if found != shape:
                raise InputError(self.folder, field=name, expected=f"shape {shape}", found=found, hint=anew)
        if not (self.folder / DONE).is_dir():
            raise InputError(self.folder, field=DONE, expected="a folder of marks", found="none", hint=anew)

    def missing(self, regions: Iterable[slice]) -> list[slice]:
        """Those of some regions that are not whole."""
        return [region for region in regions if not (self.folder / DONE / str(region.start)).exists()]

    def write(self, region: slice, arrays: Arrays) -> None:
        """Write a region, then mark it. InputError if the disk does not take it; the store can be resumed."""
        try:
            group = zarr.open_group(self.folder, mode="r+")
            for name, values in arrays.items():
                group[name][region] = values  # type: ignore[index]
            (self.folder / DONE / str(region.start)).touch()
        except OSError as error:
            hint = "make room, then run the same command with --resume"
            found = error.strerror or error
            raise InputError(self.folder, expected="a disk that can be written", found=found, hint=hint) from error

    def finish(self, regions: Iterable[slice]) -> None:
        """Rename the whole store to its place.

        Raises:
          InputError: one of the sweep's regions is missing; something has come to that place meanwhile.
        """
        if missing := self.missing(regions):
            hint = "run the same command with --resume"
            raise InputError(self.folder, expected="every region", found=f"{len(missing)} missing", hint=hint)
        _check_replaceable(self.out)
        for half in self.folder.rglob("*.partial"):  # of a chunk that a kill has cut off
            half.unlink()
        old = self.folder.with_name(f".{self.out.name}.old")
        if self.out.exists():
            shutil.rmtree(old, ignore_errors=True)  # what a kill has left of one
            self.out.rename(old)
        self.folder.rename(self.out)
        for leftover in (self.out / DONE, old):
            shutil.rmtree(leftover, ignore_errors=True)


def in_memory(sweep: Sweep) -> xr.Dataset:
    """The whole sweep as a labelled Dataset, for what fits into memory."""
    parts = [sweep.run(region) for region in sweep.regions()]
    dims = {name: (*LEADING, *inner) for name, inner in sweep.shapes().items()}
    return _labels(sweep).assign({n: (dims[n], np.concatenate([part[n] for part in parts])) for n in dims})


def _arrays(sweep: Sweep) -> Iterator[tuple[str, tuple[str, ...], tuple[int, ...]]]:
    """Name, dimensions and shape of every array."""
    sizes = {dim: len(labels) for dim, (_, labels) in coordinates(sweep).items()}
    for name, inner in sweep.shapes().items():
        dims = (*LEADING, *inner)
        yield name, dims, tuple(sizes[dim] for dim in dims)


def _check_replaceable(out: Path) -> None:
    """Raise InputError unless `out` is absent, empty or a sweep."""
    if out.is_dir() and (not any(out.iterdir()) or (_attributes(out) or {}).get("kind") == KIND):
        return
    if out.exists():
        raise InputError(out, expected=f"a new folder or {KIND}", found="something else", hint="choose another --out")


def _attributes(folder: Path) -> dict[str, Any] | None:
    """Of a Zarr group; None if it is none."""
    try:
        return dict(json.loads((folder / _GROUP).read_text())["attributes"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _labels(sweep: Sweep) -> xr.Dataset:
    """Coordinates alone."""
    coords: dict[str, Any] = {}
    for name, (dim, labels) in coordinates(sweep).items():
        text = isinstance(labels, tuple)
        coords[name] = (dim, np.array(labels, dtype=object) if text else labels)
    units = [UNITS[NAMES.index(name)] for name in sweep.record.features]
    coords["feature_units"] = ("feature", np.array(units, dtype=object))
    coords["time"] = (*coords["time"], {"long_name": "decision, in 4-h steps from 0"})
    coords["horizon"] = (*coords["horizon"], {"units": "h"})
    return xr.Dataset(coords=coords)
