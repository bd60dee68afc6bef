"""Safe import of the files that the published system releases (arXiv 2605.14723): test episodes and their scaler.

The episodes are a pickle, and a pickle can run code, so `unpickling` reads them. What the three files mean, and what
they do not say:

- `obs` is z-scored with `dyn_mean`, `dyn_std`, urine log1p-transformed before; age and Charlson index are z-scored
  with `static_scaler_mean`, `static_scaler_std`; gender is 0/1; masks are 0/1. Values were clipped to a 1-99 %
  range before scaling, which cannot be undone.
- `vaso_actions[t]` and `fluid_actions[t]` are the levels decided on `obs[t]`, and `actions[t]` their two one-hots.
- Doses are not released: the levels stand for the doses of `bins`. Nor are ventilation (False throughout), body
  weight (80 kg, as the AI Clinician assumes), the treatment before the first step (none), the end of the ICU stay
  (truncated; the released `outcome` is 90-day mortality in words) and death in hospital (unknown, -1).
- The released SOFA is another version and is not read: `sofa` is the proper one, computed from the above, so its
  respiratory part ends at 2.
- A stay counts as a patient of its own, since `subject_id` is not released, and all belong to the test split.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sepsis_jax.clinical import sofa
from sepsis_jax.clinical.actions import AI_CLINICIAN_BINS, LEVELS, ActionBins, one_hot
from sepsis_jax.clinical.features import NAMES, NUM_FEATURES, NUM_MASKED, STATICS, URINE
from sepsis_jax.data import unpickling
from sepsis_jax.data.episodes import EXIT_TRUNCATED, SPLITS, Episodes
from sepsis_jax.data.scaler import Scaler
from sepsis_jax.errors import InputError

MAX_PICKLE_BYTES = 1 << 30  # the released test set has some ten megabytes
MAX_JSON_BYTES = 1 << 20
WEIGHT_KG = 80.0
_LARGEST = 1e30  # of numbers that still may be multiplied in float32
_FARTHEST = 50.0  # SDs from the mean: beyond it an observation is no measurement, and urine no number

_STEP_FIELDS: dict[str, tuple[int, ...]] = {
    "obs": (NUM_FEATURES,),
    "mask": (NUM_MASKED,),
    "actions": (2 * LEVELS,),
    "vaso_actions": (),
    "fluid_actions": (),
}


def load(
    episodes: Path | str, scaler: Path | str, feature_config: Path | str, *, bins: ActionBins = AI_CLINICIAN_BINS
) -> tuple[Episodes, Scaler]:
    """Read released episodes into clinical units.

    Args:
      episodes: pickled list of dicts.
      scaler: `scaler_params_log.json`.
      feature_config: `episode_feature_config.json`.
      bins: doses that the levels stand for.

    Returns:
      The episodes, and the scaler that the released weights expect.

    Raises:
      InputError: a file is missing, too large, of another layout, or a pickle of anything but data.
    """
    read_scaler = load_scaler(scaler, feature_config)
    _check_size(Path(episodes), MAX_PICKLE_BYTES)
    stays = unpickling.load(Path(episodes))
    if not isinstance(stays, list) or not stays:
        raise InputError(episodes, expected="a list with at least one episode", found=_describe(stays))
    checked = [_stay(episodes, i, stay) for i, stay in enumerate(stays)]
    ids, first = np.unique([stay["stay_id"] for stay in checked], return_index=True)
    if len(ids) < len(checked):
        twice = min(set(range(len(checked))) - set(first.tolist()))
        found = f"{int(checked[twice]['stay_id'])} again"
        raise InputError(episodes, field=f"episode {twice}, stay_id", expected="an id of its own", found=found)
    return _collate(checked, read_scaler, bins), read_scaler


def load_scaler(scaler: Path | str, feature_config: Path | str) -> Scaler:
    """The released scaler: urine is log1p-transformed, gender is left alone. Raises InputError as `load`."""
    dynamic, static = _load_json(Path(scaler)), _load_json(Path(feature_config))
    _expect(scaler, "dyn_cols", dynamic, list(NAMES))
    _expect(scaler, "urine_log_transform", dynamic, True)
    _expect(scaler, "urine_idx", dynamic, URINE)
    _expect(feature_config, "dynamic_cols", static, list(NAMES))
    _expect(feature_config, "static_cols", static, list(STATICS))
    age_mean, charlson_mean = _numbers(feature_config, "static_scaler_mean", static, 2)
    age_sd, charlson_sd = _positive(feature_config, "static_scaler_std", static, 2)
    return Scaler(
        mean=_numbers(scaler, "dyn_mean", dynamic, NUM_FEATURES),
        sd=_positive(scaler, "dyn_std", dynamic, NUM_FEATURES),
        static_mean=np.array([age_mean, 0.0, charlson_mean], np.float32),
        static_sd=np.array([age_sd, 1.0, charlson_sd], np.float32),
    )


def _collate(stays: Sequence[dict[str, np.ndarray]], scaler: Scaler, bins: ActionBins) -> Episodes:
    """Stays as `_stay` checked them -> padded episodes in clinical units."""
    length = np.array([len(stay["obs"]) for stay in stays], np.int32)
    valid = np.arange(length.max()) < length[:, None]
    padded = {name: _pad([stay[name] for stay in stays], length) for name in _STEP_FIELDS}
    obs = np.where(valid[..., None], np.asarray(scaler.denormalize(padded["obs"])), 0.0).astype(np.float32)
    obs[..., URINE] = np.maximum(obs[..., URINE], 0.0)
    action = np.stack([padded["vaso_actions"], padded["fluid_actions"]], axis=-1).astype(np.int8)
    dose = np.where(valid[..., None], np.asarray(bins.doses(action)), 0.0).astype(np.float32)
    ventilated = np.zeros(valid.shape, bool)
    # The score of an observation sees the treatment of its own interval, which is the action one step earlier.
    given = np.concatenate([np.zeros_like(dose[:, :1, 0]), dose[:, :-1, 0]], axis=1)
    score = np.asarray(sofa.proper(obs, ventilated, given, sofa.urine_24h(obs[..., URINE])))
    stay_id = np.array([stay["stay_id"] for stay in stays], np.int32)
    static = np.stack([stay["static"] for stay in stays])
    rows = len(stays)
    return Episodes(
        obs=obs,
        mask=padded["mask"].astype(bool),
        static=(static * scaler.static_sd + scaler.static_mean).astype(np.float32),
        weight_kg=np.full(rows, WEIGHT_KG, np.float32),
        action=action,
        prior_action=np.zeros((rows, 2), np.int8),
        vaso_dose=dose[..., 0],
        fluid_ml=dose[..., 1],
        length=length,
        exit=np.full(rows, EXIT_TRUNCATED, np.int8),
        ventilated=ventilated,
        sofa=np.where(valid, score, 0.0).astype(np.float32),
        mortality_90d=np.array([stay["mortality_90d"] for stay in stays], np.int8),
        mortality_hospital=np.full(rows, -1, np.int8),
        subject_id=stay_id.copy(),
        stay_id=stay_id,
        split=np.full(rows, SPLITS.index("test"), np.int8),
    )


def _pad(arrays: Sequence[np.ndarray], length: np.ndarray) -> np.ndarray:
    padded = np.zeros((len(arrays), length.max(), *arrays[0].shape[1:]), np.float32)
    for row, array in enumerate(arrays):
        padded[row, : len(array)] = array
    return padded


def _stay(file: Path | str, index: int, stay: Any) -> dict[str, np.ndarray]:
    """One released episode as checked float arrays; `stay_id` and `mortality_90d` become scalars."""
    at = f"episode {index}"
    if not isinstance(stay, dict):
        raise InputError(file, field=at, expected="a dict", found=_describe(stay))
    obs = stay.get("obs")
    steps = len(obs) if isinstance(obs, list) or (isinstance(obs, np.ndarray) and obs.ndim) else 0
    checked = {
        name: _array(file, f"{at}, {name}", stay, name, (max(steps, 1), *inner)) for name, inner in _STEP_FIELDS.items()
    }
    farthest = checked["obs"].flat[np.abs(checked["obs"]).argmax()]
    if abs(farthest) > _FARTHEST:
        expected, hint = f"z-scores within {_FARTHEST:g}", "are these clinical units?"
        raise InputError(file, field=f"{at}, obs", expected=expected, found=f"{farthest:g}", hint=hint)
    checked["static"] = _array(file, f"{at}, static", stay, "static", (3,))
    checked["stay_id"] = _array(file, f"{at}, stay_id", stay, "stay_id", ())
    checked["mortality_90d"] = _array(file, f"{at}, mortality_90d", stay, "mortality_90d", ())
    checked["gender"] = checked["static"][STATICS.index("gender")]
    for name, allowed in (
        ("mask", [0, 1]),
        ("gender", [0, 1]),
        ("mortality_90d", [0, 1]),
        ("vaso_actions", range(LEVELS)),
        ("fluid_actions", range(LEVELS)),
    ):
        wrong = checked[name][~np.isin(checked[name], list(allowed))]
        if wrong.size:
            expected = f"values of {', '.join(map(str, allowed))}"
            raise InputError(file, field=f"{at}, {name}", expected=expected, found=wrong.flat[0])
    if not (0 <= checked["stay_id"] < 2**31 and checked["stay_id"] == np.floor(checked["stay_id"])):
        raise InputError(file, field=f"{at}, stay_id", expected="a 32-bit id", found=checked["stay_id"])
    levels = np.stack([checked["vaso_actions"], checked["fluid_actions"]], axis=-1)
    if not np.array_equal(np.asarray(one_hot(levels)), checked["actions"]):
        expected = "the one-hots of vaso_actions and fluid_actions, vasopressor first"
        raise InputError(file, field=f"{at}, actions", expected=expected, found="others")
    return checked


def _array(file: Path | str, field: str, stay: dict[str, Any], name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The finite number or numbers at `stay[name]`, as float64[shape]."""
    expected = f"numbers of shape {list(shape)}" if shape else "a number"
    if name not in stay:
        raise InputError(file, field=field, expected=expected, found="no such key")
    try:
        value = np.asarray(stay[name], np.float64)
    except (TypeError, ValueError, OverflowError):
        raise InputError(file, field=field, expected=expected, found=_describe(stay[name])) from None
    if value.shape != shape:
        raise InputError(file, field=field, expected=expected, found=f"shape {list(value.shape)}")
    if not (np.abs(value) < _LARGEST).all():
        raise InputError(file, field=field, expected="finite numbers", found="NaN, infinity or more than float32 holds")
    return value


