"""`Episodes`: the cohort as padded arrays. Everything after data preparation starts from this one contract.

Time: for anchor tau, `obs[t]` summarises [tau + 4t, tau + 4t + 4) h, `action[t]` is what was given in
[tau + 4t + 4, tau + 4t + 8) and `prior_action` what was given in [tau, tau + 4). The decision for `action[t]`
falls at tau + 4t + 4 h: nothing charted after a decision is in its state (laboratory values
are charted when they are drawn).
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from flax import struct

from sepsis_jax.clinical.features import NUM_FEATURES, NUM_MASKED

EXIT_TRUNCATED, EXIT_DEATH, EXIT_DISCHARGE = 0, 1, 2
SPLITS: tuple[str, ...] = ("train", "validation", "test")


@struct.dataclass
class Episodes:
    """B stays of at most T steps of 4 h; steps at or beyond `length` are padding (zeros, masks False).

    Attributes:
      obs: f32[B,T,F] (clinical units) last value carried forward, train mean before the first value, never NaN.
      mask: bool[B,T,38] newly measured in this step (urine has no bit).
      static: f32[B,3] age (years), gender (1 = male), Charlson index (points).
      weight_kg: f32[B] (kg).
      action: int8[B,T,2] (vasopressor, fluid) levels.
      prior_action: int8[B,2] levels in the 4 h before the first decision.
      vaso_dose: f32[B,T] (mcg/kg/min norepinephrine equivalents) behind action[..., 0].
      fluid_ml: f32[B,T] (mL, tonicity equivalents) behind action[..., 1].
      length: i32[B] steps with a decision.
      exit: int8[B] 0 truncated, 1 death, 2 discharge from the ICU at the end of the record.
      ventilated: bool[B,T] invasive ventilation in the interval of obs.
      sofa: f32[B,T] SOFA, `proper` version.
      mortality_90d, mortality_hospital: int8[B] 1 died, 0 survived, -1 unknown.
      subject_id, stay_id: i32[B].
      split: int8[B] 0 train, 1 validation, 2 test; by patient.
      propensity: f32[B,T,25] probability of each action under the treating policy, or None where unknown.
    """

    obs: Any
    mask: Any
    static: Any
    weight_kg: Any
    action: Any
    prior_action: Any
    vaso_dose: Any
    fluid_ml: Any
    length: Any
    exit: Any
    ventilated: Any
    sofa: Any
    mortality_90d: Any
    mortality_hospital: Any
    subject_id: Any
    stay_id: Any
    split: Any
    propensity: Any = None

    @property
    def num_stays(self) -> int:
        """B."""
        return int(self.obs.shape[0])

    @property
    def num_steps(self) -> int:
        """T, the padded length."""
        return int(self.obs.shape[1])

    @property
    def valid(self) -> Any:
        """bool[B,T]: True at recorded steps, False at padding."""
        return np.arange(self.num_steps) < np.asarray(self.length)[:, None]

    @property
    def previous_action(self) -> np.ndarray:
        """int8[B,T,2]: levels given before each decision."""
        return np.concatenate([np.asarray(self.prior_action)[:, None], np.asarray(self.action)[:, :-1]], axis=1)

    def take(self, rows: Any) -> Episodes:
        """The stays at `rows` (int[N] or bool[B]), in that order."""
        fields = {name: None if value is None else np.asarray(value)[rows] for name, value in self.__dict__.items()}
        return Episodes(**fields)

    def subset(self, split: str) -> Episodes:
        """The stays of one split: 'train', 'validation' or 'test'."""
        return self.take(np.asarray(self.split) == SPLITS.index(split))

    def digest(self) -> str:
        """SHA-256 that tells these stays from others, by every field."""
        found = hashlib.sha256()
        for name, value in self.__dict__.items():
            if value is not None:
                found.update(f"{name} {np.shape(value)}".encode() + np.ascontiguousarray(value).tobytes())
        return found.hexdigest()


DTYPES: dict[str, tuple[str, tuple[Any, ...]]] = {
    "obs": ("float32", ("B", "T", NUM_FEATURES)),
    "mask": ("bool", ("B", "T", NUM_MASKED)),
    "static": ("float32", ("B", 3)),
    "weight_kg": ("float32", ("B",)),
    "action": ("int8", ("B", "T", 2)),
    "prior_action": ("int8", ("B", 2)),
    "vaso_dose": ("float32", ("B", "T")),
    "fluid_ml": ("float32", ("B", "T")),
    "length": ("int32", ("B",)),
    "exit": ("int8", ("B",)),
    "ventilated": ("bool", ("B", "T")),
    "sofa": ("float32", ("B", "T")),
    "mortality_90d": ("int8", ("B",)),
    "mortality_hospital": ("int8", ("B",)),
    "subject_id": ("int32", ("B",)),
    "stay_id": ("int32", ("B",)),
    "split": ("int8", ("B",)),
    "propensity": ("float32", ("B", "T", 25)),
}
"""dtype and shape of every field; `B` and `T` are the same throughout one cohort."""
