"""MIMIC-IV -> event tables on a tiny hand-made folder: values, treatments, bytes and errors, computed by hand."""

import gzip
import itertools
from pathlib import Path

import pytest
from mimic_fixture import HEADERS, STAY, SUBJECT, Mimic, at, run

from sepsis_jax.clinical.features import NAMES
from sepsis_jax.data.mimic import MimicSettings, extract
from sepsis_jax.errors import InputError

HALF = 8.0  # an hour inside the stay, on no boundary


def values(tables, feature: str) -> list[float]:
    rows = tables["measurements"]
    return rows[rows["feature"] == feature]["value"].tolist()


def test_values_in_canonical_units(tmp_path):
    mimic = Mimic().septic()
    mimic.chart(223761, 98.6, HALF).chart(223762, 38.0, HALF)
    mimic.chart(223835, 0.4, HALF).chart(223835, 40, HALF + 1).lab(50816, 0.6, HALF + 2)
    mimic.chart(223900, 0, HALF, text="No Response-ETT").chart(223900, 1, HALF + 1, text="No Response-ETT")
    mimic.chart(223900, 4, HALF + 2, text="Confused")
    mimic.lab(50802, -8, HALF).lab(50802, 3, HALF + 1).lab(50960, 2.25, HALF).chart(220635, 1.75, HALF + 1)
    mimic.urine(226559, 500, HALF).urine(227488, 300, HALF + 1).urine(227489, 450, HALF + 2)
    tables, _ = run(mimic, tmp_path)
    assert values(tables, "temp_c") == pytest.approx([37.0, 38.0])
    assert values(tables, "fio2") == [40, 40, 60]
    assert values(tables, "gcs_verbal") == [1, 1, 4]
    assert values(tables, "base_excess") == [-8, 3]
    assert values(tables, "magnesium") == [2.25, 1.75]
    assert values(tables, "output_4hourly") == [500, -300, 450]


def test_every_feature_is_read(tmp_path):
    from sepsis_jax.data.mimic import items

    mimic = Mimic().septic()
    number = {"chartevents": mimic.chart, "labevents": mimic.lab, "outputevents": mimic.urine}
    rows = [row for row in items.read("items") if row["source"] in number and row["name"] in NAMES]
    for row in rows:
        number[row["source"]](int(row["itemid"]), 30, HALF)
    tables, _ = run(mimic, tmp_path)
    assert set(tables["measurements"]["feature"]) == set(NAMES)
    assert len(tables["measurements"]) == len(rows) + 1  # and the creatinine of `septic`


def test_unknown_items_and_empty_values_are_left_out(tmp_path):
    mimic = Mimic().septic().chart(999999, 1, HALF).lab(50813, "GREATER THAN 30", HALF)
    mimic.add("icu/chartevents", stay_id=STAY, charttime=at(HALF), itemid=220045, value="", valuenum="")
    tables, _ = run(mimic, tmp_path)
    assert tables["measurements"]["feature"].tolist() == ["creatinine"]


def test_venous_gases_are_left_out_and_unlabelled_ones_kept(tmp_path):
    mimic = Mimic().septic()
    for specimen, kind, value in ((1, "ART.", 90), (2, "VEN.", 40), (3, "CENTRAL VENOUS.", 41), (4, "", 92)):
        mimic.lab(50821, value, HALF + specimen, specimen=specimen).lab(
            50813, value / 10, HALF + specimen, specimen=specimen
        )
        if kind:
            mimic.lab(52033, kind, HALF + specimen, specimen=specimen)
    tables, _ = run(mimic, tmp_path)
    assert values(tables, "pao2") == [90, 92]
    assert values(tables, "lactate") == [9, 4, 4.1, 9.2]


