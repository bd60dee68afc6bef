"""What the record shows of a latent state: 39 features with measurement noise, and when each is measured.

Features are measured in panels; sicker patients are measured more often, so missingness is informative. An entry
that is not measured keeps its last value, and before the first one a typical value (`FILL`).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import relu, sigmoid
from jax.scipy.special import ndtr

from sepsis_jax.clinical.features import FEATURES, INDEX, NAMES, NUM_MASKED, PUBLISHED_MEAN, URINE, VITALS
from sepsis_jax.dynamics.patient.parameters import TRAIT, Knobs, Patient
from sepsis_jax.dynamics.patient.physiology import Derived, Latent, derive

PANELS: dict[str, tuple[str, ...]] = {
    "vitals": VITALS,
    "chemistry": (
        *("bicarbonate", "bun", "calcium_total", "chloride", "creatinine", "glucose", "hemoglobin", "hematocrit"),
        *("magnesium", "platelet", "potassium", "sodium", "wbc"),
    ),
    "gas": ("base_excess", "calcium_free", "lactate", "paco2", "pao2", "ph", "total_co2"),
    "liver": ("albumin", "alt", "ast", "bilirubin_total"),
    "coagulation": ("inr", "pt", "ptt"),
}
NUM_RECORD_NOISE = len(PANELS) + NUM_MASKED
_PANEL_OF = np.array([next(i for i, names in enumerate(PANELS.values()) if n in names) for n in NAMES[:NUM_MASKED]])
_BASE = np.array([3.6, -1.55, -1.75, -2.9, -2.6], np.float32)
_SLOPE = np.array([0.0, 0.85, 0.9, 0.8, 0.9], np.float32)
_OVERDUE = np.array([0.0, 0.45, 0.12, 0.22, 0.20], np.float32)
NEVER = np.full(len(PANELS), 13.0, np.float32)
"""f32[5] steps since a panel that was not measured yet; makes nearly all of them part of the admission."""
_GAS = list(PANELS).index("gas")
_ITEM_LOSS = np.where(_PANEL_OF == 0, 0.015, 0.03).astype(np.float32)
# The three pressures come from one cuff or line: they are lost together, so that they always fit each other.
_ITEM = np.arange(NUM_MASKED)
_ITEM[[INDEX["diabp"], INDEX["meanbp"]]] = INDEX["sysbp"]

FILL = np.array(PUBLISHED_MEAN)
FILL[[INDEX["gcs_eye"], INDEX["gcs_verbal"], INDEX["gcs_motor"]]] = (3, 3, 5)
FILL[INDEX["base_excess"]] = -1.0
FILL[URINE] = np.expm1(PUBLISHED_MEAN[URINE])
"""f32[39] (clinical units): value before the first measurement; the published means where they are usable."""

# Features stay in their published 1-99 % range but for these, whose tails reach further.
_RANGE = {
    "base_excess": (-30.0, 30.0),
    "alt": (6.0, 8000.0),
    "ast": (10.0, 10000.0),
    "bilirubin_total": (0.2, 40.0),
    "creatinine": (0.3, 14.0),
    "output_4hourly": (0.0, 4000.0),
}
LOWEST, HIGHEST = np.array([_RANGE.get(f.name, (f.q01, f.q99)) for f in FEATURES], np.float32).T
"""f32[39] (clinical units): every observation lies in [LOWEST, HIGHEST]."""


def measure(x: Latent, p: Patient, noise: jax.Array) -> jax.Array:
    """All 39 features as they would read now, f32[39] (clinical units), from standard normal f32[39]."""
    d = derive(x, p)
    z = dict(zip(NAMES, noise, strict=True))
    reading = _vitals(x, p, d, z) | _coma_scale(x, p, d, z) | _blood_gas(x, d, z) | _chemistry(x, p, z)
    reading |= _blood_count_and_liver(x, p, d, z)
    reading["output_4hourly"] = jnp.where(x.trait[TRAIT["urine_recorded"]] > 1.28, 0.0, x.urine)
    return jnp.clip(jnp.stack([reading[name] for name in NAMES]), LOWEST, HIGHEST)


def panel_chance(x: Latent, p: Patient, since: jax.Array) -> jax.Array:
    """f32[5]: probability that each panel is drawn, given the steps since it last was."""
    d = derive(x, p)
    severity = 0.55 * x.inflammation + 0.9 * d.hypoperfusion + 0.25 * (x.lactate > 2.0) + 0.35 * (x.dose > 0)
    logit = _BASE + _SLOPE * severity + _OVERDUE * since
    return sigmoid(logit.at[_GAS].add(1.1 * x.ventilated))


def record(
    value: jax.Array, chance: jax.Array, last: jax.Array, since: jax.Array, knobs: Knobs, noise: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What of the readings enters the record.

    Args:
      value: f32[39] (clinical units) readings.
      chance: f32[5] probability that each panel is drawn.
      last: f32[39] (clinical units) the row before.
      since: f32[5] steps since each panel was measured.
      noise: standard normal f32[NUM_RECORD_NOISE].

    Returns:
      obs f32[39] (clinical units), mask bool[38], since f32[5].
    """
    uniform = ndtr(noise)
    drawn = uniform[: len(PANELS)] < 1.0 - knobs.missingness * (1.0 - chance)
    kept = uniform[len(PANELS) :][_ITEM] < 1.0 - knobs.missingness * _ITEM_LOSS
    mask = drawn[_PANEL_OF] & kept
    obs = jnp.where(jnp.append(mask, True), value, last)
    return obs, mask, jnp.where(drawn, 0.0, since + 1.0)


