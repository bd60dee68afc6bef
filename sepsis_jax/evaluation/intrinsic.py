"""What a model knows of patients without a simulator, in figures: see `agent.questions`."""

from __future__ import annotations

import numpy as np
import pandas as pd

from sepsis_jax.evaluation.discrimination import Figure, auprc, auroc, brier, rank
from sepsis_jax.ope.bootstrap import interval, patient_counts

_FIGURES: dict[str, Figure] = {"AUROC": auroc, "AUPRC": auprc, "Brier": brier}


def table(answered: pd.DataFrame, *, draws: int, seed: int) -> pd.DataFrame:
    """One row a question.

    Args:
      answered: see `agent.questions.answered`. draws, seed: of the patient bootstrap.

    Returns:
      Columns n, share (of yes), and for AUROC, AUPRC and Brier the figure, _low and _high (95 %); NaN where all answers
      are the same in truth.
    """
    rows = {}
    for about, some in answered.groupby("question", sort=False):
        ranked = rank(some["label"].to_numpy(), some["chance"].to_numpy())
        counts = patient_counts(some["subject_id"].to_numpy(), draws=draws, seed=seed)[:, ranked.order]
        row: dict[str, float] = {"n": len(some), "share": some["label"].mean()}
        for name, figure in _FIGURES.items():
            low, high = interval(np.array([figure(ranked, one) for one in counts]))
            row |= {name: figure(ranked, np.ones(len(some))), f"{name}_low": low, f"{name}_high": high}
        rows[about] = row
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("question")


def wide(table: pd.DataFrame) -> pd.DataFrame:
    """For people."""
    cells = pd.DataFrame({"n": table["n"].astype(int), "yes": table["share"].map("{:.1%}".format)})
    for name in _FIGURES:
        figures = table[[name, f"{name}_low", f"{name}_high"]].itertuples(index=False)
        cells[name] = [f"{value:.3f} [{low:.3f}, {high:.3f}]" for value, low, high in figures]
    return cells
