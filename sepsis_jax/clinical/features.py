"""The 39 dynamic features and the three statics: names, units, plausible ranges and published anchors.

Order and names are those of the published system (arXiv 2605.14723). Its rounded means, standard deviations
and 1-99 % ranges over the MIMIC-IV sepsis cohort are kept as cited facts; its `base_excess` row is an
artefact of values at or below 0 that were lost, so it is a record of what was published and never a target.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

Aggregate = Literal["mean", "last", "sum"]


class Feature(NamedTuple):
    """One dynamic feature, in clinical units.

    Attributes:
      name: column name.
      unit: clinical unit.
      low, high: plausible range; values outside are charting errors and are dropped, never clipped.
      mean, sd: published mean and SD (`output_4hourly`: of log1p(mL / 4 h)).
      q01, q99: published 1-99 % range (NaN where none was published), natural units.
      aggregate: how several values of one 4-h bin become one.
    """

    name: str
    unit: str
    low: float
    high: float
    mean: float
    sd: float
    q01: float
    q99: float
    aggregate: Aggregate = "mean"


_NAN = float("nan")

FEATURES: tuple[Feature, ...] = (
    Feature("heart_rate", "bpm", 10, 300, 87.63, 17.85, 48.25, 138.5),
    Feature("sysbp", "mmHg", 20, 300, 117, 18.9, 77.2, 176.75),
    Feature("diabp", "mmHg", 5, 225, 61.71, 12.43, 35, 103),
    Feature("meanbp", "mmHg", 10, 250, 77.78, 13.05, 50, 125.06),
    Feature("resp_rate", "/min", 1, 70, 20.11, 4.99, 8.5, 35.75),
    Feature("spo2", "%", 30, 100, 96.93, 2.44, 88, 100),
    Feature("temp_c", "degC", 25, 45, 37, 0.352, 34.35, 38.53),
    Feature("fio2", "%", 20, 100, 47.54, 15.24, 28, 100),
    Feature("gcs_eye", "score", 1, 4, 2.96, 1.18, 1, 4, "last"),
    Feature("gcs_verbal", "score", 1, 5, 2.67, 1.87, 1, 5, "last"),
    Feature("gcs_motor", "score", 1, 6, 4.92, 1.74, 1, 6, "last"),
    Feature("albumin", "g/dL", 0.3, 10, 2.86, 0.391, 1.6, 4.4),
    Feature("alt", "U/L", 1, 25000, 95.6, 315, 6, 3173),
    Feature("ast", "U/L", 1, 30000, 134.3, 436, 10, 4406),
    Feature("base_excess", "mEq/L", -40, 40, 3.84, 1.87, _NAN, _NAN),
    Feature("bicarbonate", "mEq/L", 2, 60, 23.4, 4.74, 11, 40),
    Feature("bilirubin_total", "mg/dL", 0.05, 80, 1.6, 3.1, 0.2, 27.8),
    Feature("bun", "mg/dL", 1, 300, 29.9, 22.4, 4, 132),
    Feature("calcium_free", "mmol/L", 0.3, 3, 1.12, 0.0668, 0.87, 1.42),
    Feature("calcium_total", "mg/dL", 2, 20, 8.29, 0.721, 6.2, 10.9),
    Feature("chloride", "mEq/L", 60, 160, 104, 6.59, 84, 124),
    Feature("creatinine", "mg/dL", 0.05, 30, 1.535, 1.386, 0.3, 9.2),
    Feature("glucose", "mg/dL", 10, 2000, 139.9, 52.7, 57, 396),
    Feature("hemoglobin", "g/dL", 1, 25, 10.05, 1.92, 6.3, 16),
    Feature("hematocrit", "%", 3, 75, 30.7, 5.69, 19.4, 48.6),
    Feature("inr", "ratio", 0.5, 30, 1.474, 0.657, 0.9, 5.9),
    Feature("lactate", "mmol/L", 0.05, 40, 1.866, 1.159, 0.6, 9.3),
    Feature("magnesium", "mg/dL", 0.2, 15, 2.1, 0.359, 1.2, 3.6),
    Feature("paco2", "mmHg", 5, 200, 41.2, 8.87, 22, 83),
    Feature("pao2", "mmHg", 10, 700, 105.7, 57.2, 25, 410),
    Feature("ph", "-", 6.4, 7.9, 7.384, 0.0653, 7.15, 7.54),
    Feature("platelet", "K/uL", 1, 2500, 199.2, 108.4, 21, 659),
    Feature("potassium", "mEq/L", 1, 15, 4.14, 0.587, 2.8, 6.3),
    Feature("pt", "s", 5, 250, 16.1, 6.77, 10.2, 61.5),
    Feature("ptt", "s", 10, 300, 38.1, 19.3, 20.8, 150),
    Feature("sodium", "mEq/L", 80, 200, 138.7, 5.21, 121, 157),
    Feature("total_co2", "mEq/L", 2, 80, 25.3, 4.95, 12, 45),
    Feature("wbc", "K/uL", 0.05, 500, 10.2, 4.52, 2.2, 38.6),
    Feature("output_4hourly", "mL/4h", 0, 12000, 4.658, 2.081, 0, _NAN, "sum"),
)

NAMES: tuple[str, ...] = tuple(f.name for f in FEATURES)
UNITS: tuple[str, ...] = tuple(f.unit for f in FEATURES)
INDEX: dict[str, int] = {name: i for i, name in enumerate(NAMES)}
NUM_FEATURES = len(FEATURES)
NUM_MASKED = NUM_FEATURES - 1  # every feature but urine output, which is always counted, carries a mask bit
URINE = INDEX["output_4hourly"]
VITALS: tuple[str, ...] = NAMES[:11]
LABS: tuple[str, ...] = NAMES[11:38]
GCS: tuple[str, ...] = ("gcs_eye", "gcs_verbal", "gcs_motor")

STATICS: tuple[str, ...] = ("age", "gender", "charlson_comorbidity_index")  # years, 1 = male, points
STATIC_UNITS: tuple[str, ...] = ("years", "1 = male", "points")

LOW = np.array([f.low for f in FEATURES], np.float32)
HIGH = np.array([f.high for f in FEATURES], np.float32)
PUBLISHED_MEAN = np.array([f.mean for f in FEATURES], np.float32)
PUBLISHED_SD = np.array([f.sd for f in FEATURES], np.float32)
