"""Canonical event tables: the public intake, one folder with `stays`, `measurements`, `treatments` and `intervals`.

Each table is `<name>.parquet` or `<name>.csv` (UTF-8, comma separated, with a header); docs/bring-your-own-data.md
describes every column. `open_events` checks a folder and shows it as typed DuckDB views of the same names; nothing is
loaded. Hours count from ICU admission and may be negative. A value that the check refuses is never repaired.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import duckdb

from sepsis_jax.clinical.features import FEATURES, NAMES, URINE
from sepsis_jax.clinical.vasopressors import FLUID_TONICITY, NEE_FACTORS
from sepsis_jax.errors import InputError

MAX_IMPLAUSIBLE_SHARE, MIN_IMPLAUSIBLE_ROWS = 0.05, 20
"""A feature with more than this share of implausible rows, and at least that many, is in another unit."""

VASOPRESSORS: tuple[str, ...] = tuple(NEE_FACTORS["goradia2020"])
RATE_UNITS: dict[str, float] = {  # to mcg/min, or mcg/kg/min as it is
    "mcg/kg/min": 1.0,
    "mcg/min": 1.0,
    "mg/h": 1000.0 / 60.0,
}
VASOPRESSIN_UNITS: dict[str, float] = {"units/min": 1.0, "units/hour": 1.0 / 60.0}  # to U/min
VOLUME_UNITS: dict[str, float] = {"mL": 1.0, "L": 1000.0}  # to mL

_LARGEST = 1e9  # beyond any number a chart holds; keeps sums exact in DECIMAL


class Column(NamedTuple):
    """One column of a table.

    Attributes:
      name: as in the file.
      kind: 'integer', 'number' or 'text'.
      required: may not be empty (nor NaN).
      low, high: allowed range of a number.
      choices: allowed texts; empty for any.
      absent: the whole column may be missing.
      why: hint for a column that is required only at times.
    """

    name: str
    kind: str
    required: bool = True
    low: float = -_LARGEST
    high: float = _LARGEST
    choices: tuple[str, ...] = ()
    absent: bool = False
    why: str = ""


_STAY_ID = Column("stay_id", "integer", low=0, high=2**31 - 1)
_START, _END = Column("start_hours", "number"), Column("end_hours", "number")

TABLES: dict[str, tuple[Column, ...]] = {
    "stays": (
        _STAY_ID,
        Column("subject_id", "integer", low=0, high=2**31 - 1),
        Column("age", "number", low=0, high=130),
        Column("sex", "text", choices=("M", "F")),
        Column("weight_kg", "number", required=False),
        Column("charlson", "number", required=False, low=0, high=50),
        Column("exit_hours", "number"),
        Column("exit_kind", "text", choices=("death", "discharge", "truncated")),
        Column("mortality_90d", "integer", required=False, low=0, high=1),
        Column("mortality_hospital", "integer", required=False, low=0, high=1),
        Column("onset_hours", "number", required=False),
        Column("period", "integer", required=False, absent=True),
    ),
    "measurements": (
        _STAY_ID,
        Column("hours", "number"),
        Column("feature", "text", choices=NAMES),
        Column("value", "number"),
        Column("unit", "text", required=False, absent=True),
    ),
    "treatments": (
        _STAY_ID,
        _START,
        _END._replace(required=False),
        Column("treatment", "text", choices=(*VASOPRESSORS, *FLUID_TONICITY)),
        Column("rate", "number", required=False, low=0),
        Column("amount", "number", required=False, low=0),
        Column("unit", "text"),
    ),
    "intervals": (_STAY_ID, _START, _END, Column("kind", "text", choices=("invasive_ventilation",))),
}


class _Rule(NamedTuple):
    """What a table must satisfy: `violation` is an SQL predicate that is true on a bad row."""

    field: str
    expected: str
    violation: str
    shown: str
    hint: str = ""


def open_events(
    con: duckdb.DuckDBPyConnection, folder: Path, needed: Mapping[str, str] | None = None
) -> dict[str, int]:
    """Check the four tables of `folder` and make them views of `con`: stays, measurements, treatments, intervals.

    A table `vocabulary` (feature, index, low, high) comes with them, to join on.

    Args:
      needed: columns of `stays` that may be missing or empty but not this time -> hint that says why.

    Returns:
      Rows of `measurements` outside the plausible range, by feature (those to drop).

    Raises:
      InputError: a table or column is missing or unreadable, or a row breaks a rule of docs/bring-your-own-data.md.
    """
    if not Path(folder).is_dir():
        raise InputError(folder, expected="a folder of event tables", found="no such folder")
    paths = {table: find(Path(folder), table) for table in TABLES}
    columns = TABLES | {"stays": tuple(_needed(column, needed or {}) for column in TABLES["stays"])}
    _create_vocabulary(con)
    for table, path in paths.items():
        with reading(path):
            _create_views(con, table, path, columns[table])
            _check_rows(con, table, path, columns[table])
            if table == "stays":
                _check_stay_ids(con, path)
    with reading(paths["measurements"]):
        return _implausible(con, paths["measurements"])


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what DuckDB says about a file or about its memory into an InputError."""
    try:
        yield
    except duckdb.OutOfMemoryException as error:
        raise InputError(
            "memory_limit", expected="room for this data", found="too little", hint=_brief(error)
        ) from error
    except duckdb.Error as error:
        expected = "a readable Parquet file" if path.suffix == ".parquet" else "a readable UTF-8 CSV file"
        raise InputError(path, expected=expected, found=_brief(error)) from error


