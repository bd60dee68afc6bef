"""Files in the layout in which the published system releases its test episodes, made by hand."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from sepsis_jax.clinical import actions
from sepsis_jax.clinical.features import NAMES, NUM_FEATURES, PUBLISHED_MEAN, PUBLISHED_SD, STATICS, URINE

STATIC_MEAN, STATIC_SD = (60.0, 5.0), (16.0, 3.0)


def make_stay(rng: np.random.Generator, stay_id: int, steps: int) -> tuple[dict[str, Any], np.ndarray]:
    """A stay as released, and its observations in clinical units."""
    z = rng.uniform(-1.5, 1.5, (steps, NUM_FEATURES))
    levels = rng.integers(0, 5, (steps, 2))
    clinical = z * PUBLISHED_SD + PUBLISHED_MEAN
    clinical[:, URINE] = np.maximum(np.expm1(clinical[:, URINE]), 0)
    age, charlson = rng.uniform(20, 90), rng.integers(0, 12)
    stay = {
        "stay_id": np.int64(stay_id),
        "obs": z.astype(np.float32),
        "mask": rng.integers(0, 2, (steps, 38)).astype(np.float32),
        "static": np.array([(age - 60) / 16, rng.integers(0, 2), (charlson - 5) / 3], np.float32),
        "actions": np.asarray(actions.one_hot(levels)),
        "sofa": rng.uniform(0, 20, steps),
        "vaso_actions": levels[:, 0],
        "fluid_actions": levels[:, 1],
        "outcome": "death" if stay_id % 2 else "release",
        "mortality_90d": stay_id % 2,
    }
    return stay, clinical


def scaler_json() -> dict[str, Any]:
    """What `scaler_params_log.json` holds."""
    return {
        "dyn_cols": list(NAMES),
        "dyn_mean": PUBLISHED_MEAN.tolist(),
        "dyn_std": PUBLISHED_SD.tolist(),
        "urine_log_transform": True,
        "urine_idx": URINE,
    }


def config_json() -> dict[str, Any]:
    """What `episode_feature_config.json` holds."""
    return {
        "dynamic_cols": list(NAMES),
        "static_cols": list(STATICS),
        "static_scaler_mean": list(STATIC_MEAN),
        "static_scaler_std": list(STATIC_SD),
    }


def write(folder: Path, stays: Any, *, scaler: Any = None, config: Any = None, protocol: int = 4) -> tuple[Path, ...]:
    """The three files: a pickle of stays (or its bytes), and the two JSON files, with other contents if given."""
    content = stays if isinstance(stays, bytes) else pickle.dumps(stays, protocol)
    paths = folder / "test.pkl", folder / "scaler_params_log.json", folder / "episode_feature_config.json"
    paths[0].write_bytes(content)
    paths[1].write_text(json.dumps(scaler_json() if scaler is None else scaler))
    paths[2].write_text(json.dumps(config_json() if config is None else config))
    return paths