def _vitals(x: Latent, p: Patient, d: Derived, z: dict[str, jax.Array]) -> dict[str, jax.Array]:
    mean_pressure = d.map + 3.0 * z["meanbp"]
    pulse = 51.0 + 16.0 * (d.output / p.cardiac_output - 0.9) + 0.14 * (p.age - 64.0)
    pulse = jnp.maximum(pulse + 10.0 * x.trait[TRAIT["pulse_pressure"]] + 2.0 * z["sysbp"], 15.0)
    breathing = 18.0 + 3.6 * x.trait[TRAIT["breathing"]] + 1.6 * x.inflammation + 2.5 * d.hypoperfusion
    return {
        "heart_rate": x.heart_rate + 4.0 * z["heart_rate"],
        "meanbp": mean_pressure,
        "sysbp": mean_pressure + 0.71 * pulse,
        "diabp": mean_pressure - 0.29 * pulse,
        "resp_rate": breathing + 1.0 * x.water + 2.2 * z["resp_rate"],
        "spo2": 100.0 * d.sao2 + 1.8 * z["spo2"],
        "temp_c": 36.88 + 0.15 * x.inflammation + 0.25 * x.trait[TRAIT["temperature"]] + 0.15 * z["temp_c"],
        "fio2": 100.0 * d.fio2,
    }