def test_values_count_from_24_h_before_admission_until_the_end_of_the_stay(tmp_path):
    mimic = Mimic().septic(hours=48)
    for number, (hours, minutes) in enumerate(((-24, -1), (-24, 0), (48, 0), (48, 1))):
        mimic.lab(50813, 1 + number, hours, minutes).chart(220045, 1 + number, hours, minutes)
        mimic.urine(226559, 1 + number, hours, minutes)
    mimic.lab(50813, 9, HALF, subject=SUBJECT + 1)
    tables, _ = run(mimic, tmp_path)
    for feature in ("lactate", "heart_rate", "output_4hourly"):
        assert values(tables, feature) == [2, 3]
    assert sorted(set(tables["measurements"]["hours"])) == [-24, 1, 48]


def test_two_stays_of_one_patient(tmp_path):
    mimic = Mimic().septic(STAY, hours=24).septic(STAY + 1, admit=240, hours=24)
    mimic.lab(50813, 2, 5).lab(50813, 3, 245).chart(220045, 80, 5).chart(220045, 90, 245, stay=STAY + 1)
    tables, _ = run(mimic, tmp_path)
    assert tables["stays"]["subject_id"].tolist() == [SUBJECT, SUBJECT]
    assert tables["stays"]["exit_hours"].tolist() == [24, 24]
    rows = tables["measurements"].query("feature != 'creatinine'")
    assert [tuple(row) for row in rows.to_numpy()] == [
        (STAY, 5, "heart_rate", 80), (STAY, 5, "lactate", 2),
        (STAY + 1, 5, "heart_rate", 90), (STAY + 1, 5, "lactate", 3),
    ]  # fmt: skip


PRESSORS = [  # itemid, rate, unit, pump weight -> drug, rate, unit
    (221906, 0.2, "mcg/kg/min", 80, ("norepinephrine", 0.2, "mcg/kg/min")),
    (221906, 0.0002, "mg/kg/min", 80, ("norepinephrine", 0.2, "mcg/kg/min")),
    (221906, 0.2, "mg/kg/min", 1, ("norepinephrine", 0.2, "mcg/kg/min")),
    (221289, 0.05, "mcg/kg/min", 80, ("epinephrine", 0.05, "mcg/kg/min")),
    (221749, 80, "mcg/min", 50, ("phenylephrine", 1.6, "mcg/kg/min")),
    (221662, 7.5, "mcg/kg/min", 80, ("dopamine", 7.5, "mcg/kg/min")),
    (222315, 2.4, "units/hour", 80, ("vasopressin", 0.04, "units/min")),
    (222315, 0.04, "units/min", 80, ("vasopressin", 0.04, "units/min")),
    (222315, 2.4, "units/min", 80, ("vasopressin", 0.04, "units/min")),
]
FLUIDS = [  # itemid, amount, unit -> kind, mL
    (225158, 500, "ml", ("isotonic", 500)),
    (225828, 1, "L", ("isotonic", 1000)),
    (225159, 1000, "ml", ("half_isotonic", 1000)),
    (225161, 250, "ml", ("saline_3pct", 250)),
    (220862, 100, "ml", ("albumin_25pct", 100)),
    (220995, 150, "mEq", ("bicarbonate_8_4pct", 150)),
    (227531, 50, "grams", ("mannitol", 250)),
    (228341, 30, "ml", ("saline_23_4pct", 30)),
]


def test_vasopressor_units(tmp_path):
    mimic = Mimic().septic()
    for hour, (itemid, rate, unit, weight, _) in enumerate(PRESSORS):
        mimic.infusion(itemid, hour, hour + 2.5, rate=rate, rateuom=unit, weight=weight)
    tables, result = run(mimic, tmp_path)
    for hour, (row, (*_, expected)) in enumerate(zip(tables["treatments"].itertuples(), PRESSORS, strict=True)):
        assert (row.treatment, pytest.approx(row.rate), row.unit) == expected
        assert (row.start_hours, row.end_hours) == (hour, hour + 2.5)
    assert result.facts["vasopressin_rows_taken_as_hourly"] == 1


