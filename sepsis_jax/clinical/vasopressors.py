"""What one dose or one millilitre counts for: norepinephrine equivalents and tonicity equivalents, as data.

The two published tables of norepinephrine equivalents differ by a factor of 4.5 for phenylephrine and of 2
for vasopressin, so a dose threshold (0.65 mcg/kg/min, say) only means something together with the table's
name. Dobutamine and milrinone are inotropes: neither table counts them.
"""

from __future__ import annotations

NEE_FACTORS: dict[str, dict[str, float]] = {
    # Komorowski et al. 2018, Nat Med 24:1716 (AI Clinician)
    "komorowski2018": {
        "norepinephrine": 1.0,
        "epinephrine": 1.0,
        "phenylephrine": 0.45,
        "dopamine": 0.01,
        "vasopressin": 5.0,
    },
    # Goradia et al. 2021, J Crit Care 61:233 (online 2020), the table of MIT-LCP/mimic-code
    "goradia2020": {
        "norepinephrine": 1.0,
        "epinephrine": 1.0,
        "phenylephrine": 0.1,
        "dopamine": 0.01,
        "vasopressin": 2.5,
    },
}
"""Table name -> drug -> mcg/kg/min of norepinephrine per mcg/kg/min of the drug (vasopressin: per U/min)."""

FLUID_TONICITY: dict[str, float] = {
    "half_isotonic": 0.5,  # NaCl 0.45 %, dextrose 5 % in NaCl 0.45 %
    "isotonic": 1.0,  # NaCl 0.9 %, Ringer's lactate, blood products, albumin 5 %
    "mannitol": 2.75,
    "saline_3pct": 3.0,
    "albumin_25pct": 5.0,
    "bicarbonate_8_4pct": 6.66,
    "saline_23_4pct": 8.0,
}
"""Fluid kind -> mL of isotonic fluid that one mL counts for (AI Clinician; its MIMIC-IV port cmudig)."""
