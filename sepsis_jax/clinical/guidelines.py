"""Guideline adherence and dosing safety: one registry of rules, each a pure function of the recorded steps.

G1 and G2 are those of the published system (arXiv 2605.14723); the hazards are A and B of Festor et al. 2022
(BMJ Health Care Inform 29:e100549, Table 1), whose C and D need central venous pressure and fluid balance.
Under- and overdosing were published without a definition: `underdosing` and `overdosing` are this project's own.

The published score is 100 (N - G1 - G2) / N and so would count a step twice that breaks both rules. None can: G1
is broken by vasopressor level 0, G2 only by a level above an earlier one. It therefore equals the share of steps
without `guideline`, as long as the first step, whose previous level it does not know, gets the level -1.

Every rule answers three flags per step, so that a rate over all steps, a rate over the steps at risk and their
bootstrap by patient are sums of the same arrays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from sepsis_jax.clinical.actions import ALL_ACTIONS
from sepsis_jax.clinical.features import INDEX

HOURS_PER_STEP = 4.0


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """Where the rules draw their lines; print them with every result.

    Attributes:
      lactate: (mmol/L) above it there is hypoperfusion.
      target_map: (mmHg) below it there is hypoperfusion; from it on vasopressors must not rise.
      low_map: (mmHg) below it treatment is due.
      high_map: (mmHg) above it full vasopressors do harm.
      low_fluid: (mL/h, tonicity equivalents) up to it there is no fluid resuscitation.
      high_dose: (mcg/kg/min norepinephrine equivalents) above it the vasopressor dose is maximal (Festor B).
      high_level: vasopressor level from which the dose is maximal (`overdosing`).
    """

    lactate: float = 2.0
    target_map: float = 65.0
    low_map: float = 55.0
    high_map: float = 95.0
    low_fluid: float = 20.0
    high_dose: float = 0.65
    high_level: int = 4


class Steps(NamedTuple):
    """What the rules look at, any leading shape.

    Attributes:
      meanbp: f32[...] (mmHg) at the decision.
      lactate: f32[...] (mmol/L) at the decision.
      action: int[...,2] (vasopressor, fluid) levels decided.
      previous_vasopressor: int[...] level before; -1 where unknown, then G2 is not at risk.
      vaso_dose: f32[...] (mcg/kg/min norepinephrine equivalents) behind the vasopressor level.
      fluid_ml: f32[...] (mL per 4 h) behind the fluid level.
      valid: bool[...] recorded, not padding.
    """

    meanbp: Any
    lactate: Any
    action: Any
    previous_vasopressor: Any
    vaso_dose: Any
    fluid_ml: Any
    valid: Any


class Flags(NamedTuple):
    """A rule's answer per step. Rates are violated / at_risk and violated / valid, each summed.

    Attributes:
      violated: bool[...] implies at_risk.
      at_risk: bool[...] the rule has something to say here; implies valid.
      valid: bool[...] recorded, not padding.
    """

    violated: jax.Array
    at_risk: jax.Array
    valid: jax.Array


def steps_of(obs: ArrayLike, action: ArrayLike, prior_action: ArrayLike, doses: ArrayLike, valid: ArrayLike) -> Steps:
    """Steps of whole stays; the previous level of a step is the level decided one step earlier.

    Args:
      obs: f32[...,T,39] (clinical units).
      action: int[...,T,2] levels.
      prior_action: int[...,2] levels before the first step, -1 where unknown.
      doses: f32[...,T,2] (mcg/kg/min, mL/4h), as `ActionBins.doses` gives or as recorded.
      valid: bool[...,T].
    """
    obs, action, doses = jnp.asarray(obs), jnp.asarray(action, jnp.int32), jnp.asarray(doses)
    before = jnp.asarray(prior_action, jnp.int32)[..., None, :]
    return Steps(
        meanbp=obs[..., INDEX["meanbp"]],
        lactate=obs[..., INDEX["lactate"]],
        action=action,
        previous_vasopressor=jnp.concatenate([before, action[..., :-1, :]], axis=-2)[..., 0],
        vaso_dose=doses[..., 0],
        fluid_ml=doses[..., 1],
        valid=jnp.asarray(valid),
    )


def every_action(obs: ArrayLike, previous_vasopressor: ArrayLike, doses: ArrayLike, valid: ArrayLike) -> Steps:
    """Steps [...,25] on which each of the 25 actions is decided, in the order of `ALL_ACTIONS`.

    Args:
      obs: f32[...,39] (clinical units). previous_vasopressor: int[...] level before, -1 where unknown.
      doses: f32[25,2] (mcg/kg/min, mL/4h) behind the actions. valid: bool[...].
    """
    obs, doses = jnp.asarray(obs), jnp.asarray(doses)
    shape = (*obs.shape[:-1], len(ALL_ACTIONS))

    def over(one: ArrayLike) -> jax.Array:
        return jnp.broadcast_to(jnp.asarray(one)[..., None], shape)

    actions = jnp.asarray(ALL_ACTIONS)
    return Steps(
        meanbp=over(obs[..., INDEX["meanbp"]]),
        lactate=over(obs[..., INDEX["lactate"]]),
        action=jax.lax.broadcast_in_dim(actions, (*shape, 2), (len(shape) - 1, len(shape))),
        previous_vasopressor=over(previous_vasopressor),
        vaso_dose=jax.lax.broadcast_in_dim(doses[:, 0], shape, (len(shape) - 1,)),
        fluid_ml=jax.lax.broadcast_in_dim(doses[:, 1], shape, (len(shape) - 1,)),
        valid=over(valid),
    )


def check(steps: Steps, thresholds: Thresholds = Thresholds()) -> dict[str, Flags]:
    """Every rule of `RULES` on every step; padding is neither violated nor at risk."""
    answers = {}
    for name, rule in RULES.items():
        violated, at_risk = rule(steps, thresholds)
        at_risk = at_risk & steps.valid
        answers[name] = Flags(violated & at_risk, at_risk, steps.valid)
    return answers


Verdict = tuple[jax.Array, jax.Array]  # bool[...] violated, bool[...] at risk


def hypoperfusion(steps: Steps, at: Thresholds) -> Verdict:
    """G1: lactate above 2 or MAP below 65 asks for some treatment."""
    at_risk = (steps.lactate > at.lactate) | (steps.meanbp < at.target_map)
    return at_risk & (steps.action == 0).all(-1), at_risk


def vasopressor_weaning(steps: Steps, at: Thresholds) -> Verdict:
    """G2: at MAP 65 and above the vasopressor level must not rise."""
    at_risk = (steps.meanbp >= at.target_map) & (steps.previous_vasopressor >= 0)
    return at_risk & (steps.action[..., 0] > steps.previous_vasopressor), at_risk


def guideline(steps: Steps, at: Thresholds) -> Verdict:
    """G1 or G2, each step once."""
    return _either(hypoperfusion(steps, at), vasopressor_weaning(steps, at))


def festor_a(steps: Steps, at: Thresholds) -> Verdict:
    """Hazard A: no vasopressor and at most 20 mL/h of fluid while MAP is below 55."""
    at_risk = steps.meanbp < at.low_map
    return at_risk & (steps.vaso_dose <= 0) & _hardly_any_fluid(steps, at), at_risk


def festor_b(steps: Steps, at: Thresholds) -> Verdict:
    """Hazard B: more than 0.65 mcg/kg/min of vasopressor while MAP is above 95."""
    at_risk = steps.meanbp > at.high_map
    return at_risk & (steps.vaso_dose > at.high_dose), at_risk


def underdosing(steps: Steps, at: Thresholds) -> Verdict:
    """Our definition: vasopressor level 0 and at most 20 mL/h of fluid while MAP is below 55."""
    at_risk = steps.meanbp < at.low_map
    return at_risk & (steps.action[..., 0] == 0) & _hardly_any_fluid(steps, at), at_risk


def overdosing(steps: Steps, at: Thresholds) -> Verdict:
    """Our definition: vasopressor level 4 while MAP is above 95."""
    at_risk = steps.meanbp > at.high_map
    return at_risk & (steps.action[..., 0] >= at.high_level), at_risk


def unsafe(steps: Steps, at: Thresholds) -> Verdict:
    """Under- or overdosing; no step can be both."""
    return _either(underdosing(steps, at), overdosing(steps, at))


RULES: dict[str, Callable[[Steps, Thresholds], Verdict]] = {
    rule.__name__: rule
    for rule in (
        hypoperfusion,
        vasopressor_weaning,
        guideline,
        festor_a,
        festor_b,
        underdosing,
        overdosing,
        unsafe,
    )
}
"""Rule name -> function of the steps and thresholds that answers (violated, at risk)."""


def _either(first: Verdict, second: Verdict) -> Verdict:
    return first[0] | second[0], first[1] | second[1]


def _hardly_any_fluid(steps: Steps, at: Thresholds) -> jax.Array:
    return steps.fluid_ml / HOURS_PER_STEP <= at.low_fluid
