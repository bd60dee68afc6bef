"""What makes one simulated patient: the knobs of the world and the draw of a patient's constants.

Distributions follow published summary statistics of septic ICU patients; see docs/patient-simulator.md.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.scipy.special import ndtr

NUM_TRAITS = 15

# Meaning of the entries of the idiosyncratic vector (`Patient.trait_mean`, `Latent.trait`); each has SD 1.
TRAITS = (
    "heart_rate",
    "oxygenation",
    "oxygen_titration",
    "urine",
    "breathing",
    "ventilation_drive",  # moves PaCO2 and bicarbonate together, as compensation does
    "pulse_pressure",
    "sedation",
    "consciousness",
    "clotting",
    "sodium",
    "glucose",
    "leucocytes",
    "temperature",
    "urine_recorded",
)
TRAIT = {name: i for i, name in enumerate(TRAITS)}


@struct.dataclass
class Knobs:
    """Settings of the world. They are data, so that changing one never recompiles.

    Attributes:
      unmeasured: f32[] how strongly the hidden frailty drives treatment; above 0 the cohort is confounded by
        something no record shows.
      severity: f32[] shift of the severity of illness (SD).
      missingness: f32[] 1 as designed, 0 measures everything at every step.
      style_sd: f32[] SD of the clinicians' outcome-free taste for fluids (levels).
      effect_scale: f32[] 1 as designed, 0 is the null world in which actions change nothing.
    """

    unmeasured: float = 0.0
    severity: float = 0.0
    missingness: float = 1.0
    style_sd: float = 0.45
    effect_scale: float = 1.0


@struct.dataclass
class Patient:
    """Constants of one patient; every field f32[] unless said otherwise.

    Attributes:
      age: years. male: 1 or 0. charlson: points. weight: kg.
      severity: standard normal plus `Knobs.severity`; sets the initial state.
      frailty: standard normal, hidden: raises mortality and shows in no feature.
      style: the treating clinician's taste for fluids (levels), free of outcome.
      map_set: mean arterial pressure in health (mmHg).
      contractility, kidney: organ function (1 = healthy). cardiac_output: at rest (L/min).
      creatinine, hemoglobin, platelet, bilirubin, alt, albumin: values before the illness (clinical units).
      immunity, leak, lung: factors on infection control, capillary leak, lung injury.
      vasopressor_ed50: mcg/kg/min for half the effect. vasoplegia: factor on the loss of tone.
      antibiotic: share of the effect of the first antibiotic. switch_h: hours until an appropriate one is given.
      trait_mean: f32[15] patient means of the traits (standard normal).
    """

    age: Any
    male: Any
    charlson: Any
    weight: Any
    severity: Any
    frailty: Any
    style: Any
    map_set: Any
    contractility: Any
    kidney: Any
    cardiac_output: Any
    creatinine: Any
    hemoglobin: Any
    platelet: Any
    bilirubin: Any
    alt: Any
    albumin: Any
    immunity: Any
    leak: Any
    lung: Any
    vasopressor_ed50: Any
    vasoplegia: Any
    antibiotic: Any
    switch_h: Any
    trait_mean: Any


_NORMALS = (
    *("age", "charlson", "male", "weight", "severity", "frailty", "style", "map_set", "contractility", "kidney"),
    *("ckd", "esrd", "creatinine", "cardiac_output", "hemoglobin", "platelet", "bilirubin", "cirrhosis"),
    *("cirrhosis_size", "alt", "hepatitis", "hepatitis_size", "albumin", "immunity", "leak", "lung", "lung_injury"),
    *("ed50", "vasoplegia", "antibiotic", "switch"),
)


NUM_NOISE = len(_NORMALS) + NUM_TRAITS


def draw_patient(noise: jax.Array, knobs: Knobs) -> Patient:
    """One patient's constants from standard normal f32[NUM_NOISE]."""
    z = dict(zip(_NORMALS, noise, strict=False))

    def chance(name: str, probability: Any) -> jax.Array:
        return ndtr(z[name]) < probability

    age = jnp.clip(63.8 + 16.1 * z["age"], 18.0, 97.0)
    charlson = jnp.clip(jnp.round(5.3 + 2.96 * (0.55 * z["age"] + 0.835 * z["charlson"])), 0.0, 17.0)
    years, points = age - 64.0, charlson - 5.3
    kidney = _kidney(z, years, points, chance)
    return Patient(
        age=age,
        male=chance("male", 0.57).astype(jnp.float32),
        charlson=charlson,
        weight=jnp.clip(81.0 + 20.0 * z["weight"], 35.0, 180.0),
        severity=z["severity"] + knobs.severity,
        frailty=z["frailty"],
        style=knobs.style_sd * z["style"],
        map_set=94.0 + 10.0 * z["map_set"] + 0.1 * years,
        contractility=jnp.exp(0.18 * z["contractility"]),
        kidney=kidney,
        cardiac_output=5.4 * jnp.exp(0.12 * z["cardiac_output"]),
        creatinine=jnp.clip(0.72 / kidney * jnp.exp(0.15 * z["creatinine"]), 0.3, 12.0),
        hemoglobin=10.3 + 1.7 * z["hemoglobin"],
        platelet=232.0 * jnp.exp(0.46 * z["platelet"]),
        bilirubin=_bilirubin(z, chance),
        alt=_alt(z, chance),
        albumin=3.0 + 0.36 * z["albumin"],
        immunity=jnp.exp(0.30 * z["immunity"]),
        leak=jnp.exp(0.30 * z["leak"]),
        lung=jnp.where(chance("lung_injury", 0.45), 1.55, 0.70) * jnp.exp(0.32 * z["lung"]),
        vasopressor_ed50=0.34 * jnp.exp(0.30 * z["ed50"]),
        vasoplegia=jnp.minimum(0.62 * jnp.exp(0.72 * z["vasoplegia"]), 3.4),
        antibiotic=jnp.where(chance("antibiotic", 0.13), 0.2, 1.0),
        switch_h=36.0 + 24.0 * ndtr(z["switch"]),
        trait_mean=noise[len(_NORMALS) :],
    )


def _kidney(z: dict[str, jax.Array], years: jax.Array, points: jax.Array, chance: Any) -> jax.Array:
    """Kidney function: chronic disease in a tenth and more, end-stage disease in 2 %."""
    kidney = jnp.exp(-0.10 + 0.20 * z["kidney"] - 0.045 * points - 0.004 * years)
    kidney = kidney * jnp.where(chance("ckd", 0.10 + 0.012 * points), 0.38, 1.0)
    return jnp.where(chance("esrd", 0.02), 0.15 * jnp.exp(0.3 * z["kidney"]), kidney)


def _bilirubin(z: dict[str, jax.Array], chance: Any) -> jax.Array:
    """mg/dL: a tenth has cirrhosis, whose multiple is itself heavy-tailed."""
    multiple = 7.0 * jnp.exp(0.75 * z["cirrhosis_size"])
    return 0.55 * jnp.exp(0.60 * z["bilirubin"]) * jnp.where(chance("cirrhosis", 0.10), multiple, 1.0)


def _alt(z: dict[str, jax.Array], chance: Any) -> jax.Array:
    """U/L: 6 % arrive with a hepatitis or a shock liver that raises it some twenty-fold."""
    multiple = 16.0 * jnp.exp(0.8 * z["hepatitis_size"])
    return 22.0 * jnp.exp(0.80 * z["alt"]) * jnp.where(chance("hepatitis", 0.06), multiple, 1.0)
