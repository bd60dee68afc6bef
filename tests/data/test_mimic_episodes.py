"""Raw MIMIC-IV rows -> Episodes: in which 4-h bin a value or an infusion falls, by hand."""

import numpy as np
import pytest
from mimic_fixture import STAY, SUBJECT, Mimic

from sepsis_jax.clinical.features import INDEX, URINE
from sepsis_jax.data.builder import BuildSettings, build
from sepsis_jax.data.episodes import EXIT_DEATH, EXIT_DISCHARGE
from sepsis_jax.data.mimic import MimicSettings, extract

MINUTE = 1 / 60
HR, LACTATE = INDEX["heart_rate"], INDEX["lactate"]


def episodes(mimic: Mimic, tmp_path, **settings):
    """Three patients with nothing but the minimum beside the stay at hand, which is row 0."""
    for number in (1, 2, 3):
        mimic.septic(STAY + number, subject=SUBJECT + number, hours=24)
    result = extract(mimic.write(tmp_path / "mimic"), tmp_path / "events", MimicSettings(threads=1))
    built, facts = build(tmp_path / "events", BuildSettings(threads=1, **settings), attrition=result.attrition)
    assert built.stay_id[0] == STAY
    return built, facts


def test_a_value_one_minute_before_a_boundary_belongs_to_the_earlier_bin(tmp_path):
    mimic = Mimic().septic(hours=24)
    mimic.chart(220045, 80, 4, -1).chart(220045, 90, 4).chart(220045, 100, 8, -1).chart(220045, 110, 8)
    mimic.lab(50813, 2, 12, -1).lab(50813, 4, 12)
    mimic.urine(226559, 100, 4, -1).urine(226559, 200, 4).urine(227488, 50, 7).urine(226559, 300, 8)
    built, _ = episodes(mimic, tmp_path)
    assert built.length[0] == 5  # decisions at 4, 8, 12, 16 and 20 h; the exit is at 24 h
    assert built.obs[0, :5, HR].tolist() == [80, 95, 110, 110, 110]
    assert built.mask[0, :5, HR].tolist() == [True, True, True, False, False]
    assert built.obs[0, 2:5, LACTATE].tolist() == [2, 4, 4]
    assert built.obs[0, :5, URINE].tolist() == [100, 150, 300, 0, 0]


def test_an_infusion_across_a_boundary(tmp_path):
    mimic = Mimic().septic(hours=24)
    mimic.infusion(225158, 3, 9, rate=100, rateuom="mL/hour", amount=600, amountuom="ml")  # 100, 400, 100 mL
    mimic.infusion(220862, 4 - MINUTE, 4, amount=10, amountuom="ml")  # bolus of the first bin, 5-fold
    mimic.infusion(225158, 8, 8 + MINUTE, amount=250, amountuom="ml")  # bolus of the third
    mimic.infusion(221906, 3, 4, rate=0.1, rateuom="mcg/kg/min")  # ends where the second bin begins
    mimic.infusion(221906, 4, 8 + MINUTE, rate=0.2, rateuom="mcg/kg/min")  # reaches into the third
    mimic.infusion(222315, 5, 6, rate=2.4, rateuom="units/hour")  # 0.04 U/min: 0.1 in equivalents
    built, _ = episodes(mimic, tmp_path)
    # action[t] is what was given in [4t + 4, 4t + 8) h
    assert built.fluid_ml[0, :5].tolist() == pytest.approx([400, 350, 0, 0, 0])
    assert built.vaso_dose[0, :5].tolist() == pytest.approx([0.3, 0.2, 0, 0, 0])
    assert (built.prior_action[0] > 0).all()
    assert (built.action[0, :5] > 0).tolist() == [[True, True], [True, True]] + [[False, False]] * 3


def test_ventilation_and_exit(tmp_path):
    mimic = Mimic().septic(hours=30, deathtime="2150-03-02 08:00:00", dod="2150-03-02")
    mimic.procedure(225792, 4 - MINUTE, 8).procedure(225792, 12, 12 + MINUTE)
    built, _ = episodes(mimic, tmp_path)
    assert built.ventilated[0, :5].tolist() == [True, True, False, True, False]
    assert built.length[0] == 5
    assert built.exit[:2].tolist() == [EXIT_DEATH, EXIT_DISCHARGE]
    assert built.mortality_90d[:2].tolist() == built.mortality_hospital[:2].tolist() == [1, 0]


def test_implausible_values_are_dropped_and_counted(tmp_path):
    mimic = Mimic().septic(hours=24)
    mimic.chart(223835, 4, 1).chart(223835, 40, 5).chart(223761, 37.0, 1).chart(223762, 98.6, 2)
    built, facts = episodes(mimic, tmp_path)
    assert facts["facts"]["implausible_dropped"] == {"fio2": 1, "temp_c": 2}
    assert built.mask[0, :2, INDEX["fio2"]].tolist() == [False, True]
    assert not built.mask[..., INDEX["temp_c"]].any()


def test_patients_stay_on_one_side_of_the_split(tmp_path):
    mimic = Mimic().septic()
    for number in range(30):
        mimic.septic(STAY + 10 + number, subject=SUBJECT + 10 + number // 3, admit=500 * number)
    built, facts = episodes(mimic, tmp_path)
    for subject in np.unique(built.subject_id):
        assert len(set(built.split[built.subject_id == subject])) == 1
    assert facts["attrition"][0] == ("ICU stays", 34)
