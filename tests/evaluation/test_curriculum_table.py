"""The ablation table: true values on common stays, paired differences, and shares of what was said and done."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
from toy import toy_simulator

from sepsis_jax.agent import journal, loop, transcripts
from sepsis_jax.agent.settings import AgentSettings
from sepsis_jax.agent.simulator import Truth
from sepsis_jax.clinical.actions import AI_CLINICIAN_BINS
from sepsis_jax.dynamics.patient.cohort import simulate_cohort
from sepsis_jax.errors import InputError
from sepsis_jax.evaluation import agents, contenders, curriculum
from sepsis_jax.evaluation.choosers import follow
from sepsis_jax.evaluation.closed_loop import play, true_stage
from sepsis_jax.policies.rules import Fixed

EPISODES, KNOWN = simulate_cohort(12, seed=5)
STAGE = true_stage(KNOWN, EPISODES, AI_CLINICIAN_BINS)


CLINICIANS = contenders.true_clinicians(KNOWN, AI_CLINICIAN_BINS).chances
LUCK = {"draws": 200, "seed": 0}


class Always:
    """Gives one action; every third answer was malformed before it came."""

    def __init__(self, action):
        self.action = action

    async def close(self):
        pass

    async def decide(self, case):
        case.usage.requests += 3
        case.usage.malformed["no call"] = case.usage.malformed.get("no call", 0) + 1
        case.usage.prompt_tokens, case.usage.completion_tokens = case.usage.prompt_tokens + 90, 0
        await case.prescribe(self.action)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Runs of two models that always give the same; the second failed at the last stay and was asked questions."""
    out = tmp_path_factory.mktemp("runs")
    simulator = toy_simulator(concurrency=12, truth=Truth(STAGE.world, STAGE.params, STAGE.seed))
    for name, action in (("nothing", (0, 0)), ("much", (1, 3))):
        settings = AgentSettings(split="all", stays=0, follow="truth", concurrency=12)
        cases = loop.run(EPISODES, range(12), simulator, AI_CLINICIAN_BINS, Always(action), settings)
        if name == "much":
            cases[-1]["failed"] = {"kind": "timeout", "detail": ""}
        (out / name).mkdir()
        transcripts.write(out / name / transcripts.FILE, cases)
        (out / name / journal.RUN).write_text(json.dumps({"agent": {"follow": "truth"}, "stays": EPISODES.digest()}))
    (out / "much.questions").mkdir()
    asked = [
        {"stay_id": int(stay), "answers": {"mortality": float(died), "vasopressor": 0.5}, "failed": None}
        for stay, died in zip(EPISODES.stay_id, EPISODES.mortality_hospital, strict=True)
    ]
    transcripts.write(out / "much.questions" / transcripts.FILE, asked)
    return out


@pytest.fixture(scope="module")
def found(folders):
    runs = {name: curriculum.Run.read(folders / name) for name in ("nothing", "much")}
    return curriculum.table(runs, EPISODES, STAGE, CLINICIANS, **LUCK)


def test_values_are_true_and_differences_paired(found):
    some = EPISODES.take(np.arange(11))
    nothing, much = (play(follow(Fixed(*action), None), some, STAGE) for action in ((0, 0), (1, 3)))
    known = play(CLINICIANS, some, STAGE)
    assert list(found.index) == ["clinicians", "nothing", "much"] and list(found["patients"]) == [11, 11, 11]
    for name in ("value", "death_90d"):
        true = [np.mean(getattr(one, name)) for one in (known, nothing, much)]
        np.testing.assert_allclose(found[name], true, rtol=1e-5)
    assert found.loc["nothing", "gained"] == pytest.approx((nothing.value - known.value).mean(), rel=1e-4)
    assert found.loc["nothing", "saved"] == pytest.approx((known.death_90d - nothing.death_90d).mean(), rel=1e-4)
    gained = much.value - nothing.value
    assert found.loc["much", "gained"] == pytest.approx(gained.mean(), rel=1e-4)
    assert np.isnan(found.loc["clinicians", "gained"])
    assert found.loc["much", "gained_low"] <= gained.mean() <= found.loc["much", "gained_high"]
    alone = found.loc["much", "value_high"] - found.loc["much", "value_low"]
    assert found.loc["much", "gained_high"] - found.loc["much", "gained_low"] < alone


