"""A tiny MIMIC-IV folder, hand-made: `Mimic` collects rows by table and writes them as csv.gz with 2.x or 3.x headers.

`septic` adds a stay that meets Sepsis-3 and nothing more: admission at ADMIT, a culture 1 h and an antibiotic 2 h
later, creatinine 2.5 mg/dL (2 SOFA points) at 1 h, discharge after 48 h. Times are hours since ADMIT.
"""

from __future__ import annotations

import csv
import datetime
import gzip
from pathlib import Path
from typing import Any

import duckdb

from sepsis_jax.data.mimic import MimicSettings, extract

ADMIT = datetime.datetime(2150, 3, 1, 8, 0, 0)
SUBJECT, HADM, STAY = 1000, 2000, 3000

_ICU_EVENT = ("subject_id", "hadm_id", "stay_id")
HEADERS: dict[str, tuple[str, ...]] = {
    "icu/icustays": (*_ICU_EVENT, "first_careunit", "last_careunit", "intime", "outtime", "los"),
    "hosp/patients": ("subject_id", "gender", "anchor_age", "anchor_year", "anchor_year_group", "dod"),
    "hosp/admissions": (
        "subject_id", "hadm_id", "admittime", "dischtime", "deathtime", "admission_type", "race",
        "hospital_expire_flag",
    ),
    "hosp/prescriptions": (
        "subject_id", "hadm_id", "pharmacy_id", "starttime", "stoptime", "drug_type", "drug", "ndc", "route",
    ),
    "hosp/microbiologyevents": (
        "microevent_id", "subject_id", "hadm_id", "micro_specimen_id", "chartdate", "charttime", "spec_type_desc",
        "comments",
    ),
    "icu/chartevents": (*_ICU_EVENT, "charttime", "storetime", "itemid", "value", "valuenum", "valueuom", "warning"),
    "hosp/labevents": (
        "labevent_id", "subject_id", "hadm_id", "specimen_id", "itemid", "charttime", "storetime", "value", "valuenum",
        "valueuom", "comments",
    ),
    "icu/outputevents": (*_ICU_EVENT, "charttime", "storetime", "itemid", "value", "valueuom"),
    "icu/inputevents": (
        *_ICU_EVENT, "starttime", "endtime", "storetime", "itemid", "amount", "amountuom", "rate", "rateuom",
        "orderid", "patientweight", "statusdescription",
    ),
    "icu/procedureevents": (
        *_ICU_EVENT, "starttime", "endtime", "storetime", "itemid", "value", "statusdescription", "ORIGINALAMOUNT",
    ),
    "hosp/diagnoses_icd": ("subject_id", "hadm_id", "seq_num", "icd_code", "icd_version"),
}  # fmt: skip
"""Columns as in the early 2.x releases."""


def header(table: str, version: str) -> list[str]:
    """Columns of a table; 3.x knows who charted (and stands here for any other order of columns)."""
    names = list(HEADERS[table])
    if version == "2.x":
        return names
    who = "caregiver_id" if table.startswith("icu/") and "stay_id" in names else "order_provider_id"
    at = names.index("charttime") if "charttime" in names else len(names)
    return [*names[at:], *names[:at], who]


def at(hours: float | None, minutes: float = 0) -> str:
    """ADMIT + hours as MIMIC writes it; '' for None."""
    if hours is None:
        return ""
    return str(ADMIT + datetime.timedelta(seconds=round(hours * 3600 + minutes * 60)))


