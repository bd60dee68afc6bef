"""Event tables -> Episodes: exclusions, splits, and everything that is fitted on the train split.

The choices made here are stated in docs/bring-your-own-data.md.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import duckdb
import jax
import numpy as np

from sepsis_jax.clinical import sofa
from sepsis_jax.clinical.actions import ActionBins, fit_bins
from sepsis_jax.clinical.features import NUM_FEATURES, NUM_MASKED, URINE
from sepsis_jax.clinical.vasopressors import NEE_FACTORS
from sepsis_jax.data import binning, splits
from sepsis_jax.data.cohort import Attrition, Stays, read_stays
from sepsis_jax.data.episodes import SPLITS, Episodes
from sepsis_jax.data.events import find, open_events, reading
from sepsis_jax.data.scaler import Scaler
from sepsis_jax.errors import SEEDS, InputError, check_range

BLOCK = 1024
"""Stays whose events are in memory at once."""

DEFAULT_WEIGHT_KG, DEFAULT_CHARLSON = 80.0, 0.0
"""Stand in where not one train stay has a weight (the AI Clinician's 80 kg) or a Charlson index."""

_NEEDED: dict[str, dict[str, str]] = {
    "random": {},
    "temporal": {"period": "a temporal split needs it; split: random does not"},
}
"""Kind of split -> columns of the stays that it cannot do without, and what to say then."""

_MACHINE = ("threads", "memory_limit", "temp_dir")  # must not change the result, so they are not part of it


@dataclass(frozen=True)
class BuildSettings:
    """Which stays become records, and how.

    Attributes:
      anchor: zero of the record: ICU 'admission', or sepsis 'onset' (stays without one are excluded).
      start_hours: (h) the record starts at tau = anchor + start_hours, but never before ICU admission.
      max_steps: longest record, in 4-h steps; a longer stay is truncated.
      min_steps: shortest record.
      min_age: (years).
      vasopressor_conversion: table of `clinical.vasopressors.NEE_FACTORS`.
      max_vaso_dose: (mcg/kg/min norepinephrine equivalents) a higher dose of a bin is capped, and counted.
      max_urine_4h: (mL) a stay with more in any one bin is excluded.
      max_fluid_4h: (mL) a stay with more in any one bin is excluded.
      split: 'random' by patient and outcome; 'temporal' makes the patients of the latest periods (column `period` of
        the stays) the test split and splits those before them at random.
      split_fractions: shares of patients in train, validation and test.
      seed: of the split.
      threads: of DuckDB; all cores if None.
      memory_limit: of DuckDB, e.g. '2GB'; what is more goes to temp_dir.
      temp_dir: for scratch files, about as large as the Parquet event tables; the system's if None.
    """

    anchor: Literal["admission", "onset"] = "admission"
    start_hours: float = 0.0
    max_steps: int = 24
    min_steps: int = 2
    min_age: float = 18.0
    vasopressor_conversion: str = "goradia2020"
    max_vaso_dose: float = 5.0
    max_urine_4h: float = 12_000.0
    max_fluid_4h: float = 10_000.0
    split: Literal["random", "temporal"] = "random"
    split_fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
    seed: int = 0
    threads: int | None = None
    memory_limit: str = "1GB"
    temp_dir: Path | None = None

    def __post_init__(self) -> None:
        check_range(self, "build", seed=SEEDS, max_steps=(1, 10_000), start_hours=(-1e5, 1e5), min_age=(0, 150))
        shares = self.split_fractions
        for field, expected, good in (
            ("anchor", "admission or onset", self.anchor in ("admission", "onset")),
            ("min_steps", "from 1 to max_steps", 1 <= self.min_steps <= self.max_steps),
            ("vasopressor_conversion", f"one of {', '.join(NEE_FACTORS)}", self.vasopressor_conversion in NEE_FACTORS),
            ("max_vaso_dose", "a dose above 0", self.max_vaso_dose > 0),
            ("split", "random or temporal", self.split in ("random", "temporal")),
            ("split_fractions", "shares that sum to 1", min(shares) >= 0 and abs(sum(shares) - 1) < 1e-6),
            ("split_fractions", "a test share for a temporal split", self.split == "random" or shares[2] > 0),
            ("threads", "at least 1", self.threads is None or self.threads >= 1),
        ):
            if not good:
                raise InputError("settings", field=field, expected=expected, found=getattr(self, field))


def build(
    events_dir: Path, settings: BuildSettings, *, attrition: Sequence[tuple[str, int]] = ()
) -> tuple[Episodes, dict[str, Any]]:
    """Episodes of a folder of event tables.

    Args:
      events_dir: see `data.events`.
      settings: of the cohort.
      attrition: (label, stays left) of the steps that led to these tables.

    Returns:
      The stays in the order of stay_id, and those fields of `store.Manifest` that the build determines: cohort,
      action_bins, scaler, attrition and facts.

    Raises:
      InputError: bad settings or tables, or no stay is left.
    """
    with _scratch(settings) as con, reading(Path(events_dir)):
        dropped = open_events(con, events_dir, _NEEDED[settings.split])
        stays = read_stays(con, anchor=settings.anchor, start_hours=settings.start_hours, max_steps=settings.max_steps)
        left = Attrition(events_dir, stays.stay_id, attrition)
        _exclude_by_stay(left, stays, settings)
        loaded = left.rows
        records = binning.Records(stays.stay_id[loaded], stays.start_s[loaded], stays.length[loaded])
        binning.load(con, records, settings.vasopressor_conversion)
        _exclude_by_events(left, stays, settings, con)
        split = _split(stays, left.rows, settings, find(Path(events_dir), "stays"))
        return _assemble(con, stays, loaded, left, split, settings, dropped)


@contextmanager
def _scratch(settings: BuildSettings) -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB database in a temporary folder that vanishes afterwards."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="sepsis_jax-", dir=settings.temp_dir)
    except OSError as error:
        raise InputError(settings.temp_dir, expected="a folder that can be written", found=error.strerror) from error
    with folder as name:
        config: dict[str, Any] = {"memory_limit": settings.memory_limit, "temp_directory": f"{name}/spill"}
        if settings.threads is not None:
            config["threads"] = settings.threads
        try:
            con = duckdb.connect(f"{name}/scratch.duckdb", config=config)
        except duckdb.Error as error:
            found = settings.memory_limit
            raise InputError("settings", field="memory_limit", expected="a size like 2GB", found=found) from error
        with con:
            con.execute(f"SET enable_progress_bar = {sys.stdout.isatty()}")  # DuckDB draws it on stdout
            yield con


def _exclude_by_stay(left: Attrition, stays: Stays, settings: BuildSettings) -> None:
    old_enough = stays.age >= settings.min_age
    left.keep(f"age at least {settings.min_age:g} years", old_enough, lambda i: f"is {stays.age[i]:g} years old")
    if settings.anchor == "onset":
        left.keep("sepsis onset known", stays.anchored, lambda i: "has no onset_hours")
    long_enough = stays.length >= settings.min_steps
    left.keep(
        f"at least {settings.min_steps} steps of 4 h before ICU exit",
        long_enough,
        lambda i: f"has {stays.length[i]} step{'' if stays.length[i] == 1 else 's'}",
    )


def _exclude_by_events(left: Attrition, stays: Stays, settings: BuildSettings, con: duckdb.DuckDBPyConnection) -> None:
    loaded = left.rows

    def of_all(values: np.ndarray) -> np.ndarray:
        out = np.zeros(stays.stay_id.size)
        out[loaded] = values
        return out

    measured = of_all(binning.num_measured(con, loaded.size))
    left.keep("a measurement within the record", measured > 0, lambda i: "has no measurement between tau and its end")
    for what, most, limit in (
        ("urine", binning.most_urine, settings.max_urine_4h),
        ("fluid", binning.most_fluid, settings.max_fluid_4h),
    ):
        amount = of_all(most(con, loaded.size))
        label = f"{what} at most {limit:g} mL in any 4 h"
        left.keep(label, amount <= limit, lambda i, amount=amount: f"has {amount[i]:g} mL")  # type: ignore[misc]


def _split(stays: Stays, rows: np.ndarray, settings: BuildSettings, file: Path) -> np.ndarray:
    """int8[B] split of the stays left; `file` holds them."""
    who, outcome, period = stays.subject_id[rows], stays.mortality_90d[rows], stays.period[rows]
    fractions, seed = settings.split_fractions, settings.seed
    if settings.split == "temporal":
        split = splits.assign_temporal(who, outcome, period, fractions=fractions, seed=seed, file=file)
    else:
        split = splits.assign(who, outcome, fractions=fractions, seed=seed)
    if not (split == SPLITS.index("train")).any():
        found = f"none of {rows.size} stays in train"
        raise InputError("settings", field="split_fractions", expected="at least one train stay", found=found)
    return split


def _assemble(
    con: duckdb.DuckDBPyConnection,
    stays: Stays,
    loaded: np.ndarray,
    left: Attrition,
    split: np.ndarray,
    settings: BuildSettings,
    dropped: dict[str, int],
) -> tuple[Episodes, dict[str, Any]]:
    """Impute, fill the arrays block by block, then fit the scaler and the action bins on the train rows."""
    rows, train = left.rows, split == SPLITS.index("train")
    static, weight_kg = _impute(stays, rows, train)
    arrays = _Arrays.empty(rows.size, settings.max_steps)
    capped = 0
    for first in range(0, loaded.size, BLOCK):
        block = loaded[first : first + BLOCK]
        kept = np.isin(block, rows, assume_unique=True)
        at = np.searchsorted(rows, block[kept])
        capped += arrays.fill_block(con, first, kept, at, weight_kg, settings.max_vaso_dose)
    length = stays.length[rows]
    scaler, bins, levels = _fit(arrays, static, length, train)
    episodes = Episodes(
        obs=arrays.obs,
        mask=arrays.mask,
        static=static,
        weight_kg=weight_kg,
        action=levels[:, 1:],
        prior_action=levels[:, 0],
        vaso_dose=arrays.vaso[:, 1:],
        fluid_ml=arrays.fluid[:, 1:],
        length=length,
        exit=stays.exit[rows],
        ventilated=arrays.ventilated,
        sofa=arrays.sofa,
        mortality_90d=stays.mortality_90d[rows],
        mortality_hospital=stays.mortality_hospital[rows],
        subject_id=stays.subject_id[rows],
        stay_id=stays.stay_id[rows],
        split=split,
    )
    cohort = {name: value for name, value in asdict(settings).items() if name not in _MACHINE}
    facts: dict[str, Any] = {
        "implausible_dropped": dropped,
        "weight_imputed": int(np.isnan(stays.weight_kg[rows]).sum()),
        "charlson_imputed": int(np.isnan(stays.charlson[rows]).sum()),
        "vaso_bins_capped": capped,
    }
    if settings.split == "temporal":
        facts["split_periods"] = splits.patients_by_period(stays.subject_id[rows], stays.period[rows], split)
    fields = {"cohort": cohort | {"split_fractions": list(settings.split_fractions)}, "facts": facts}
    return episodes, fields | {"action_bins": bins, "scaler": scaler, "attrition": tuple(left.table)}


def _impute(stays: Stays, rows: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """static f32[B,3] and weight f32[B]: unknown weights by sex, unknown Charlson indices as a whole."""
    male, weight, charlson = stays.male[rows], stays.weight_kg[rows], stays.charlson[rows]
    overall = _median(weight[train], DEFAULT_WEIGHT_KG)
    for sex in (False, True):
        typical = _median(weight[train & (male == sex)], overall)
        weight = np.where(np.isnan(weight) & (male == sex), typical, weight)
    charlson = np.where(np.isnan(charlson), _median(charlson[train], DEFAULT_CHARLSON), charlson)
    static = np.stack([stays.age[rows], male, charlson], axis=-1)
    return static.astype(np.float32), weight.astype(np.float32)


def _median(values: np.ndarray, default: float) -> float:
    known = values[~np.isnan(values)]
    return float(np.median(known)) if known.size else default


@dataclass(frozen=True)
class _Arrays:
    """The large arrays while they are filled; obs is NaN before a feature's first value; doses start at `prior`.

    obs f32[B,T,F], mask bool[B,T,38], ventilated bool[B,T], sofa f32[B,T], vaso and fluid f32[B,T+1].
    """

    obs: np.ndarray
    mask: np.ndarray
    ventilated: np.ndarray
    sofa: np.ndarray
    vaso: np.ndarray
    fluid: np.ndarray

    @classmethod
    def empty(cls, stays: int, steps: int) -> _Arrays:
        return cls(
            obs=np.zeros((stays, steps, NUM_FEATURES), np.float32),
            mask=np.zeros((stays, steps, NUM_MASKED), bool),
            ventilated=np.zeros((stays, steps), bool),
            sofa=np.zeros((stays, steps), np.float32),
            vaso=np.zeros((stays, steps + 1), np.float32),
            fluid=np.zeros((stays, steps + 1), np.float32),
        )

    def fill_block(
        self,
        con: duckdb.DuckDBPyConnection,
        first: int,
        kept: np.ndarray,
        at: np.ndarray,
        weight_kg: np.ndarray,
        max_vaso_dose: float,
    ) -> int:
        """Read the loaded records from `first` on, put those `kept` bool[N] to rows `at`; returns capped bins."""
        last, steps = first + kept.size, self.obs.shape[1]
        obs, mask, ventilated = binning.observations(con, first, last, steps)
        weights = np.ones(kept.size)
        weights[kept] = weight_kg[at]
        vaso, fluid = binning.doses(con, first, last, steps + 1, weights)
        obs, vaso = obs[kept], vaso[kept]
        self.obs[at], self.mask[at], self.ventilated[at] = obs, mask[kept], ventilated[kept]
        self.vaso[at], self.fluid[at] = np.minimum(vaso, max_vaso_dose), fluid[kept]
        self.sofa[at] = _sofa(obs, self.ventilated[at], self.vaso[at][:, :-1])
        return int((vaso > max_vaso_dose).sum())


@jax.jit
def _sofa(obs: jax.Array, ventilated: jax.Array, vaso: jax.Array) -> jax.Array:
    """Proper SOFA f32[N,T]; what was never measured (NaN) scores 0, not what the train mean would."""
    return sofa.proper(obs, ventilated, vaso, sofa.urine_24h(obs[..., URINE]))


def _fit(
    arrays: _Arrays, static: np.ndarray, length: np.ndarray, train: np.ndarray
) -> tuple[Scaler, ActionBins, np.ndarray]:
    """Scaler and action bins of the train rows; completes obs, clears the padding. Levels are int8[B,T+1,2]."""
    valid = np.arange(arrays.obs.shape[1]) < length[:, None]
    rows = valid & train[:, None]
    observed = np.concatenate([arrays.mask[rows], np.ones((rows.sum(), 1), bool)], axis=-1)
    scaler = Scaler.fit(arrays.obs[rows], observed, static[train])
    np.copyto(arrays.obs, np.asarray(scaler.fill), where=np.isnan(arrays.obs))
    arrays.obs[~valid] = 0
    arrays.sofa[~valid] = 0
    bins = fit_bins(arrays.vaso[train][:, 1:], arrays.fluid[train][:, 1:])
    return scaler, bins, bins.levels(arrays.vaso, arrays.fluid)
