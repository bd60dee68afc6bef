"""The vocabulary is in the published order and hangs together."""

import numpy as np

from sepsis_jax.clinical import features
from sepsis_jax.clinical.features import FEATURES, HIGH, INDEX, LOW, NAMES


def test_order_and_counts_are_the_published_ones():
    assert len(NAMES) == len(set(NAMES)) == features.NUM_FEATURES == 39
    assert (len(features.VITALS), len(features.LABS), features.NUM_MASKED) == (11, 27, 38)
    assert NAMES[0] == "heart_rate" and NAMES[10] == "gcs_motor" and NAMES[11] == "albumin"
    assert NAMES[37] == "wbc" and NAMES[38] == "output_4hourly" and features.URINE == 38
    assert features.VITALS + features.LABS + (NAMES[features.URINE],) == NAMES
    assert all(NAMES[INDEX[name]] == name for name in NAMES)


def test_published_anchors_lie_inside_the_plausible_range():
    mean = features.PUBLISHED_MEAN.copy()
    mean[features.URINE] = np.expm1(mean[features.URINE])
    assert (LOW < HIGH).all() and (mean >= LOW).all() and (mean <= HIGH).all()
    assert (features.PUBLISHED_SD > 0).all()
    for feature in FEATURES:
        published = [q for q in (feature.q01, feature.q99) if not np.isnan(q)]
        assert all(feature.low <= q <= feature.high for q in published), feature.name


def test_base_excess_may_be_negative():
    assert LOW[INDEX["base_excess"]] < 0


def test_every_feature_has_a_unit_and_an_aggregate():
    assert all(feature.unit for feature in FEATURES)
    assert {f.name for f in FEATURES if f.aggregate == "last"} == set(features.GCS)
    assert [f.name for f in FEATURES if f.aggregate == "sum"] == ["output_4hourly"]
