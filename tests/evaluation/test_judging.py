"""The policy table: what it judges, what it keeps, and that it says what the estimators say."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
from factories import fit_scaler, make_episodes

from sepsis_jax import checkpoints, pipeline
from sepsis_jax.clinical.actions import AI_CLINICIAN_BINS, ALL_ACTIONS, encode
from sepsis_jax.clinical.reward import OUTCOME_ONLY
from sepsis_jax.config import Config
from sepsis_jax.errors import InputError
from sepsis_jax.evaluation import off_policy, policies, policy_report, ranking, roster
from sepsis_jax.evaluation.contenders import Contender
from sepsis_jax.evaluation.keep import kept
from sepsis_jax.evaluation.policies import Inquiry
from sepsis_jax.evaluation.policy_settings import NAMES, PolicySettings
from sepsis_jax.evaluation.policy_table import CLINICIANS, Result
from sepsis_jax.ope import logged
from sepsis_jax.ope.diagnostics import Diagnosis
from sepsis_jax.ope.fqe import FQESettings
from sepsis_jax.ope.table import Estimate, evaluate_policies
from sepsis_jax.policies import clinician
from sepsis_jax.policies.clinician import ClinicianSettings
from sepsis_jax.policies.offline_rl.training import OfflineSettings
from sepsis_jax.policies.rules import Fixed
from sepsis_jax.simulation.policy import probs_on_record

ROOT = Path(__file__).parents[2]
EPISODES = make_episodes(90, 5, seed=6, known_propensity=True)
TESTED, TRAIN = EPISODES.subset("test"), EPISODES.subset("train")
SCALER = fit_scaler(EPISODES)
FQE = FQESettings(hidden=8, updates=30, batch_size=32)


def treated(some):
    return np.asarray(some.propensity)


def flat_policy(some):
    return some.valid[..., None] * np.full(25, 0.04, np.float32)


def inquiry(folder, softening=0.0, **everyone):
    nobody = Contender(lambda decision: None, treated)
    return Inquiry(
        everyone=everyone or {"flat": Contender(lambda decision: None, flat_policy)},
        clinicians=nobody,
        estimate=nobody,
        tested=TESTED,
        fitted=TRAIN,
        scaler=SCALER,
        bins=AI_CLINICIAN_BINS,
        reward=OUTCOME_ONLY,
        settings=PolicySettings(softening=softening, clip=2.0),
        fqe=FQE,
        draws=200,
        seed=0,
        folder=folder,
        depends=["test"],
    )


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    return policies.tabulate(inquiry(tmp_path_factory.mktemp("kept")), by=("sex",))


def test_values_are_those_of_the_estimators(findings):
    probs = {"flat": flat_policy(TESTED)}
    expected = evaluate_policies(TESTED, probs, treated(TESTED), OUTCOME_ONLY, ["wis", "wpdis"], draws=200, seed=0)
    clipped = evaluate_policies(TESTED, probs, treated(TESTED), OUTCOME_ONLY, ["wis"], draws=200, clip=2.0)
    rows = findings.values[(findings.values["by"] == "all") & (findings.values["policy"] == "flat")]
    rows = rows.set_index("estimator")
    for name in ("WIS", "WPDIS"):
        one = expected.set_index("estimator").loc[name.lower()]
        for key in ("value", "low", "high", "ess", "max_share"):
            assert rows.loc[name, key] == pytest.approx(one[key], rel=1e-4), (name, key)
        assert rows.loc[name, "reliable"] == one["reliable"]
    assert rows.loc["WIS", "clipped"] == pytest.approx(clipped["value"].iloc[0], rel=1e-4)
    own = findings.values[(findings.values["by"] == "all") & (findings.values["policy"] == CLINICIANS)]
    earned = 15 * (1 - 2 * np.asarray(TESTED.mortality_90d).mean())
    np.testing.assert_allclose(own.set_index("estimator").loc[["WIS", "WPDIS"], "value"], earned, rtol=1e-4)


def test_groups_share_out_the_stays(findings):
    rows = findings.values[(findings.values["policy"] == "flat") & (findings.values["estimator"] == "WIS")]
    assert list(rows["level"]) == ["all", "female", "male"]
    assert rows["stays"].iloc[0] == TESTED.num_stays == rows["stays"].iloc[1:].sum()


def test_habits_by_hand(findings):
    habits = findings.habits.set_index("policy")
    action, valid = np.asarray(encode(TESTED.action)), TESTED.valid
    own = [treated(TESTED)[b, t, action[b, t]] for b, t in np.argwhere(valid)]
    assert habits.loc[CLINICIANS, "agreement"] == pytest.approx(np.mean(own), rel=1e-5)
    assert habits.loc["flat", "agreement"] == pytest.approx(0.04)
    rare = [(treated(TESTED)[b, t] < 0.01).sum() * 0.04 for b, t in np.argwhere(valid)]
    assert habits.loc["flat", "unsupported"] == pytest.approx(np.mean(rare), rel=1e-5)
    fqe = findings.values[(findings.values["policy"] == "flat") & (findings.values["estimator"] == "FQE")].iloc[0]
    assert not fqe["reliable"] and fqe["reason"] == f"{TESTED.num_stays} patients, below 50"


@pytest.mark.parametrize(
    ("stays", "value", "strange", "reason"),
    [
        (60, 15.0, 0.1, ""),
        (49, 15.0, 0.1, "49 patients"),
        (60, 15.1, 0.1, "outside of all returns"),
        (60, -15.1, 0.1, "outside of all returns"),
        (60, 1.0, 0.11, "11 % of its actions"),
    ],
)
def test_when_fitted_values_are_not_believed(stays, value, strange, reason):
    many = EPISODES.take(slice(60))
    learned = logged.log(many.take(slice(stays)), treated(many)[:stays], OUTCOME_ONLY)
    diagnosis = Diagnosis(60, 60, 60.0, 0.02, np.zeros(1), np.zeros(14), True, "")
    one = Estimate(value, 1.0, 0.0, 1.0, diagnosis)
    reliable, why = off_policy._fqe_verdict(one, strange, off_policy._basis(learned))
    assert reliable == (not reason) and why.startswith(reason)


def test_finished_decisions_are_not_taken_again(tmp_path):
    first = inquiry(tmp_path).decisions()

    def never(some):
        raise AssertionError

    again = inquiry(tmp_path, flat=Contender(lambda decision: None, never)).decisions()
    np.testing.assert_array_equal(first["flat"].tested, again["flat"].tested)
    assert kept(tmp_path, "x", [1], lambda: {"a": [1.0]})["a"] == [1.0]
    (tmp_path / next(path.name for path in tmp_path.iterdir() if path.name.startswith("x-"))).write_bytes(b"no")
    with pytest.raises(InputError, match="remove it"):
        kept(tmp_path, "x", [1], lambda: {"a": [1.0]})


def test_softening_judges_the_mixture(tmp_path):
    evidence, judged = inquiry(tmp_path, softening=0.25).softened(inquiry(tmp_path).decisions())
    expected = 0.75 * flat_policy(TESTED) + 0.25 * treated(TESTED)
    np.testing.assert_allclose(judged["flat"].tested, expected, rtol=1e-5)
    np.testing.assert_allclose(judged[CLINICIANS].tested, treated(TESTED), rtol=1e-5)
    pure = inquiry(tmp_path).decisions()
    sweep = off_policy.softening_sweep(evidence, pure, (0.0, 0.25, 1.0), draws=200, seed=0)
    ess = sweep[sweep["policy"] == "flat"].set_index("softening")["ess"]
    assert ess[0.0] < ess[0.25] < ess[1.0] == pytest.approx(TESTED.num_stays, rel=1e-4)


def test_tables_and_files(findings, tmp_path):
    found = policy_report.tables(findings)
    assert "Values, sex: male" in " ".join(found)
    treating = found.pop(policy_report.TREATING)
    number = treating["number"].str.replace(",", "").astype(int).sum()
    assert number == 25 * TESTED.valid.sum() and list(treating.columns) == ["predicted", "observed", "number"]
    assert all(list(table.index)[:2] == [CLINICIANS, "flat"] for table in found.values())
    written = policy_report.write(findings, tmp_path / "out", "Research software.")
    assert {path.name for path in written} == {
        "policies.csv",
        "policies.md",
        "policies.tex",
        "values.png",
        "weights.png",
    }
    back = pd.read_csv(written[0])
    np.testing.assert_allclose(back["value"], findings.values["value"])
    text = (tmp_path / "out" / "policies.md").read_text()
    assert "| flat |" in text and "Research software." in text and policy_report.NOTE in text
    latex = (tmp_path / "out" / "policies.tex").read_text()
    assert r"\begin{tabular}" in latex and r"\caption{Values (95 \% by patient)}" in latex
    assert not re.search(r"caption.*[^\\][%_&#]", latex)
    flat = policy_report.flat(findings)
    assert flat["flat_wis_value"] == pytest.approx(back["value"][5]) and "flat_wis_sex_male_value" in flat
    habits, rules = findings.habits.set_index("policy"), findings.rules.set_index(["policy", "rule"])
    assert flat["flat_agreement"] == pytest.approx(habits.loc["flat", "agreement"])
    assert flat["flat_guideline_rate_all"] == pytest.approx(rules.loc[("flat", "guideline"), "rate_all"])
    sweep = findings.sweep.set_index(["policy", "softening"])
    assert flat["flat_wis_softened_0.25_ess"] == pytest.approx(sweep.loc[("flat", 0.25), "ess"])
    json.dumps(flat, allow_nan=False)


def result(death, value):
    some = np.asarray(death, np.float32)
    return Result(some, np.asarray(value, np.float32), some, some, np.float64(1))


def test_errors_are_estimate_minus_truth(tmp_path, monkeypatch):
    number = TESTED.num_stays
    truth = {CLINICIANS: result(np.full(number, 0.3), np.arange(number)), "flat": result([0.1, 0.2], [5.0, 4.0])}
    monkeypatch.setattr(Inquiry, "played", lambda *_: truth)
    monkeypatch.setattr(policies, "true_clinicians", lambda *_: None)
    found = policies.tabulate(inquiry(tmp_path), truth=(None, None))
    real = policies.true_values(found.outcomes)
    assert real[CLINICIANS] == pytest.approx((number - 1) / 2)
    assert real["flat"] == pytest.approx((number - 1) / 2 + (5 - 0 + 4 - 1) / 2)  # paired on its own two patients
    rows = found.values[(found.values["by"] == "all") & (found.values["policy"] == "flat")]
    np.testing.assert_allclose(rows["error"], rows["value"] - real["flat"])
    table = policy_report.outcome_table(found)
    assert table.loc["flat", "true, %"].startswith("15.00") and table.loc["flat", "saved, true"].startswith("15.00")


def test_who_was_not_played_has_estimates_alone(tmp_path, monkeypatch):
    """As a language model that was asked and never treated."""
    truth = {CLINICIANS: result(np.full(TESTED.num_stays, 0.3), np.arange(TESTED.num_stays))}
    monkeypatch.setattr(Inquiry, "played", lambda *_: truth)
    monkeypatch.setattr(policies, "true_clinicians", lambda *_: None)
    found = policies.tabulate(inquiry(tmp_path / "run"), truth=(None, None))
    assert all(path.stat().st_size for path in policy_report.write(found, tmp_path / "out", ""))
    assert found.values[found.values["policy"] == "flat"]["error"].isna().all()


def test_the_roster_holds_every_name():
    settings = OfflineSettings(hidden=8, updates=4, batch_size=16, seeds=2, reports=2)
    notes = []
    everyone = roster.naive(TRAIN) | roster.learned(
        settings, TRAIN, SCALER, OUTCOME_ONLY, 0, lambda *note: notes.append(note)
    )
    assert {*everyone, "planner"} == set(NAMES)
    done = np.asarray(encode(TRAIN.action[TRAIN.valid]))
    most = np.bincount(done, minlength=25).argmax()
    frequent = everyone["most frequent"].on_record(TESTED)
    assert (frequent[TESTED.valid].argmax(axis=-1) == most).all()
    np.testing.assert_allclose(everyone["random"].on_record(TESTED)[TESTED.valid], 0.04)
    nothing = probs_on_record(Fixed(), None, TESTED)
    np.testing.assert_array_equal(everyone["no treatment"].on_record(TESTED), nothing)
    assert not notes  # nobody learns before they are asked
    np.testing.assert_allclose(everyone["IQL"].on_record(TESTED).sum(-1), TESTED.valid, rtol=1e-4)
    assert [note[:2] for note in notes] == [("IQL", 2), ("IQL", 4)]
    assert tuple(ALL_ACTIONS[most]) == (most // 5, most % 5)


@pytest.mark.parametrize("kind", ["auto", "known", "mlp", "knn"])
def test_who_treated(kind):
    settings, own = PolicySettings(behaviour=kind), ClinicianSettings(updates=20, batch_size=32)
    fitted = clinician.fit(own, EPISODES, SCALER, jax.random.key(0))
    clinicians, network = policies.treating(settings, own, EPISODES, SCALER, fitted)
    probs = clinicians.on_record(TESTED)
    known = np.array_equal(probs, treated(TESTED))
    assert known == (kind in ("auto", "known"))
    assert np.array_equal(probs, network.on_record(TESTED)) == (kind == "mlp")
    if kind == "known":
        with pytest.raises(InputError, match="propensities"):
            policies.treating(settings, own, EPISODES.replace(propensity=None), SCALER, fitted)


def test_unknown_outcomes_are_left_out_where_they_are_paid():
    unknown = TESTED.replace(mortality_90d=np.where(np.arange(TESTED.num_stays) < 3, -1, 0).astype(np.int8))
    assert policies.known_outcomes(unknown, OUTCOME_ONLY).num_stays == TESTED.num_stays - 3
    free = dataclasses.replace(OUTCOME_ONLY, outcome=0.0)
    assert policies.known_outcomes(unknown, free).num_stays == TESTED.num_stays
    with pytest.raises(InputError, match="known outcomes"):
        policies.known_outcomes(unknown.take(slice(3)), OUTCOME_ONLY)


def judged(values, reliable=(True, True, True, True)):
    rows = {
        "propensities": "known",
        "policy": list("abcd"),
        "estimator": "FQE",
        "value": values,
        "low": np.asarray(values) - 1,
        "high": np.asarray(values) + 1,
        "reliable": list(reliable),
        "true": [1.0, 2.0, 3.0, 9.0],
        "death_90d": [0.30, 0.29, 0.28, 0.10],
    }
    return pd.DataFrame(rows)


@pytest.mark.parametrize("known", [True, False])
def test_who_is_ranked_by_whose_propensities(tmp_path, monkeypatch, known):
    number = TESTED.num_stays
    truth = {CLINICIANS: result(np.full(number, 0.3), np.zeros(number)), "flat": result([0.1], [2.0])}
    monkeypatch.setattr(Inquiry, "played", lambda *_: truth)
    asked = inquiry(tmp_path)
    if not known:
        asked = dataclasses.replace(
            asked, tested=TESTED.replace(propensity=None), clinicians=Contender(None, flat_policy)
        )
    judged = ranking.judge(asked, None, None, Contender(None, flat_policy))
    assert set(judged["propensities"]) == ({"known", "estimated"} if known else {"estimated"})
    one = judged[(judged["estimator"] == "WIS") & (judged["policy"] == "flat")]
    assert (one["true"] == 2.0).all() and one["death_90d"].to_numpy() == pytest.approx(0.1)
    # Judged with the estimate, which is flat too, the flat policy is the one that treated.
    assert one.set_index("propensities").loc["estimated", "ess"] == pytest.approx(number)


def test_kendall_by_hand():
    """One of six pairs is turned round: tau = (5 - 1) / 6; among the three close ones it is (2 - 1) / 3."""
    found = ranking.scores(judged([1.5, 1.2, 3.5, 9.0]))
    assert found["tau_known_fqe"] == pytest.approx(4 / 6) == found["tau_known_fqe_reliable"]
    assert found["tau_known_fqe_close"] == pytest.approx(1 / 3)
    assert found["error_known_fqe"] == pytest.approx((0.5 + 0.8 + 0.5 + 0) / 4)
    assert found["covered_known_fqe"] == 1 and found["reliable_known_fqe"] == 4
    few = ranking.scores(judged([1, 2, 3, 4], (True, True, True, False)))
    assert np.isnan(few["tau_known_fqe_reliable"]) and few["tau_known_fqe"] == 1
    table = ranking.summary({"1": ranking.scores(judged([1, 2, 3, 4])), "2": ranking.scores(judged([4, 3, 2, 1]))})
    assert table.loc["FQE, known", "tau"] == "0.00 (-1.00 to 1.00)"
    some = ranking.summary({"1": few, "2": found})
    assert some.loc["FQE, known", "tau, reliable ones"] == "0.67 (0.67 to 0.67), 1 of 2"
    assert ranking.summary({"1": few}).loc["FQE, known", "tau, reliable ones"] == "-"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"names": ("nobody",)}, "names"),
        ({"names": ("BC", "BC")}, "each policy once"),
        ({"softening": 1.5}, "softening"),
        ({"clip": 0.0}, "clip"),
        ({"guideline_penalty": -1.0}, "guideline_penalty"),
    ],
)
def test_bad_settings(settings, words):
    with pytest.raises(InputError, match=words):
        PolicySettings(**settings)


def test_no_patient_teaches_policies_and_values():
    subject = np.repeat(np.arange(20), 3)[np.random.default_rng(0).permutation(60)]
    some = make_episodes(60, 3, seed=2).replace(subject_id=subject)
    learned, rest = pipeline.teaching(some, 10)
    assert set(learned.subject_id).isdisjoint(rest.subject_id) and learned.num_stays + rest.num_stays == 60
    assert set(learned.subject_id) == set(subject[:10])
    assert pipeline.teaching(some, 0) == (some, some)
    with pytest.raises(InputError, match="other patients are left"):
        pipeline.teaching(some, 59)


def test_a_copy_is_no_other_world_model(tmp_path):
    shutil.copytree(checkpoints.CARRY, tmp_path / "copy")
    settings = Config(policies=PolicySettings(held_out=tmp_path / "copy"))
    with pytest.raises(InputError, match="another world model"):
        pipeline.load_held_out(settings, checkpoints.CARRY, None, "the cohort")


def evaluate(*words):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        importlib.import_module("evaluate").main([*words])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--what", "policies", "--folds", "3"), "--what policies"),
        (("--what", "policies", "--by", "shoes"), "--by"),
        (("--what", "policies", "--evaluation.split", "train"), "expected test, the only stays that teach neither"),
        (("--what", "ranking", "--cohort.source", "mimic"), "simulator"),
        (("--what", "ranking", "--evaluation.fresh_patients", "0"), "fresh_patients"),
        (("--what", "ranking", "--evaluation.fresh_patients", "9", "--by", "sex"), "--what ranking"),
    ],
)
def test_flags_that_make_no_sense(words, message):
    with pytest.raises(InputError, match=message):
        evaluate(*words)


@pytest.mark.slow
@pytest.mark.long
def test_the_commands(tmp_path):
    """Both, at the smallest size that runs; the second time nothing is learned again."""
    shared = (
        *("--config", str(ROOT / "configs/policies.yaml"), "--run", str(tmp_path / "run")),
        *("--cohort.patients", "120", "--evaluation.fresh_patients", "60", "--policies.fit_stays", "20"),
        *("--policies.learn_stays", "40", "--policies.planner_stays", "8"),
        *("--policies.played", "4", "--evaluation.draws", "100", "--clinician.updates", "20", "--fqe.updates", "20"),
        *("--offline_rl.updates", "4", "--offline_rl.reports", "1", "--offline_rl.hidden", "8"),
        *("--offline_rl.seeds", "2", "--planner.horizon", "1", "--evaluation.cohorts", "1"),
    )
    few = ("--policies.names", '["no treatment","BC","planner"]')
    out = tmp_path / "numbers.json"
    evaluate("--what", "policies", *shared, *few, "--json", str(out))
    numbers = json.loads(out.read_text())
    assert numbers["clinicians_true_saved"] == 0 and numbers["planner_true_patients"] == 4
    assert np.isfinite(numbers["no_treatment_fqe_error"])
    evaluate("--what", "policies", *shared, *few, "--json", str(out))
    assert json.loads(out.read_text()) == numbers
    evaluate("--what", "ranking", *shared, "--json", str(out))
    assert -1 <= json.loads(out.read_text())["cohort1_tau_known_fqe"] <= 1
