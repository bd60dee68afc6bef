"""The hidden physiology: how one patient's latent state moves through 4 h under a vasopressor dose and a fluid volume.

Euler steps of half an hour; blood flow is quasi-steady (`derive`). Time constants in hours, volumes in litres, hazards
per hour; infection, inflammation, damage and organ functions are dimensionless. Equations: docs/patient-simulator.md.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.nn import relu, sigmoid
from jax.scipy.special import ndtr

from sepsis_jax.dynamics.patient.parameters import NUM_TRAITS, TRAIT, Patient

STEP_H = 4.0
SUBSTEPS = 8
_DT = STEP_H / SUBSTEPS
NUM_INITIAL_NOISE, NUM_NOISE = 10 + NUM_TRAITS, 4 + NUM_TRAITS
_TRAIT_MEAN, _TRAIT_MEMORY, _TRAIT_NOISE = 0.75, 0.86, 0.337  # total SD 1


@struct.dataclass
class Latent:
    """What moves; every field f32[] unless said otherwise.

    Attributes:
      infection, inflammation, damage: burden of microbes, of the host's response, of tissue injury.
      tone_loss: vascular tone lost (0-1). contractility, kidney: organ function (1 = healthy).
      plasma, interstitial: volume above normal (L). water: extravascular lung water. liver: hepatic injury.
      heart_rate: bpm. lactate: mmol/L. creatinine, bun, bilirubin: mg/dL. platelet: K/uL. bicarbonate: mEq/L.
      pressure_noise: shared by MAP over one step (standard normal). trait: f32[15] idiosyncratic drift.
      fibrillation, ventilated: 0 or 1.
      dose: effective vasopressor dose of the last interval (mcg/kg/min). fluid: effective fluid so far (L).
      urine: made in the last interval (mL).
    """

    infection: Any
    inflammation: Any
    damage: Any
    tone_loss: Any
    contractility: Any
    kidney: Any
    plasma: Any
    interstitial: Any
    water: Any
    liver: Any
    heart_rate: Any
    lactate: Any
    creatinine: Any
    bun: Any
    bilirubin: Any
    platelet: Any
    bicarbonate: Any
    pressure_noise: Any
    trait: Any
    fibrillation: Any
    ventilated: Any
    dose: Any
    fluid: Any
    urine: Any


@struct.dataclass
class Derived:
    """What follows at once from a latent state; every field f32[].

    Attributes:
      response: inflammation saturated to 0-1. squeeze: vasopressor effect 0-1. toxicity: microcirculatory, 0-1.
      filling: mean systemic filling pressure (mmHg). output: cardiac output (L/min). map: mmHg.
      pf: PaO2/FiO2 (mmHg). fio2: fraction. pao2: mmHg. sao2: fraction. hemoglobin: g/dL.
      hypoperfusion: 0-2.5.
    """

    response: Any
    squeeze: Any
    toxicity: Any
    filling: Any
    output: Any
    map: Any
    pf: Any
    fio2: Any
    pao2: Any
    sao2: Any
    hemoglobin: Any
    hypoperfusion: Any


def _power(x: Any, exponent: float) -> Any:
    return jnp.exp(exponent * jnp.log(jnp.maximum(x, 1e-9)))


def _hill(x: Any, half: Any, exponent: float) -> Any:
    """x^n / (k^n + x^n), 0 at 0."""
    ratio = _power(x / half, exponent)
    return jnp.where(x > 0, ratio / (1.0 + ratio), 0.0)


def derive(x: Latent, p: Patient) -> Derived:
    """Circulation, gas exchange and perfusion of a latent state (quasi-steady)."""
    response = x.inflammation / (0.8 + x.inflammation)
    squeeze = _hill(x.dose, p.vasopressor_ed50 * (1.0 + 0.45 * x.inflammation), 1.2)
    toxicity = _hill(x.dose, 0.75, 4.0)
    log_resistance = -0.62 * x.tone_loss * p.vasoplegia + jnp.log1p(0.95 * squeeze)
    filling = jnp.clip(8.0 + 4.0 * (x.plasma - 0.60 * x.tone_loss + 0.45 * squeeze), 1.5, 24.0)
    stretch = filling / 8.0
    stroke = 1000.0 / 74.0 * p.cardiac_output * x.contractility * (1.0 + 0.1 * squeeze)
    stroke = stroke * 1.6 * stretch / (0.6 + stretch) * jnp.exp(-0.3 * log_resistance)
    stroke = stroke * (1.0 - 0.14 * x.fibrillation)
    output = x.heart_rate * stroke / 1000.0 * (1.0 - 0.1 * relu(x.heart_rate - 125.0) / 25.0)
    pressure = (p.map_set - 5.0) / p.cardiac_output * jnp.exp(log_resistance) * output
    pressure = 3.0 + 0.25 * filling + pressure + 2.5 * x.pressure_noise

    pf = 430.0 * jnp.exp(-0.71 * p.lung * jnp.sqrt(x.tone_loss) - 0.34 * x.water + 0.1 * x.trait[TRAIT["oxygenation"]])
    pf = jnp.clip(pf, 50.0, 520.0)
    titration = jnp.exp(0.10 * x.trait[TRAIT["oxygen_titration"]])
    fio2 = jnp.clip((92.0 + 14.0 * x.ventilated) / pf * titration, 0.28, 1.0)
    pao2 = pf * fio2
    sao2 = 1.0 / (1.0 + 23400.0 / (pao2 * pao2 * pao2 + 150.0 * pao2))  # Severinghaus 1979
    hemoglobin = p.hemoglobin * 5.0 / (5.0 + jnp.clip(x.plasma, -1.5, 3.0))

    delivery = output / p.cardiac_output * jnp.sqrt(hemoglobin / 10.7) * (sao2 / 0.97)
    shortfall = relu(1.0 - delivery / (0.80 + 0.12 * x.inflammation))
    low_pressure = relu(62.0 + 0.25 * (p.map_set - 86.0) - pressure) / 20.0
    hypoperfusion = jnp.clip(shortfall + 0.55 * low_pressure + 0.35 * toxicity, 0.0, 2.5)
    return Derived(
        response, squeeze, toxicity, filling, output, pressure, pf, fio2, pao2, sao2, hemoglobin, hypoperfusion
    )


def initial(p: Patient, z: jax.Array) -> Latent:
    """State one step before the first observation, from standard normal z f32[NUM_INITIAL_NOISE].

    That step is simulated without treatment, so that slaved quantities (heart rate, urine) settle on the rest.
    """
    u = p.severity
    inflammation = 0.60 * jnp.exp(0.65 * u)
    response = inflammation / (0.8 + inflammation)
    lactate = jnp.exp(0.70 + 0.60 * u + 0.40 * z[0])
    kidney = p.kidney * jnp.exp(-0.75 * response * p.leak - 0.20 * relu(u) + 0.15 * z[1])
    backlog = jnp.sqrt(p.kidney / kidney)
    ventilated = (sigmoid(-0.55 + 0.7 * u + 0.5 * (p.lung - 1.0)) > ndtr(z[2])) * 1.0
    liver = 0.15 + 0.12 * relu(u)
    zero = jnp.zeros(())
    return Latent(
        infection=0.16 * jnp.exp(0.35 * u + 0.6 * z[3]),
        inflammation=inflammation,
        damage=jnp.maximum(0.18 + 0.16 * u + 0.12 * z[4], 0.0),
        tone_loss=response,
        contractility=p.contractility * (1.0 - 0.2 * response),
        kidney=kidney,
        plasma=-0.10 - 0.42 * response * p.leak + 0.20 * z[5],
        interstitial=1.2 + 0.3 * u + 0.9 * z[6],
        water=jnp.maximum(0.25 + 0.15 * z[7], 0.0),
        liver=liver,
        heart_rate=85.0 + 15.0 * p.trait_mean[TRAIT["heart_rate"]],
        lactate=lactate,
        creatinine=p.creatinine * backlog,
        bun=_bun_at_rest(p) * backlog * jnp.exp(0.25 * z[8]),
        bilirubin=p.bilirubin * (1.0 + 1.3 * _power(liver, 1.3) + 0.2 * inflammation),
        platelet=p.platelet * jnp.exp(-0.3 * inflammation),
        bicarbonate=26.3 - (lactate - 1.0) - 2.2 * relu(1.0 - kidney / p.kidney) + 2.0 * z[9],
        pressure_noise=zero,
        trait=_TRAIT_MEAN * p.trait_mean + 0.66 * z[10:],
        fibrillation=zero,
        ventilated=ventilated,
        dose=zero,
        fluid=zero,
        urine=zero,
    )


def advance(x: Latent, p: Patient, dose: Any, fluid: Any, hours: Any, noise: jax.Array) -> tuple[Latent, jax.Array]:
    """4 h under an effective dose (mcg/kg/min) and volume (L), starting `hours` after admission.

    Args:
      noise: standard normal f32[NUM_NOISE]; nothing else is random.

    Returns:
      the next state, and the probability f32[] with which it was drawn to be ventilated.
    """
    event = ndtr(noise[2:4])
    drift = _TRAIT_MEAN * p.trait_mean
    x = dataclasses.replace(
        x,
        trait=drift + _TRAIT_MEMORY * (x.trait - drift) + _TRAIT_NOISE * noise[4:],
        pressure_noise=noise[0],
        inflammation=x.inflammation * jnp.exp(0.05 * noise[1]),
        dose=dose,
        fluid=x.fluid + fluid,
        urine=jnp.zeros(()),
    )
    onset = 0.006 + 0.05 * _hill(dose, 0.35, 2.0) + 0.008 * x.inflammation
    x = dataclasses.replace(x, fibrillation=(event[0] < jnp.where(x.fibrillation > 0, 0.78, onset)) * 1.0)
    antibiotic = jnp.where(hours < p.switch_h, p.antibiotic, 1.0)
    x = jax.lax.fori_loop(0, SUBSTEPS, lambda _, y: _substep(y, p, fluid / STEP_H, antibiotic), x)
    vent_prob = _ventilation_probability(x, p)
    return dataclasses.replace(x, ventilated=(event[1] < vent_prob) * 1.0), vent_prob


def _substep(x: Latent, p: Patient, infusion: Any, antibiotic: Any) -> Latent:
    """Half an hour of everything that flows; `infusion` in L/h."""
    d = derive(x, p)
    urine = _urine_rate(x, d)
    escape = x.plasma + 0.77 * d.response * p.leak - 0.33 / (1.0 + 0.6 * x.inflammation) * x.interstitial
    growth = 0.085 * (1.0 - x.infection) - 0.045 * p.immunity - 0.115 * antibiotic
    heat = 0.075 * x.infection / (0.15 + x.infection) / jnp.sqrt(p.immunity) + 0.016 * x.damage / (1.0 + x.damage)
    injury = (
        0.012 * relu(x.inflammation - 0.8)
        + 0.060 * d.hypoperfusion
        + 0.020 * d.toxicity
        + 0.010 * relu(1.0 - d.pf / 130.0)
    )
    depressed = p.contractility * (1.0 - 0.28 * d.response - 0.12 * jnp.tanh(x.damage))
    flooding = 0.010 * (1.0 + 0.8 * x.inflammation) * relu(x.interstitial - 2.0)
    flooding = flooding + 0.045 * relu(d.filling - 11.5) / 4.0
    return dataclasses.replace(
        x,
        infection=x.infection * jnp.exp(_DT * growth),
        inflammation=x.inflammation + _DT * (heat + 0.012 * d.hypoperfusion - 0.030 * x.inflammation),
        damage=x.damage + _DT * (injury - 0.0085 * x.damage),
        tone_loss=x.tone_loss + _DT * (d.response - x.tone_loss) / 4.0,
        contractility=x.contractility + _DT * (depressed - x.contractility) / 12.0,
        plasma=x.plasma + _DT * (infusion + 0.010 - urine - escape),
        interstitial=x.interstitial + _DT * escape,
        water=x.water + _DT * (flooding - 0.030 * x.water),
        heart_rate=_baroreflex(x, p, d),
        urine=x.urine + 1000.0 * _DT * urine,
        **_chemistry(x, p, d),
    )


def _chemistry(x: Latent, p: Patient, d: Derived) -> dict[str, Any]:
    """The slow blood values after half an hour."""
    loss = x.kidney / p.kidney
    target = p.kidney * jnp.exp(
        -1.9 * d.hypoperfusion
        - 0.75 * d.response * p.leak
        - 0.25 * relu(d.filling - 12.0) / 4.0
        - 0.07 * relu(x.interstitial - 4.5)
    )
    make = 0.30 * (1.0 + 5.0 * d.hypoperfusion + 0.70 * d.response + 1.0 * d.toxicity)
    clear = 0.30 * (1.0 - 0.45 * jnp.minimum(x.liver / 2.0, 1.0)) * (1.0 - 0.35 * jnp.minimum(d.hypoperfusion, 1.0))
    creatinine = 0.070 * _power(jnp.minimum(p.creatinine, 2.2) / p.creatinine, 0.4)
    bilirubin = p.bilirubin * (1.0 + 2.6 * _power(x.liver, 1.3) + 0.4 * x.inflammation)
    platelet = p.platelet * jnp.exp(-0.42 * x.inflammation - 0.22 * x.damage)
    bicarbonate = 26.3 - (x.lactate - 1.0) - 2.2 * relu(1.0 - loss) - 0.35 * x.fluid
    bun = 1.08 * 0.95 * (_bun_at_rest(p) - x.bun * loss) / 16.0
    return {
        "kidney": x.kidney + _DT * (target - x.kidney) / jnp.where(target < x.kidney, 14.0, 72.0),
        "lactate": x.lactate + _DT * (make - clear * x.lactate),
        "creatinine": x.creatinine + _DT * creatinine * (p.creatinine - x.creatinine * loss),
        "bun": x.bun + _DT * bun,
        "liver": x.liver + _DT * (0.035 * d.hypoperfusion + 0.006 * x.inflammation - 0.018 * x.liver),
        "bilirubin": x.bilirubin + _DT * (bilirubin - x.bilirubin) / 40.0,
        "platelet": x.platelet + _DT * (platelet - x.platelet) / 60.0,
        "bicarbonate": x.bicarbonate + _DT * (bicarbonate - x.bicarbonate) / 10.0,
    }


def _bun_at_rest(p: Patient) -> jax.Array:
    """Urea nitrogen in balance with the creatinine before the illness (mg/dL)."""
    return 16.0 / 0.95 * _power(p.creatinine / 0.8, 0.75)


def _baroreflex(x: Latent, p: Patient, d: Derived) -> jax.Array:
    """Heart rate half an hour later (bpm)."""
    target = (
        70.0
        + 0.8 * relu(p.map_set - 6.0 - d.map)
        + 13.0 * x.tone_loss
        + 6.0 * d.squeeze
        + 0.96 * x.inflammation
        + 24.0 * x.fibrillation
        + 15.0 * x.trait[TRAIT["heart_rate"]]
    )
    return jnp.clip(x.heart_rate + 0.6 * (target - x.heart_rate), 45.0, 165.0)


def _urine_rate(x: Latent, d: Derived) -> jax.Array:
    """L/h. Excess interstitial fluid returns by the lymph and is excreted; with oedema and a good pressure off
    vasopressors, the clinicians' diuretics are part of the background."""
    rate = (0.058 + 0.035 * relu(x.interstitial)) * jnp.clip(x.kidney, 0.02, 2.5) * sigmoid((d.map - 60.0) / 6.0)
    rate = rate * jnp.exp(0.45 * jnp.clip(x.plasma, -1.5, 1.5) + 0.25 * x.trait[TRAIT["urine"]])
    unloading = (x.interstitial > 3.5) & (d.map > 68.0) & (x.dose < 0.1)
    return rate * jnp.where(unloading, 1.9, 1.0)


def _ventilation_probability(x: Latent, p: Patient) -> jax.Array:
    """f32[] that the patient is ventilated in the next interval."""
    d = derive(x, p)
    start = sigmoid(-4.0 + (175.0 - d.pf) / 28.0 + 1.4 * relu(x.inflammation - 1.2) + 1.1 * d.hypoperfusion)
    stop = sigmoid(-3.2 + (d.pf - 215.0) / 50.0 - 0.9 * (x.inflammation - 0.6))
    return jnp.where(x.ventilated > 0, 1.0 - stop, start)
