"""The temporal split: by hand, against its definition, from event tables and from MIMIC-IV, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from event_tables import Tables, random_tables, write
from hypothesis import given
from hypothesis import strategies as st
from mimic_fixture import STAY, SUBJECT, Mimic, run

from sepsis_jax.data import splits
from sepsis_jax.data.builder import BuildSettings, build
from sepsis_jax.data.episodes import SPLITS
from sepsis_jax.data.store import Manifest
from sepsis_jax.errors import InputError

TRAIN, VALIDATION, TEST = range(3)
TEMPORAL = BuildSettings(split="temporal", threads=1)


def assigned(period: list[int], **kwargs: Any) -> np.ndarray:
    """One stay per patient."""
    return splits.assign_temporal(np.arange(len(period)), np.zeros(len(period), int), np.array(period), **kwargs)


@pytest.mark.parametrize(
    ("share", "test"),
    [(0.1, [2017]), (0.2, [2017]), (0.21, [2014, 2017]), (0.5, [2014, 2017]), (0.6, [2011, 2014, 2017])],
)
def test_whole_periods_the_latest_first(share: float, test: list[int]) -> None:
    """Of ten patients two are of 2017, three of 2014, one of 2011: 20 %, 50 % and 60 % from there on."""
    period = [2008, 2017, 2014, 2008, 2011, 2014, 2008, 2017, 2014, 2008]
    split = assigned(period, fractions=(1 - share, 0.0, share))
    np.testing.assert_array_equal(split == TEST, np.isin(period, test))
    assert set(split) == {TRAIN, TEST}


def test_the_earlier_patients_keep_the_proportion_and_the_strata() -> None:
    rng = np.random.default_rng(0)
    period, died = rng.permutation(np.repeat([1, 2], [800, 200])), np.arange(1000) % 4 == 0
    split = splits.assign_temporal(np.arange(1000), died.astype(int), period, fractions=(0.6, 0.2, 0.2), seed=3)
    for stratum in (died, ~died):
        earlier = split[stratum & (period == 1)]
        np.testing.assert_allclose(np.bincount(earlier) / earlier.size, [0.75, 0.25], atol=0.01)
    other = splits.assign_temporal(np.arange(1000), died.astype(int), period, fractions=(0.6, 0.2, 0.2), seed=4)
    np.testing.assert_array_equal(split == TEST, other == TEST)
    assert (split != other).any()


def test_a_patient_counts_to_the_latest_of_their_stays() -> None:
    subject, period = np.array([7, 8, 7, 9, 8]), np.array([3, 1, 1, 2, 2])
    split = splits.assign_temporal(subject, np.zeros(5, int), period, fractions=(0.7, 0.0, 0.3))
    assert split.tolist() == [TEST, TRAIN, TEST, TRAIN, TRAIN]
    assert splits.patient_period(subject, period).tolist() == [3, 2, 3, 2, 2]
    assert splits.patients_by_period(subject, period, split) == {"train": {"2": 2}, "validation": {}, "test": {"3": 1}}


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(-1, 1), st.integers(-3, 3)), min_size=1, max_size=60),
    st.sampled_from([0.05, 0.2, 0.5]),
)
def test_definition(stays: list[tuple[int, int, int]], share: float) -> None:
    subject, outcome, period = np.array(stays).T
    fractions = (0.9 - share, 0.1, share)
    latest = {patient: period[subject == patient].max() for patient in subject}
    try:
        split = splits.assign_temporal(subject, outcome, period, fractions=fractions)
    except InputError:
        assert sum(value > min(latest.values()) for value in latest.values()) < share * len(latest)
        return
    for patient in latest:
        assert len(set(split[subject == patient])) == 1
    test = {patient for patient in latest if (split[subject == patient] == TEST).all()}
    start = min(latest[patient] for patient in test)
    assert all((latest[patient] >= start) == (patient in test) for patient in latest)
    assert len(test) >= share * len(latest) - 1e-9
    assert sum(latest[patient] > start for patient in test) < share * len(latest)  # one period fewer is too few
    assert period[split != TEST].max() < start
    order = np.random.default_rng(0).permutation(len(stays))
    shuffled = splits.assign_temporal(subject[order], outcome[order], period[order], fractions=fractions)
    np.testing.assert_array_equal(shuffled, split[order])


def of_years(tables: Tables, years: Any) -> Tables:
    return tables | {"stays": tables["stays"].assign(period=years)}


@pytest.fixture(scope="module")
def tables() -> Tables:
    """40 stays of patients of 2008 to 2019; the period belongs to the patient."""
    tables = random_tables(5, stays=40)
    return of_years(tables, 2008 + 3 * (tables["stays"].subject_id % 4))


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_build(tmp_path: Path, tables: Tables, suffix: str) -> None:
    episodes, fields = build(write(tmp_path / "events", tables, suffix), TEMPORAL)
    period = tables["stays"].set_index("stay_id").period.loc[episodes.stay_id].to_numpy()
    expected = splits.assign_temporal(episodes.subject_id, episodes.mortality_90d, period)
    np.testing.assert_array_equal(episodes.split, expected)
    manifest = Manifest(source="events", source_version="", **fields)
    assert manifest.cohort["split"] == "temporal"
    assert Manifest.from_dict(json.loads(json.dumps(manifest.to_dict()))).facts == manifest.facts
    for code, name in enumerate(SPLITS):
        rows = episodes.split == code
        for year, patients in fields["facts"]["split_periods"][name].items():
            assert patients == np.unique(episodes.subject_id[rows & (period == int(year))]).size
        assert set(fields["facts"]["split_periods"][name]) == {str(year) for year in period[rows]}


def test_the_random_split_does_not_look_at_periods(tmp_path: Path, tables: Tables) -> None:
    with_years, fields = build(write(tmp_path / "with", tables), BuildSettings(threads=1))
    without = tables | {"stays": tables["stays"].drop(columns="period")}
    plain, plain_fields = build(write(tmp_path / "without", without), BuildSettings(threads=1))
    for name, value in dataclasses.asdict(plain).items():
        np.testing.assert_array_equal(value, getattr(with_years, name), err_msg=name)
    assert fields["facts"] == plain_fields["facts"]
    assert fields["cohort"]["split"] == "random"


NEEDED = "; a temporal split needs it; split: random does not"
AN_INTEGER = "period: expected an integer, found"
BAD: dict[str, tuple[str, Any, str]] = {  # name: (suffix, period of the stays or None, message after the file)
    "no column": ("csv", None, "period: expected a column, found columns stay_id,"),
    "one empty in csv": ("csv", lambda t: t.period.where(t.index > 0), rf"{AN_INTEGER} nothing in stay \d+ \(1 row"),
    "one empty": ("parquet", lambda t: t.period.where(t.index > 0), rf"{AN_INTEGER} .* in stay \d+ \(1 row"),
    "text": ("parquet", lambda t: "2011 - 2013", rf"{AN_INTEGER} '2011 - 2013' in stay \d+ \(40 rows\)"),
    "one period": ("csv", lambda t: 2011, "period: expected at least two periods .* found only 2011"),
    "few are late": (
        "parquet",
        lambda t: 2011 + 3 * (t.subject_id == t.subject_id.min()),
        r"period: expected at least 20% of the patients after the first period, 2011, found \d of \d+; choose a small",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_periods(tmp_path: Path, tables: Tables, case: str) -> None:
    suffix, years, message = BAD[case]
    stays = tables["stays"].drop(columns="period")
    bad = tables | {"stays": stays} if years is None else of_years(tables, years(tables["stays"]))
    with pytest.raises(InputError, match=rf"stays\.{suffix}: {message}") as error:
        build(write(tmp_path / "events", bad, suffix), TEMPORAL)
    assert "\n" not in str(error.value)
    if case not in ("one period", "few are late"):
        assert str(error.value).endswith(NEEDED)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"split": "by ward"}, "split: expected random or temporal, found by ward"),
        ({"split": "temporal", "split_fractions": (0.9, 0.1, 0.0)}, "split_fractions: expected a test share"),
    ],
)
def test_bad_settings(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError, match=f"settings: {field}"):
        BuildSettings(**settings)


def test_mimic_takes_the_first_year_of_the_anchor_year_group(tmp_path: Path) -> None:
    mimic = Mimic()
    groups = ("2008 - 2010", "2020 - 2022", "")
    for number, years in enumerate(groups):
        mimic.septic(STAY + number, subject=SUBJECT + number, admit=500 * number, years=years)
    stays = run(mimic, tmp_path)[0]["stays"]
    assert stays["period"].fillna(-1).tolist() == [2008, 2020, -1]
