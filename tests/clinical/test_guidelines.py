"""Every rule just inside and just outside its thresholds, and the identities between rules."""

import dataclasses
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sepsis_jax.clinical import guidelines
from sepsis_jax.clinical.actions import AI_CLINICIAN_BINS, ALL_ACTIONS
from sepsis_jax.clinical.features import INDEX, PUBLISHED_MEAN
from sepsis_jax.clinical.guidelines import RULES, Steps, Thresholds, check


def steps(**fields: object) -> Steps:
    """One step of a patient who needs nothing and gets nothing."""
    well = {
        "meanbp": 80.0,
        "lactate": 1.0,
        "action": [0, 0],
        "previous_vasopressor": 0,
        "vaso_dose": 0.0,
        "fluid_ml": 0.0,
        "valid": True,
    }
    return Steps(**{name: jnp.asarray(value) for name, value in {**well, **fields}.items()})


CASES = [
    # rule, at risk, violated, fields
    ("hypoperfusion", False, False, {"meanbp": 65.0, "lactate": 2.0}),
    ("hypoperfusion", True, True, {"meanbp": 64.9}),
    ("hypoperfusion", True, True, {"lactate": 2.1}),
    ("hypoperfusion", True, False, {"lactate": 2.1, "action": [0, 1]}),
    ("hypoperfusion", True, False, {"meanbp": 64.9, "action": [1, 0]}),
    ("vasopressor_weaning", True, True, {"meanbp": 65.0, "action": [1, 0]}),
    ("vasopressor_weaning", False, False, {"meanbp": 64.9, "action": [1, 0]}),
    ("vasopressor_weaning", True, False, {"action": [2, 4], "previous_vasopressor": 2}),
    ("vasopressor_weaning", True, True, {"action": [3, 0], "previous_vasopressor": 2}),
    ("vasopressor_weaning", True, False, {"action": [1, 0], "previous_vasopressor": 2}),
    ("vasopressor_weaning", False, False, {"action": [4, 0], "previous_vasopressor": -1}),
    ("guideline", True, True, {"lactate": 2.1}),
    ("guideline", True, True, {"action": [1, 0]}),
    ("guideline", True, False, {"lactate": 2.1, "action": [0, 1]}),
    ("guideline", False, False, {"previous_vasopressor": -1}),
    ("festor_a", True, True, {"meanbp": 54.9, "fluid_ml": 80.0}),
    ("festor_a", True, False, {"meanbp": 54.9, "fluid_ml": 80.4}),
    ("festor_a", False, False, {"meanbp": 55.0}),
    ("festor_a", True, False, {"meanbp": 54.9, "vaso_dose": 0.01}),
    ("festor_b", True, True, {"meanbp": 95.1, "vaso_dose": 0.66}),
    ("festor_b", True, False, {"meanbp": 95.1, "vaso_dose": 0.65}),
    ("festor_b", False, False, {"meanbp": 95.0, "vaso_dose": 0.66}),
    ("underdosing", True, True, {"meanbp": 54.9, "fluid_ml": 80.0, "action": [0, 1]}),
    ("underdosing", True, False, {"meanbp": 54.9, "fluid_ml": 80.4, "action": [0, 1]}),
    ("underdosing", True, False, {"meanbp": 54.9, "action": [1, 0]}),
    ("underdosing", False, False, {"meanbp": 55.0}),
    ("overdosing", True, True, {"meanbp": 95.1, "action": [4, 0]}),
    ("overdosing", True, False, {"meanbp": 95.1, "action": [3, 0]}),
    ("overdosing", False, False, {"meanbp": 95.0, "action": [4, 0]}),
    ("unsafe", True, True, {"meanbp": 54.9}),
    ("unsafe", True, True, {"meanbp": 95.1, "action": [4, 4]}),
    ("unsafe", True, False, {"meanbp": 54.9, "action": [4, 0]}),
    ("unsafe", False, False, {}),
]


@pytest.mark.parametrize(("rule", "at_risk", "violated", "fields"), CASES)
def test_each_threshold_from_both_sides(rule: str, at_risk: bool, violated: bool, fields: dict):
    flags = check(steps(**fields))[rule]
    assert (bool(flags.at_risk), bool(flags.violated), bool(flags.valid)) == (at_risk, violated, True)


def test_every_rule_has_a_case():
    assert {case[0] for case in CASES} == set(RULES)


@pytest.mark.parametrize(("rule", "at_risk", "violated", "fields"), CASES)
def test_padding_is_never_counted(rule: str, at_risk: bool, violated: bool, fields: dict):
    flags = check(steps(**fields, valid=False))[rule]
    assert not (flags.violated or flags.at_risk or flags.valid)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Thresholds)])
def test_every_threshold_is_used(field: str):
    grid, default = whole_grid(), getattr(Thresholds(), field)
    before, *moved = (check(grid, Thresholds(**{field: value})) for value in (default, default / 2, default * 2))
    assert any(not np.array_equal(before[name].violated, after[name].violated) for after in moved for name in RULES)


def whole_grid() -> Steps:
    """Every action after every previous level, over pressures and lactates around the thresholds."""
    pressures, lactates = (20.0, 30.0, 40.0, 54.9, 64.9, 65.0, 80.0, 95.1), (1.0, 1.5, 2.0, 2.1)
    rows = list(itertools.product(pressures, lactates, range(25), range(-1, 5)))
    meanbp, lactate, action, previous = (np.array(column) for column in zip(*rows, strict=True))
    levels = ALL_ACTIONS[action]
    dose = np.asarray(AI_CLINICIAN_BINS.doses(levels))
    return Steps(*map(jnp.asarray, (meanbp, lactate, levels, previous, dose[:, 0], dose[:, 1], meanbp > 0)))


def test_the_published_score_never_counts_a_step_twice():
    flags = check(whole_grid())
    both = np.add(flags["hypoperfusion"].violated, flags["vasopressor_weaning"].violated, dtype=int)
    assert both.max() == 1
    np.testing.assert_array_equal(flags["guideline"].violated, both)


def test_unsafe_is_the_sum_of_under_and_overdosing():
    flags = check(whole_grid())
    both = np.add(flags["underdosing"].violated, flags["overdosing"].violated, dtype=int)
    assert both.max() == 1
    np.testing.assert_array_equal(flags["unsafe"].violated, both)


def test_flags_are_nested():
    for flags in check(whole_grid()).values():
        assert not (flags.violated & ~flags.at_risk).any()
        assert not (flags.at_risk & ~flags.valid).any()


def test_steps_of_shifts_the_action_and_runs_under_jit_and_vmap():
    rng = np.random.default_rng(0)
    obs = np.broadcast_to(PUBLISHED_MEAN, (4, 6, 39)).copy()
    obs[..., INDEX["meanbp"]] = rng.uniform(45, 110, (4, 6))
    action, prior = rng.integers(0, 5, (4, 6, 2)), rng.integers(0, 5, (4, 2))
    doses, valid = AI_CLINICIAN_BINS.doses(action), np.arange(6) < rng.integers(1, 7, (4, 1))
    made = guidelines.steps_of(obs, action, prior, doses, valid)
    np.testing.assert_array_equal(made.previous_vasopressor[:, 0], prior[:, 0])
    np.testing.assert_array_equal(made.previous_vasopressor[:, 1:], action[:, :-1, 0])
    vmapped = jax.jit(jax.vmap(lambda *arrays: check(guidelines.steps_of(*arrays))))(obs, action, prior, doses, valid)
    chex.assert_trees_all_equal(vmapped, check(made))
