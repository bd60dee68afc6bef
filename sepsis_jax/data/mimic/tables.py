"""The raw MIMIC-IV tables: where they lie, which columns are read, and what is said when one is at fault.

Columns are read by name, so that the header orders of 2.x and 3.x (and the columns that one of them lacks) do not
matter. Only the columns of `RAW` are parsed; a text in a number column is an error.
"""

from __future__ import annotations

import csv
import gzip
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

from sepsis_jax.data import events
from sepsis_jax.errors import InputError

_ID, _TIME, _NUMBER, _TEXT = "INTEGER", "TIMESTAMP", "DOUBLE", "VARCHAR"

RAW: dict[str, dict[str, str]] = {
    "icu/icustays": {"subject_id": _ID, "hadm_id": _ID, "stay_id": _ID, "intime": _TIME, "outtime": _TIME},
    "hosp/patients": {
        "subject_id": _ID,
        "gender": _TEXT,
        "anchor_age": _ID,
        "anchor_year": _ID,
        "anchor_year_group": _TEXT,
        "dod": _TIME,
    },
    "hosp/admissions": {"hadm_id": _ID, "dischtime": _TIME, "deathtime": _TIME, "hospital_expire_flag": _ID},
    "hosp/prescriptions": {
        "hadm_id": _ID,
        "starttime": _TIME,
        "drug_type": _TEXT,
        "drug": _TEXT,
        "route": _TEXT,
    },
    "hosp/microbiologyevents": {
        "subject_id": _ID,
        "micro_specimen_id": _ID,
        "chartdate": _TIME,
        "charttime": _TIME,
    },
    "icu/chartevents": {"stay_id": _ID, "charttime": _TIME, "itemid": _ID, "valuenum": _NUMBER},
    "hosp/labevents": {
        "subject_id": _ID,
        "specimen_id": _ID,
        "itemid": _ID,
        "charttime": _TIME,
        "value": _TEXT,
        "valuenum": _NUMBER,
    },
    "icu/outputevents": {"stay_id": _ID, "charttime": _TIME, "itemid": _ID, "value": _NUMBER},
    "icu/inputevents": {
        "stay_id": _ID,
        "starttime": _TIME,
        "endtime": _TIME,
        "itemid": _ID,
        "amount": _NUMBER,
        "amountuom": _TEXT,
        "rate": _NUMBER,
        "rateuom": _TEXT,
        "patientweight": _NUMBER,
        "statusdescription": _TEXT,
    },
    "icu/procedureevents": {
        "stay_id": _ID,
        "starttime": _TIME,
        "endtime": _TIME,
        "itemid": _ID,
        "statusdescription": _TEXT,
    },
    "hosp/diagnoses_icd": {"hadm_id": _ID, "icd_code": _TEXT, "icd_version": _ID},
}
"""Table -> column -> SQL type: all that is read of MIMIC-IV."""

_SUFFIXES = (".parquet", ".csv.gz", ".csv")
_WANTED = {_ID: "an integer", _NUMBER: "a number", _TIME: "a time (YYYY-MM-DD HH:MM:SS)"}


def attach(con: duckdb.DuckDBPyConnection, source: Path) -> None:
    """Make every table of `RAW` a view of `con` that is named as in MIMIC-IV ('chartevents'). Reads headers only.

    Raises:
      InputError: a folder, table or column is missing, or a header cannot be read.
    """
    if not source.is_dir():
        raise InputError(source, expected="the MIMIC-IV folder with hosp/ and icu/", found="no such folder")
    paths = {table: find(source, table) for table in RAW}
    for table, path in paths.items():
        con.execute(f"CREATE TEMP VIEW {table.split('/')[1]} AS {_select(path, RAW[table])}")


def find(source: Path, table: str) -> Path:
    """The file of 'icu/chartevents' and the like: Parquet first, then csv.gz, then csv."""
    for suffix in _SUFFIXES:
        path = source / f"{table}{suffix}"
        if path.is_file():
            return path
    raise InputError(
        source,
        field=table,
        expected=f"{table}.csv.gz, .csv or .parquet",
        found="no such file",
        hint="the folder should hold hosp/ and icu/ as downloaded",
    )


def _select(path: Path, columns: dict[str, str]) -> str:
    header = _header(path)
    for column in columns:
        if column not in header:
            raise InputError(path, field=column, expected="a column", found=f"columns {', '.join(header) or 'none'}")
    name = str(path).replace("'", "''")
    if path.suffix == ".parquet":
        casts = ", ".join(f'CAST("{header[column]}" AS {kind}) AS {column}' for column, kind in columns.items())
        return f"SELECT {casts} FROM read_parquet('{name}')"
    types = {column: columns.get(column, _TEXT) for column in header}
    return (
        f"SELECT {', '.join(columns)} FROM read_csv('{name}', columns = {types}, auto_detect = false, header = true, "
        "delim = ',', quote = '\"', escape = '\"')"
    )


def _header(path: Path) -> dict[str, str]:
    """Lower-case column name -> name in the file, in the order of the file."""
    if path.suffix == ".parquet":
        with reading(path.parent.parent):
            rows = duckdb.execute("SELECT name FROM parquet_schema(?) WHERE num_children IS NULL", [str(path)])
            return {name.lower(): name for (name,) in rows.fetchall()}
    try:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            names = next(csv.reader(file), [])
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(path, expected="a CSV file with a header", found=str(error)) from error
    return {name.strip().lower(): name for name in names}


@contextmanager
def reading(source: Path) -> Iterator[None]:
    """Turn what DuckDB says while it scans the raw files of `source` into an InputError that names file and column."""
    try:
        yield
    except duckdb.OutOfMemoryException:
        with events.reading(source):
            raise
    except duckdb.Error as error:
        message = str(error)
        path = next((p for p in (_path(source, table) for table in RAW) if p and str(p) in message), source)
        bad = re.search(r"""converting column "(\w+)"\. Could not convert string "(.*?)" to '(\w+)'""", message)
        bad = bad or re.search(r"""()Could not convert string '(.*?)' to (\w+)""", message)
        if bad:
            line = re.search(r"Line: (\d+)", message)
            where = f" in line {line[1]}" if line else ""
            wanted = _WANTED.get(bad[3], f"a value of type {bad[3]}")
            raise InputError(path, field=bad[1], expected=wanted, found=f"'{bad[2]}'{where}") from error
        with events.reading(path):
            raise


def _path(source: Path, table: str) -> Path | None:
    return next((p for p in (source / f"{table}{suffix}" for suffix in _SUFFIXES) if p.is_file()), None)