def test_shares_are_those_of_what_was_said(found):
    models = found.loc[["nothing", "much"]]
    np.testing.assert_allclose(models["valid"], 2 / 3)
    assert models.loc["nothing", "tokens"] == 90 > models.loc["much", "tokens"] > 89  # what failed was tried, too
    np.testing.assert_allclose(models["failed"], [0, 1 / 12])
    assert (models[["adherence", "unsafe"]].to_numpy() <= 1).all()
    assert found.loc["much", "mortality AUROC"] == 1 and found.loc["much", "vasopressor AUROC"] == 0.5
    assert np.isnan(found.loc["nothing", "mortality AUROC"])


def test_who_finishes_nothing_is_judged_by_what_it_said_only(folders, found):
    runs = {name: curriculum.Run.read(folders / name) for name in ("nothing", "much")}
    silent = [one | {"failed": {"kind": "malformed answers", "detail": ""}} for one in runs["nothing"].cases.values()]
    lost = curriculum.Run({one["stay_id"]: one for one in silent}, [])
    three = {"nothing": runs["nothing"], "lost": lost, "much": runs["much"]}
    table = curriculum.table(three, EPISODES, STAGE, CLINICIANS, **LUCK)
    assert table.loc["lost", "failed"] == 1 and table.loc["lost", "patients"] == 0
    assert np.isnan(table.loc["lost", "value"]) and table.loc["lost", "valid"] == pytest.approx(2 / 3)
    kept = table.drop("lost")
    np.testing.assert_array_equal(kept.to_numpy(float), found.to_numpy(float))


def test_who_could_not_answer_leaves_the_table_whole(folders, found):
    """A base model says neither yes nor no; its row stays, without these columns."""
    much = curriculum.Run.read(folders / "much")
    silent = dataclasses.replace(much, answers=[one | {"failed": {"kind": "", "detail": ""}} for one in much.answers])
    table = curriculum.table({"much": silent}, EPISODES, STAGE, CLINICIANS, **LUCK)
    assert np.isnan(table.loc["much", "mortality AUROC"]) and table.loc["much", "value"] == found.loc["much", "value"]


def test_answers_of_another_model_or_split_are_refused(folders, tmp_path):
    for name in ("much", "much.questions"):
        shutil.copytree(folders / name, tmp_path / name)
    told = json.loads((folders / "much" / journal.RUN).read_text())
    side = tmp_path / "much.questions" / journal.RUN
    side.write_text(json.dumps(told))
    agents.check_cohort(tmp_path / "much", EPISODES)
    unlike = ({"served": "another"}, {"llm": {"model": "another"}}, {"agent": told["agent"] | {"backend": "planner"}})
    for changed, words in (*((one, "as in .*another") for one in unlike), ({"stays": "others"}, "this cohort")):
        side.write_text(json.dumps(told | changed))
        with pytest.raises(InputError, match=words):
            agents.check_cohort(tmp_path / "much", EPISODES)


def test_it_is_shown_for_people(found):
    shown = curriculum.wide(found)
    assert list(shown.columns) == ["clinicians", "nothing", "much"]
    assert shown.loc["valid calls, %", "much"] == "66.7 [66.7, 66.7]" and shown.loc["failed", "much"] == "8.3%"
    assert list(shown.loc[["failed", "gained", "valid calls, %"], "clinicians"]) == ["-"] * 3


def test_runs_of_other_worlds_and_of_others_are_refused(folders):
    kept = (folders / "nothing" / journal.RUN).read_text()
    (folders / "nothing" / journal.RUN).write_text(json.dumps({"agent": {"follow": "model"}, "stays": ""}))
    with pytest.raises(InputError, match="patient simulator"):
        curriculum.Run.read(folders / "nothing")
    (folders / "nothing" / journal.RUN).write_text(kept)
    run = curriculum.Run.read(folders / "nothing")
    others = EPISODES.replace(stay_id=np.asarray(EPISODES.stay_id) + 1000)
    with pytest.raises(InputError, match="all have finished"):
        curriculum.table({"nothing": run}, others, STAGE, CLINICIANS, draws=10, seed=0)
