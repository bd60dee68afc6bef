"""Random small cohorts of canonical event tables, and how to write them."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pandas as pd

from sepsis_jax.clinical.features import FEATURES, URINE
from sepsis_jax.clinical.vasopressors import FLUID_TONICITY
from sepsis_jax.data.events import RATE_UNITS, VASOPRESSIN_UNITS, VASOPRESSORS

Tables = dict[str, pd.DataFrame]


def random_tables(seed: int, stays: int = 12) -> Tables:
    """A cohort whose events fall on quarters of an hour, so that many lie exactly on bin boundaries."""
    rng = np.random.default_rng(seed)
    ids = rng.choice(np.arange(100, 900), stays, replace=False)
    return {
        "stays": _stays(rng, ids),
        "measurements": _measurements(rng, ids),
        "treatments": _treatments(rng, ids),
        "intervals": _intervals(rng, ids),
    }


def write(folder: Path, tables: Tables, suffix: str = "parquet") -> Path:
    """Write each table as `<name>.<suffix>` into `folder`, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        if suffix == "csv":
            table.to_csv(folder / f"{name}.csv", index=False)
        else:
            with duckdb.connect() as con:
                con.register("frame", table)
                con.execute(f"COPY (SELECT * FROM frame) TO '{folder / name}.parquet' (FORMAT parquet)")
    return folder


def _quarters(rng: np.random.Generator, low: float, high: float, n: int) -> np.ndarray:
    return rng.integers(int(low * 4), int(high * 4), n) / 4


def _maybe(rng: np.random.Generator, values: np.ndarray, missing: float) -> np.ndarray:
    return np.where(rng.random(len(values)) < missing, np.nan, values)


def _stays(rng: np.random.Generator, ids: np.ndarray) -> pd.DataFrame:
    n = len(ids)
    return pd.DataFrame(
        {
            "stay_id": ids,
            "subject_id": rng.integers(1, n, n),
            "age": rng.uniform(15, 90, n).round(1),
            "sex": rng.choice(["M", "F"], n),
            "weight_kg": _maybe(rng, rng.uniform(10, 120, n).round(1), 0.3),
            "charlson": _maybe(rng, rng.integers(0, 12, n).astype(float), 0.2),
            "exit_hours": _quarters(rng, 4, 60, n),
            "exit_kind": rng.choice(["death", "discharge", "truncated"], n),
            "mortality_90d": _maybe(rng, rng.integers(0, 2, n).astype(float), 0.2),
            "mortality_hospital": _maybe(rng, rng.integers(0, 2, n).astype(float), 0.2),
            "onset_hours": _maybe(rng, _quarters(rng, -6, 12, n), 0.2),
        }
    )


def _measurements(rng: np.random.Generator, ids: np.ndarray) -> pd.DataFrame:
    n = 120 * len(ids)
    feature = rng.choice([0, 3, 8, 9, 14, 26, 28, 29, 31, URINE], n)  # few, so that bins hold several values
    low = np.array([max(f.low, f.mean - 3 * f.sd) if i != URINE else -50 for i, f in enumerate(FEATURES)])
    high = np.array([min(f.high, f.mean + 3 * f.sd) if i != URINE else 400 for i, f in enumerate(FEATURES)])
    value = rng.uniform(low[feature], high[feature]).round(2)
    value[rng.random(n) < 0.01] = 99_999
    return pd.DataFrame(
        {
            "stay_id": rng.choice(ids, n),
            "hours": _quarters(rng, -40, 60, n),
            "feature": [FEATURES[i].name for i in feature],
            "value": value,
        }
    )


def _treatments(rng: np.random.Generator, ids: np.ndarray) -> pd.DataFrame:
    rows: list[tuple[object, ...]] = []
    for _ in range(8 * len(ids)):
        stay, start = rng.choice(ids), float(_quarters(rng, -6, 50, 1)[0])
        end = start + float(_quarters(rng, 0, 9, 1)[0])
        if rng.random() < 0.5:
            drug = str(rng.choice(VASOPRESSORS))
            unit = str(rng.choice(list(VASOPRESSIN_UNITS if drug == "vasopressin" else RATE_UNITS)))
            high = {"mcg/kg/min": 0.8, "mcg/min": 40, "mg/h": 2, "units/min": 0.06, "units/hour": 3}[unit]
            rows.append((stay, start, end, drug, round(rng.uniform(0, high), 4), np.nan, unit))
        else:
            unit = str(rng.choice(["mL", "L"]))
            amount = round(rng.uniform(0, 900) / (1000 if unit == "L" else 1), 3)
            fluid = str(rng.choice(list(FLUID_TONICITY)))
            rows.append((stay, start, np.nan if rng.random() < 0.2 else end, fluid, np.nan, amount, unit))
    columns = ["stay_id", "start_hours", "end_hours", "treatment", "rate", "amount", "unit"]
    return pd.DataFrame(rows, columns=columns)


def _intervals(rng: np.random.Generator, ids: np.ndarray) -> pd.DataFrame:
    n = 2 * len(ids)
    start = _quarters(rng, -6, 40, n)
    end = start + _quarters(rng, 0, 12, n)
    return pd.DataFrame(
        {"stay_id": rng.choice(ids, n), "start_hours": start, "end_hours": end, "kind": "invasive_ventilation"}
    )
