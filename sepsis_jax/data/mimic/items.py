"""Facts about MIMIC-IV that the SQL joins with: item ids, antibiotics, Charlson codes. They live in CSV tables."""

from __future__ import annotations

import csv
from importlib import resources

import duckdb
import pandas as pd

from sepsis_jax.clinical.features import FEATURES
from sepsis_jax.clinical.vasopressors import NEE_FACTORS

RULES: tuple[str, ...] = ("", "fahrenheit", "fraction", "verbal", "irrigant", "arterial")
"""What turns a charted value into the canonical one; '' keeps it. See the macro `canonical`."""

_MACROS = """
CREATE TEMP MACRO hours_between(t0, t1) AS (epoch(t1) - epoch(t0)) / 3600;
-- fraction: FiO2 charted as 0.2-1; what stays below 20 % is implausible and goes later.
-- verbal: under a tube ("No Response-ETT") the verbal score is charted as 0 or 1; it counts as 1, none.
CREATE TEMP MACRO canonical(value, rule) AS CASE
    WHEN rule = 'fahrenheit' THEN (value - 32) / 1.8
    WHEN rule = 'fraction' AND value <= 1 THEN value * 100
    WHEN rule = 'verbal' THEN greatest(value, 1)
    WHEN rule = 'irrigant' THEN -abs(value)
    ELSE value
END;
"""


def read(table: str) -> list[dict[str, str]]:
    """Rows of one of this package's tables: 'items', 'antibiotics' or 'charlson'."""
    text = resources.files(__package__).joinpath(f"{table}.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def load(con: duckdb.DuckDBPyConnection) -> None:
    """Make the temporary tables items, charlson_codes, nee_factors, features, the variable antibiotics, the macros."""
    con.execute(_MACROS)
    # Any dose scores at least 3 points, so the choice of the table hardly moves the onset.
    factors = [{"treatment": name, "factor": factor} for name, factor in NEE_FACTORS["goradia2020"].items()]
    for table, frame in (
        ("items", pd.DataFrame(read("items")).astype({"itemid": "int32"})),
        ("charlson_codes", pd.DataFrame(read("charlson")).astype({"points": "int32", "icd_version": "int32"})),
        ("nee_factors", pd.DataFrame(factors)),
        ("features", pd.DataFrame(FEATURES)[["name", "low", "high"]].rename(columns={"name": "feature"})),
    ):
        con.register("frame", frame)
        con.execute(f"CREATE TEMP TABLE {table} AS FROM frame")
        con.unregister("frame")
    con.execute("SET VARIABLE antibiotics = ?", ["|".join(row["fragment"] for row in read("antibiotics"))])