def test_fluid_units(tmp_path):
    mimic = Mimic().septic()
    for hour, (itemid, amount, unit, _) in enumerate(FLUIDS):
        mimic.infusion(itemid, hour, hour + 2.5, rate=100, rateuom="mL/hour", amount=amount, amountuom=unit)
    rows = run(mimic, tmp_path)[0]["treatments"].itertuples()
    for hour, (row, (*_, expected)) in enumerate(zip(rows, FLUIDS, strict=True)):
        assert (row.treatment, row.amount, row.unit) == (*expected, "mL")
        assert (row.start_hours, row.end_hours) == (hour, hour + 2.5)


def test_infusions_that_were_rewritten_or_have_no_meaning_are_left_out(tmp_path):
    mimic = Mimic().septic()
    mimic.infusion(221906, 3, 5, rate=9, rateuom="mcg/kg/min", status="Rewritten")
    mimic.infusion(225158, 3, 5, rate=9, amount=9, amountuom="ml", status="Rewritten")
    mimic.infusion(221906, 3, 5, rate=1, rateuom="drops/min").infusion(221906, 3, 5)
    mimic.infusion(221906, 3, 3, rate=1, rateuom="mcg/kg/min").infusion(225158, 3, 5, amount=1, amountuom="dose")
    mimic.infusion(221653, 3, 5, rate=5, rateuom="mcg/kg/min")  # dobutamine is no vasopressor here
    mimic.infusion(225158, 6, 6 + 1 / 60, amount=250, amountuom="ml")  # no rate: a bolus
    tables, result = run(mimic, tmp_path)
    (row,) = tables["treatments"].itertuples()
    assert (row.start_hours, row.amount) == (6, 250)
    assert row.end_hours != row.end_hours  # null
    assert (result.facts["infusion_rows"], result.facts["infusion_rows_left_out"]) == (5, 4)


def test_invasive_ventilation_only(tmp_path):
    mimic = Mimic().septic().procedure(225792, 2, 30).procedure(225794, 31, 40).procedure(225792, 5, 5)
    tables, _ = run(mimic, tmp_path)
    assert tables["intervals"].to_numpy().tolist() == [[STAY, 2, 30, "invasive_ventilation"]]


def rich() -> Mimic:
    """Several stays with something in every table."""
    mimic = Mimic()
    for number in range(6):
        stay, subject = STAY + number, SUBJECT + number // 2
        admit = 500.0 * number
        mimic.septic(stay, subject=subject, admit=admit).diagnosis("I509", 10, stay=stay)
        for hour in range(40):
            mimic.chart(220045, 70 + hour, admit + hour, stay=stay).urine(226559, 0.1 * hour, admit + hour, stay=stay)
            mimic.chart(220052, 60 + hour, admit + hour, stay=stay).lab(50813, 1.1, admit + hour, subject=subject)
        mimic.infusion(221906, admit + 3, admit + 9, rate=0.1, rateuom="mcg/kg/min", stay=stay)
        mimic.infusion(225158, admit + 3, admit + 9, rate=10, amount=60, amountuom="ml", stay=stay)
        mimic.procedure(225792, admit + 1, admit + 20, stay=stay)
    return mimic


def test_same_bytes_whatever_the_headers_the_format_and_the_threads(tmp_path):
    variants = itertools.product(("2.x", "3.x"), (".csv.gz", ".parquet"), (1, 2, 8))
    written = []
    for number, (version, suffix, threads) in enumerate(variants):
        folder = tmp_path / str(number)
        run(rich(), folder, MimicSettings(threads=threads), version=version, suffix=suffix)
        written.append({path.name: path.read_bytes() for path in (folder / "events").iterdir()})
    assert set(written[0]) == {f"{name}.parquet" for name in ("stays", "measurements", "treatments", "intervals")}
    assert all(files == written[0] for files in written)


