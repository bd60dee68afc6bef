"""Who has sepsis in MIMIC-IV, when, and what is known of the stay: a tiny hand-made folder, answers by hand."""

from pathlib import Path

import pytest
from mimic_fixture import STAY, SUBJECT, Mimic, at, run

from sepsis_jax.data.mimic import MimicSettings
from sepsis_jax.errors import InputError


def one(mimic: Mimic, tmp_path: Path):
    return run(mimic, tmp_path)[0]["stays"].iloc[0]


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
