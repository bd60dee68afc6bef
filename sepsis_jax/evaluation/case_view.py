"""One stay: what was recorded against what the model forecasts from the first decision."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from sepsis_jax.clinical.features import INDEX, UNITS
from sepsis_jax.data.episodes import Episodes
from sepsis_jax.dynamics.protocol import Step
from sepsis_jax.dynamics.worldmodel.model import Params, WorldModel
from sepsis_jax.errors import InputError
from sepsis_jax.evaluation.courses import Decisions, history_of, over_decisions, sample_courses, weights_of_staying
from sepsis_jax.evaluation.one_step import analytic, measured_entries

FEATURES = (
    *("meanbp", "heart_rate", "resp_rate", "spo2", "temp_c", "fio2", "lactate", "ph", "creatinine"),
    *("bilirubin_total", "platelet", "wbc", "output_4hourly"),
)
"""What is shown."""

_QUANTILES = np.array([0.1, 0.5, 0.9])


class CaseView(NamedTuple):
    """One stay.

    Attributes:
      table: one row a feature, one column a 4-h step, each cell 'recorded | median [80 % interval]'.
      facts: label -> text: who, and the final mortality.
      numbers: the same as one flat object.
    """

    table: pd.DataFrame
    facts: dict[str, str]
    numbers: dict[str, float | None]


def find(episodes: Episodes, stay_id: int, where: object) -> int:
    """Row of a stay. InputError when there is none."""
    rows = np.flatnonzero(np.asarray(episodes.stay_id) == stay_id)
    if not rows.size:
        stays = np.asarray(episodes.stay_id)
        raise InputError(where, field="stay_id", expected=f"one of {stays.size}, e.g. {stays[0]}", found=stay_id)
    return int(rows[0])


def view(
    model: WorldModel, params: Params, episodes: Episodes, row: int, *, steps: int, samples: int = 400, seed: int = 0
) -> CaseView:
    """Forecast up to `steps` steps of one stay from its first decision, under the recorded treatment.

    Intervals are of values as they would be measured in a patient who is still in the ICU. Mortality is predicted at
    the last recorded decision.
    """
    stay = episodes.take([row])
    steps = min(steps, int(stay.length[0]) - 1)
    if steps < 1:
        raise InputError("--case", expected="a stay of at least two steps", found=f"one of {int(stay.length[0])}")
    kernel = _Forecast(model, steps, samples)
    first = Decisions(np.zeros(1, int), np.zeros(1, int))
    arguments = (params, jax.random.key(seed))
    value, ventilation, weight = jax.tree.map(
        lambda leaf: leaf[0], over_decisions(kernel, arguments, stay, first, batch_size=1, title="forecast")
    )
    quantiles = _weighted_quantiles(value, weight)  # [3,H,F]
    recorded = np.asarray(stay.obs)[0, 1 : steps + 1]
    measured = measured_entries(np.asarray(stay.mask)[0, 1 : steps + 1])
    columns: dict[str, dict[str, str]] = {}
    numbers: dict[str, float | None] = {}
    for step in range(steps):
        hour = 4 * (step + 2)
        cells = {}
        for name in FEATURES:
            i = INDEX[name]
            now = recorded[step, i] if measured[step, i] else np.nan
            low, median, high = quantiles[:, step, i]
            cells[f"{name} ({UNITS[i]})"] = _cell(now, median, low, high)
            found = {"recorded": now, "predicted": median, "predicted_low": low, "predicted_high": high}
            numbers |= {f"{name}_{hour}h_{key}": _number(figure) for key, figure in found.items()}
        on = bool(np.asarray(stay.ventilated)[0, step + 1])
        chance = float((weight[:, step] * ventilation[:, step]).sum())
        cells["ventilated"] = f"{'yes' if on else 'no'} | {chance:.0%}"
        numbers |= {f"ventilation_{hour}h_recorded": float(on), f"ventilation_{hour}h_predicted": chance}
        columns[f"hour {hour}"] = cells
    facts, mortality = _mortality(model, params, stay)
    frame = pd.DataFrame(columns).rename_axis(index="recorded | median [80 %]")
    return CaseView(frame, _who(stay) | facts, numbers | mortality)


@dataclasses.dataclass(frozen=True)
class _Forecast:
    """Kernel: values f32[S,H,F], ventilation f32[S,H] and weights f32[S,H]."""

    model: WorldModel
    steps: int
    samples: int

    def __call__(self, arguments: tuple[Params, jax.Array], episode: Episodes, step: jax.Array) -> Any:
        params, seed = arguments
        plan = jax.lax.dynamic_slice_in_dim(jnp.asarray(episode.action), step, self.steps)
        history = history_of(episode, step)
        courses = sample_courses(self.model, params, history, plan, seed, samples=self.samples, keep=_shown)
        return (*courses.steps, weights_of_staying(courses.exit_hazard))


def _shown(step: Step) -> tuple[jax.Array, jax.Array]:
    return step.value, step.vent_prob


def _weighted_quantiles(value: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """f[3,H,F] of values f[S,H,F] with weights f[S,H]."""
    order = value.argsort(axis=0)
    reached = np.cumsum(np.take_along_axis(np.broadcast_to(weight[..., None], value.shape), order, axis=0), axis=0)
    place = [(reached < quantile * reached[-1:]).sum(axis=0) for quantile in _QUANTILES]
    places = np.minimum(np.stack(place), len(value) - 1)
    return np.take_along_axis(np.take_along_axis(value, order, axis=0), places, axis=0)


def _mortality(model: WorldModel, params: Params, stay: Episodes) -> tuple[dict[str, str], dict[str, float | None]]:
    survived = np.zeros(1, np.int8)  # an unknown outcome is predicted too
    asked = dataclasses.replace(stay, mortality_90d=survived, mortality_hospital=survived)
    labelled = analytic(model, params, asked, params.scaler, params.support).labelled
    facts: dict[str, str] = {}
    numbers: dict[str, float | None] = {}
    for name, field in (("mortality", "mortality_90d"), ("hospital_mortality", "mortality_hospital")):
        if name in labelled:
            label = {1: "died", 0: "survived"}.get(int(getattr(stay, field)[0]), "unknown")
            chance = float(labelled[name].chance[0])
            title = "Death within 90 days" if name == "mortality" else "Death in hospital"
            facts[title] = f"{label} | {chance:.0%} at the last decision"
            numbers[name] = chance
    return facts, numbers


def _who(stay: Episodes) -> dict[str, str]:
    age, gender, charlson = np.asarray(stay.static)[0]
    sex = "man" if gender == 1 else "woman"
    hours = 4 * int(stay.length[0])
    return {"Stay": f"{int(stay.stay_id[0])}, {sex} of {age:.0f}, Charlson index {charlson:.0f}, {hours} h recorded"}


def _cell(recorded: float, median: float, low: float, high: float) -> str:
    seen = "-" if np.isnan(recorded) else f"{recorded:.3g}"
    return f"{seen} | {median:.3g} [{low:.3g}, {high:.3g}]"


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
