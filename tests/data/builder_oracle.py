"""The builder once more, as slow loops over pandas rows: every rule of docs/bring-your-own-data.md in plain sight."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pandas as pd
from event_tables import Tables

from sepsis_jax.clinical import sofa
from sepsis_jax.clinical.features import FEATURES, NUM_FEATURES, URINE
from sepsis_jax.clinical.vasopressors import FLUID_TONICITY, NEE_FACTORS
from sepsis_jax.data.builder import BuildSettings

_sofa = jax.jit(sofa.proper)
_PER_PATIENT = {"mcg/kg/min": None, "units/min": None, "units/hour": None, "mcg/min": 1.0, "mg/h": 1000 / 60}
_TO_MINUTE = {"mcg/kg/min": 1.0, "units/min": 1.0, "units/hour": 1 / 60, "mcg/min": 1.0, "mg/h": 1000 / 60}


def cohort(tables: Tables, settings: BuildSettings) -> pd.DataFrame:
    """The stays that are left, by stay_id, with tau, length and exit."""
    stays = tables["stays"].sort_values("stay_id").copy()
    stays["tau"] = 0.0 if settings.anchor == "admission" else stays.onset_hours
    stays["tau"] = (stays.tau + settings.start_hours).clip(lower=0)
    stays = stays[(stays.age >= settings.min_age) & stays.tau.notna()]
    decisions = [len([t for t in range(100) if s.tau + 4 * t + 4 < s.exit_hours]) for s in stays.itertuples()]
    stays["length"] = np.minimum(decisions, settings.max_steps)
    code = stays.exit_kind.map({"truncated": 0, "death": 1, "discharge": 2})
    stays["exit"] = np.where(np.array(decisions) > settings.max_steps, 0, code)
    stays = stays[stays.length >= settings.min_steps]
    good = []
    for stay in stays.itertuples():
        obs, mask = observations(tables, stay, settings.max_steps)
        fluid = fluids(tables, stay, settings.max_steps)
        urine = np.nan_to_num(obs[:, URINE])
        good.append(mask.any() and urine.max() <= settings.max_urine_4h and fluid.max() <= settings.max_fluid_4h)
    return stays[np.array(good, bool)]


def observations(tables: Tables, stay: Any, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """obs f64[steps,F] carried forward (NaN before the first value, urine complete) and mask bool[steps,38]."""
    obs, mask = np.full((steps, NUM_FEATURES), np.nan), np.zeros((steps, NUM_FEATURES), bool)
    charted = tables["measurements"]
    charted = charted[charted.stay_id == stay.stay_id]
    for i, feature in enumerate(FEATURES):
        low = -feature.high if i == URINE else feature.low
        rows = charted[charted.feature == feature.name]
        rows = sorted((hours - stay.tau, value) for hours, value in zip(rows.hours, rows.value, strict=True))
        rows = [(hours, value) for hours, value in rows if low <= value <= feature.high]
        before = [value for hours, value in rows if -24 <= hours < 0]
        carried = before[-1] if before else np.nan
        for t in range(stay.length):
            inside = [value for hours, value in rows if 4 * t <= hours < 4 * t + 4]
            if i == URINE:
                obs[t, i] = max(sum(inside), 0)
                continue
            if inside:
                carried = inside[-1] if feature.aggregate == "last" else np.mean(inside)
                mask[t, i] = True
            obs[t, i] = carried
    return obs, mask[:, :URINE]


def fluids(tables: Tables, stay: Any, steps: int) -> np.ndarray:
    """f64[steps+1] mL tonicity equivalents of the bins [tau + 4k, tau + 4k + 4)."""
    out = np.zeros(steps + 1)
    for row in _of(stay, tables["treatments"]):
        if row.treatment not in FLUID_TONICITY:
            continue
        volume = row.amount * (1000 if row.unit == "L" else 1) * FLUID_TONICITY[row.treatment]
        start, end = row.start_hours - stay.tau, row.end_hours - stay.tau
        for k in range(stay.length + 1):
            if np.isnan(end) or end == start:
                out[k] += volume if 4 * k <= start < 4 * k + 4 else 0
            else:
                out[k] += volume * max(min(end, 4 * k + 4) - max(start, 4 * k), 0) / (end - start)
    return out


def vasopressors(tables: Tables, stay: Any, steps: int, weight: float, settings: BuildSettings) -> np.ndarray:
    """f64[steps+1] mcg/kg/min norepinephrine equivalents: sum over drugs of the highest overlapping rate."""
    factors = NEE_FACTORS[settings.vasopressor_conversion]
    out = np.zeros((steps + 1, len(factors)))
    for row in _of(stay, tables["treatments"]):
        if row.treatment not in factors:
            continue
        dose = row.rate * _TO_MINUTE[row.unit] * factors[row.treatment]
        dose /= 1 if _PER_PATIENT[row.unit] is None else weight
        start, end = row.start_hours - stay.tau, row.end_hours - stay.tau
        for k in range(stay.length + 1):
            if start < end and start < 4 * k + 4 and end > 4 * k:
                drug = list(factors).index(row.treatment)
                out[k, drug] = max(out[k, drug], dose)
    return np.minimum(out.sum(-1), settings.max_vaso_dose)


def ventilated(tables: Tables, stay: Any, steps: int) -> np.ndarray:
    """bool[steps]: an interval overlaps [tau + 4t, tau + 4t + 4)."""
    out = np.zeros(steps, bool)
    for row in _of(stay, tables["intervals"]):
        start, end = row.start_hours - stay.tau, row.end_hours - stay.tau
        for t in range(stay.length):
            out[t] |= start < end and start < 4 * t + 4 and end > 4 * t
    return out


def _of(stay: Any, table: pd.DataFrame) -> list[Any]:
    return list(table[table.stay_id == stay.stay_id].itertuples())


def episodes(tables: Tables, stays: pd.DataFrame, settings: BuildSettings, split: np.ndarray) -> dict[str, np.ndarray]:
    """The arrays of Episodes that need no action bins, given the stays of `cohort` and their split."""
    steps, train = settings.max_steps, split == 0
    out: dict[str, list[Any]] = {name: [] for name in ("obs", "mask", "vaso", "fluid", "ventilated", "sofa")}
    weight = stays.weight_kg.where(stays.weight_kg.between(20, 400))
    typical = weight[train].groupby(stays.sex[train]).median().dropna()
    overall = weight[train].median() if weight[train].notna().any() else 80.0
    weight = weight.fillna(stays.sex.map(lambda sex: typical.get(sex, overall)))
    charlson = stays.charlson.fillna(stays.charlson[train].median() if stays.charlson[train].notna().any() else 0)
    for stay, kg in zip(stays.itertuples(), weight, strict=True):
        obs, mask = observations(tables, stay, steps)
        vaso = vasopressors(tables, stay, steps, kg, settings)
        breathing = ventilated(tables, stay, steps)
        score = _sofa(obs, breathing, vaso[:-1], sofa.urine_24h(obs[:, URINE]))
        values = (obs, mask, vaso, fluids(tables, stay, steps), breathing, np.asarray(score))
        for name, value in zip(out, values, strict=True):
            out[name].append(value)
    arrays = {name: np.stack(value) for name, value in out.items()}
    valid = np.arange(steps) < stays.length.to_numpy()[:, None]
    measured = arrays["mask"] & valid[..., None] & train[:, None, None]
    for i in range(URINE):
        seen = arrays["obs"][..., i][measured[..., i]]
        arrays["obs"][..., i] = np.where(
            np.isnan(arrays["obs"][..., i]), seen.mean() if seen.size else FEATURES[i].mean, arrays["obs"][..., i]
        )
    arrays["obs"][~valid], arrays["sofa"][~valid] = 0, 0
    male = (stays.sex == "M").astype(float)
    arrays["static"] = np.stack([stays.age, male, charlson], -1)
    return arrays | {"weight_kg": weight.to_numpy(), "length": stays.length.to_numpy(), "exit": stays.exit.to_numpy()}
