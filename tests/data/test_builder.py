"""The builder against slow loops, at every boundary, and under everything that must not matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import builder_oracle
import numpy as np
import pandas as pd
import pytest
from event_tables import Tables, random_tables, write

from sepsis_jax.clinical.actions import fit_bins
from sepsis_jax.clinical.features import INDEX, NAMES
from sepsis_jax.data import builder, splits
from sepsis_jax.data.builder import BuildSettings, build
from sepsis_jax.data.episodes import DTYPES, Episodes
from sepsis_jax.data.store import Manifest
from sepsis_jax.errors import InputError

MINUTE = 1 / 60


def arrays(episodes: Episodes) -> dict[str, np.ndarray]:
    return {name: getattr(episodes, name) for name in DTYPES if name != "propensity"}


def assert_identical(one: Any, other: Any) -> None:
    """Bytes of the arrays and the whole manifest."""
    for name, value in arrays(one[0]).items():
        assert value.tobytes() == arrays(other[0])[name].tobytes(), name
    first, second = (Manifest(source="events", source_version="", **fields).to_dict() for _, fields in (one, other))
    assert first == second


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "settings",
    [
        BuildSettings(),
        BuildSettings(anchor="onset", start_hours=-4, max_steps=5, vasopressor_conversion="komorowski2018", seed=3),
        BuildSettings(start_hours=1.25, min_steps=1, max_vaso_dose=0.3, max_urine_4h=1100, max_fluid_4h=2500),
    ],
    ids=["default", "onset", "limits"],
)
def test_oracle(tmp_path: Path, seed: int, settings: BuildSettings) -> None:
    tables = random_tables(seed)
    episodes, fields = build(write(tmp_path / "events", tables), settings)
    stays = builder_oracle.cohort(tables, settings)
    np.testing.assert_array_equal(episodes.stay_id, stays.stay_id)
    np.testing.assert_array_equal(episodes.subject_id, stays.subject_id)
    outcome = stays.mortality_90d.fillna(-1).to_numpy()
    split = splits.assign(stays.subject_id.to_numpy(), outcome, fractions=(0.7, 0.1, 0.2), seed=settings.seed)
    np.testing.assert_array_equal(episodes.split, split)
    expected = builder_oracle.episodes(tables, stays, settings, split)
    for name in ("mask", "ventilated", "sofa", "length", "exit"):
        np.testing.assert_array_equal(getattr(episodes, name), expected[name], err_msg=name)
    for name in ("obs", "static", "weight_kg"):
        np.testing.assert_allclose(getattr(episodes, name), expected[name], rtol=2e-6, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(episodes.vaso_dose, expected["vaso"][:, 1:], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(episodes.fluid_ml, expected["fluid"][:, 1:], rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(episodes.mortality_90d, outcome)
    np.testing.assert_array_equal(episodes.mortality_hospital, stays.mortality_hospital.fillna(-1))
    train = split == 0
    bins = fit_bins(episodes.vaso_dose[train], episodes.fluid_ml[train])
    assert bins == fields["action_bins"]
    np.testing.assert_array_equal(episodes.action, bins.levels(episodes.vaso_dose, episodes.fluid_ml))
    # The same dose as in a train bin lies on an edge: allow for its last digit.
    low, high = (bins.levels(expected["vaso"][:, 0] * f, expected["fluid"][:, 0] * f) for f in (1 - 1e-6, 1 + 1e-6))
    assert ((low <= episodes.prior_action) & (episodes.prior_action <= high)).all()
    assert fields["attrition"][0] == ("stays in the event tables", len(tables["stays"]))
    assert fields["attrition"][-1][1] == len(stays)


def test_contract(tmp_path: Path) -> None:
    """dtypes, shapes, no NaN, padding of zeros."""
    episodes, _ = build(write(tmp_path / "events", random_tables(1, stays=30)), BuildSettings(max_steps=9))
    sizes: dict[Any, int] = {"B": episodes.num_stays, "T": 9}
    for name, value in arrays(episodes).items():
        dtype, shape = DTYPES[name]
        assert value.dtype == dtype, name
        assert value.shape == tuple(sizes.get(axis, axis) for axis in shape), name
        assert np.isfinite(value).all(), name
        if shape[:2] == ("B", "T"):
            assert not value[~episodes.valid].any(), name


@pytest.fixture(scope="module")
def large() -> Tables:
    return random_tables(7, stays=700)


@pytest.fixture(scope="module")
def reference(large: Tables, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return build(write(tmp_path_factory.mktemp("large") / "events", large), BuildSettings(threads=1))


@pytest.mark.parametrize("threads", [2, 8])
def test_threads_do_not_matter(tmp_path: Path, large: Tables, reference: Any, threads: int) -> None:
    settings = BuildSettings(threads=threads, temp_dir=tmp_path)
    assert_identical(build(write(tmp_path / "events", large), settings), reference)
    assert [path.name for path in tmp_path.iterdir()] == ["events"]  # nothing is left behind


def test_order_of_rows_does_not_matter(tmp_path: Path, large: Tables, reference: Any) -> None:
    shuffled = {name: table.sample(frac=1, random_state=1) for name, table in large.items()}
    assert_identical(build(write(tmp_path / "events", shuffled), BuildSettings()), reference)


def test_csv_equals_parquet(tmp_path: Path, large: Tables, reference: Any) -> None:
    assert_identical(build(write(tmp_path / "events", large, "csv"), BuildSettings()), reference)


def test_block_size_does_not_matter(
    tmp_path: Path, large: Tables, reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder, "BLOCK", 97)
    assert_identical(build(write(tmp_path / "events", large), BuildSettings()), reference)


def one_stay(**tables: list[tuple[Any, ...]]) -> Tables:
    """One stay of 22 h: five steps, treatment bins 0 to 5. Rows of the other tables come without their stay_id."""
    columns = {
        "measurements": ["hours", "feature", "value"],
        "treatments": ["start_hours", "end_hours", "treatment", "rate", "amount", "unit"],
        "intervals": ["start_hours", "end_hours", "kind"],
    }
    stay = {"stay_id": 7, "subject_id": 1, "age": 60, "sex": "F", "weight_kg": 70.0, "charlson": 3, "exit_hours": 22}
    stay |= {"exit_kind": "death", "mortality_90d": 1, "mortality_hospital": 1, "onset_hours": 1.1}
    events = {name: pd.DataFrame(tables.get(name, []), columns=cols) for name, cols in columns.items()}
    numbers = {"rate": float, "amount": float, "start_hours": float, "end_hours": float, "hours": float}
    frames = {name: e.astype({c: numbers[c] for c in e if c in numbers}) for name, e in events.items()}
    for frame in frames.values():
        frame.insert(0, "stay_id", 7)
    return {"stays": pd.DataFrame([stay]), **frames}


def built(tmp_path: Path, tables: Tables, **settings: Any) -> dict[str, np.ndarray]:
    folder = tmp_path / f"events{len(list(tmp_path.iterdir()))}"
    episodes, fields = build(write(folder, tables), BuildSettings(max_steps=6, **settings))
    doses = fields["action_bins"].doses(episodes.prior_action)
    return arrays(episodes) | {"prior_dose": np.asarray(doses)}


BASE = [(1.0, "heart_rate", 80.0), (1.0, "gcs_eye", 2.0), (1.0, "output_4hourly", 10.0)]


@pytest.mark.parametrize("anchor", ["admission", "onset"])
@pytest.mark.parametrize("bin_", [0, 1, 5])
@pytest.mark.parametrize("feature", ["heart_rate", "gcs_eye", "output_4hourly"])
def test_value_across_a_boundary(tmp_path: Path, anchor: str, bin_: int, feature: str) -> None:
    """A value on the boundary belongs to the later bin; a minute earlier to the earlier one; nothing else changes.

    An onset at 1.1 h makes boundaries that no binary fraction hits.
    """
    tau = 0 if anchor == "admission" else 1.1
    base = [(tau + hours, name, value) for hours, name, value in BASE]
    after, before = (
        built(tmp_path, one_stay(measurements=[*base, (tau + 4 * bin_ - shift, feature, 4.0 * 10)]), anchor=anchor)
        if feature != "gcs_eye"
        else built(tmp_path, one_stay(measurements=[*base, (tau + 4 * bin_ - shift, feature, 4.0)]), anchor=anchor)
        for shift in (0, MINUTE)
    )
    value, first = {"heart_rate": (40.0, 80.0), "gcs_eye": (4.0, 2.0), "output_4hourly": (40.0, 10.0)}[feature]
    for result, home in ((after, bin_), (before, bin_ - 1)):
        series = result["obs"][0, :, INDEX[feature]]
        length = int(result["length"][0])
        expected = np.zeros(6)
        if feature == "output_4hourly":
            expected[0] = first
            expected[home : home + 1] += value if 0 <= home < length else 0
        else:
            expected[:length] = first
            if home == 0:  # beside, or after, the first value (the other one comes at 1 h)
                expected[:length] = 60 if feature == "heart_rate" else (2 if result is after else 4)
            elif home > 0:
                expected[home:length] = value
            np.testing.assert_array_equal(
                result["mask"][0, :, INDEX[feature]], np.isin(range(6), [0, home]) & (np.arange(6) < length)
            )
        np.testing.assert_array_equal(series, expected)
    others = [i for i, name in enumerate(NAMES) if name != feature]
    np.testing.assert_array_equal(after["obs"][..., others], before["obs"][..., others])
    for name in set(after) - {"obs", "mask", "sofa"}:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)


@pytest.mark.parametrize("shift", [-1, 0, 1])
@pytest.mark.parametrize("bin_", [0, 1, 5])
def test_infusions_across_a_boundary(tmp_path: Path, bin_: int, shift: int) -> None:
    """4 h of norepinephrine, of 240 mL saline and of ventilation fill one bin; a minute's shift reaches the next."""
    start, end = 4 * bin_ + shift * MINUTE, 4 * bin_ + 4 + shift * MINUTE
    result = built(
        tmp_path,
        one_stay(
            measurements=BASE,
            treatments=[
                (start, end, "norepinephrine", 0.2, None, "mcg/kg/min"),
                (start, end, "isotonic", None, 240.0, "mL"),
            ],
            intervals=[(start, end, "invasive_ventilation")],
        ),
    )
    minutes = np.zeros(8)
    minutes[bin_] += 240 - abs(shift)
    minutes[bin_ + shift] += abs(shift)  # index -1 is the last one, beyond every record
    treated = minutes[1:6]
    np.testing.assert_allclose(result["fluid_ml"][0, :5], treated, rtol=1e-6)
    np.testing.assert_allclose(result["vaso_dose"][0, :5], 0.2 * (treated > 0), rtol=1e-6)
    np.testing.assert_array_equal(result["prior_action"][0] > 0, [minutes[0] > 0] * 2)
    np.testing.assert_array_equal(result["ventilated"][0, :5], minutes[:5] > 0)


