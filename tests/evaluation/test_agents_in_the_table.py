"""Language models in the policy table: their answers come from files, and are those of the stays that are judged."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from factories import fit_scaler
from toy import toy_simulator

from sepsis_jax.agent import journal, loop, probabilities, transcripts
from sepsis_jax.agent.settings import AgentSettings
from sepsis_jax.agent.simulator import Truth
from sepsis_jax.clinical.actions import AI_CLINICIAN_BINS, ALL_ACTIONS
from sepsis_jax.dynamics.patient.cohort import simulate_cohort
from sepsis_jax.errors import InputError
from sepsis_jax.evaluation import agents, roster
from sepsis_jax.evaluation.choosers import follow
from sepsis_jax.evaluation.closed_loop import play, true_stage
from sepsis_jax.evaluation.contenders import TRUTH
from sepsis_jax.evaluation.policy_settings import PolicySettings
from sepsis_jax.policies.offline_rl.training import OfflineSettings
from sepsis_jax.policies.rules import Guideline
from sepsis_jax.simulation.policy import probs_at, probs_on_record

EPISODES, KNOWN = simulate_cohort(12, seed=5)
STAGE = true_stage(KNOWN, EPISODES, AI_CLINICIAN_BINS)
RULE = Guideline()


class FollowsTheRule:
    async def close(self):
        pass

    async def decide(self, case):
        history = case.history
        batch = type(history)(**{name: np.asarray(leaf)[None] for name, leaf in vars(history).items()})
        action = ALL_ACTIONS[np.asarray(probs_at(RULE, None, batch))[0].argmax()]
        await case.prescribe((int(action[0]), int(action[1])))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What agent_loop.py would leave for a model that follows the guideline; it failed at the last stay."""
    out = tmp_path_factory.mktemp("run") / "rule"
    out.mkdir()
    simulator = toy_simulator(concurrency=12, truth=Truth(STAGE.world, STAGE.params, STAGE.seed))
    settings = AgentSettings(split="all", stays=0, follow="truth", concurrency=12)
    cases = loop.run(EPISODES, range(12), simulator, AI_CLINICIAN_BINS, FollowsTheRule(), settings)
    cases[-1]["failed"] = {"kind": "timeout", "detail": ""}
    transcripts.write(out / transcripts.FILE, cases)
    (out / journal.RUN).write_text(json.dumps({"agent": {"follow": "truth"}, "stays": EPISODES.digest()}))
    probs = probs_on_record(RULE, None, EPISODES)
    stays = [
        {
            "stay_id": int(EPISODES.stay_id[row]),
            "probs": probs[row, : EPISODES.length[row]].tolist(),
            "se": np.zeros((EPISODES.length[row], 25)).tolist(),
            "dialogues": [4] * int(EPISODES.length[row]),
            "failed": None,
        }
        for row in reversed(range(12))
    ]
    probabilities.folder_of(out).mkdir()
    probabilities.write(probabilities.folder_of(out) / probabilities.FILE, stays, EPISODES.obs.shape[1])
    return out


def test_a_run_over_other_patients_is_refused(folder):
    agents.check_cohort(folder, EPISODES)
    others = EPISODES.replace(obs=np.asarray(EPISODES.obs) + 1)
    for some in (others, EPISODES.take(slice(11))):
        with pytest.raises(InputError, match="this cohort"):
            agents.check_cohort(folder, some)


def test_its_true_course_is_played_again(folder):
    answers = agents.read(folder)
    some = agents.judged(EPISODES, [answers])
    assert some.num_stays == 11
    np.testing.assert_allclose(answers.on_record(some), probs_on_record(RULE, None, some), atol=1e-6)
    one = agents.contender(answers, lambda others: np.zeros(0))
    assert one.stages == (TRUTH,)
    again, itself = play(one.chances, some, STAGE), play(follow(RULE, None), some, STAGE)
    np.testing.assert_array_equal(again.history.action, itself.history.action)
    np.testing.assert_array_equal(again.value, itself.value)
    np.testing.assert_array_equal(again.death_90d, itself.death_90d)


def test_a_run_along_the_record_is_not_played(folder):
    run = folder / journal.RUN
    kept = run.read_text()
    run.write_text(json.dumps({"agent": {"follow": "model"}, "stays": ""}))
    answers = agents.read(folder)
    run.write_text(kept)
    assert answers.given is None and agents.judged(EPISODES, [answers]).num_stays == 12
    assert agents.contender(answers, lambda others: np.zeros(0)).stages == ()
    assert answers.digest != agents.read(folder).digest


def test_answers_about_others_are_refused(folder):
    answers = agents.read(folder)
    others = EPISODES.replace(stay_id=np.asarray(EPISODES.stay_id) + 1000)
    with pytest.raises(InputError, match="stays in common"):
        agents.judged(others, [answers])
    with pytest.raises(InputError, match="stays that are judged"):
        answers.on_record(others)
    short = dataclasses.replace(answers, probs=answers.probs * (np.arange(answers.probs.shape[1]) < 1)[:, None])
    with pytest.raises(InputError, match="every decision"):
        short.on_record(EPISODES)
    with pytest.raises(InputError, match="--probabilities"):
        agents.read(folder.with_name("nobody"))
    with pytest.raises(InputError, match="different names"):
        PolicySettings(agents=(folder, folder))
    for name in ("BC", "clinicians", "guideline_rule", "clinicians raw doses"):
        with pytest.raises(InputError, match="different names"):
            PolicySettings(agents=(folder.with_name(name),))


def test_who_imitates_does_much_the_same(folder):
    settings = OfflineSettings(updates=400, seeds=1)
    probs = agents.read(folder).on_record(EPISODES)
    found = roster.imitating(probs, EPISODES, settings, fit_scaler(EPISODES), 0)(EPISODES)
    same = (found * probs).sum(-1)[np.asarray(EPISODES.valid)]
    assert same.mean() > 0.6
