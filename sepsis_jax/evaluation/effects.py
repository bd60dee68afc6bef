"""Counterfactual accuracy: the effect of each action as a model predicts it, against the true one.

The effect of an action is the expected outcome when it is given throughout, minus the expected outcome when nothing
is given, from the same state over the same random numbers. Courses go on as if nobody left the ICU, in the model and
in the truth alike; 90-day mortality counts deaths in the ICU in the first 24 h, and everyone else leaves then.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sepsis_jax.clinical.actions import ALL_ACTIONS, NUM_ACTIONS
from sepsis_jax.clinical.features import INDEX, URINE
from sepsis_jax.data.episodes import Episodes
from sepsis_jax.dynamics.protocol import Dynamics, Step
from sepsis_jax.evaluation.courses import Decisions, history_of, luck, mean_death, over_decisions, sample_courses

OUTCOMES = ("map", "lactate", "urine", "pf")
"""MAP (mmHg), lactate (mmol/L), log1p of urine (mL/4 h), PaO2/FiO2 (mmHg)."""
HOURS = (4, 12, 24)
NAMES = (*(f"{outcome}_{hours}h" for outcome in OUTCOMES for hours in HOURS), "mortality")
"""What effects are reported on, E = 13."""
LIKELY = 0.01
"""Behaviour probability above which an action counts as likely."""

_ROUNDING = 1e-5  # of the largest effect; what single precision leaves where everyone has the same one
_STEPS = np.array([hours // 4 - 1 for hours in HOURS])


def effects(
    dynamics: Dynamics,
    params: Any,
    episodes: Episodes,
    decisions: Decisions,
    *,
    samples: int,
    seed: int = 0,
    batch_size: int = 4,
    title: str = "effects",
) -> np.ndarray:
    """f32[N,25,E]: expected outcomes under each action minus those under none, at each decision.

    Args:
      dynamics, params: the model, or the simulator with its truth.
      samples: S courses behind each expectation, the same random numbers for all actions.
      seed: of the random numbers.
    """
    kernel = _Effects(dynamics, samples)
    arguments = (params, luck(seed))
    return over_decisions(kernel, arguments, episodes, decisions, batch_size=batch_size, title=title)


def _outcomes(step: Step) -> jax.Array:
    """f32[4] in the order of `OUTCOMES`."""
    value = step.value
    oxygenation = value[INDEX["pao2"]] / (value[INDEX["fio2"]] / 100)
    return jnp.stack([value[INDEX["meanbp"]], value[INDEX["lactate"]], jnp.log1p(value[URINE]), oxygenation])


@dataclasses.dataclass(frozen=True)
class _Effects:
    """Kernel of `effects` for one decision."""

    dynamics: Any
    samples: int

    def __call__(self, arguments: tuple[Any, jax.Array], episode: Episodes, step: jax.Array) -> jax.Array:
        params, seed = arguments
        history = history_of(episode, step)

        def expected(action: jax.Array) -> jax.Array:
            plan = jnp.broadcast_to(action, (HOURS[-1] // 4, 2))
            courses = sample_courses(self.dynamics, params, history, plan, seed, samples=self.samples, keep=_outcomes)
            at = courses.steps.mean(axis=0)[_STEPS]  # [hours, outcomes]
            return jnp.append(at.T.reshape(-1), mean_death(courses))

        every = jax.vmap(expected)(jnp.asarray(ALL_ACTIONS))
        return every - every[:1]


class Moments(NamedTuple):
    """Sums for each stay over pairs of a predicted effect x and a true one y: f64[B] each."""

    n: np.ndarray
    x: np.ndarray
    y: np.ndarray
    xx: np.ndarray
    xy: np.ndarray
    yy: np.ndarray


def moments(x: np.ndarray, y: np.ndarray, kept: np.ndarray, rows: np.ndarray, stays: int) -> Moments:
    """Sums of x, y f[N,A] where `kept` bool[N,A], by the stay int[N] of each decision."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    parts = (np.ones_like(x), x, y, x * x, x * y, y * y)
    sums = [np.where(kept, part, 0.0).sum(axis=1) for part in parts]
    return Moments(*(np.bincount(rows, total, minlength=stays) for total in sums))


def centred(effect: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Effects f[N,A] minus each action's mean over the decisions where it is `kept`."""
    effect = np.asarray(effect, np.float64)
    residual = effect - constants(effect, kept)
    return np.where(np.abs(residual) > _ROUNDING * np.abs(effect).max(), residual, 0.0)


def constants(effect: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """f64[1,A]: each action's mean effect over the decisions where it is `kept`; 0 for an action never kept."""
    number = np.maximum(kept.sum(axis=0, keepdims=True), 1)
    return np.where(kept, effect, 0.0).sum(axis=0, keepdims=True) / number


def correlation(sums: Moments) -> np.ndarray:
    """Pearson correlation from sums f64[...]; NaN where either side does not vary."""
    vx, vy, cov = _variances(sums)
    return np.divide(cov, np.sqrt(vx * vy), out=np.full_like(cov, np.nan), where=(vx > 0) & (vy > 0))


def slope(sums: Moments) -> np.ndarray:
    """Slope of the true effect on the predicted one from sums f64[...]; NaN where the prediction does not vary."""
    vx, _, cov = _variances(sums)
    return np.divide(cov, vx, out=np.full_like(cov, np.nan), where=vx > 0)


def _variances(sums: Moments) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    n, x, y, xx, xy, yy = (np.asarray(part, np.float64) for part in sums)
    n = np.maximum(n, 1)

    def safe(square: np.ndarray, mean_square: np.ndarray) -> np.ndarray:  # rounding is not variation
        return np.where(square > 1e-9 * np.maximum(mean_square, 1e-30), square, 0.0)

    return safe(xx / n - (x / n) ** 2, xx / n), safe(yy / n - (y / n) ** 2, yy / n), xy / n - x * y / n**2


class Comparison(NamedTuple):
    """Sums behind the figures of one outcome, for all non-zero actions or for the likely ones.

    Attributes:
      pooled: over states and actions. within: after subtracting each action's mean effect.
      constant: of each action's mean true effect, the best that 25 constants can do.
    """

    pooled: Moments
    within: Moments
    constant: Moments


def compare(
    predicted: np.ndarray, true: np.ndarray, kept: np.ndarray, rows: np.ndarray, stays: int
) -> dict[str, Comparison]:
    """Outcome -> Comparison of effects f32[N,25,E], on actions `kept` bool[N,25]; (0,0) is never one of them."""
    kept = np.asarray(kept) & (np.arange(NUM_ACTIONS) > 0)
    out = {}
    for i, name in enumerate(NAMES):
        x, y = np.asarray(predicted[..., i], np.float64), np.asarray(true[..., i], np.float64)
        best = np.broadcast_to(constants(y, kept), y.shape)
        out[name] = Comparison(
            moments(x, y, kept, rows, stays),
            moments(centred(x, kept), centred(y, kept), kept, rows, stays),
            moments(best, y, kept, rows, stays),
        )
    return out
