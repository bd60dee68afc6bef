"""MIMIC-IV -> event tables on a tiny hand-made folder: every expected number was computed by hand."""

import gzip
import itertools
from pathlib import Path

import duckdb
import pytest
from mimic_fixture import HEADERS, STAY, SUBJECT, Mimic, at

from sepsis_jax.clinical.features import NAMES
from sepsis_jax.data.mimic import MimicSettings, extract
from sepsis_jax.errors import InputError

HALF = 8.0  # an hour inside the stay, on no boundary


def run(mimic: Mimic, tmp_path: Path, settings: MimicSettings | None = None, **write):
    """The event tables by name (pandas), the extraction, and the folder."""
    source = mimic.write(tmp_path / "mimic", **write)
    result = extract(source, tmp_path / "events", settings or MimicSettings(threads=1))
    return {path.stem: duckdb.read_parquet(str(path)).df() for path in (tmp_path / "events").iterdir()}, result


def one(mimic: Mimic, tmp_path: Path):
    return run(mimic, tmp_path)[0]["stays"].iloc[0]


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


SUSPICIONS = [  # culture, antibiotic (hours since 08:00), culture has a date only -> time of suspicion
    (-71, 1, False, -71), (-71 - 1 / 60, 1, False, None),  # culture first, 72 h
    (25, 1, False, 1), (25 + 1 / 60, 1, False, None),  # antibiotic first, 24 h
    (-48, 1, True, -56), (-80, 1, True, -80), (-81, 1, True, None),  # a date counts from midnight, 3 days
    (2, 1, True, -8), (16, 1, True, 1), (40, 1, True, None),  # and 1 day
]  # fmt: skip
ANTIBIOTICS = [
    ("Piperacillin-Tazobactam", "IV", 2, True), ("vancomycin", "ORAL", 2, True),
    ("Pantoprazole", "IV", 2, False), ("Erythromycin 0.5% Ophth Oint", "BOTH EYES", 2, False),
    ("Vancomycin", "RIGHT EAR", 2, False), ("Mupirocin", "TP", 2, False), ("Metronidazole Gel", "PO", 2, False),
    ("CefePIME", "IV", 0, True), ("CefePIME", "IV", -0.5, False), ("CefePIME", "IV", 48, False),
]  # fmt: skip


def patients(cases, fill, **septic):
    """One septic stay per case, each of another patient; `fill(mimic, who, *case)` with who = (subject, stay)."""
    mimic = Mimic()
    for number, case in enumerate(cases):
        who = {"subject": SUBJECT + number, "stay": STAY + number}
        mimic.septic(**who, **septic)
        fill(mimic, who["subject"], who["stay"], *case)
    return mimic


def onsets(tables, cases) -> list[float | None]:
    """Onset of each case's stay, None where it is not in the cohort."""
    found = tables["stays"].set_index("stay_id")["onset_hours"]
    return [found.get(STAY + number) for number in range(len(cases))]


def test_suspicion_of_infection(tmp_path):
    def fill(mimic, subject, stay, culture, antibiotic, date_only, _):
        mimic.rows["hosp/microbiologyevents"].pop()
        mimic.rows["hosp/prescriptions"].pop()
        mimic.culture(culture, subject=subject, date_only=date_only).antibiotic(antibiotic, stay=stay)

    settings = MimicSettings(threads=1, onset="suspicion", sofa_before_hours=1e3, sofa_after_hours=1e3)
    tables, _ = run(patients(SUSPICIONS, fill), tmp_path, settings)
    assert onsets(tables, SUSPICIONS) == [onset for *_, onset in SUSPICIONS]


def test_which_antibiotics_count(tmp_path):
    def fill(mimic, subject, stay, drug, route, hours, _):
        mimic.rows["hosp/prescriptions"].pop()
        mimic.culture(47, subject=subject).antibiotic(hours, drug, route=route, stay=stay)

    tables, _ = run(patients(ANTIBIOTICS, fill), tmp_path)
    assert [onset is not None for onset in onsets(tables, ANTIBIOTICS)] == [counts for *_, counts in ANTIBIOTICS]


def test_sofa_must_reach_two_within_its_window(tmp_path):
    # Suspicion at 1 h; a creatinine of hour h gives its points at the end of that hour.
    cases = [(24, 2.5, 25), (24.98, 2.5, 25), (25, 2.5, None), (24, 1.9, None), (0, 2.0, 1)]

    def fill(mimic, subject, stay, hours, creatinine, _):
        mimic.rows["hosp/labevents"].pop()
        mimic.lab(50912, creatinine, hours, subject=subject)

    tables, result = run(patients(cases, fill, hours=80), tmp_path)
    assert onsets(tables, cases) == [onset for *_, onset in cases]
    assert [count for _, count in result.attrition] == [5, 5, 5, 3]


def test_sofa_adds_the_worst_of_each_organ_over_a_day(tmp_path):
    mimic = Mimic().septic(creatinine=1.5, hours=80)  # 1 point from 2 h on
    mimic.lab(51265, 120, 24.5)  # 1 point at 25 h: the creatinine of hour 1 is 23 rows back and still counts
    assert one(mimic, tmp_path / "a").onset_hours == 25
    mimic.rows["hosp/labevents"][1].update(charttime=at(25.5))
    with pytest.raises(InputError, match="Sepsis-3"):
        run(mimic, tmp_path / "b", MimicSettings(threads=1, sofa_after_hours=100))


