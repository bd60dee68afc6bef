"""The open MIMIC-IV demo, where it is present: Episodes against a plain pandas recomputation from the raw tables."""

import os
from pathlib import Path
from types import SimpleNamespace

import duckdb
import numpy as np
import pandas as pd
import pytest

from sepsis_jax.clinical.features import INDEX, URINE
from sepsis_jax.data.builder import BuildSettings, build
from sepsis_jax.data.episodes import SPLITS
from sepsis_jax.data.mimic import MimicSettings, extract, items

DEMO = Path(
    os.environ.get("SEPSIS_JAX_MIMIC_DEMO", Path(__file__).parents[2] / "../shared/data/mimic-iv-demo-2.2")
).resolve()
pytestmark = [
    pytest.mark.xdist_group("mimic_demo"),
    pytest.mark.skipif(not DEMO.is_dir(), reason="no MIMIC-IV demo; SEPSIS_JAX_MIMIC_DEMO can name its folder"),
]
BIN = 4 * 3600


def raw(table: str, *times: str) -> pd.DataFrame:
    return pd.read_csv(DEMO / f"{table}.csv.gz", parse_dates=list(times), low_memory=False)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "events"
    result = extract(DEMO, folder, MimicSettings(threads=2))
    episodes, facts = build(folder, BuildSettings(threads=2), attrition=result.attrition)
    stays = raw("icu/icustays", "intime", "outtime").set_index("stay_id").loc[episodes.stay_id]
    return SimpleNamespace(folder=folder, result=result, episodes=episodes, facts=facts, stays=stays)


def seconds(demo, rows: pd.DataFrame, time: str) -> pd.Series:
    return (rows[time] - rows["stay_id"].map(demo.stays["intime"])).dt.total_seconds()


def charted(demo, ids: tuple[int, ...]) -> pd.DataFrame:
    rows = raw("icu/chartevents", "charttime")
    rows = rows[rows["itemid"].isin(ids) & rows["stay_id"].isin(demo.stays.index)].dropna(subset="valuenum")
    return rows.assign(at=seconds(demo, rows, "charttime"), value=rows["valuenum"])


def measured_in_lab(demo, ids: tuple[int, ...]) -> pd.DataFrame:
    rows = raw("hosp/labevents", "charttime")
    rows = rows[rows["itemid"].isin(ids)].dropna(subset="valuenum").assign(value=lambda r: r["valuenum"])
    rows = rows.merge(demo.stays.reset_index()[["stay_id", "subject_id"]], on="subject_id")
    rows = rows.assign(at=seconds(demo, rows, "charttime"))
    return rows[rows["charttime"] <= rows["stay_id"].map(demo.stays["outtime"])]


def temperature(demo):
    rows = charted(demo, (223761, 223762))
    rows["value"] = rows["value"].where(rows["itemid"] == 223762, (rows["value"] - 32) * 5 / 9)
    return rows[rows["value"].between(25, 45)]


def oxygen(demo):
    rows = pd.concat([charted(demo, (223835,)), measured_in_lab(demo, (50816,))])
    rows["value"] = rows["value"].where(rows["value"] > 1, rows["value"] * 100)
    return rows[rows["value"].between(20, 100)]


def magnesium(demo):
    rows = pd.concat([charted(demo, (220635,)), measured_in_lab(demo, (50960,))])
    return rows[rows["value"].between(0.2, 15)]


FEATURES = {
    "temp_c": temperature,
    "fio2": oxygen,
    "base_excess": lambda demo: measured_in_lab(demo, (50802,)),
    "gcs_verbal": lambda demo: charted(demo, (223900,)),
    "magnesium": magnesium,
    "lactate": lambda demo: measured_in_lab(demo, (50813,)),
}


@pytest.mark.parametrize("feature", FEATURES)
def test_feature_of_every_stay(feature, demo):
    rows, last = FEATURES[feature](demo), feature == "gcs_verbal"
    compared = 0
    for row, stay in enumerate(demo.episodes.stay_id):
        own = rows[(rows["stay_id"] == stay) & (rows["at"] >= -24 * 3600)].sort_values(["at", "value"])
        held = own[own["at"] < 0]["value"].iloc[-1] if (own["at"] < 0).any() else None
        for t in range(demo.episodes.length[row]):
            here = own[(own["at"] >= t * BIN) & (own["at"] < (t + 1) * BIN)]["value"]
            if len(here):
                held = here.iloc[-1] if last else here.mean()
            assert demo.episodes.mask[row, t, INDEX[feature]] == (len(here) > 0)
            if held is not None:
                assert demo.episodes.obs[row, t, INDEX[feature]] == pytest.approx(held, rel=1e-5)
            compared += len(here) > 0
    assert compared > 200


