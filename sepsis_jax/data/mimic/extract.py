"""MIMIC-IV (2.x or 3.x, csv.gz or Parquet as downloaded) -> canonical event tables of the Sepsis-3 stays.

Every raw table is scanned once, filtered on item ids and candidate stays while it streams; what is left is staged in
a DuckDB file that may spill, so memory does not grow with the data. Candidates are adults with a suspicion of
infection; of those, SOFA decides. `sql/` holds one query per step, named as the table or view that it makes.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple

import duckdb
import numpy as np
import pandas as pd

from sepsis_jax import files
from sepsis_jax.clinical import sofa
from sepsis_jax.data.cohort import WEIGHT_KG
from sepsis_jax.data.mimic import items, tables
from sepsis_jax.errors import InputError

_VERSIONS = {140: "demo 2.2", 76_943: "2.0", 73_181: "2.2", 94_458: "3.1"}
"""ICU stays -> MIMIC-IV version; the tables themselves do not say."""

_DEMO_PATIENTS = "cc84b108f3e068bc4358717c7ef1ba39"
"""MD5 of the subject_ids of the open demo; any other set of patients needs a data use agreement."""

_BLOCK = 256  # stays whose rows are scored or sorted at a time
_PAD = 16_384  # rows


@dataclasses.dataclass(frozen=True)
class MimicSettings:
    """How sepsis is found, and what the run may use.

    Attributes:
      min_age: youngest age (years).
      culture_to_antibiotic_hours: (h) how far an antibiotic may follow a culture.
      antibiotic_to_culture_hours: (h) how far a culture may follow an antibiotic.
      sofa_before_hours: (h) SOFA counts from so long before the suspicion of infection.
      sofa_after_hours: (h) SOFA counts until so long after it.
      min_sofa: points of the 24-h rolling SOFA that make sepsis (baseline 0).
      onset: `onset_hours` is when SOFA reaches `min_sofa`, or when infection is suspected.
      threads: DuckDB threads; None takes all cores. The result does not depend on it.
      memory_limit: of DuckDB, e.g. '1GB'; what is beyond goes to `temp_dir`.
      temp_dir: for staged and spilled data; None takes the folder that holds the event tables.
    """

    min_age: float = 18
    culture_to_antibiotic_hours: float = 72
    antibiotic_to_culture_hours: float = 24
    sofa_before_hours: float = 48
    sofa_after_hours: float = 24
    min_sofa: float = 2
    onset: Literal["sofa", "suspicion"] = "sofa"
    threads: int | None = None
    memory_limit: str = "1GB"
    temp_dir: Path | None = None

    def __post_init__(self) -> None:
        for field, expected, good in (
            ("onset", "sofa or suspicion", self.onset in ("sofa", "suspicion")),
            ("threads", "at least 1", self.threads is None or self.threads >= 1),
        ):
            if not good:
                raise InputError("settings", field=field, expected=expected, found=getattr(self, field))


_DEFINITION = tuple(
    field.name
    for field in dataclasses.fields(MimicSettings)
    if field.name not in ("threads", "memory_limit", "temp_dir")
)
"""The settings that define sepsis; the SQL reads them with getvariable()."""


class Extraction(NamedTuple):
    """What `extract` tells about the event tables that it wrote.

    Attributes:
      attrition: (label, stays left) from all ICU stays down to the Sepsis-3 stays.
      facts: version, credentialed, patients, and the counts of rows that were left out or reinterpreted.
    """

    attrition: list[tuple[str, int]]
    facts: dict[str, Any]


def extract(source: Path, events_dir: Path, settings: MimicSettings | None = None) -> Extraction:
    """Write `events_dir`/{stays,measurements,treatments,intervals}.parquet from the MIMIC-IV folder `source`.

    Args:
      source: folder with hosp/ and icu/.
      events_dir: folder to make; event tables that lie there already are replaced.

    Raises:
      InputError: a table, column, value or setting is at fault, or no stay has sepsis.
    """
    settings = settings or MimicSettings()
    source, events_dir = Path(source).absolute(), Path(events_dir).absolute()
    with (
        files.replacing(events_dir, "stays.parquet", "event tables") as folder,
        _staging(folder, settings) as con,
        tables.reading(source),
    ):
        tables.attach(con, source)
        items.load(con)
        attrition = _cohort(con, source, settings)
        _write(con, folder)
        return Extraction(attrition, _facts(con, attrition))


def _cohort(con: duckdb.DuckDBPyConnection, source: Path, settings: MimicSettings) -> list[tuple[str, int]]:
    """Stage the raw tables and find the sepsis stays (view sepsis_stays); returns the attrition."""
    for name in _DEFINITION:
        con.execute(f"SET VARIABLE {name} = ?", [getattr(settings, name)])
    con.execute("SET VARIABLE weight_kg = ?", [list(WEIGHT_KG)])
    _make(con, "icu_stays")
    con.execute("CREATE TEMP VIEW adults AS SELECT * FROM icu_stays WHERE age >= getvariable('min_age')")
    for name in ("antibiotics", "cultures", "suspicion"):
        _make(con, name)
    con.execute("CREATE TEMP VIEW candidates AS FROM adults WHERE stay_id IN (SELECT stay_id FROM suspicion)")
    for name in ("chart_values", "lab_values", "urine_values", "infusions", "ventilation"):
        _make(con, name)
    for name in ("measured", "plausible", "treatments"):
        _make(con, name, kind="VIEW")
    _make(con, "sofa_inputs")
    _score_sofa(con)
    _make(con, "sepsis")
    con.execute("CREATE TEMP VIEW sepsis_stays AS FROM icu_stays WHERE stay_id IN (SELECT stay_id FROM sepsis)")
    attrition = [
        ("ICU stays", _count(con, "icu_stays")),
        (f"adults (age >= {settings.min_age:g})", _count(con, "adults")),
        ("suspected infection (culture and antibiotic)", _count(con, "candidates")),
        (f"Sepsis-3 (SOFA >= {settings.min_sofa:g} around the suspicion)", _count(con, "sepsis_stays")),
    ]
    if attrition[-1][1] == 0:
        found = ", ".join(f"{label}: {stays}" for label, stays in attrition)
        raise InputError(source, expected="at least one stay with sepsis", found=found)
    return attrition


def _make(con: duckdb.DuckDBPyConnection, name: str, kind: Literal["TABLE", "VIEW"] = "TABLE") -> None:
    con.execute(f"CREATE {kind} {name} AS {_sql(name)}")


def _sql(name: str) -> str:
    return resources.files(__package__).joinpath("sql", f"{name}.sql").read_text(encoding="utf-8")


def _count(con: duckdb.DuckDBPyConnection, table: str, where: str = "true") -> int:
    row = con.execute(f"SELECT count(*) FROM {table} WHERE {where}").fetchone()
    assert row is not None
    return int(row[0])


def _score_sofa(con: duckdb.DuckDBPyConnection) -> None:
    """Table sofa_points (stay_id, hour, points of the six components) from sofa_inputs.

    The thresholds live in `clinical.sofa` only; SQL brings the hourly inputs and takes the rolling maximum.
    """
    points = ", ".join(f"{name} TINYINT" for name in sofa.COMPONENTS)
    con.execute(f"CREATE TABLE sofa_points (stay_id INTEGER, hour BIGINT, {points})")
    for first, last in _blocks(con, "candidates"):
        hours = con.execute("FROM sofa_inputs WHERE stay_id BETWEEN ? AND ?", [first, last]).df()
        con.register("scored", _points(hours))
        con.execute("INSERT INTO sofa_points FROM scored")
        con.unregister("scored")


def _points(hours: pd.DataFrame) -> pd.DataFrame:
    """Rows of sofa_inputs -> rows of sofa_points."""
    # JAX compiles for every shape that it meets, so there should be few.
    padded = hours.reindex(range(-(-len(hours) // _PAD) * _PAD))
    inputs = padded.drop(columns=["stay_id", "hour", "ventilated"])
    points = sofa.components(
        ventilated=padded["ventilated"].eq(True).to_numpy(bool),
        **{name: inputs[name].to_numpy("float32", na_value=float("nan")) for name in inputs},
    )
    scored = pd.DataFrame(np.asarray(points)[: len(hours)], columns=list(sofa.COMPONENTS))
    return pd.concat([hours[["stay_id", "hour"]], scored], axis=1)


def _write(con: duckdb.DuckDBPyConnection, folder: Path) -> None:
    """The four tables of the sepsis stays, in an order that does not depend on the threads."""
    _make(con, "charlson")
    _sort_measurements(con)
    of_sepsis = "WHERE stay_id IN (SELECT stay_id FROM sepsis) ORDER BY ALL"
    queries = {
        "stays": _sql("stays"),
        "measurements": "FROM sorted_measurements",
        "treatments": f"SELECT * FROM treatments {of_sepsis}",
        "intervals": f"SELECT * FROM ventilation {of_sepsis}",
    }
    for table, query in queries.items():
        path = str(folder / f"{table}.parquet").replace("'", "''")
        con.execute(f"COPY ({query}) TO '{path}' (FORMAT parquet, COMPRESSION zstd)")


def _sort_measurements(con: duckdb.DuckDBPyConnection) -> None:
    """Table sorted_measurements, some stays at a time: one sort of all rows would take all the memory it may."""
    con.execute("CREATE TABLE sorted_measurements (stay_id INTEGER, hours DOUBLE, feature VARCHAR, value DOUBLE)")
    for first, last in _blocks(con, "sepsis"):
        con.execute(
            "INSERT INTO sorted_measurements SELECT stay_id, hours, feature, value FROM measured "
            "WHERE stay_id BETWEEN ? AND ? AND stay_id IN (SELECT stay_id FROM sepsis) ORDER BY ALL",
            [first, last],
        )


def _blocks(con: duckdb.DuckDBPyConnection, table: str) -> Iterator[tuple[int, int]]:
    """First and last stay_id of every `_BLOCK` stays of a table, ascending."""
    stays = [stay for (stay,) in con.execute(f"SELECT stay_id FROM {table} ORDER BY stay_id").fetchall()]
    for first in range(0, len(stays), _BLOCK):
        yield stays[first], stays[first : first + _BLOCK][-1]


def _facts(con: duckdb.DuckDBPyConnection, attrition: list[tuple[str, int]]) -> dict[str, Any]:
    row = con.execute(
        "SELECT count(DISTINCT subject_id), md5(string_agg(DISTINCT subject_id, ',' ORDER BY subject_id)) "
        "FROM icu_stays"
    ).fetchone()
    assert row is not None
    minute = "treatment = 'vasopressin' AND rateuom = 'units/min' AND rate > 0.2"
    return {
        "version": _VERSIONS.get(attrition[0][1], "unknown"),
        "credentialed": row[1] != _DEMO_PATIENTS,
        "patients": row[0],
        "infusion_rows": _count(con, "infusions"),
        "infusion_rows_left_out": _count(con, "infusions") - _count(con, "treatments"),
        "vasopressin_rows_taken_as_hourly": _count(con, "infusions", minute),
    }


@contextmanager
def _staging(folder: Path, settings: MimicSettings) -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB connection on a file that is gone afterwards."""
    where = settings.temp_dir or folder.parent
    try:
        scratch = tempfile.TemporaryDirectory(prefix=".staging.", dir=where)
    except OSError as error:
        found = f"{where}: {error.strerror}"
        raise InputError("settings", field="temp_dir", expected="a folder to write to", found=found) from error
    with scratch as name:
        config: dict[str, Any] = {"memory_limit": settings.memory_limit, "temp_directory": f"{name}/spill"}
        if settings.threads is not None:
            config["threads"] = settings.threads
        try:
            con = duckdb.connect(f"{name}/staging.duckdb", config=config)
        except duckdb.Error as error:
            found = settings.memory_limit
            raise InputError("settings", field="memory_limit", expected="a size like 2GB", found=found) from error
        with con:
            # The optimiser cannot know how many rows a csv.gz holds and may put a raw table into memory. In the order
            # that the joins are written in, it streams past small hash tables.
            con.execute("SET disabled_optimizers = 'join_order,build_side_probe_side'")
            con.execute(f"SET enable_progress_bar = {sys.stdout.isatty()}")  # DuckDB draws it on stdout
            yield con