SOFA_INPUTS = [
    (lambda m, w, s: m.lab(50821, 150, 3, **w).lab(50816, 60, 3, **w), 4),  # P/F 250: 2
    (lambda m, w, s: m.lab(50821, 150, 3, **w).chart(223835, 0.6, 0, **s), 4),  # FiO2 of 3 h ago
    (lambda m, w, s: m.lab(50821, 150, 5, **w).chart(223835, 0.6, 0, **s), None),  # of 5 h ago
    (lambda m, w, s: m.chart(220739, 3, 3, **s).chart(223900, 4, 3, **s).chart(223901, 5, 3, **s), 4),  # GCS 12: 2
    (lambda m, w, s: m.chart(220739, 3, 3, **s).chart(223900, 4, 4, **s).chart(223901, 5, 3, **s), None),
    (lambda m, w, s: m.infusion(222315, 3.5, 4, rate=0.6, rateuom="units/hour", **s), 4),  # any vasopressor: 3
    (lambda m, w, s: m.chart(220052, 60, 3, **s), None),  # MAP < 70: 1
    (lambda m, w, s: m.urine(226559, 400, 20, **s), 24),  # 400 mL on a whole day: 3
    (lambda m, w, s: m.urine(226559, 600, 20, **s), None),
    (lambda m, w, s: m.chart(220052, 801, 3, **s).lab(51265, 0.1, 4, **w), None),  # implausible values score nothing
]


def test_sofa_inputs(tmp_path):
    def fill(mimic, subject, stay, add, _):
        add(mimic, {"subject": subject}, {"stay": stay})

    tables, _ = run(patients(SOFA_INPUTS, fill, creatinine=0.9, hours=30), tmp_path)
    assert onsets(tables, SOFA_INPUTS) == [onset for _, onset in SOFA_INPUTS]


def test_mortality_at_90_days(tmp_path):
    mimic = Mimic()
    for number, dod in enumerate(("2150-05-30", "2150-05-31", "")):  # days 90 and 91 after 1 March
        mimic.septic(STAY + number, subject=SUBJECT + number, dod=dod)
    stays = run(mimic, tmp_path)[0]["stays"]
    assert stays["mortality_90d"].tolist() == [1, 0, 0]
    assert stays["mortality_hospital"].tolist() == [0, 0, 0]


def test_exit(tmp_path):
    cases = [(30, "death", 30), (48, "death", 48), (54, "death", 48), (54.1, "discharge", 48), (None, "discharge", 48)]
    mimic = Mimic()
    for number, (death, *_) in enumerate(cases):
        mimic.septic(STAY + number, subject=SUBJECT + number, deathtime=at(death), dod=at(death)[:10])
    stays = run(mimic, tmp_path)[0]["stays"]
    assert stays[["exit_kind", "exit_hours"]].to_numpy().tolist() == [list(expected) for _, *expected in cases]
    assert stays["mortality_hospital"].tolist() == [1, 1, 1, 1, 0]


def test_death_belongs_to_the_last_stay_of_the_admission(tmp_path):
    mimic = Mimic().septic(hours=20, deathtime=at(22)).stay(STAY + 1, hadm=2000, admit=20.5, hours=3)
    assert one(mimic, tmp_path).exit_kind == "discharge"


def test_age_sex_and_weight(tmp_path):
    mimic = Mimic().septic(admit=365 * 24 * 2, age=60, sex="F", hours=40)
    hours = 365 * 24 * 2 + 3
    mimic.chart(226512, 700, hours).chart(224639, 71, hours + 20).infusion(225158, hours + 1, hours + 2, weight=66)
    stay = one(mimic, tmp_path)
    assert (stay.age, stay.sex, stay.weight_kg) == (62, "F", 66)


CHARLSON = [  # age, (code, ICD version) -> index
    (49, [], 0), (50, [], 1), (69, [], 2), (79, [], 3), (80, [], 4),
    (40, [("41001", 9)], 1), (40, [("I2109", 10), ("I252", 10)], 1),  # one condition counts once
    (40, [("5712", 9), ("5722", 9)], 3), (40, [("K7030", 10)], 1),  # the severe liver disease hides the mild
    (40, [("25000", 9), ("E1121", 10)], 2), (40, [("C3490", 10), ("C787", 10)], 6), (40, [("C787", 9)], 0),
    (40, [("042", 9), ("N186", 10), ("G8191", 10)], 10), (65, [("I509", 10), ("J449", 10), ("Z0000", 10)], 4),
]  # fmt: skip


def test_charlson(tmp_path):
    mimic = Mimic()
    for number, (age, codes, _) in enumerate(CHARLSON):
        mimic.septic(STAY + number, subject=SUBJECT + number, age=age)
        for code, version in codes:
            mimic.diagnosis(code, version, stay=STAY + number)
    assert run(mimic, tmp_path)[0]["stays"]["charlson"].tolist() == [index for *_, index in CHARLSON]


def test_attrition_and_facts(tmp_path):
    mimic = Mimic().septic().septic(STAY + 1, subject=SUBJECT + 1, age=17)
    mimic.septic(STAY + 2, subject=SUBJECT + 2, creatinine=1.0).septic(STAY + 3, subject=SUBJECT + 3)
    mimic.rows["hosp/prescriptions"].pop()
    tables, result = run(mimic, tmp_path)
    assert [count for _, count in result.attrition] == [4, 3, 2, 1]
    assert tables["stays"]["stay_id"].tolist() == [STAY]
    assert result.facts["version"] == "unknown"
    assert result.facts["credentialed"] is True
    assert result.facts["patients"] == 4


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