def test_urine_of_every_stay_and_in_total(demo):
    rows = raw("icu/outputevents", "charttime")
    ids = [226557, 226558, 226559, 226560, 226561, 226563, 226564, 226565, 226567, 226584, 227488, 227489]
    rows = rows[rows["itemid"].isin(ids) & rows["stay_id"].isin(demo.stays.index)]
    rows = rows.assign(at=seconds(demo, rows, "charttime"))
    rows["value"] = rows["value"].where(rows["itemid"] != 227488, -rows["value"])
    expected = np.zeros(demo.episodes.valid.shape)
    for row, stay in enumerate(demo.episodes.stay_id):
        own = rows[(rows["stay_id"] == stay) & (rows["charttime"] <= demo.stays.loc[stay, "outtime"])]
        for t in range(demo.episodes.length[row]):
            expected[row, t] = own[(own["at"] >= t * BIN) & (own["at"] < (t + 1) * BIN)]["value"].sum()
    np.testing.assert_allclose(demo.episodes.obs[..., URINE], np.maximum(expected, 0), rtol=1e-5)
    assert expected.sum() > 100_000


def test_ventilation_of_every_stay(demo):
    rows = raw("icu/procedureevents", "starttime", "endtime")
    rows = rows[(rows["itemid"] == 225792) & rows["stay_id"].isin(demo.stays.index)]
    rows = rows.assign(start=seconds(demo, rows, "starttime"), end=seconds(demo, rows, "endtime"))
    for row, stay in enumerate(demo.episodes.stay_id):
        own = rows[rows["stay_id"] == stay]
        for t in range(demo.episodes.length[row]):
            overlaps = (own["start"] < (t + 1) * BIN) & (own["end"] > t * BIN)
            assert demo.episodes.ventilated[row, t] == overlaps.any()
    assert demo.episodes.ventilated.any()


def infused(demo) -> pd.DataFrame:
    rows = raw("icu/inputevents", "starttime", "endtime")
    rows = rows[rows["stay_id"].isin(demo.stays.index) & (rows["statusdescription"] != "Rewritten")]
    rows = rows[rows["starttime"] <= rows["stay_id"].map(demo.stays["outtime"])]
    return rows.assign(start=seconds(demo, rows, "starttime"), end=seconds(demo, rows, "endtime"))


VASOPRESSORS = {221906: 1.0, 221289: 1.0, 221749: 0.1, 221662: 0.01, 222315: 2.5 / 60}
"""Item -> norepinephrine equivalents of its rate."""


def test_vasopressors_of_every_stay(demo):
    rows = infused(demo)
    rows = rows[rows["itemid"].isin(VASOPRESSORS)]
    rows = rows.assign(dose=rows["rate"] * rows["itemid"].map(VASOPRESSORS))
    assert set(rows["rateuom"]) <= {"mcg/kg/min", "units/hour"}
    for row, stay in enumerate(demo.episodes.stay_id):
        own = rows[rows["stay_id"] == stay]
        for t in range(demo.episodes.length[row]):
            during = own[(own["start"] < (t + 2) * BIN) & (own["end"] > (t + 1) * BIN)]
            dose = min(during.groupby("itemid")["dose"].max().sum(), 5.0) if len(during) else 0.0
            assert demo.episodes.vaso_dose[row, t] == pytest.approx(dose, rel=1e-5)


def test_norepinephrine_is_in_exactly_the_stays_that_had_it(demo):
    rows = infused(demo)
    expected = set(rows[(rows["itemid"] == 221906) & (rows["rate"] > 0)]["stay_id"])
    found = duckdb.read_parquet(str(demo.folder / "treatments.parquet")).df()
    found = set(found[found["treatment"] == "norepinephrine"]["stay_id"])
    assert found & set(demo.stays.index) == expected
    given = (demo.episodes.vaso_dose * demo.episodes.valid).any(axis=1)
    pressors = rows[rows["itemid"].isin(VASOPRESSORS) & (rows["rate"] > 0)]
    assert set(demo.episodes.stay_id[given]) <= set(pressors["stay_id"])
    assert len(expected) > 10


