"""SOFA against a plain oracle, and one value on either side of every threshold."""

import jax
import numpy as np
import pytest

from sepsis_jax.clinical import sofa
from sepsis_jax.clinical.features import GCS, HIGH, INDEX, LOW, PUBLISHED_MEAN, URINE

HEALTHY = {
    "pf_ratio": 450.0,
    "ventilated": False,
    "platelet": 250.0,
    "bilirubin_total": 0.6,
    "meanbp": 85.0,
    "norepinephrine_equivalent": 0.0,
    "gcs": 15.0,
    "creatinine": 0.8,
    "urine_24h": 1500.0,
}
PART = {name: i for i, name in enumerate(sofa.COMPONENTS)}

THRESHOLDS = [
    # part, field, value, points, other fields
    ("respiratory", "pf_ratio", 400, 0, {}),
    ("respiratory", "pf_ratio", 399, 1, {}),
    ("respiratory", "pf_ratio", 300, 1, {}),
    ("respiratory", "pf_ratio", 299, 2, {}),
    ("respiratory", "pf_ratio", 200, 2, {"ventilated": True}),
    ("respiratory", "pf_ratio", 199, 3, {"ventilated": True}),
    ("respiratory", "pf_ratio", 199, 2, {}),
    ("respiratory", "pf_ratio", 100, 3, {"ventilated": True}),
    ("respiratory", "pf_ratio", 99, 4, {"ventilated": True}),
    ("respiratory", "pf_ratio", 99, 2, {}),
    ("coagulation", "platelet", 150, 0, {}),
    ("coagulation", "platelet", 149, 1, {}),
    ("coagulation", "platelet", 100, 1, {}),
    ("coagulation", "platelet", 99, 2, {}),
    ("coagulation", "platelet", 50, 2, {}),
    ("coagulation", "platelet", 49, 3, {}),
    ("coagulation", "platelet", 20, 3, {}),
    ("coagulation", "platelet", 19, 4, {}),
    ("liver", "bilirubin_total", 1.19, 0, {}),
    ("liver", "bilirubin_total", 1.2, 1, {}),
    ("liver", "bilirubin_total", 1.99, 1, {}),
    ("liver", "bilirubin_total", 2.0, 2, {}),
    ("liver", "bilirubin_total", 5.99, 2, {}),
    ("liver", "bilirubin_total", 6.0, 3, {}),
    ("liver", "bilirubin_total", 11.99, 3, {}),
    ("liver", "bilirubin_total", 12.0, 4, {}),
    ("cardiovascular", "meanbp", 70, 0, {}),
    ("cardiovascular", "meanbp", 69.9, 1, {}),
    ("cardiovascular", "norepinephrine_equivalent", 0.001, 3, {}),
    ("cardiovascular", "norepinephrine_equivalent", 0.1, 3, {"meanbp": 50.0}),
    ("cardiovascular", "norepinephrine_equivalent", 0.101, 4, {}),
    ("nervous", "gcs", 14, 1, {}),
    ("nervous", "gcs", 13, 1, {}),
    ("nervous", "gcs", 12, 2, {}),
    ("nervous", "gcs", 10, 2, {}),
    ("nervous", "gcs", 9, 3, {}),
    ("nervous", "gcs", 6, 3, {}),
    ("nervous", "gcs", 5, 4, {}),
    ("renal", "creatinine", 1.19, 0, {}),
    ("renal", "creatinine", 1.2, 1, {}),
    ("renal", "creatinine", 1.99, 1, {}),
    ("renal", "creatinine", 2.0, 2, {}),
    ("renal", "creatinine", 3.49, 2, {}),
    ("renal", "creatinine", 3.5, 3, {}),
    ("renal", "creatinine", 4.99, 3, {}),
    ("renal", "creatinine", 5.0, 4, {}),
    ("renal", "urine_24h", 500, 0, {}),
    ("renal", "urine_24h", 499, 3, {}),
    ("renal", "urine_24h", 200, 3, {}),
    ("renal", "urine_24h", 199, 4, {}),
]


@pytest.mark.parametrize(("part", "field", "value", "points", "others"), THRESHOLDS)
def test_each_threshold_from_both_sides(part: str, field: str, value: float, points: int, others: dict):
    expected = np.zeros(6)
    expected[PART[part]] = points
    np.testing.assert_array_equal(sofa.components(**{**HEALTHY, **others, field: value}), expected)


@pytest.mark.parametrize("field", [name for name in HEALTHY if name != "ventilated"])
def test_unknown_scores_nothing(field: str):
    np.testing.assert_array_equal(sofa.components(**{**HEALTHY, field: np.nan}), np.zeros(6))


def test_components_broadcast_over_ranks():
    values = {**HEALTHY, "platelet": np.array([10.0, 300.0]), "gcs": np.full((3, 2), 3.0)}
    parts = np.asarray(sofa.components(**values))
    assert parts.shape == (3, 2, 6) and parts.dtype == np.float32
    np.testing.assert_array_equal(parts.sum(-1), np.tile([8.0, 4.0], (3, 1)))


