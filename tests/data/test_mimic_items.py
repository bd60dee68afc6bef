"""The fact tables of the MIMIC-IV room: complete, consistent, and used once."""

import re
from importlib import resources

from sepsis_jax.clinical.features import NAMES
from sepsis_jax.clinical.vasopressors import FLUID_TONICITY, NEE_FACTORS
from sepsis_jax.data.mimic import items
from sepsis_jax.data.mimic.tables import RAW

SQL = {path.name: path.read_text() for path in resources.files("sepsis_jax.data.mimic").joinpath("sql").iterdir()}
ITEMS = items.read("items")


def names(*sources: str) -> set[str]:
    return {row["name"] for row in ITEMS if row["source"] in sources}


def test_each_item_has_one_meaning():
    keys = [(row["source"], row["itemid"]) for row in ITEMS]
    assert len(keys) == len(set(keys))
    assert {row["rule"] for row in ITEMS} == set(items.RULES)
    assert all(row["label"] for row in ITEMS)


def test_items_cover_every_feature_and_every_treatment():
    helpers = {"weight_kg", "specimen"}
    assert names("chartevents", "labevents", "outputevents") - helpers == set(NAMES)
    assert names("inputevents") == set(NEE_FACTORS["goradia2020"]) | set(FLUID_TONICITY)
    assert names("procedureevents") == {"invasive_ventilation"}


def test_known_traps():
    by_id = {int(row["itemid"]): row for row in ITEMS}
    assert by_id[223761]["rule"] == "fahrenheit"
    assert by_id[223762]["rule"] == ""
    assert by_id[227488]["rule"] == "irrigant"
    assert by_id[50960]["name"] == by_id[220635]["name"] == "magnesium"
    assert by_id[225828]["name"] == by_id[225827]["name"] == "isotonic"  # Ringer's
    assert not {220953, 220955, 221653, 221986} & set(by_id)  # not Ringer's; inotropes


def test_charlson_ranges_are_ranges():
    rows = items.read("charlson")
    assert all(row["first_code"] <= row["last_code"] for row in rows)
    assert all(len(row["first_code"]) == len(row["last_code"]) for row in rows)
    assert {row["icd_version"] for row in rows} == {"9", "10"}
    assert len({row["condition"] for row in rows}) == 14


def test_antibiotic_names_are_plain_lower_case():
    fragments = [row["fragment"] for row in items.read("antibiotics")]
    assert len(fragments) == len(set(fragments)) > 100
    assert all(re.fullmatch(r"[a-z][a-z -]{2,}", fragment) for fragment in fragments)


def test_each_raw_table_is_scanned_once():
    for table in RAW:
        name = table.split("/")[1]
        uses = [(file, use) for file, text in SQL.items() for use in re.findall(rf"(?:FROM|JOIN) {name}\b", text)]
        assert len(uses) == 1, uses