def find(folder: Path, table: str) -> Path:
    """The file of a table in a folder of event tables; InputError unless there is exactly one."""
    found = [path for path in (folder / f"{table}.parquet", folder / f"{table}.csv") if path.is_file()]
    if len(found) != 1:
        what = f"both {found[0].name} and {found[1].name}" if found else "neither"
        raise InputError(folder, field=table, expected=f"one of {table}.parquet and {table}.csv", found=what)
    return found[0]


def _needed(column: Column, needed: Mapping[str, str]) -> Column:
    if column.name not in needed:
        return column
    return column._replace(required=True, absent=False, why=needed[column.name])


def _create_views(con: duckdb.DuckDBPyConnection, table: str, path: Path, columns: tuple[Column, ...]) -> None:
    """`<table>_raw` holds each column beside its typed reading (NULL where it has none); `<table>` the latter only."""
    name = str(path).replace("'", "''")
    options = "all_varchar = true, header = true, delim = ',', quote = '\"', escape = '\"', comment = '', skip = 0"
    source = f"read_parquet('{name}')" if path.suffix == ".parquet" else f"read_csv('{name}', {options})"
    types = {row[0]: row[1] for row in con.execute(f"DESCRIBE SELECT * FROM {source}").fetchall()}
    raw, typed = [], []
    for column in columns:
        if column.name not in types:
            if not column.absent:
                found = f"columns {', '.join(types)}"
                raise InputError(path, field=column.name, expected="a column", found=found, hint=column.why)
            empty = "VARCHAR" if column.kind == "text" else "DOUBLE"
            raw.append(f"NULL::{empty} AS {column.name}, NULL::VARCHAR AS raw_{column.name}")
        else:
            raw.append(f'{_typed(column, types[column.name])} AS {column.name}, "{column.name}" AS raw_{column.name}')
        integer = column.kind == "integer"
        typed.append(f"{column.name}::INTEGER AS {column.name}" if integer else column.name)
    con.execute(f"CREATE TEMP VIEW {table}_raw AS SELECT {', '.join(raw)} FROM {source}")
    con.execute(f"CREATE TEMP VIEW {table} AS SELECT {', '.join(typed)} FROM {table}_raw")


