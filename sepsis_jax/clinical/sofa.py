"""The SOFA score (Vincent et al. 1996, Intensive Care Med 22:707) in two named versions.

`proper` follows the thresholds of MIT-LCP/mimic-code with two stated differences. All vasopressors count
through one norepinephrine-equivalent dose: above 0.1 mcg/kg/min scores 4, any dose 3. Dopamine enters by
its equivalent (15 mcg/kg/min is 0.15), dobutamine not at all, so the 2 points of the original for low-dose
dopamine or any dobutamine are never given. The verbal GCS of an intubated patient is charted at its lowest;
we score what is charted, where mimic-code assumes a total of 15.

`published` is the score of the published system (arXiv 2605.14723): the cardiovascular part is 1[MAP < 70]
plus the vasopressor level, at most 4, so that giving a vasopressor is itself punished, and the urine of an
incomplete day is compared with the thresholds of a whole day.

Values are those of the current 4-h step (urine: 24 h). Unknown values (NaN) score 0. Levels become doses
through `clinical.actions.ActionBins.doses`.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from sepsis_jax.clinical.features import GCS, INDEX

COMPONENTS: tuple[str, ...] = ("respiratory", "coagulation", "liver", "cardiovascular", "nervous", "renal")
STEPS_PER_DAY = 6


def components(
    *,
    pf_ratio: ArrayLike,
    ventilated: ArrayLike,
    platelet: ArrayLike,
    bilirubin_total: ArrayLike,
    meanbp: ArrayLike,
    norepinephrine_equivalent: ArrayLike,
    gcs: ArrayLike,
    creatinine: ArrayLike,
    urine_24h: ArrayLike,
) -> jax.Array:
    """The six parts of the proper SOFA. Inputs f[...] broadcast together; NaN is unknown and scores 0.

    Args:
      pf_ratio: PaO2/FiO2 (mmHg, FiO2 as a fraction).
      ventilated: bool, invasive ventilation; without it the respiratory part ends at 2.
      platelet: K/uL. bilirubin_total: mg/dL. meanbp: mmHg. creatinine: mg/dL.
      norepinephrine_equivalent: mcg/kg/min.
      gcs: total, 3-15.
      urine_24h: mL per 24 h, NaN where 24 h are not covered.

    Returns:
      f32[...,6] points 0-4 in the order of `COMPONENTS`.
    """
    parts = (
        _respiratory(pf_ratio, ventilated),
        _coagulation(platelet),
        _liver(bilirubin_total),
        _cardiovascular(meanbp, norepinephrine_equivalent),
        _nervous(gcs),
        _renal(creatinine, urine_24h),
    )
    return jnp.stack(jnp.broadcast_arrays(*parts), axis=-1)


@jax.jit
def proper(
    obs: ArrayLike, ventilated: ArrayLike, norepinephrine_equivalent: ArrayLike, urine_24h: ArrayLike
) -> jax.Array:
    """Proper SOFA, f32[...] in 0-24.

    Args:
      obs: f32[...,39] (clinical units).
      ventilated: bool[...].
      norepinephrine_equivalent: f32[...] (mcg/kg/min).
      urine_24h: f32[...] (mL), NaN where 24 h are not covered; see `urine_24h`.
    """
    obs = jnp.asarray(obs)
    return components(
        pf_ratio=_pf_ratio(obs),
        ventilated=ventilated,
        platelet=obs[..., INDEX["platelet"]],
        bilirubin_total=obs[..., INDEX["bilirubin_total"]],
        meanbp=obs[..., INDEX["meanbp"]],
        norepinephrine_equivalent=norepinephrine_equivalent,
        gcs=_gcs(obs),
        creatinine=obs[..., INDEX["creatinine"]],
        urine_24h=urine_24h,
    ).sum(-1)


def published(
    obs: ArrayLike, vasopressor_level: ArrayLike, urine_24h: ArrayLike, ventilated: ArrayLike = False
) -> jax.Array:
    """SOFA of the published system, f32[...] in 0-24.

    Args:
      obs: f32[...,39] (clinical units); FiO2 below 21 % counts as 21 %.
      vasopressor_level: int[...] 0-4.
      urine_24h: f32[...] (mL); the published score takes the sum so far (`urine_so_far`), complete or not.
      ventilated: bool[...]; without it the respiratory part ends at 2, so leave it out only where unknown.
    """
    obs = jnp.asarray(obs)
    hypotension, level = jnp.broadcast_arrays(
        _below(obs[..., INDEX["meanbp"]], (70,)), jnp.asarray(vasopressor_level, jnp.float32)
    )
    parts = (
        _respiratory(_pf_ratio(obs, lowest_fio2=21.0), ventilated),
        _coagulation(obs[..., INDEX["platelet"]]),
        _liver(obs[..., INDEX["bilirubin_total"]]),
        jnp.minimum(4.0, hypotension + level),
        _nervous(_gcs(obs)),
        _renal(obs[..., INDEX["creatinine"]], urine_24h),
    )
    return jnp.stack(jnp.broadcast_arrays(*parts)).sum(0)


def urine_24h(urine_4h: ArrayLike) -> jax.Array:
    """Urine of the last 24 h: f[...,T] (mL/4h) -> f32[...,T] (mL), NaN where under six steps are covered."""
    return _last_day(urine_4h, outside=jnp.nan)


def urine_so_far(urine_4h: ArrayLike) -> jax.Array:
    """Urine of at most the last 24 h, as the published score sums it: f[...,T] (mL/4h) -> f32[...,T] (mL)."""
    return _last_day(urine_4h, outside=0.0)


def _last_day(urine_4h: ArrayLike, outside: float) -> jax.Array:
    urine = jnp.asarray(urine_4h, jnp.float32)
    steps = urine.shape[-1]
    before = jnp.full((*urine.shape[:-1], STEPS_PER_DAY - 1), outside, jnp.float32)
    padded = jnp.concatenate([before, urine], axis=-1)
    return jnp.stack([padded[..., lag : lag + steps] for lag in range(STEPS_PER_DAY)]).sum(0)


def _below(value: ArrayLike, thresholds: Sequence[float]) -> jax.Array:
    """How many thresholds the value is below, f32[...]; 0 for NaN."""
    return sum((jnp.asarray(value) < t).astype(jnp.float32) for t in thresholds)  # type: ignore[return-value]


def _at_least(value: ArrayLike, thresholds: Sequence[float]) -> jax.Array:
    """How many thresholds the value reaches, f32[...]; 0 for NaN."""
    return sum((jnp.asarray(value) >= t).astype(jnp.float32) for t in thresholds)  # type: ignore[return-value]


def _respiratory(pf_ratio: ArrayLike, ventilated: ArrayLike) -> jax.Array:
    mild, severe, ventilated = jnp.broadcast_arrays(
        _below(pf_ratio, (400, 300)), _below(pf_ratio, (200, 100)), jnp.asarray(ventilated)
    )
    return mild + jnp.where(ventilated, severe, 0.0)


def _coagulation(platelet: ArrayLike) -> jax.Array:
    return _below(platelet, (150, 100, 50, 20))


def _liver(bilirubin_total: ArrayLike) -> jax.Array:
    return _at_least(bilirubin_total, (1.2, 2, 6, 12))


def _cardiovascular(meanbp: ArrayLike, norepinephrine_equivalent: ArrayLike) -> jax.Array:
    dose, hypotension = jnp.broadcast_arrays(jnp.asarray(norepinephrine_equivalent), _below(meanbp, (70,)))
    return jnp.where(dose > 0.1, 4.0, jnp.where(dose > 0, 3.0, hypotension))


def _nervous(gcs: ArrayLike) -> jax.Array:
    return _below(gcs, (15, 13, 10, 6))


def _renal(creatinine: ArrayLike, urine_24h: ArrayLike) -> jax.Array:
    oliguria = jnp.where(jnp.asarray(urine_24h) < 200, 4.0, jnp.where(jnp.asarray(urine_24h) < 500, 3.0, 0.0))
    return jnp.maximum(*jnp.broadcast_arrays(_at_least(creatinine, (1.2, 2, 3.5, 5)), oliguria))


def _pf_ratio(obs: jax.Array, lowest_fio2: float = 0.0) -> jax.Array:
    return obs[..., INDEX["pao2"]] * 100.0 / jnp.maximum(obs[..., INDEX["fio2"]], lowest_fio2)


def _gcs(obs: jax.Array) -> jax.Array:
    return obs[..., jnp.array([INDEX[name] for name in GCS])].sum(-1)