def _coma_scale(x: Latent, p: Patient, d: Derived, z: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Glasgow Coma Scale components, whole points; the verbal one is 1 on a tube."""
    sedation = x.ventilated * relu(2.0 + 2.2 * x.trait[TRAIT["sedation"]])
    depth = 1.15 * jnp.exp(0.8 * jnp.log(x.inflammation)) + 0.9 * d.hypoperfusion + 0.012 * (p.age - 64.0) + sedation
    depth = depth + 0.5 * x.trait[TRAIT["consciousness"]]
    eye = jnp.clip(jnp.round(4.45 - 0.65 * depth + 0.3 * z["gcs_eye"]), 1.0, 4.0)
    verbal = jnp.clip(jnp.round(5.6 - 1.1 * depth + 0.4 * z["gcs_verbal"]), 1.0, 5.0)
    motor = jnp.clip(jnp.round(6.9 - 0.95 * depth + 0.3 * z["gcs_motor"]), 1.0, 6.0)
    return {"gcs_eye": eye, "gcs_verbal": jnp.where(x.ventilated > 0, 1.0, verbal), "gcs_motor": motor}


def _blood_gas(x: Latent, d: Derived, z: dict[str, jax.Array]) -> dict[str, jax.Array]:
    drive = x.trait[TRAIT["ventilation_drive"]]
    bicarbonate = jnp.maximum(x.bicarbonate + 3.0 * drive + 0.8 * z["bicarbonate"], 4.0)
    paco2 = 1.35 * bicarbonate + 9.3 + 5.5 * drive + 5.0 * z["paco2"]  # respiratory compensation
    paco2 = jnp.clip(paco2, 20.0, 95.0)
    ph = 6.11 + jnp.log10(bicarbonate / (0.0307 * paco2))  # Henderson-Hasselbalch
    # A sixth of the samples is venous or drawn badly: the published spread of PaO2 needs them.
    venous = jnp.where(z["fio2"] < -1.0, 0.42, 1.0)
    return {
        "bicarbonate": bicarbonate,
        "paco2": paco2,
        "ph": ph + 0.01 * z["ph"],
        "total_co2": bicarbonate + 0.0307 * paco2 + 0.6 + 0.6 * z["total_co2"],
        "base_excess": 0.93 * (bicarbonate - 24.4 + 14.8 * (ph - 7.4)) + 0.4 * z["base_excess"],  # van Slyke
        "pao2": 1.05 * d.pao2 * venous * jnp.exp(0.38 * z["pao2"]),
        "lactate": x.lactate * jnp.exp(0.08 * z["lactate"]),
        "calcium_free": 1.13 - 0.012 * x.inflammation + 0.062 * z["calcium_free"],
    }


def _chemistry(x: Latent, p: Patient, z: dict[str, jax.Array]) -> dict[str, jax.Array]:
    drive, kidney = x.trait[TRAIT["ventilation_drive"]], relu(1.0 - x.kidney)
    sodium = 138.7 + 4.8 * x.trait[TRAIT["sodium"]] + 1.2 * z["sodium"]
    bicarbonate = x.bicarbonate + 3.0 * drive
    sugar = 4.84 + 0.08 * x.inflammation + 0.27 * x.trait[TRAIT["glucose"]] + 0.16 * z["glucose"]
    return {
        "bun": x.bun * jnp.exp(0.06 * z["bun"]),
        "creatinine": x.creatinine * jnp.exp(0.06 * z["creatinine"]),
        "sodium": sodium,
        "chloride": sodium - bicarbonate - 10.2 - 0.8 * (x.lactate - 1.0) - 1.2 * kidney + 2.0 * z["chloride"],
        "potassium": 3.93 + 0.45 * kidney + 0.5 * z["potassium"],
        "magnesium": 2.0 + 0.2 * kidney + 0.32 * z["magnesium"],
        "calcium_total": 8.29 + 0.8 * (_albumin(x, p) - 2.86) + 0.6 * z["calcium_total"],
        "glucose": jnp.exp(sugar),
    }


def _blood_count_and_liver(x: Latent, p: Patient, d: Derived, z: dict[str, jax.Array]) -> dict[str, jax.Array]:
    trait = x.trait
    inr = jnp.exp(0.17 + 0.45 * x.liver + 0.07 * x.inflammation + 0.34 * trait[TRAIT["clotting"]])
    leucocytes = 2.13 + 0.12 * x.inflammation + 0.38 * trait[TRAIT["leucocytes"]] + 0.1 * z["wbc"]
    # Hepatocytes break down steeply with hepatic injury (shock liver).
    alt = p.alt * jnp.exp(1.4 * jnp.minimum(x.liver, 3.0) + 0.12 * z["alt"])
    return {
        "hemoglobin": d.hemoglobin + 0.3 * z["hemoglobin"],
        "hematocrit": 3.06 * (d.hemoglobin + 0.3 * z["hemoglobin"]) + 0.7 * z["hematocrit"],
        "platelet": x.platelet * jnp.exp(0.06 * z["platelet"]),
        "wbc": jnp.exp(leucocytes),
        "inr": inr,
        "pt": 10.9 * inr * jnp.exp(0.03 * z["pt"]),
        "ptt": 27.0 * jnp.sqrt(inr) * jnp.exp(0.46 * z["ptt"]),
        "albumin": _albumin(x, p) + 0.1 * z["albumin"],
        "alt": alt,
        "ast": 1.4 * alt * jnp.exp(0.25 * z["ast"]),
        "bilirubin_total": x.bilirubin * jnp.exp(0.08 * z["bilirubin_total"]),
    }


def _albumin(x: Latent, p: Patient) -> Any:
    return p.albumin - 0.10 * x.inflammation - 0.02 * x.interstitial
