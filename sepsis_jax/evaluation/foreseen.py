"""What several worlds expect of the same decisions: the model that paid for them, others, and the truth.

Who was trained inside a world model may have learned what that model gets wrong: then it gains there and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np
import pandas as pd

from sepsis_jax.curriculum.rewards import Model
from sepsis_jax.data.episodes import Episodes
from sepsis_jax.dynamics.protocol import history_at
from sepsis_jax.ope.bootstrap import patient_counts, ratio_interval
from sepsis_jax.policies.planner import PlannerSettings, recommend

_FORESEEN = 0x666F7265
"""The luck that judges is neither that of a simulation's answer nor a patient's own, whatever the seeds."""


def gains(
    worlds: Mapping[str, Model],
    policies: Mapping[str, np.ndarray],
    episodes: Episodes,
    *,
    samples: int,
    horizon: int,
    draws: int,
    seed: int,
) -> pd.DataFrame:
    """Expected return of each policy's action at the recorded decisions, over that of clinicians' usual action.

    After that action all go on as clinicians usually do. No caution and no charges: this is what a world expects, not
    what stage III pays.

    Args:
      worlds: name -> world, with the clinicians who go on. policies: name -> f32[B,T,25] probabilities.
      episodes: whose decisions these are. samples, horizon: simulated courses, and how far they go.
      draws, seed: of the patient bootstrap; the seed also of the courses.

    Returns:
      One row a policy and world: policy, world, gain, and more (over the policy before), each with _low and _high.
    """
    rows, steps = np.nonzero(np.asarray(episodes.valid))
    histories = history_at(episodes, rows, steps)
    plain = PlannerSettings(samples=samples, horizon=horizon, caution=0.0)
    counts = patient_counts(np.asarray(episodes.subject_id), draws=draws, seed=seed)
    decisions = np.asarray(episodes.length, float)
    luck = jax.random.fold_in(jax.random.key(seed), _FORESEEN)
    out = []
    for world, model in worlds.items():
        found = recommend(model.world, model.params, model.policy_params, histories, luck, plain)
        worth = found.over_usual(np.asarray(found.score, np.float64))
        before: np.ndarray | None = None
        for policy, probs in policies.items():
            each = np.bincount(rows, (probs[rows, steps] * worth).sum(-1), minlength=episodes.num_stays)
            row: dict[str, object] = {"policy": policy, "world": world}
            for name, total in (("gain", each), ("more", each * np.nan if before is None else each - before)):
                low, high = ratio_interval(total, decisions, counts)
                row |= {name: total.sum() / decisions.sum(), f"{name}_low": low, f"{name}_high": high}
            out.append(row)
            before = each
    return pd.DataFrame(out)


def wide(found: pd.DataFrame) -> pd.DataFrame:
    """For people: a row a policy, a column a world."""
    cells = [
        f"{row.gain:+.3f} [{row.gain_low:+.3f}, {row.gain_high:+.3f}]"
        + (f"; {row.more:+.3f} [{row.more_low:+.3f}, {row.more_high:+.3f}]" if np.isfinite(row.more) else "")
        for row in found.itertuples()
    ]
    policies, worlds = found["policy"].unique(), found["world"].unique()
    return found.assign(cell=cells).pivot(index="policy", columns="world", values="cell").loc[policies, worlds]
