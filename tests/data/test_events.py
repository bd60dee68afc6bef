"""Bad tables: each is one line that names file, field, what was expected and what was found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pytest
from event_tables import Tables, random_tables, write

from sepsis_jax.clinical.features import FEATURES
from sepsis_jax.data.builder import BuildSettings, build
from sepsis_jax.data.events import TABLES, open_events
from sepsis_jax.errors import InputError

Change = Callable[[Tables], None]


def set_first(table: str, column: str, value: Any, where: str = "") -> Change:
    """Put one value into the first row (that satisfies `where`)."""

    def change(tables: Tables) -> None:
        frame = tables[table]
        row = (frame.query(where) if where else frame).index[0]
        if isinstance(value, str) and frame[column].dtype.kind in "iuf":
            frame[column] = frame[column].astype(object)
        elif isinstance(value, float) and frame[column].dtype.kind in "iu":
            frame[column] = frame[column].astype(float)
        frame.loc[row, column] = value

    return change


def replace(table: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Change:
    def apply(tables: Tables) -> None:
        tables[table] = change(tables[table])

    return apply


VASO, FLUID = "rate.notna()", "amount.notna()"
VASOPRESSIN, OTHER = "treatment == 'vasopressin'", "treatment == 'norepinephrine'"

BAD: dict[str, tuple[Change, str, str, str]] = {  # name: (change, file, field, rest of the message)
    "column": (replace("stays", lambda t: t.drop(columns="sex")), "stays", "sex", "a column, found columns stay_id,"),
    "duplicate": (
        replace("stays", lambda t: pd.concat([t, t.iloc[:1]])),
        "stays",
        "stay_id",
        "one row per stay, found stay",
    ),
    "empty": (replace("stays", lambda t: t[:0]), "stays", "", "at least one stay, found 0 rows"),
    "sex": (set_first("stays", "sex", "female"), "stays", "sex", "one of M, F, found 'female' in stay"),
    "exit kind": (set_first("stays", "exit_kind", "home"), "stays", "exit_kind", "one of death, discharge, truncated"),
    "age text": (set_first("stays", "age", "old"), "stays", "age", "a finite number from 0 to 130, found 'old'"),
    "age missing": (set_first("stays", "age", None), "stays", "age", "a finite number from 0 to 130, found nothing"),
    "age in days": (set_first("stays", "age", 20_000.0), "stays", "age", "a finite number from 0 to 130, found"),
    "no subject": (set_first("stays", "subject_id", np.nan), "stays", "subject_id", "an integer"),
    "half a subject": (set_first("stays", "subject_id", 1.5), "stays", "subject_id", "an integer"),
    "mortality": (set_first("stays", "mortality_90d", 2.0), "stays", "mortality_90d", "from 0 to 1 or nothing"),
    "exit": (set_first("stays", "exit_hours", float("inf")), "stays", "exit_hours", "a finite number, found"),
    "weight text": (
        set_first("stays", "weight_kg", "80kg"),
        "stays",
        "weight_kg",
        "a finite number or nothing, found '80kg'",
    ),
    "comment mark": (set_first("measurements", "stay_id", "#1"), "measurements", "stay_id", "an integer"),
    "value text": (
        set_first("measurements", "value", "<0.1"),
        "measurements",
        "value",
        "a finite number, found '<0.1'",
    ),
    "value NaN": (set_first("measurements", "value", np.nan), "measurements", "value", "a finite number, found"),
    "hours": (set_first("measurements", "hours", float("-inf")), "measurements", "hours", "a finite number, found"),
    "feature": (
        set_first("measurements", "feature", "heartrate"),
        "measurements",
        "feature",
        "one of the 39 documented names, found 'heartrate'",
    ),
    "unit": (
        replace("measurements", lambda t: t.assign(unit="mmol")),
        "measurements",
        "unit",
        "the documented unit, found",
    ),
    "unknown stay": (
        set_first("measurements", "stay_id", 7),
        "measurements",
        "stay_id",
        "a stay_id of the stays table",
    ),
    "mixed units": (
        replace("measurements", lambda t: t.assign(value=t.value.where(t.feature != "lactate", t.value * 9 + 41))),
        "measurements",
        "value of lactate",
        "mmol/L from 0.05 to 40, found",
    ),
    "treatment": (set_first("treatments", "treatment", "water"), "treatments", "treatment", "one of norepinephrine,"),
    "end before start": (
        set_first("treatments", "end_hours", -999.0),
        "treatments",
        "end_hours",
        "no end before start_hours",
    ),
    "rate unit": (
        set_first("treatments", "unit", "units/min", OTHER),
        "treatments",
        "unit",
        "one of mcg/kg/min, mcg/min, mg/h for a vasopressor, found 'units/min'",
    ),
    "vasopressin unit": (
        set_first("treatments", "unit", "mcg/min", VASOPRESSIN),
        "treatments",
        "unit",
        "one of units/min, units/hour for vasopressin, found 'mcg/min'",
    ),
    "fluid unit": (
        set_first("treatments", "unit", "ml", FLUID),
        "treatments",
        "unit",
        "one of mL, L for a fluid, found 'ml'",
    ),
    "no rate": (set_first("treatments", "rate", np.nan, VASO), "treatments", "rate", "a number for a vasopressor"),
    "no end": (
        set_first("treatments", "end_hours", np.nan, VASO),
        "treatments",
        "end_hours",
        "a number for a vasopressor",
    ),
    "no amount": (set_first("treatments", "amount", np.nan, FLUID), "treatments", "amount", "a number for a fluid"),
    "negative": (set_first("treatments", "amount", -1.0, FLUID), "treatments", "amount", "from 0 on or nothing, found"),
    "kind": (set_first("intervals", "kind", "NIV"), "intervals", "kind", "one of invasive_ventilation, found 'NIV'"),
    "interval": (set_first("intervals", "end_hours", -999.0), "intervals", "end_hours", "no end before start_hours"),
    "endless interval": (set_first("intervals", "end_hours", np.nan), "intervals", "end_hours", "a finite number"),
}


def message_of(folder: Path) -> str:
    with duckdb.connect() as con, pytest.raises(InputError) as error:
        open_events(con, folder)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("name", BAD)
def test_bad_rows(tmp_path: Path, name: str, suffix: str) -> None:
    change, file, field, rest = BAD[name]
    tables = random_tables(3, stays=30)
    change(tables)
    message = message_of(write(tmp_path / "events", tables, suffix))
    assert f"{file}.{suffix}: {field}".rstrip(": ") in message
    assert f"expected {rest}" in message or rest in message


def test_hints(tmp_path: Path) -> None:
    tables = random_tables(3)
    tables["measurements"].loc[0, "feature"] = "heartrate"
    assert message_of(write(tmp_path / "a", tables)).endswith("; did you mean heart_rate?")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_good_tables(tmp_path: Path, suffix: str) -> None:
    """Implausible values are counted, documented units pass, NaN in an optional column is empty."""
    tables = random_tables(3)
    units = {"output_4hourly": "mL", "lactate": "mmol/L"}
    tables["measurements"]["unit"] = tables["measurements"].feature.map(units)
    tables["stays"]["weight_kg"] = np.nan
    with duckdb.connect() as con:
        dropped = open_events(con, write(tmp_path / "events", tables, suffix))
        rows = {name: con.execute(f"SELECT count(*) FROM {name}").fetchone() for name in TABLES}
        weight = con.execute("SELECT count(weight_kg) FROM stays").fetchone()
    assert rows == {name: (len(table),) for name, table in tables.items()}
    assert weight == (0,)
    assert sum(dropped.values()) == (tables["measurements"].value == 99_999).sum()


def test_empty_events_are_fine(tmp_path: Path) -> None:
    tables = random_tables(3)
    for name in ("treatments", "intervals"):
        tables[name] = tables[name][:0]
    for suffix in ("csv", "parquet"):
        episodes, _ = build(write(tmp_path / suffix, tables, suffix), BuildSettings())
        assert not episodes.action.any()
        assert not episodes.ventilated.any()


def test_files(tmp_path: Path) -> None:
    """Missing, double, truncated, foreign and wrongly encoded files."""
    assert message_of(tmp_path / "absent").endswith("expected a folder of event tables, found no such folder")
    folder = write(tmp_path / "events", random_tables(3))
    stays = folder / "stays.parquet"
    whole = stays.read_bytes()
    stays.write_bytes(whole[: len(whole) // 2])
    assert "stays.parquet: expected a readable Parquet file, found" in message_of(folder)
    stays.write_bytes(b"")
    assert "stays.parquet: expected a readable Parquet file, found" in message_of(folder)
    stays.unlink()
    assert "stays: expected one of stays.parquet and stays.csv, found neither" in message_of(folder)
    (folder / "stays.csv").write_bytes("stay_id,sexe\n1,fémin\n".encode("latin-1"))
    assert "stays.csv: expected a readable UTF-8 CSV file, found" in message_of(folder)
    (folder / "stays.csv").write_text("stay_id;subject_id\n1;2\n")
    assert "stays.csv: stay_id: expected a column, found columns stay_id;subject_id" in message_of(folder)
    stays.write_bytes(whole)
    assert "found both stays.parquet and stays.csv" in message_of(folder)


def test_a_truncated_line(tmp_path: Path) -> None:
    folder = write(tmp_path / "events", random_tables(3), "csv")
    text = (folder / "measurements.csv").read_text()
    (folder / "measurements.csv").write_text(text.rstrip("\n").rsplit(",", 2)[0])
    assert "measurements.csv: expected a readable UTF-8 CSV file, found" in message_of(folder)


def test_odd_but_valid_parquet_types(tmp_path: Path) -> None:
    """Numbers as text, ids as floats, booleans as flags, categories: what other tools write is read."""
    tables = random_tables(3)
    plain, _ = build(write(tmp_path / "plain", tables), BuildSettings())
    stays = tables["stays"]
    tables["stays"] = stays.assign(
        stay_id=stays.stay_id.astype(float),
        age=stays.age.astype(str),
        sex=stays.sex.astype("category"),
        mortality_90d=stays.mortality_90d.astype("boolean"),
    )
    odd, _ = build(write(tmp_path / "odd", tables), BuildSettings())
    np.testing.assert_array_equal(plain.static, odd.static)
    np.testing.assert_array_equal(plain.mortality_90d, odd.mortality_90d)


def test_the_documentation_names_everything() -> None:
    """Every column, choice and feature with its unit and range stands in docs/bring-your-own-data.md."""
    text = (Path(__file__).parents[2] / "docs" / "bring-your-own-data.md").read_text()
    names = {c.name for columns in TABLES.values() for c in columns}
    names |= {choice for columns in TABLES.values() for c in columns for choice in c.choices}
    assert not [name for name in names if name not in text]
    rows = [f"| {f.name} | {f.unit} | {f.low:g} – {f.high:g} |" for f in FEATURES[:-1]]
    assert not [row for row in rows if row not in text]


@pytest.mark.parametrize("outside", [19, 20])
def test_mixed_units_need_twenty_rows(tmp_path: Path, outside: int) -> None:
    """Few values beside the range are errors of charting, many are another unit; up to 5 % are always dropped."""
    tables = random_tables(3)
    stay = tables["stays"].stay_id.iloc[0]
    values = [400.0] * outside + [4.0] * 100
    rows = pd.DataFrame({"stay_id": stay, "hours": 1.0, "feature": "wbc", "value": np.array(values) * 2})
    tables["measurements"] = pd.concat([tables["measurements"], rows])
    folder = write(tmp_path / "events", tables)
    if outside == 20:
        assert "wbc: expected K/uL from 0.05 to 500, found 20 of 120 rows outside, median 8;" in message_of(folder)
    else:
        with duckdb.connect() as con:
            assert open_events(con, folder)["wbc"] == 19