def oracle(row: np.ndarray, ventilated: bool, dose: float, urine: float) -> int:
    """Proper SOFA of one patient in plain Python."""
    value = {name: float(row[i]) for name, i in INDEX.items()}
    pf = value["pao2"] / (value["fio2"] / 100)
    gcs = sum(value[name] for name in GCS)
    lungs = next((s for s, t in ((4, 100), (3, 200), (2, 300), (1, 400)) if pf < t), 0)
    total = lungs if ventilated else min(lungs, 2)
    total += next((s for s, t in ((4, 20), (3, 50), (2, 100), (1, 150)) if value["platelet"] < t), 0)
    total += next((s for s, t in ((4, 12), (3, 6), (2, 2), (1, 1.2)) if value["bilirubin_total"] >= t), 0)
    total += 4 if dose > 0.1 else 3 if dose > 0 else 1 if value["meanbp"] < 70 else 0
    total += next((s for s, t in ((4, 6), (3, 10), (2, 13), (1, 15)) if gcs < t), 0)
    kidney = next((s for s, t in ((4, 5), (3, 3.5), (2, 2), (1, 1.2)) if value["creatinine"] >= t), 0)
    return total + max(kidney, 4 if urine < 200 else 3 if urine < 500 else 0)


def random_patients(rng: np.random.Generator, n: int) -> tuple[np.ndarray, ...]:
    obs = rng.uniform(LOW, np.minimum(HIGH, 4 * np.abs(PUBLISHED_MEAN) + 1), (n, 39)).astype(np.float32)
    gcs = [INDEX[name] for name in GCS]
    obs[:, gcs] = rng.integers(1, [5, 6, 7], (n, 3))
    dose = rng.choice([0, 0.05, 0.1, 0.3], n).astype(np.float32)
    dose[dose == np.float32(0.1)] = 0.09
    return obs, rng.random(n) < 0.5, dose, rng.choice([100.0, 300, 900, np.nan], n).astype(np.float32)


def test_proper_matches_the_oracle_eager_and_vmapped():
    obs, ventilated, dose, urine = random_patients(np.random.default_rng(0), 300)
    expected = [oracle(*patient) for patient in zip(obs, ventilated, dose, urine, strict=True)]
    np.testing.assert_array_equal(sofa.proper(obs, ventilated, dose, urine), expected)
    np.testing.assert_array_equal(jax.jit(jax.vmap(sofa.proper))(obs, ventilated, dose, urine), expected)
    assert len(set(expected)) > 8


def healthy_obs(**values: float) -> np.ndarray:
    obs = PUBLISHED_MEAN.copy()
    normal = {"pao2": 100, "fio2": 21, "platelet": 250, "bilirubin_total": 0.6, "meanbp": 85, "creatinine": 0.8}
    for name, value in {**normal, "gcs_eye": 4, "gcs_verbal": 5, "gcs_motor": 6, **values}.items():
        obs[INDEX[name]] = value
    return obs


@pytest.mark.parametrize(
    ("meanbp", "level", "points"), [(70, 0, 0), (69.9, 0, 1), (70, 2, 2), (69.9, 2, 3), (70, 4, 4), (69.9, 4, 4)]
)
def test_published_cardiovascular_part_holds_the_vasopressor_level(meanbp: float, level: int, points: int):
    assert float(sofa.published(healthy_obs(meanbp=meanbp), level, 1500.0)) == points


def test_published_differs_where_it_should_and_nowhere_else():
    obs = healthy_obs(pao2=60, fio2=80)
    assert float(sofa.published(obs, 0, 1500.0)) == 2
    assert float(sofa.published(obs, 0, 1500.0, ventilated=True)) == 4
    # FiO2 below room air counts as room air: 83 / 0.2 would be 415, 83 / 0.21 is 395
    assert float(sofa.published(healthy_obs(pao2=83, fio2=20), 0, 1500.0)) == 1
    patients, ventilated, _, urine = random_patients(np.random.default_rng(1), 100)
    patients[:, INDEX["fio2"]] = np.maximum(patients[:, INDEX["fio2"]], 21)
    level = np.zeros(100, np.int8)
    without = sofa.proper(patients, ventilated, np.zeros(100), urine)
    np.testing.assert_array_equal(sofa.published(patients, level, urine, ventilated), without)
    np.testing.assert_array_equal(jax.jit(jax.vmap(sofa.published))(patients, level, urine, ventilated), without)


def test_urine_sums_six_steps_and_says_where_the_day_is_incomplete():
    urine = np.random.default_rng(2).uniform(0, 500, (3, 9)).astype(np.float32)
    full, so_far = np.asarray(sofa.urine_24h(urine)), np.asarray(sofa.urine_so_far(urine))
    assert np.isnan(full[:, :5]).all()
    for t in range(9):
        np.testing.assert_allclose(so_far[:, t], urine[:, max(0, t - 5) : t + 1].sum(-1), rtol=1e-6)
    np.testing.assert_array_equal(full[:, 5:], so_far[:, 5:])
    assert np.isnan(np.asarray(sofa.urine_24h(urine[:, :3]))).all()


def test_first_day_is_oliguric_only_in_the_published_score():
    obs = np.tile(healthy_obs(), (3, 1))
    obs[:, URINE] = 60.0
    still = np.zeros(3, bool)
    np.testing.assert_array_equal(sofa.proper(obs, still, np.zeros(3), sofa.urine_24h(obs[:, URINE])), [0, 0, 0])
    np.testing.assert_array_equal(sofa.published(obs, np.zeros(3), sofa.urine_so_far(obs[:, URINE])), [4, 4, 4])