def _typed(column: Column, sql_type: str) -> str:
    """SQL reading of a raw column; an optional NaN is as good as empty."""
    if column.kind == "text":
        return f'"{column.name}"::VARCHAR'
    numeric = sql_type.startswith(("DECIMAL", "BOOL", "FLOAT", "DOUBLE")) or sql_type.endswith("INT")
    numeric = numeric or sql_type.endswith("INTEGER")
    value = f'"{column.name}"' if numeric else f'"{column.name}"::VARCHAR'
    value = f"TRY_CAST({value} AS DOUBLE)"
    return value if column.required else f"CASE WHEN NOT isnan({value}) THEN {value} END"


def _check_rows(con: duckdb.DuckDBPyConnection, table: str, path: Path, columns: tuple[Column, ...]) -> None:
    """One scan counts the violations of every rule; only a broken rule costs another, for its first row."""
    rules = [_column_rule(column) for column in columns] + _table_rules(table)
    counts = ", ".join(f"count_if({rule.violation})" for rule in rules)
    row = con.execute(f"SELECT {counts} FROM {table}_raw").fetchone()
    assert row is not None
    for rule, count in zip(rules, row, strict=True):
        if not count:  # 0, or None where every row gives NULL
            continue
        first = con.execute(
            f"SELECT {rule.shown}, raw_stay_id FROM {table}_raw WHERE {rule.violation} ORDER BY ALL LIMIT 1"
        ).fetchone()
        assert first is not None
        shown = "nothing" if first[0] is None else repr(first[0])
        found = f"{shown} in stay {first[1]} ({count} row{'s' if count > 1 else ''})"
        raise InputError(path, field=rule.field, expected=rule.expected, found=found, hint=_hint(rule, first[0]))


def _column_rule(column: Column) -> _Rule:
    name, raw = column.name, f"raw_{column.name}"
    bad = [f"{name} IS NULL"] if column.required else []
    if column.kind == "text":
        expected = _listed(column.choices) if column.choices else "a text"
        bad += [f"{name} NOT IN ({_quoted(column.choices)})"] if column.choices else []
    else:
        expected = f"{'an integer' if column.kind == 'integer' else 'a finite number'}{_range(column)}"
        if not column.required:
            bad.append(f"({name} IS NULL AND lower({raw}::VARCHAR) <> 'nan')")
        bad.append(f"{name} NOT BETWEEN {column.low} AND {column.high}")  # NaN is above every number in DuckDB
        bad += [f"{name} <> floor({name})"] if column.kind == "integer" else []
    expected += "" if column.required else " or nothing"
    return _Rule(name, expected, " OR ".join(bad or ["false"]), raw, column.why)


def _table_rules(table: str) -> list[_Rule]:
    """Rules that need more than one column, or the stays."""
    if table == "stays":
        return []
    unknown = "stay_id NOT IN (SELECT stay_id FROM stays)"
    rules = [_Rule("stay_id", "a stay_id of the stays table", unknown, "raw_stay_id")]
    if table == "measurements":
        units = " ".join(f"WHEN '{f.name}' THEN '{_unit(i)}'" for i, f in enumerate(FEATURES))
        wrong = f"unit <> CASE feature {units} END"
        rules.append(
            _Rule("unit", "the documented unit", wrong, "feature || ' in ' || unit", "convert, or leave unit empty")
        )
        return rules
    order = _Rule(
        "end_hours", "no end before start_hours", "end_hours < start_hours", "end_hours || ' < ' || start_hours"
    )
    return [*rules, order, *(_treatment_rules() if table == "treatments" else ())]