@pytest.mark.parametrize(("exit_hours", "length"), [(8, 1), (8 + MINUTE, 2), (12, 2), (24, 5), (24 + MINUTE, 6)])
def test_decisions_fall_strictly_before_the_exit(tmp_path: Path, exit_hours: float, length: int) -> None:
    tables = one_stay(measurements=BASE)
    tables["stays"]["exit_hours"] = exit_hours
    result = built(tmp_path, tables, min_steps=1)
    assert result["length"][0] == length
    assert result["exit"][0] == 1


def test_a_long_stay_is_truncated(tmp_path: Path) -> None:
    tables = one_stay(measurements=BASE)
    tables["stays"]["exit_hours"] = 28 + MINUTE
    result = built(tmp_path, tables)
    assert (result["length"][0], result["exit"][0]) == (6, 0)


def test_look_back_of_24_hours(tmp_path: Path) -> None:
    """A value before tau is carried without a mask bit, for up to 24 h; urine before tau does not count."""
    charted = [(-24.0, "lactate", 3.0), (-24 - MINUTE, "sodium", 120.0), (-1.0, "output_4hourly", 500.0)]
    result = built(tmp_path, one_stay(measurements=[*BASE, *charted]))
    assert (result["obs"][0, :5, INDEX["lactate"]] == 3).all()
    assert not result["mask"][0, :, INDEX["lactate"]].any()
    np.testing.assert_allclose(result["obs"][0, :5, INDEX["sodium"]], 138.7, rtol=1e-6)  # never measured in train
    assert result["obs"][0, 0, INDEX["output_4hourly"]] == 10


