"""Table 1 of a cohort, and what its features and actions look like."""

from __future__ import annotations

import numpy as np
import pandas as pd

from sepsis_jax.clinical.actions import LEVELS
from sepsis_jax.clinical.features import FEATURES, INDEX, NUM_MASKED, URINE
from sepsis_jax.data.episodes import EXIT_DEATH, EXIT_DISCHARGE, SPLITS, Episodes


def table_one(episodes: Episodes) -> pd.DataFrame:
    """Characteristics (rows) of all stays and of each split (columns), as text."""
    columns = {"all": episodes} | {split: episodes.subset(split) for split in SPLITS}
    return pd.DataFrame({name: _characteristics(part) for name, part in columns.items()})


def _characteristics(episodes: Episodes) -> dict[str, str]:
    n, valid = episodes.num_stays, episodes.valid
    rows: dict[str, str] = {"stays": str(n), "patients": str(np.unique(episodes.subject_id).size)}
    if n == 0:
        return rows
    age, gender, charlson = np.asarray(episodes.static).T
    urine = np.where(valid, episodes.obs[..., URINE], 0).sum(axis=1) / np.maximum(episodes.length, 1)
    rows |= {
        "age, years": _spread(age),
        "male": _share(gender == 1),
        "Charlson index": _spread(charlson),
        "weight, kg": _spread(episodes.weight_kg),
        "decisions a stay": _spread(episodes.length),
        "SOFA at the first decision": _spread(episodes.sofa[:, 0]),
        "MAP at the first decision, mmHg": _spread(episodes.obs[:, 0, INDEX["meanbp"]]),
        "lactate at the first decision, mmol/L": _spread(episodes.obs[:, 0, INDEX["lactate"]]),
        "urine, mL per 4 h": _spread(urine),
        "ever ventilated": _share((episodes.ventilated & valid).any(axis=1)),
        "ever on a vasopressor": _share(((episodes.vaso_dose > 0) & valid).any(axis=1)),
        "IV fluids, mL per stay": _spread(np.where(valid, episodes.fluid_ml, 0).sum(axis=1)),
        "died in the ICU": _share(episodes.exit == EXIT_DEATH),
        "left the ICU alive within the record": _share(episodes.exit == EXIT_DISCHARGE),
        "hospital mortality": _share(episodes.mortality_hospital == 1, episodes.mortality_hospital >= 0),
        "90-day mortality": _share(episodes.mortality_90d == 1, episodes.mortality_90d >= 0),
    }
    return rows


def _spread(values: np.ndarray) -> str:
    quartiles = np.quantile(np.asarray(values, float), [0.25, 0.5, 0.75])
    low, median, high = (f"{q:.0f}" if abs(q) >= 100 else f"{q:.3g}" for q in quartiles)
    return f"{median} ({low}-{high})"


def _share(yes: np.ndarray, known: np.ndarray | None = None) -> str:
    known = np.ones_like(yes, bool) if known is None else np.asarray(known)
    count, total = int((yes & known).sum()), int(known.sum())
    return f"{count} ({count / total:.1%})" if total else "unknown"


def feature_table(episodes: Episodes) -> pd.DataFrame:
    """Feature (rows): mean, SD and measured share over recorded steps, beside the published mean and SD.

    Mean and SD are over measured entries, of log1p(mL / 4 h) for urine, as the anchors are.
    """
    valid = episodes.valid
    rows = []
    for i, feature in enumerate(FEATURES):
        seen = valid & episodes.mask[..., i] if i < NUM_MASKED else valid
        values = np.asarray(episodes.obs[..., i][seen], np.float64)
        values = np.log1p(values) if i == URINE else values
        unit = "log1p(mL/4h)" if i == URINE else feature.unit
        mean, sd = (values.mean(), values.std()) if values.size else (np.nan, np.nan)
        measured = seen.sum() / valid.sum()
        rows.append((feature.name, unit, mean, sd, feature.mean, feature.sd, measured))
    columns = ["feature", "unit", "mean", "SD", "published mean", "published SD", "measured share"]
    return pd.DataFrame(rows, columns=columns).set_index("feature")


def action_shares(episodes: Episodes) -> pd.DataFrame:
    """Share of recorded steps with each (vasopressor level, rows; fluid level, columns)."""
    vasopressor, fluid = np.asarray(episodes.action)[episodes.valid].T
    counts = np.zeros((LEVELS, LEVELS))
    np.add.at(counts, (vasopressor, fluid), 1)
    index = pd.Index(range(LEVELS), name="vasopressor level")
    return pd.DataFrame(counts / counts.sum(), index, pd.Index(range(LEVELS), name="fluid level"))


def flat(episodes: Episodes) -> dict[str, float | None]:
    """The cohort's figures as one flat object; mortality is None where it is unknown throughout."""
    features, shares = feature_table(episodes), action_shares(episodes)
    numbers: dict[str, float | None] = {"stays": episodes.num_stays, "steps": int(episodes.valid.sum())}
    for name in ("mortality_90d", "mortality_hospital"):
        labels = np.asarray(getattr(episodes, name))
        known = labels >= 0
        numbers[name] = float(labels[known].mean()) if known.any() else None
    for name, row in features.iterrows():
        numbers |= {
            f"{name}_{column.replace(' ', '_')}": float(row[column]) for column in ("mean", "SD", "measured share")
        }
    for vasopressor in range(LEVELS):
        for fluid in range(LEVELS):
            numbers[f"share_action_{vasopressor}_{fluid}"] = float(shares.loc[vasopressor, fluid])
    return numbers
