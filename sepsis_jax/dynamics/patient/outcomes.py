"""How a stay ends: hazards of death and discharge in the ICU, and death within 90 days."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import relu, sigmoid

from sepsis_jax.dynamics.patient.parameters import Patient
from sepsis_jax.dynamics.patient.physiology import STEP_H, Latent, derive


def exit_hazard(x: Latent, p: Patient, hours: Any) -> jax.Array:
    """f32[2]: probability of death and of discharge at the end of the step that ends `hours` after admission."""
    d = derive(x, p)
    rate = jnp.exp(
        -8.2
        + 1.05 * x.damage
        + 2.1 * d.hypoperfusion
        + 0.16 * relu(x.lactate - 3.0)
        + 0.016 * (p.age - 64.0)
        + 0.07 * (p.charlson - 5.3)
        + 0.25 * p.frailty
        + 0.35 * x.fibrillation
        + 0.012 * relu(x.heart_rate - 120.0)
    )
    fit = (hours >= 12.0) & (x.dose <= 0) & (d.map > 63.0) & (x.lactate < 2.4) & (x.ventilated == 0)
    leave = sigmoid(-2.6 + 1.4 * (1.0 - x.inflammation) + 0.5 * (hours > 36.0) - 0.8 * relu(x.damage - 0.5))
    return jnp.stack([-jnp.expm1(-STEP_H * rate), jnp.where(fit, leave, 0.0)])


def death_90d(x: Latent, p: Patient) -> jax.Array:
    """f32[]: probability of death within 90 days of a patient who leaves the ICU alive in this state."""
    return sigmoid(
        -2.58
        + 0.034 * (p.age - 64.0)
        + 0.15 * (p.charlson - 5.3)
        + 1.15 * x.damage
        + (1.0 - x.kidney / p.kidney)
        + 0.13 * relu(x.interstitial - 3.0)
        + 0.45 * x.ventilated
        + 0.35 * p.frailty
    )
