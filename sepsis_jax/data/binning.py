"""Event views -> dense 4-h bins, out of core.

`load` writes what falls inside the records into four sorted scratch tables, with one pass over each event table;
`observations` and `doses` then read one block of stays at a time, so memory does not grow with the cohort. Times
become whole seconds, so that a value exactly on a boundary always belongs to the later bin. Sums are exact (DECIMAL),
everything else is a minimum, a maximum or a count: the result does not depend on threads nor on the order of rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import duckdb
import numpy as np

from sepsis_jax.clinical.features import FEATURES, NUM_FEATURES, NUM_MASKED, URINE
from sepsis_jax.clinical.vasopressors import FLUID_TONICITY, NEE_FACTORS
from sepsis_jax.data.events import RATE_UNITS, VASOPRESSIN_UNITS, VASOPRESSORS, VOLUME_UNITS

BIN_HOURS = 4
BIN_S = BIN_HOURS * 3600
LOOKBACK_S = 24 * 3600
"""A value charted up to this long before tau is still carried into the record."""

_EXACT = "DECIMAL(38,9)"  # sums of doubles depend on their order, sums of decimals do not
_LAST = ", ".join(str(i) for i, f in enumerate(FEATURES) if f.aggregate == "last")


@dataclass(frozen=True)
class Records:
    """The part of each stay that becomes a record; stays are numbered by their position here.

    Attributes:
      stay_id: i32[B].
      start_s: i64[B] (s since ICU admission) tau.
      length: i32[B] steps; observation bins are 0 .. length - 1, treatment bins 0 .. length.
    """

    stay_id: np.ndarray
    start_s: np.ndarray
    length: np.ndarray


def fetch(con: duckdb.DuckDBPyConnection, query: str, *parameters: object) -> dict[str, np.ndarray]:
    """Columns of the answer to `query`, which must not hold NULL."""
    return {name: np.asarray(column) for name, column in con.execute(query, list(parameters)).fetchnumpy().items()}


def seconds(hours: str) -> str:
    """SQL: hours -> whole seconds."""
    return f"round({hours} * 3600)::BIGINT"


def load(con: duckdb.DuckDBPyConnection, records: Records, conversion: str) -> None:
    """Make the scratch tables value, vasopressor, fluid and ventilation, sorted by position `pos`, from the views.

    Args:
      con: connection with the views of `events.open_events`; its database file holds the scratch tables.
      records: whose events to keep.
      conversion: name of a table in `NEE_FACTORS`.
    """
    columns = {"stay_id": records.stay_id, "start_s": records.start_s, "length": records.length}
    con.register("records", {"pos": np.arange(len(records.stay_id), dtype=np.int32), **columns})
    con.execute("CREATE TABLE record AS SELECT * FROM records")
    con.unregister("records")
    con.execute(_value_table())
    con.execute(_vasopressor_table(conversion))
    con.execute(_fluid_table())
    con.execute(_ventilation_table())


def _value_table() -> str:
    """Plausible values by bin; bin -1 is the look-back before tau, which urine does not have."""
    return f"""
        CREATE TABLE value AS
        WITH timed AS (
            SELECT pos, length, index AS feature, value, {seconds("hours")} - start_s AS at_s
            FROM measurements JOIN record USING (stay_id) JOIN vocabulary USING (feature)
            WHERE value BETWEEN low AND high
        )
        SELECT pos, (CASE WHEN at_s < 0 THEN -1 ELSE at_s // {BIN_S} END)::INTEGER AS bin, feature, at_s, value
        FROM timed
        WHERE at_s >= (CASE WHEN feature = {URINE} THEN 0 ELSE -{LOOKBACK_S} END) AND at_s < length * {BIN_S}
        ORDER BY pos"""


def _spans(view: str, columns: str, where: str, bins: str) -> str:
    """SQL of one row per event and bin it overlaps: start and end in seconds since tau, `bin` from 0 to `bins` - 1."""
    return f"""
        WITH timed AS (
            SELECT pos, {bins} AS bins, {columns}, {seconds("start_hours")} - start_s AS start,
                   {seconds("coalesce(end_hours, start_hours)")} - start_s AS stop
            FROM {view} JOIN record USING (stay_id)
            WHERE {where}
        ), span AS (
            -- what has no duration is a bolus: it takes one second, which lies in one bin
            SELECT * REPLACE (greatest(stop, start + 1) AS stop) FROM timed
        ), binned AS (
            SELECT *, unnest(range(greatest(start, 0) // {BIN_S}, least((stop - 1) // {BIN_S} + 1, bins)))::INTEGER
                   AS bin
            FROM span WHERE stop > 0
        )"""


def _vasopressor_table(conversion: str) -> str:
    """Norepinephrine-equivalent rates; `per_patient` ones (mcg/min) still have to be divided by the weight."""
    factors = NEE_FACTORS[conversion]
    drug = " ".join(f"WHEN '{name}' THEN {i}" for i, name in enumerate(VASOPRESSORS))
    factor = " ".join(f"WHEN '{name}' THEN {factors[name]}" for name in VASOPRESSORS)
    unit = " ".join(f"WHEN '{name}' THEN {scale!r}" for name, scale in (RATE_UNITS | VASOPRESSIN_UNITS).items())
    columns = f"""(CASE treatment {drug} END)::UTINYINT AS drug, unit IN ('mcg/min', 'mg/h') AS per_patient,
                  rate * (CASE treatment {factor} END) * (CASE unit {unit} END) AS dose"""
    where = f"treatment IN ({_texts(VASOPRESSORS)}) AND end_hours > start_hours"
    return f"""
        CREATE TABLE vasopressor AS {_spans("treatments", columns, where, "length + 1")}
        SELECT pos, bin, drug, per_patient, dose FROM binned ORDER BY pos"""


def _fluid_table() -> str:
    """Tonicity-equivalent mL of each event that fall into each bin."""
    tonicity = " ".join(f"WHEN '{name}' THEN {factor}" for name, factor in FLUID_TONICITY.items())
    unit = " ".join(f"WHEN '{name}' THEN {scale}" for name, scale in VOLUME_UNITS.items())
    columns = f"amount * (CASE treatment {tonicity} END) * (CASE unit {unit} END) AS volume"
    overlap = f"(least(stop, (bin + 1) * {BIN_S}) - greatest(start, bin * {BIN_S}))"
    return f"""
        CREATE TABLE fluid AS {_spans("treatments", columns, f"treatment IN ({_texts(FLUID_TONICITY)})", "length + 1")}
        SELECT pos, bin, volume * {overlap} / (stop - start) AS volume FROM binned ORDER BY pos"""


def _ventilation_table() -> str:
    where = "kind = 'invasive_ventilation' AND end_hours > start_hours"
    return f"""
        CREATE TABLE ventilation AS {_spans("intervals", "kind", where, "length")}
        SELECT DISTINCT pos, bin FROM binned ORDER BY pos"""


def most_urine(con: duckdb.DuckDBPyConnection, count: int) -> np.ndarray:
    """f64[B] (mL): the largest urine output of any one bin of each of `count` records."""
    return _largest(con, f"SELECT pos, bin, value AS amount FROM value WHERE feature = {URINE}", count)


def most_fluid(con: duckdb.DuckDBPyConnection, count: int) -> np.ndarray:
    """f64[B] (mL, tonicity equivalents): the largest volume of any one bin of each record."""
    return _largest(con, "SELECT pos, bin, volume AS amount FROM fluid", count)


def num_measured(con: duckdb.DuckDBPyConnection, count: int) -> np.ndarray:
    """i64[B]: values charted within each record, urine apart."""
    found = fetch(con, f"SELECT pos, count(*) AS n FROM value WHERE bin >= 0 AND feature <> {URINE} GROUP BY pos")
    out = np.zeros(count, np.int64)
    out[found["pos"]] = found["n"]
    return out


def observations(
    con: duckdb.DuckDBPyConnection, first: int, last: int, steps: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Observation bins of the records first .. last - 1 (N of them).

    Returns:
      obs: f32[N,steps,F] (clinical units) carried forward, from up to 24 h before tau; NaN before the first value.
        Urine is the sum of its events, at least 0.
      mask: bool[N,steps,38] measured in this bin.
      ventilated: bool[N,steps] an interval of invasive ventilation overlaps the bin.
    """
    obs = np.full((last - first, steps + 1, NUM_FEATURES), np.nan, np.float32)  # bin -1 comes first
    for query in (_AGGREGATES, _LATEST):
        found = fetch(con, query, first, last)
        obs[found["pos"] - first, found["bin"] + 1, found["feature"]] = found["value"]
    obs[..., URINE] = np.maximum(np.nan_to_num(obs[..., URINE]), 0)
    mask = ~np.isnan(obs[:, 1:, :NUM_MASKED])
    for t in range(1, steps + 1):
        np.copyto(obs[:, t], obs[:, t - 1], where=np.isnan(obs[:, t]))
    ventilated = np.zeros((last - first, steps), bool)
    found = fetch(con, _VENTILATED, first, last)
    ventilated[found["pos"] - first, found["bin"]] = True
    return obs[:, 1:], mask, ventilated


def doses(
    con: duckdb.DuckDBPyConnection, first: int, last: int, bins: int, weight_kg: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Treatment bins of the records first .. last - 1 (N of them).

    Args:
      weight_kg: f32[N], for rates that were charted per patient.

    Returns:
      vaso: f64[N,bins] (mcg/kg/min norepinephrine equivalents) sum over the drugs of the highest rate that overlaps
        the bin.
      fluid: f64[N,bins] (mL, tonicity equivalents) what ran in during the bin.
    """
    rate = np.zeros((last - first, bins, len(VASOPRESSORS), 2))
    found = fetch(con, _RATES, first, last)
    rate[found["pos"] - first, found["bin"], found["drug"], found["per_patient"].astype(int)] = found["dose"]
    vaso = np.maximum(rate[..., 0], rate[..., 1] / weight_kg[:, None, None]).sum(axis=-1)
    fluid = np.zeros((last - first, bins))
    found = fetch(con, _VOLUMES, first, last)
    fluid[found["pos"] - first, found["bin"]] = found["volume"]
    return vaso, fluid


_AGGREGATES = f"""
    SELECT pos, bin, feature,
           sum(value::DECIMAL(18,9))::DOUBLE / (CASE WHEN feature = {URINE} THEN 1 ELSE count(*) END) AS value
    FROM value WHERE pos >= ? AND pos < ? AND bin >= 0 AND feature NOT IN ({_LAST}) GROUP BY pos, bin, feature"""
# The latest value; of several at one time the largest, so that ties do not depend on the order of rows.
_LATEST = f"""
    SELECT pos, bin, feature, max({{'at': at_s, 'value': value}}).value AS value
    FROM value WHERE pos >= ? AND pos < ? AND (bin < 0 OR feature IN ({_LAST})) GROUP BY pos, bin, feature"""
_VENTILATED = "SELECT pos, bin FROM ventilation WHERE pos >= ? AND pos < ?"
_RATES = """
    SELECT pos, bin, drug, per_patient, max(dose) AS dose
    FROM vasopressor WHERE pos >= ? AND pos < ? GROUP BY pos, bin, drug, per_patient"""
_VOLUMES = f"""
    SELECT pos, bin, sum(volume::{_EXACT})::DOUBLE AS volume
    FROM fluid WHERE pos >= ? AND pos < ? GROUP BY pos, bin"""


def _largest(con: duckdb.DuckDBPyConnection, amounts: str, count: int) -> np.ndarray:
    totals = f"SELECT pos, bin, sum(amount::{_EXACT})::DOUBLE AS total FROM ({amounts}) GROUP BY pos, bin"
    found = fetch(con, f"SELECT pos, max(total) AS largest FROM ({totals}) GROUP BY pos")
    out = np.zeros(count)
    out[found["pos"]] = found["largest"]
    return out


def _texts(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