class Mimic:
    """Rows by table, with short-hands for the usual ones; `stay` selects whose they are."""

    def __init__(self) -> None:
        self.rows: dict[str, list[dict[str, Any]]] = {table: [] for table in HEADERS}

    def add(self, table: str, **row: Any) -> Mimic:
        unknown = set(row) - set(HEADERS[table])
        assert not unknown, f"{table}: {unknown}"
        self.rows[table].append(row)
        return self

    def septic(
        self,
        stay: int = STAY,
        *,
        subject: int = SUBJECT,
        admit: float = 0,
        hours: float = 48,
        age: int = 60,
        sex: str = "M",
        years: str = "2011 - 2013",
        creatinine: float = 2.5,
        dod: str = "",
        deathtime: str = "",
    ) -> Mimic:
        hadm = stay - STAY + HADM
        self.stay(stay, hadm=hadm, subject=subject, admit=admit, hours=hours)
        if not any(row["subject_id"] == subject for row in self.rows["hosp/patients"]):
            self.add(
                "hosp/patients",
                subject_id=subject,
                gender=sex,
                anchor_age=age,
                anchor_year=2150,
                anchor_year_group=years,
                dod=dod,
            )
        self.add(
            "hosp/admissions",
            subject_id=subject,
            hadm_id=hadm,
            dischtime=at(admit + hours + 24),
            deathtime=deathtime,
            hospital_expire_flag=int(bool(deathtime)),
        )
        self.culture(admit + 1, subject=subject).antibiotic(admit + 2, stay=stay)
        return self.lab(50912, creatinine, admit + 1, subject=subject)

    def stay(self, stay: int, *, hadm: int, subject: int = SUBJECT, admit: float = 0, hours: float = 48) -> Mimic:
        return self.add(
            "icu/icustays", subject_id=subject, hadm_id=hadm, stay_id=stay, intime=at(admit), outtime=at(admit + hours)
        )

    def culture(self, hours: float, *, subject: int = SUBJECT, date_only: bool = False) -> Mimic:
        count = len(self.rows["hosp/microbiologyevents"])
        return self.add(
            "hosp/microbiologyevents",
            microevent_id=count,
            subject_id=subject,
            micro_specimen_id=count,
            chartdate=f"{at(hours)[:10]} 00:00:00",
            charttime="" if date_only else at(hours),
            comments="NO GROWTH,\n  FINAL",
        )

    def antibiotic(self, hours: float, drug: str = "CefePIME", *, stay: int = STAY, route: str = "IV") -> Mimic:
        return self.add(
            "hosp/prescriptions",
            hadm_id=stay - STAY + HADM,
            starttime=at(hours),
            drug_type="MAIN",
            drug=drug,
            route=route,
        )

    def chart(
        self, itemid: int, value: float, hours: float, minutes: float = 0, *, stay: int = STAY, text: str = ""
    ) -> Mimic:
        return self.add(
            "icu/chartevents",
            stay_id=stay,
            charttime=at(hours, minutes),
            itemid=itemid,
            value=text or value,
            valuenum=value,
        )

    def lab(
        self,
        itemid: int,
        value: float | str,
        hours: float,
        minutes: float = 0,
        *,
        subject: int = SUBJECT,
        specimen: int = 0,
    ) -> Mimic:
        return self.add(
            "hosp/labevents",
            labevent_id=len(self.rows["hosp/labevents"]),
            subject_id=subject,
            specimen_id=specimen or len(self.rows["hosp/labevents"]) + 10_000,
            itemid=itemid,
            charttime=at(hours, minutes),
            value=value,
            valuenum="" if isinstance(value, str) else value,
        )

    def urine(self, itemid: int, value: float, hours: float, minutes: float = 0, *, stay: int = STAY) -> Mimic:
        return self.add(
            "icu/outputevents", stay_id=stay, charttime=at(hours, minutes), itemid=itemid, value=value, valueuom="ml"
        )

    def infusion(
        self,
        itemid: int,
        start: float,
        end: float,
        *,
        rate: float | None = None,
        rateuom: str = "",
        amount: float | None = None,
        amountuom: str = "",
        weight: float = 80,
        status: str = "FinishedRunning",
        stay: int = STAY,
    ) -> Mimic:
        return self.add(
            "icu/inputevents",
            stay_id=stay,
            starttime=at(start),
            endtime=at(end),
            itemid=itemid,
            amount="" if amount is None else amount,
            amountuom=amountuom,
            rate="" if rate is None else rate,
            rateuom=rateuom,
            patientweight=weight,
            statusdescription=status,
        )

    def procedure(self, itemid: int, start: float, end: float, *, stay: int = STAY) -> Mimic:
        return self.add(
            "icu/procedureevents",
            stay_id=stay,
            starttime=at(start),
            endtime=at(end),
            itemid=itemid,
            statusdescription="FinishedRunning",
        )

    def diagnosis(self, code: str, version: int, *, stay: int = STAY) -> Mimic:
        return self.add("hosp/diagnoses_icd", hadm_id=stay - STAY + HADM, icd_code=code, icd_version=version)

    def write(self, folder: Path, *, version: str = "2.x", suffix: str = ".csv.gz") -> Path:
        """Write every table as <folder>/<hosp or icu>/<table><suffix>; suffix .csv.gz or .parquet."""
        for table, rows in self.rows.items():
            path = folder / f"{table}.csv.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            names = header(table, version)
            with gzip.open(path, "wt", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, names, restval="", lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
            if suffix == ".parquet":
                duckdb.sql(f"FROM read_csv('{path}')").write_parquet(str(folder / f"{table}.parquet"))
                path.unlink()
        return folder


def run(mimic: Mimic, tmp_path: Path, settings: MimicSettings | None = None, **write):
    """The event tables by name (pandas), the extraction, and the folder."""
    source = mimic.write(tmp_path / "mimic", **write)
    result = extract(source, tmp_path / "events", settings or MimicSettings(threads=1))
    return {path.stem: duckdb.read_parquet(str(path)).df() for path in (tmp_path / "events").iterdir()}, result
