"""Stays -> records: where each record starts and ends, who is excluded, and the attrition table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import duckdb
import numpy as np

from sepsis_jax.data.binning import BIN_S, fetch, seconds
from sepsis_jax.data.episodes import EXIT_DEATH, EXIT_DISCHARGE, EXIT_TRUNCATED
from sepsis_jax.errors import InputError

WEIGHT_KG = (20.0, 400.0)
"""Plausible weight; anything else counts as unknown."""

_EXITS = {"death": EXIT_DEATH, "discharge": EXIT_DISCHARGE, "truncated": EXIT_TRUNCATED}


@dataclass(frozen=True)
class Stays:
    """The stays table, N rows in the order of stay_id, with the record that each stay gives.

    Attributes:
      stay_id, subject_id: i32[N].
      age: f64[N] (years).
      male: bool[N].
      weight_kg, charlson: f64[N], NaN where unknown.
      mortality_90d, mortality_hospital: int8[N], -1 unknown.
      period: f64[N] orders the calendar time of the stays, NaN where unknown.
      anchored: bool[N] the anchor is known.
      start_s: i64[N] (s since ICU admission) tau.
      length: i32[N] steps.
      exit: int8[N] how the record ends.
    """

    stay_id: np.ndarray
    subject_id: np.ndarray
    age: np.ndarray
    male: np.ndarray
    weight_kg: np.ndarray
    charlson: np.ndarray
    mortality_90d: np.ndarray
    mortality_hospital: np.ndarray
    period: np.ndarray
    anchored: np.ndarray
    start_s: np.ndarray
    length: np.ndarray
    exit: np.ndarray


def read_stays(con: duckdb.DuckDBPyConnection, *, anchor: str, start_hours: float, max_steps: int) -> Stays:
    """Stays of the view `stays`; anchor 'admission' or 'onset', tau = anchor + start_hours but never below 0."""
    zero = "coalesce(onset_hours, 'NaN')" if anchor == "onset" else "0.0::DOUBLE"
    query = f"""
        SELECT stay_id, subject_id, age, sex = 'M' AS male, coalesce(weight_kg, 'NaN') AS weight_kg,
               coalesce(charlson, 'NaN') AS charlson, {seconds("exit_hours")} AS exit_s, exit_kind,
               coalesce(mortality_90d, -1) AS mortality_90d, coalesce(mortality_hospital, -1) AS mortality_hospital,
               coalesce(period::DOUBLE, 'NaN') AS period, {zero} AS anchor
        FROM stays ORDER BY stay_id"""
    columns = fetch(con, query)
    start_s = np.rint((np.nan_to_num(columns["anchor"]) + start_hours) * 3600).astype(np.int64)
    start_s = np.maximum(start_s, 0)
    # Decisions fall at tau + 4 h, tau + 8 h, ..., each strictly before the ICU exit.
    decisions = np.maximum((columns["exit_s"] - start_s - 1) // BIN_S, 0)
    exits = np.array([_EXITS[kind] for kind in columns["exit_kind"]], np.int8)
    weight = columns["weight_kg"]
    return Stays(
        stay_id=columns["stay_id"].astype(np.int32),
        subject_id=columns["subject_id"].astype(np.int32),
        age=columns["age"],
        male=columns["male"].astype(bool),
        weight_kg=np.where((weight >= WEIGHT_KG[0]) & (weight <= WEIGHT_KG[1]), weight, np.nan),
        charlson=columns["charlson"],
        mortality_90d=columns["mortality_90d"].astype(np.int8),
        mortality_hospital=columns["mortality_hospital"].astype(np.int8),
        period=columns["period"],
        anchored=~np.isnan(columns["anchor"]),
        start_s=start_s,
        length=np.minimum(decisions, max_steps).astype(np.int32),
        exit=np.where(decisions > max_steps, EXIT_TRUNCATED, exits).astype(np.int8),
    )


class Attrition:
    """Which stays are left after each rule, and how many.

    Attributes:
      rows: i64[n] rows of `Stays` that are left, ascending.
      table: (label, stays left) in order.
    """

    def __init__(self, source: object, stay_id: np.ndarray, before: Sequence[tuple[str, int]]) -> None:
        self.rows = np.arange(stay_id.size)
        self.table = [*before, ("stays in the event tables", int(stay_id.size))]
        self._source, self._stay_id = source, stay_id
        self._worst = (0, "")

    def keep(self, label: str, good: np.ndarray, why: Callable[[int], str]) -> None:
        """Drop the rows left where not `good`.

        Args:
          label: the rule, as the stays left satisfy it.
          good: bool[N] of all stays.
          why: what is wrong with one row, e.g. 'has 1 step'.

        Raises:
          InputError: nothing is left; it names the rule that removed most, with one of its stays.
        """
        removed = self.rows[~good[self.rows]]
        if removed.size > self._worst[0]:
            example = f"stay {self._stay_id[removed[0]]} {why(removed[0])}"
            self._worst = (removed.size, f"none: '{label}' removed {removed.size}, e.g. {example}")
        self.rows = self.rows[good[self.rows]]
        self.table.append((label, int(self.rows.size)))
        if self.rows.size == 0:
            raise InputError(self._source, field="stays", expected="at least one stay left", found=self._worst[1])
