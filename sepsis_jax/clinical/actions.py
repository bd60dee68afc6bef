"""Actions: a vasopressor level and an IV-fluid level, each 0-4, vasopressor first everywhere in this project.

Other tools (AI Clinician, WD3QNE, ICU-Sepsis) number the 25 actions fluid-major; `to_fluid_major` and
`from_fluid_major` are the only bridge.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

LEVELS = 5
NUM_ACTIONS = LEVELS * LEVELS
ALL_ACTIONS = np.stack(np.divmod(np.arange(NUM_ACTIONS), LEVELS), axis=-1).astype(np.int8)
"""int8[25,2]: every (vasopressor, fluid) pair in the order of `encode`."""


def encode(action: Any) -> Any:
    """int[...,2] (vasopressor, fluid) -> int32[...] action id 5 * vasopressor + fluid."""
    action = jnp.asarray(action, jnp.int32)
    return action[..., 0] * LEVELS + action[..., 1]


def decode(action_id: Any) -> Any:
    """int[...] action id -> int8[...,2] (vasopressor, fluid)."""
    action_id = jnp.asarray(action_id, jnp.int32)
    return jnp.stack([action_id // LEVELS, action_id % LEVELS], axis=-1).astype(jnp.int8)


def to_fluid_major(action_id: Any) -> Any:
    """Our action id -> 5 * fluid + vasopressor, as the AI-Clinician lineage numbers. int[...] -> int32[...]."""
    action_id = jnp.asarray(action_id, jnp.int32)
    return (action_id % LEVELS) * LEVELS + action_id // LEVELS


def from_fluid_major(action_id: Any) -> Any:
    """5 * fluid + vasopressor -> our action id; the transposition inverts itself. int[...] -> int32[...]."""
    return to_fluid_major(action_id)


def one_hot(action: Any) -> Any:
    """int[...,2] -> f32[...,10]: two one-hots of 5, vasopressor first (the model input)."""
    hot = jax.nn.one_hot(jnp.asarray(action, jnp.int32), LEVELS)
    return hot.reshape(*hot.shape[:-2], 2 * LEVELS)


class ActionBins(NamedTuple):
    """Doses behind the levels. Level 0 is a dose of exactly 0, levels 1-4 quartiles of the non-zero doses.

    Attributes:
      vaso_edges: 3 inner quartile edges (mcg/kg/min norepinephrine equivalents).
      fluid_edges: 3 inner quartile edges (mL per 4 h, tonicity equivalents).
      vaso_dose: 5 doses that stand for the levels (medians of the bins).
      fluid_dose: 5 volumes that stand for the levels.
    """

    vaso_edges: tuple[float, ...]
    fluid_edges: tuple[float, ...]
    vaso_dose: tuple[float, ...]
    fluid_dose: tuple[float, ...]

    def levels(self, vaso_dose: Any, fluid_ml: Any) -> np.ndarray:
        """Doses f[...] -> int8[...,2]; a dose on an edge belongs to the lower level."""
        columns = [
            np.where(np.asarray(dose) > 0, 1 + np.searchsorted(edges, dose, side="left"), 0)
            for dose, edges in ((vaso_dose, self.vaso_edges), (fluid_ml, self.fluid_edges))
        ]
        return np.stack(columns, axis=-1).astype(np.int8)

    def doses(self, action: Any) -> Any:
        """int[...,2] -> f32[...,2]: (mcg/kg/min, mL/4 h) that the levels stand for."""
        action = jnp.asarray(action, jnp.int32)
        vaso = jnp.asarray(self.vaso_dose, jnp.float32)[action[..., 0]]
        fluid = jnp.asarray(self.fluid_dose, jnp.float32)[action[..., 1]]
        return jnp.stack([vaso, fluid], axis=-1)


AI_CLINICIAN_BINS = ActionBins(
    vaso_edges=(0.08, 0.22, 0.45),
    fluid_edges=(50.0, 180.0, 530.0),
    vaso_dose=(0.0, 0.04, 0.13, 0.27, 0.68),
    fluid_dose=(0.0, 30.0, 115.0, 320.0, 950.0),
)
"""Edges of Komorowski et al. 2018 (Nat Med 24:1716) with the doses that the embedded cohort gives."""


def fit_bins(vaso_dose: np.ndarray, fluid_ml: np.ndarray) -> ActionBins:
    """Quartile edges and bin medians from doses of the train split only. f[...], f[...] -> ActionBins.

    A drug that was never given falls back to `AI_CLINICIAN_BINS`, so that every level keeps a dose.
    """
    vaso_edges, vaso_doses = _quartiles(vaso_dose, AI_CLINICIAN_BINS.vaso_edges, AI_CLINICIAN_BINS.vaso_dose)
    fluid_edges, fluid_doses = _quartiles(fluid_ml, AI_CLINICIAN_BINS.fluid_edges, AI_CLINICIAN_BINS.fluid_dose)
    return ActionBins(vaso_edges, fluid_edges, vaso_doses, fluid_doses)


def _quartiles(
    dose: np.ndarray, default_edges: tuple[float, ...], default_doses: tuple[float, ...]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    given = np.sort(np.asarray(dose, np.float64)[np.asarray(dose) > 0])
    if given.size == 0:
        return default_edges, default_doses
    edges = np.quantile(given, [0.25, 0.5, 0.75], method="inverted_cdf")
    level = np.searchsorted(edges, given, side="left")
    medians = [float(np.median(given[level == k])) if (level == k).any() else float(edges[min(k, 2)]) for k in range(4)]
    return tuple(float(e) for e in edges), (0.0, *medians)
