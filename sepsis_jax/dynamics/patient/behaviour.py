"""How the simulated clinicians treat: exact probabilities of the 25 actions given what the record shows.

Severity drives treatment, so the cohort is confounded, but only by observed quantities unless `Knobs.unmeasured` is
above 0; then the hidden frailty takes part and the propensities are not a function of the record.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import relu, softmax

from sepsis_jax.clinical.actions import LEVELS, NUM_ACTIONS
from sepsis_jax.clinical.features import INDEX, URINE

_EXPLORATION = 0.03  # share of actions taken at random: every propensity is at least 0.03 / 25


def propensities(
    obs: jax.Array, previous: jax.Array, hours: Any, fluid_given: Any, style: Any, hidden: Any
) -> jax.Array:
    """Probability of each action in the order of `clinical.actions.encode`, f32[25], > 0, sums to 1.

    Args:
      obs: f32[39] (clinical units) at the decision.
      previous: int[2] levels of the step before.
      hours: f32[] since admission.
      fluid_given: f32[] fluid of all steps so far (L).
      style: f32[] taste for fluids (levels).
      hidden: f32[] push of unrecorded frailty on both levels (`Knobs.unmeasured` x frailty).
    """
    levels = jnp.arange(LEVELS, dtype=jnp.float32)
    vaso = softmax(_vasopressor_logits(levels, obs, previous[0].astype(jnp.float32), hidden))
    fluid = softmax(_fluid_logits(levels, obs, previous[1].astype(jnp.float32), hours, fluid_given, style, hidden))
    joint = (vaso[:, None] * fluid[None, :]).reshape(NUM_ACTIONS)
    return (1.0 - _EXPLORATION) * joint + _EXPLORATION / NUM_ACTIONS


def _vasopressor_logits(levels: jax.Array, obs: jax.Array, previous: jax.Array, hidden: Any) -> jax.Array:
    """Titration to a mean pressure of 65 mmHg, reluctant to start above 66."""
    pressure, lactate = obs[INDEX["meanbp"]], obs[INDEX["lactate"]]
    need = (64.5 - pressure) / 8.0
    change = jnp.where(need > 0, 1.15 * need, 0.80 * jnp.clip(need + 0.15, -2.2, 0.0))
    target = jnp.clip(previous + change + 0.25 * ((lactate > 3.0) & (pressure < 72.0)) + 0.6 * hidden, 0.0, 4.0)
    start = (levels > 0) & (previous == 0) & (pressure > 66.0)
    return -jnp.square(levels - target) / (2.0 * 0.48**2) - 1.6 * start


def _fluid_logits(
    levels: jax.Array, obs: jax.Array, previous: jax.Array, hours: Any, given: Any, style: Any, hidden: Any
) -> jax.Array:
    """Generous early and in hypotension, hyperlactataemia or oliguria; sparing after much fluid or with bad lungs."""
    oxygenation = obs[INDEX["pao2"]] / obs[INDEX["fio2"]]  # PaO2/FiO2 in units of 100 mmHg
    target = (
        1.05
        + 2.2 * jnp.exp(-hours / 10.0)
        + 0.75 * jnp.clip((69.0 - obs[INDEX["meanbp"]]) / 8.0, -0.6, 1.8)
        + 0.42 * jnp.clip(obs[INDEX["lactate"]] - 2.0, -0.5, 3.0)
        + 0.35 * (obs[URINE] < 80.0)
        - 0.14 * relu(given - 3.0)
        - 0.35 * relu(2.0 - oxygenation)
        + 0.25 * previous
        + style
        + 0.6 * hidden
    )
    extremes = jnp.array([0.35, 0.0, 0.0, 0.0, 0.15])
    return -jnp.square(levels - target) / (2.0 * 1.15**2) + extremes