def _treatment_rules() -> list[_Rule]:
    vasopressor = f"treatment IN ({_quoted(VASOPRESSORS)})"
    units = {
        "vasopressin": ("treatment = 'vasopressin'", tuple(VASOPRESSIN_UNITS)),
        "a vasopressor": (f"{vasopressor} AND treatment <> 'vasopressin'", tuple(RATE_UNITS)),
        "a fluid": (f"NOT {vasopressor}", tuple(VOLUME_UNITS)),
    }
    wrong_unit = [
        _Rule("unit", f"{_listed(allowed)} for {what}", f"{which} AND unit NOT IN ({_quoted(allowed)})", "unit")
        for what, (which, allowed) in units.items()
    ]
    return [
        *wrong_unit,
        _Rule("rate", "a number for a vasopressor", f"{vasopressor} AND rate IS NULL", "treatment"),
        _Rule("end_hours", "a number for a vasopressor", f"{vasopressor} AND end_hours IS NULL", "treatment"),
        _Rule("amount", "a number for a fluid", f"NOT {vasopressor} AND amount IS NULL", "treatment"),
    ]


def _check_stay_ids(con: duckdb.DuckDBPyConnection, path: Path) -> None:
    row = con.execute(
        "SELECT stay_id, count(*) FROM stays GROUP BY 1 HAVING count(*) > 1 ORDER BY 1 LIMIT 1"
    ).fetchone()
    if row is not None:
        raise InputError(path, field="stay_id", expected="one row per stay", found=f"stay {row[0]} in {row[1]} rows")
    if con.execute("SELECT 1 FROM stays LIMIT 1").fetchone() is None:
        raise InputError(path, expected="at least one stay", found="0 rows")


def _create_vocabulary(con: duckdb.DuckDBPyConnection) -> None:
    """Temp table `vocabulary`: feature, its index and its plausible range. One event of urine or irrigant is no more
    than a bin may hold."""
    rows = [f"('{f.name}', {i}, {-f.high if i == URINE else f.low}, {f.high})" for i, f in enumerate(FEATURES)]
    con.execute(f"""
        CREATE TEMP TABLE vocabulary AS
        SELECT feature, index::UTINYINT AS index, low::DOUBLE AS low, high::DOUBLE AS high
        FROM (VALUES {", ".join(rows)}) AS rows(feature, index, low, high)""")


def _implausible(con: duckdb.DuckDBPyConnection, path: Path) -> dict[str, int]:
    rows = con.execute("""
        SELECT feature, count(*), count_if(value NOT BETWEEN low AND high)
        FROM measurements JOIN vocabulary USING (feature) GROUP BY feature ORDER BY feature""").fetchall()
    for name, total, outside in rows:
        if outside >= MIN_IMPLAUSIBLE_ROWS and outside > MAX_IMPLAUSIBLE_SHARE * total:
            feature = FEATURES[NAMES.index(name)]
            median = con.execute("SELECT median(value) FROM measurements WHERE feature = ?", [name]).fetchone()
            assert median is not None
            raise InputError(
                path,
                field=f"value of {name}",
                expected=f"{feature.unit} from {feature.low:g} to {feature.high:g}",
                found=f"{outside} of {total} rows outside, median {median[0]:g}",
                hint="mixed units, or another unit? convert first",
            )
    return {name: outside for name, _, outside in rows if outside}


def _unit(index: int) -> str:
    return "mL" if index == URINE else FEATURES[index].unit


def _quoted(texts: tuple[str, ...]) -> str:
    return ", ".join(f"'{text}'" for text in texts)


def _listed(texts: tuple[str, ...]) -> str:
    return f"one of {', '.join(texts)}" if len(texts) <= 12 else f"one of the {len(texts)} documented names"


def _range(column: Column) -> str:
    if column.low == -_LARGEST:
        return ""
    return f" from {column.low:g} on" if column.high == _LARGEST else f" from {column.low:g} to {column.high:.10g}"


def _hint(rule: _Rule, value: object) -> str:
    choices = {c.name: c.choices for columns in TABLES.values() for c in columns}.get(rule.field, ())
    close = difflib.get_close_matches(str(value), choices, n=1)
    return rule.hint or (f"did you mean {close[0]}?" if close else "")


def _brief(error: Exception) -> str:
    return str(error).splitlines()[0][:160]
