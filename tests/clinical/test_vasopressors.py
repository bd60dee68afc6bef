"""The dose tables hold their published factors."""

from sepsis_jax.clinical.vasopressors import FLUID_TONICITY, NEE_FACTORS


def test_equivalents_differ_only_for_phenylephrine_and_vasopressin():
    ours, theirs = NEE_FACTORS["komorowski2018"], NEE_FACTORS["goradia2020"]
    assert ours.keys() == theirs.keys()
    assert {drug: (ours[drug], theirs[drug]) for drug in ours if ours[drug] != theirs[drug]} == {
        "phenylephrine": (0.45, 0.1),
        "vasopressin": (5.0, 2.5),
    }
    assert ours["norepinephrine"] == ours["epinephrine"] == 1
    assert ours["dopamine"] == 0.01
    assert "dobutamine" not in ours


def test_tonicity_rises_with_concentration():
    assert sorted(FLUID_TONICITY.values()) == [0.5, 1, 2.75, 3, 5, 6.66, 8]
    assert FLUID_TONICITY["isotonic"] == 1