# --- files ---------------------------------------------------------------------------------------------------


def _check_size(file: Path, limit: int) -> None:
    if not file.is_file():
        raise InputError(file, expected="a file", found="none")
    if file.stat().st_size > limit:
        raise InputError(file, expected=f"at most {limit:,} bytes", found=f"{file.stat().st_size:,} bytes")


def _load_json(file: Path) -> dict[str, Any]:
    _check_size(file, MAX_JSON_BYTES)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(file, expected="JSON", found=error) from None
    if not isinstance(content, dict):
        raise InputError(file, expected="a JSON object", found=_describe(content))
    return content


def _expect(file: Path | str, key: str, content: dict[str, Any], expected: object) -> None:
    if content.get(key) != expected:
        found = content.get(key, "no such key")
        raise InputError(file, field=key, expected=str(expected), found=found, hint="the layout is another one")


def _numbers(file: Path | str, key: str, content: dict[str, Any], count: int) -> np.ndarray:
    return _array(file, key, content, key, (count,)).astype(np.float32)


def _positive(file: Path | str, key: str, content: dict[str, Any], count: int) -> np.ndarray:
    numbers = _numbers(file, key, content, count)
    if not (numbers > 0).all():
        raise InputError(file, field=key, expected="standard deviations above 0", found=numbers.min())
    return numbers


def _describe(value: object) -> str:
    try:
        return f"{type(value).__name__} {value!r}"[:80]
    except ValueError:  # an integer of thousands of digits
        return type(value).__name__
