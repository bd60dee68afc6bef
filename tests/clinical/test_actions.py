"""The one action codec and the doses behind its levels."""

import chex
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sepsis_jax.clinical import actions
from sepsis_jax.clinical.actions import AI_CLINICIAN_BINS, ALL_ACTIONS, fit_bins

IDS = np.arange(25)


def test_codec_round_trips_and_is_vasopressor_first():
    np.testing.assert_array_equal(actions.encode(actions.decode(IDS)), IDS)
    np.testing.assert_array_equal(actions.decode(actions.encode(ALL_ACTIONS)), ALL_ACTIONS)
    np.testing.assert_array_equal(actions.decode(IDS), ALL_ACTIONS)
    assert int(actions.encode(np.array([1, 0]))) == 5
    assert int(actions.encode(np.array([0, 1]))) == 1


def test_fluid_major_is_the_transposition():
    # vasopressor 1 without fluid: our 5, fluid-major 1
    assert int(actions.to_fluid_major(5)) == 1
    assert int(actions.from_fluid_major(1)) == 5
    np.testing.assert_array_equal(actions.from_fluid_major(actions.to_fluid_major(IDS)), IDS)
    expected = [5 * fluid + vaso for vaso, fluid in ALL_ACTIONS]
    np.testing.assert_array_equal(actions.to_fluid_major(IDS), expected)


def test_one_hot_is_two_one_hots_vasopressor_first():
    hot = np.asarray(actions.one_hot(ALL_ACTIONS))
    chex.assert_shape(hot, (25, 10))
    for (vaso, fluid), row in zip(ALL_ACTIONS, hot, strict=True):
        expected = np.zeros(10)
        expected[[vaso, 5 + fluid]] = 1
        np.testing.assert_array_equal(row, expected)


def test_codec_under_jit_and_vmap():
    both = jax.jit(jax.vmap(lambda a: actions.decode(actions.encode(a))))
    np.testing.assert_array_equal(both(ALL_ACTIONS), ALL_ACTIONS)
    np.testing.assert_array_equal(jax.jit(jax.vmap(actions.one_hot))(ALL_ACTIONS), actions.one_hot(ALL_ACTIONS))


@pytest.mark.parametrize(
    ("dose", "level"),
    [(0.0, 0), (1e-6, 1), (0.08, 1), (0.0801, 2), (0.22, 2), (0.2201, 3), (0.45, 3), (0.4501, 4), (9.0, 4)],
)
def test_a_dose_on_an_edge_belongs_to_the_lower_level(dose: float, level: int):
    assert AI_CLINICIAN_BINS.levels(dose, 0.0)[0] == level


def test_levels_and_doses_agree_for_the_default_bins():
    doses = np.asarray(AI_CLINICIAN_BINS.doses(ALL_ACTIONS))
    np.testing.assert_array_equal(AI_CLINICIAN_BINS.levels(doses[:, 0], doses[:, 1]), ALL_ACTIONS)


def test_quartiles_of_nonzero_doses_by_hand():
    bins = fit_bins(np.array([0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8.0]), np.array([0, 10, 20, 30, 40.0]))
    assert bins.vaso_edges == (2, 4, 6)
    assert bins.vaso_dose == (0, 1.5, 3.5, 5.5, 7.5)
    assert bins.fluid_edges == (10, 20, 30)
    assert bins.fluid_dose == (0, 10, 20, 30, 40)


def test_a_drug_never_given_keeps_the_default_doses():
    bins = fit_bins(np.zeros(7), np.array([5.0]))
    assert bins.vaso_edges == AI_CLINICIAN_BINS.vaso_edges
    assert bins.vaso_dose == AI_CLINICIAN_BINS.vaso_dose
    assert bins.fluid_dose == (0, 5, 5, 5, 5)


doses = hnp.arrays(
    np.float32,
    st.integers(1, 40),
    elements=st.one_of(st.just(0.0), st.sampled_from([0.25, 0.5]), st.floats(2**-7, 100, width=32)),
)


@settings(max_examples=60, deadline=None)
@given(doses)
def test_fitted_bins_are_ordered_and_map_back_to_their_levels(dose: np.ndarray):
    bins = fit_bins(dose, dose)
    assert bins.vaso_edges == bins.fluid_edges or not (dose > 0).any()
    assert list(bins.vaso_edges) == sorted(bins.vaso_edges)
    assert list(bins.vaso_dose) == sorted(bins.vaso_dose)
    level = bins.levels(dose, dose)[:, 0]
    np.testing.assert_array_equal(level == 0, dose == 0)
    order = np.argsort(dose, kind="stable")
    assert (np.diff(level[order]) >= 0).all()
    # The dose that stands for a level falls into that level, wherever the level occurs.
    stands_for = np.asarray(bins.doses(np.stack([level, level], axis=-1)))[:, 0]
    np.testing.assert_array_equal(bins.levels(stands_for, stands_for)[:, 0], level)


@settings(max_examples=40, deadline=None)
@given(st.permutations(list(range(1, 41))))
def test_distinct_doses_fall_into_equal_quarters(ranks: list[int]):
    dose = np.array([0.0, *ranks])
    level = fit_bins(dose, dose).levels(dose, dose)[:, 0]
    np.testing.assert_array_equal(np.bincount(level, minlength=5), [1, 10, 10, 10, 10])