def test_an_earlier_result_is_replaced_and_anything_else_is_not(tmp_path):
    run(rich(), tmp_path)
    tables, _ = run(Mimic().septic(), tmp_path)
    assert len(tables["stays"]) == 1
    (tmp_path / "events" / "stays.parquet").rename(tmp_path / "events" / "mine.parquet")
    with pytest.raises(InputError, match="events: expected a new folder or event tables"):
        run(Mimic().septic(), tmp_path)
    assert (tmp_path / "events" / "mine.parquet").is_file()


def _edit(table: str, change):
    def spoil(folder: Path) -> None:
        path = folder / f"{table}.csv.gz"
        text = gzip.decompress(path.read_bytes()).decode()
        path.write_bytes(gzip.compress(change(text).encode()))

    return spoil


def _truncate(folder: Path) -> None:
    path = folder / "icu/chartevents.csv.gz"
    path.write_bytes(path.read_bytes()[:-40])


BAD = {
    "no folder": (lambda f: f.rename(f.parent / "elsewhere"), "mimic: expected the MIMIC-IV folder .* no such folder"),
    "missing table": (lambda f: (f / "icu/inputevents.csv.gz").unlink(), "icu/inputevents: expected .* no such file"),
    "missing column": (
        _edit("hosp/labevents", lambda text: text.replace("specimen_id", "specimen")),
        r"labevents.csv.gz: specimen_id: expected a column, found columns labevent_id",
    ),
    "empty file": (_edit("icu/icustays", lambda text: ""), "icustays.*subject_id: .* found columns none"),
    "truncated": (_truncate, "chartevents.csv.gz: expected a readable .* GZIP"),
    "no gzip": (lambda f: (f / "icu/icustays.csv.gz").write_text("stay_id"), "icustays.csv.gz: expected a CSV file"),
    "text for a number": (
        _edit("icu/chartevents", lambda text: text.replace("75.0,75.0", "75.0,seventy")),
        "chartevents.csv.gz: valuenum: expected a number, found 'seventy' in line 2",
    ),
    "text for a time": (
        _edit("icu/icustays", lambda text: text.replace("2150-03-01 08:00:00", "01/03/2150", 1)),
        "icustays.csv.gz: intime: expected a time .*, found '01/03/2150'",
    ),
    "short row": (
        _edit("icu/outputevents", lambda text: text + "1,2,3\n"),
        "outputevents.csv.gz: expected a readable",
    ),
    "no septic stay": (
        _edit("hosp/prescriptions", lambda text: text.splitlines()[0] + "\n"),
        "at least one stay with sepsis, found ICU stays: 1, adults .*: 1, suspected .*: 0, Sepsis-3 .*: 0",
    ),
    "no stay at all": (
        _edit("icu/icustays", lambda text: text.splitlines()[0] + "\n"),
        "at least one stay with sepsis, found ICU stays: 0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line_and_leaves_nothing(case, tmp_path):
    spoil, message = BAD[case]
    source = Mimic().septic().chart(220045, 75.0, HALF).write(tmp_path / "mimic")
    spoil(source)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(InputError, match=message) as error:
        extract(source, out / "events", MimicSettings(threads=1))
    assert "\n" not in str(error.value)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    "settings",
    [{"memory_limit": "plenty"}, {"threads": 0}, {"onset": "admission"}, {"temp_dir": Path("/no/such/folder")}],
)
def test_bad_settings(settings, tmp_path):
    with pytest.raises(InputError, match=f"settings: {next(iter(settings))}: expected"):
        extract(Mimic().septic().write(tmp_path / "mimic"), tmp_path / "events", MimicSettings(**settings))


def test_columns_of_the_fixture_cover_what_is_read():
    from sepsis_jax.data.mimic.tables import RAW

    assert {table: set(columns) - set(HEADERS[table]) for table, columns in RAW.items()} == {t: set() for t in RAW}
