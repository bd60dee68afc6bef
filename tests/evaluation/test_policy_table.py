"""The policy table: paired differences, what a stopped run keeps, and the command."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
from factories import fit_scaler, make_episodes

from sepsis_jax import checkpoints
from sepsis_jax.clinical.actions import AI_CLINICIAN_BINS
from sepsis_jax.data import store
from sepsis_jax.data.store import Manifest
from sepsis_jax.errors import InputError
from sepsis_jax.evaluation import policy_table
from sepsis_jax.evaluation.closed_loop import Played
from sepsis_jax.evaluation.policy_table import CLINICIANS, Result
from sepsis_jax.policies.planner import PlannerSettings

ROOT = Path(__file__).parents[2]


def result(death, seconds=60.0):
    death = np.asarray(death, np.float32)
    return Result(
        death, 15 * (1 - 2 * death), np.full(death.shape, 0.5), np.full(death.shape, 2.0), np.float64(seconds)
    )


def tabulate(results, subject_id):
    return policy_table.tabulate(results, {"few": PlannerSettings(samples=20)}, subject_id, draws=200, seed=0)


def table(**others):
    rng = np.random.default_rng(0)
    base = result(rng.random(400))
    return base, tabulate({CLINICIANS: base, **{name: make(base) for name, make in others.items()}}, np.arange(400))


def test_intervals_are_by_patient():
    """Stays of a patient that are all alike say no more than one of them; of one patient nothing is known."""
    each = np.random.default_rng(0).random(50)
    once = tabulate({CLINICIANS: result(each)}, np.arange(50))
    again = tabulate({CLINICIANS: result(np.repeat(each, 4))}, np.repeat(np.arange(50), 4))
    pd.testing.assert_frame_equal(once, again, rtol=1e-4)
    alone = tabulate({CLINICIANS: result(each)}, np.zeros(50, int)).iloc[0]
    assert alone["patients"] == 1 and np.isfinite(alone["death_90d"])
    assert np.isnan(alone[["death_90d_low", "death_90d_high", "value_low"]].astype(float)).all()


def test_a_policy_that_equals_the_clinicians_saves_exactly_nothing():
    _, found = table(same=lambda base: base)
    row = found.set_index("policy").loc["same"]
    assert row["saved"] == row["saved_low"] == row["saved_high"] == 0
    assert np.isnan(row["samples"])


def test_differences_are_paired_and_on_the_same_patients():
    def few(base):
        return result(base.death_90d[:100] - 0.01)

    base, found = table(few=few)
    row = found.set_index("policy").loc["few"]
    assert row["patients"] == 100 and row["samples"] == 20
    for name in ("saved", "saved_low", "saved_high"):  # constant by patient: no spread, though patients differ much
        np.testing.assert_allclose(row[name], 0.01, rtol=1e-3)
    np.testing.assert_allclose(row["death_90d"], base.death_90d[:100].mean() - 0.01, rtol=1e-5)
    spread = 1.96 * base.death_90d[:100].std() / 10
    np.testing.assert_allclose(row["death_90d_high"] - row["death_90d"], spread, rtol=0.2)


def test_table_for_people_and_for_programs():
    _, found = table(few=lambda base: result(base.death_90d[:100]))
    shown = policy_table.wide(found)
    assert shown.loc[CLINICIANS, "saved, points"] == "-" and shown.loc["few", "patients"] == "100"
    assert shown.loc["few", "min"] == 1
    flat = policy_table.flat(found)
    assert flat["few_saved"] == 0 and flat["few_patients"] == 100
    json.dumps({name: value for name, value in flat.items() if np.isfinite(value)}, allow_nan=False)


def played():
    history = dataclasses.make_dataclass("H", ("action", "length"))(
        np.array([[[1, 2], [3, 2]], [[4, 0], [0, 0]]], np.int8), np.array([2, 1])
    )
    return Played(np.array([0.1, 0.2]), np.array([1.0, 2.0]), np.array([0, 2]), history)


def test_finished_policies_are_kept(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return played()

    first = policy_table.kept_result(tmp_path, "a (b)", [1], compute)
    again = policy_table.kept_result(tmp_path, "a (b)", [1], compute)
    jax.tree.map(np.testing.assert_array_equal, dataclasses.asdict(first), dataclasses.asdict(again))
    assert len(calls) == 1
    np.testing.assert_array_equal(first.vasopressor, [2, 4])
    np.testing.assert_array_equal(first.fluid, [2, 0])
    policy_table.kept_result(tmp_path, "a (b)", [2], compute)  # depends on something else: not taken
    assert len(calls) == 2 and len(list(tmp_path.iterdir())) == 2


def test_a_policy_that_fails_keeps_nothing(tmp_path):
    def compute():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        policy_table.kept_result(tmp_path, "a", [1], compute)
    assert not list(tmp_path.iterdir())


def evaluate(*words):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        importlib.import_module("evaluate").main(["--what", "planner", *words])


SMALL = (
    *("--evaluation.fresh_patients", "6", "--evaluation.planner_patients", "3", "--cohort.patients", "40"),
    *("--clinician.updates", "20", "--planner.samples", "4", "--planner.horizon", "1", "--planner.block", "1024"),
)


@pytest.mark.slow
@pytest.mark.long
def test_the_command(tmp_path, capsys):
    out = tmp_path / "numbers.json"
    words = (*SMALL, "--run", str(tmp_path / "run"), "--checkpoint", str(checkpoints.CARRY), "--json", str(out))
    evaluate(*words)
    numbers = json.loads(out.read_text())
    assert numbers["clinicians_saved"] == 0 and numbers["clinicians_patients"] == 6
    assert numbers["planner_world_model_patients"] == 3 and numbers["planner_true_simulator_horizon"] == 1
    assert "planner, true simulator" in capsys.readouterr().out
    evaluate(*words)
    assert json.loads(out.read_text()) == numbers  # kept, wall times and all


def test_a_cohort_without_truth_is_refused(tmp_path):
    episodes = make_episodes(12, 5, seed=0)
    manifest = Manifest("events", "own", {}, AI_CLINICIAN_BINS, fit_scaler(episodes), ())
    store.save(tmp_path / "episodes", episodes, manifest)
    with pytest.raises(InputError, match="truth of a simulated cohort"):
        evaluate("--episodes", str(tmp_path / "episodes"))


def test_no_patients_for_the_planner_is_refused():
    with pytest.raises(InputError, match="planner_patients"):
        evaluate("--evaluation.planner_patients", "0")