def test_doses_by_hand(tmp_path: Path) -> None:
    """Units, tonicity, sum of the highest rate of each drug, bolus, cap and weight."""
    treatments = [
        (4.0, 5.0, "norepinephrine", 7.0, None, "mcg/min"),  # 0.1 at 70 kg
        (5.0, 6.0, "norepinephrine", 0.05, None, "mcg/kg/min"),
        (6.0, 7.0, "vasopressin", 2.4, None, "units/hour"),  # 0.04 U/min x 2.5
        (8.0, 9.0, "epinephrine", 0.42, None, "mg/h"),  # 7 mcg/min
        (12.0, 13.0, "norepinephrine", 359.0, None, "mcg/kg/min"),
        (16.0, 16.0, "norepinephrine", 0.5, None, "mcg/kg/min"),  # no time, no dose
        (4.0, None, "albumin_25pct", None, 0.1, "L"),  # 500
        (8.0, 8.0, "isotonic", None, 100.0, "mL"),
        (15.0, 17.0, "half_isotonic", None, 100.0, "mL"),  # 25 and 25
    ]
    result = built(tmp_path, one_stay(measurements=BASE, treatments=treatments))
    np.testing.assert_allclose(result["vaso_dose"][0, :5], [0.2, 0.1, 5, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(result["fluid_ml"][0, :5], [500, 100, 25, 25, 0], rtol=1e-6)


def test_urine_by_hand(tmp_path: Path) -> None:
    """Irrigant counts negative, a bin is never below 0, one implausible event does not count."""
    urine = [(4.0, 300.0), (5.0, -100.0), (8.0, -50.0), (13.0, 12_001.0), (13.5, 70.0)]
    result = built(tmp_path, one_stay(measurements=[*BASE, *((h, "output_4hourly", v) for h, v in urine)]))
    np.testing.assert_array_equal(result["obs"][0, :, INDEX["output_4hourly"]], [10, 200, 0, 70, 0, 0])


def test_the_future_is_not_in_the_state(tmp_path: Path) -> None:
    """Whatever happens to a test stay from a decision on changes nothing up to it (fits come from train stays)."""
    tables = random_tables(4, stays=20)
    before, fields = build(write(tmp_path / "before", tables), BuildSettings())
    row = int(np.flatnonzero((before.split == 2) & (before.length >= 4))[0])
    stay, step = before.stay_id[row], 2
    decision = 4.0 * step + 4
    later = {name: table.copy() for name, table in tables.items()}
    for name, time in (("measurements", "hours"), ("treatments", "start_hours"), ("intervals", "start_hours")):
        table = later[name]
        gone = (table.stay_id == stay) & (table[time] >= decision)
        assert gone.any()
        later[name] = table[~gone]
    after, _ = build(write(tmp_path / "after", later), BuildSettings())
    for name in ("obs", "mask", "sofa", "ventilated"):
        one, other = (np.asarray(getattr(e, name))[row] for e in (before, after))
        np.testing.assert_array_equal(one[: step + 1], other[: step + 1], err_msg=name)
        assert (one != other).any() or name in ("sofa", "ventilated"), name
    others = np.arange(before.num_stays) != row
    for name, value in arrays(before).items():
        np.testing.assert_array_equal(value[others], arrays(after)[name][others], err_msg=name)
    assert fields["action_bins"].levels(0, 0).tolist() == [0, 0]


def test_attrition_continues_the_one_given(tmp_path: Path) -> None:
    tables = random_tables(2, stays=40)
    _, fields = build(write(tmp_path / "events", tables), BuildSettings(anchor="onset"), attrition=[("ICU stays", 99)])
    labels, counts = zip(*fields["attrition"], strict=True)
    assert labels[:4] == ("ICU stays", "stays in the event tables", "age at least 18 years", "sepsis onset known")
    assert list(counts) == sorted(counts, reverse=True)


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({"exit_hours": 8.0}, {}, "'at least 2 steps of 4 h before ICU exit' removed 1, e.g. stay 7 has 1 step"),
        ({"age": 17.9}, {}, "'age at least 18 years' removed 1, e.g. stay 7 is 17.9 years old"),
        ({"onset_hours": np.nan}, {"anchor": "onset"}, "stay 7 has no onset_hours"),
        ({}, {"start_hours": 2.0}, "stay 7 has no measurement between tau and its end"),
        ({}, {"max_urine_4h": 9.0}, "stay 7 has 10 mL"),
    ],
)
def test_nothing_left_names_the_rule(
    tmp_path: Path, changes: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    tables = one_stay(measurements=BASE)
    tables["stays"] = tables["stays"].assign(**changes)
    with pytest.raises(InputError, match="at least one stay left") as error:
        build(write(tmp_path / "events", tables), BuildSettings(**settings))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"anchor": "birth"}, "anchor"),
        ({"min_steps": 0}, "min_steps"),
        ({"min_steps": 9, "max_steps": 5}, "min_steps"),
        ({"vasopressor_conversion": "mine"}, "vasopressor_conversion"),
        ({"split_fractions": (0.5, 0.1, 0.1)}, "split_fractions"),
        ({"max_vaso_dose": 0.0}, "max_vaso_dose"),
        ({"threads": 0}, "threads"),
    ],
)
def test_bad_settings(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError, match=f"settings: {field}: expected"):
        BuildSettings(**settings)


def test_bad_machine_settings(tmp_path: Path) -> None:
    folder = write(tmp_path / "events", one_stay(measurements=BASE))
    with pytest.raises(InputError, match="memory_limit: expected a size like 2GB, found lots"):
        build(folder, BuildSettings(memory_limit="lots"))
    with pytest.raises(InputError, match="expected a folder that can be written"):
        build(folder, BuildSettings(temp_dir=tmp_path / "absent"))