def test_fluids_of_every_stay_and_in_total(demo):
    tonicity = {225823: 0.5, 225159: 0.5, 227531: 2.75, 225161: 3, 220862: 5, 220995: 6.66, 227533: 6.66, 228341: 8}
    plain = (225158, 225943, 226089, 225168, 225828, 220970, 220864, 225170, 225825, 225171, 225827, 225941)
    tonicity |= dict.fromkeys(plain, 1)
    rows = infused(demo)
    rows = rows[rows["itemid"].isin(tonicity)]
    assert set(rows["amountuom"]) <= {"ml", "mEq"}  # mEq: of 8.4 % bicarbonate, 1 per mL
    rows = rows.assign(volume=rows["amount"] * rows["itemid"].map(tonicity))
    total = 0.0
    for row, stay in enumerate(demo.episodes.stay_id):
        own = rows[rows["stay_id"] == stay]
        given, start, end = (own[name].to_numpy() for name in ("volume", "start", "end"))
        bolus = own["rate"].isna().to_numpy()
        for t in range(demo.episodes.length[row]):
            low, high = (t + 1) * BIN, (t + 2) * BIN
            share = np.maximum(np.minimum(end, high) - np.maximum(start, low), 0) / (end - start)
            volume = (given * np.where(bolus, (start >= low) & (start < high), share)).sum()
            assert demo.episodes.fluid_ml[row, t] == pytest.approx(volume, rel=1e-5, abs=1e-4)
            total += volume
    assert demo.episodes.fluid_ml.sum() == pytest.approx(total, rel=1e-5)
    assert total > 100_000


def test_cohort(demo):
    counts = [count for _, count in demo.facts["attrition"]]
    assert counts[:2] == [140, 140]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] >= 40
    assert demo.result.facts["version"] == "demo 2.2"
    assert demo.result.facts["credentialed"] is False
    patients = raw("hosp/patients").set_index("subject_id")
    stays = demo.stays.join(patients, on="subject_id")
    age = stays["anchor_age"] + stays["intime"].dt.year - stays["anchor_year"]
    np.testing.assert_array_equal(demo.episodes.static[:, 0], age)
    np.testing.assert_array_equal(demo.episodes.static[:, 1], stays["gender"] == "M")
    days = (pd.to_datetime(stays["dod"]) - stays["intime"].dt.normalize()).dt.days
    np.testing.assert_array_equal(demo.episodes.mortality_90d, days <= 90)


def test_temporal_split(demo):
    """The later of the demo's two anchor year groups holds more than the test share, so it is the test split."""
    patients = raw("hosp/patients").set_index("subject_id")
    assert patients["anchor_year_group"].value_counts().to_dict() == {"2014 - 2016": 57, "2011 - 2013": 43}
    episodes, fields = build(demo.folder, BuildSettings(split="temporal", threads=2))
    group = patients["anchor_year_group"].loc[episodes.subject_id]
    np.testing.assert_array_equal(episodes.split == SPLITS.index("test"), group == "2014 - 2016")
    counts = group[~group.index.duplicated()].value_counts()
    periods = fields["facts"]["split_periods"]
    assert periods["test"] == {"2014": counts["2014 - 2016"]}
    assert periods["train"]["2011"] + periods["validation"]["2011"] == counts["2011 - 2013"]
    assert periods["train"]["2011"] == pytest.approx(7 / 8 * counts["2011 - 2013"], abs=1)
    np.testing.assert_array_equal(episodes.stay_id, demo.episodes.stay_id)


def test_threads_do_not_change_a_byte(demo, tmp_path):
    for threads in (1, 8):
        extract(DEMO, tmp_path / "events", MimicSettings(threads=threads))
        for path in demo.folder.iterdir():
            assert (tmp_path / "events" / path.name).read_bytes() == path.read_bytes(), path.name


def test_labels_are_those_of_the_dictionaries():
    chart = raw("icu/d_items").set_index("itemid")["label"]
    lab = raw("hosp/d_labitems").set_index("itemid")["label"]
    for row in items.read("items"):
        labels = lab if row["source"] == "labevents" else chart
        assert labels[int(row["itemid"])] == row["label"]
