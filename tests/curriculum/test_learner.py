"""The model in training decides as behind a server, its words alone are its own, and rewards compare like with like."""

from __future__ import annotations

import asyncio
import dataclasses
import json

import jax
import numpy as np
import pytest
from factories import make_episodes
from toy import toy_params, toy_simulator, toy_world

from sepsis_jax.agent import loop
from sepsis_jax.agent.backends import Failed, PlannerBackend
from sepsis_jax.agent.case import Case
from sepsis_jax.agent.prompting import package_prompts
from sepsis_jax.agent.settings import AgentSettings, LLMSettings
from sepsis_jax.agent.simulator import Batcher
from sepsis_jax.clinical import sofa
from sepsis_jax.clinical.actions import AI_CLINICIAN_BINS
from sepsis_jax.clinical.features import INDEX, NAMES
from sepsis_jax.curriculum import rewards
from sepsis_jax.curriculum.learner import Learner
from sepsis_jax.curriculum.settings import RLSettings
from sepsis_jax.dynamics.protocol import history_at
from sepsis_jax.policies.planner import PlannerSettings, keeps_guideline

EPISODES = make_episodes(6, 5, seed=3)
SIMULATOR = toy_simulator()
MODEL = rewards.Model(toy_world(), toy_params(), None)
SETTINGS = LLMSettings(rationale=False, max_tokens=400, malformed=1)


class Characters:
    """A tokenizer of characters, with a chat template that only ever appends."""

    eos_token_id = 1

    def apply_chat_template(self, messages, tools=None, add_generation_prompt=False, **kept):
        tokens = [ord(c) for c in json.dumps(tools)] if tools else []
        for message in messages:
            calls = "".join(f"<tool_call>{json.dumps(one)}</tool_call>" for one in message.get("tool_calls") or [])
            tokens += [ord(c) for c in f"|{message['role']}:{message['content']}{calls}"] + [1, ord("\n")]
        return tokens + ([ord(c) for c in "|assistant:"] if add_generation_prompt else [])

    def decode(self, tokens, skip_special_tokens=False):
        return "".join(chr(token) for token in tokens)


def call(name, **arguments):
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


SIMULATES = call("simulation", actions=["[1,2]", "[0,0]"])
PRESCRIBES = call("prescription", vasopressor=1, iv_fluid=2)


def converse(*answers, ended=True, most=100_000):
    """(case, call or failure, learner, what it was shown) of one dialogue with these answers."""
    shown, left = [], list(answers)

    def generate(texts):
        shown.extend(texts)
        return [[ord(c) for c in left.pop(0)] + ([1] if ended else []) for _ in texts]

    batched = Batcher(generate, 16)
    learner = Learner(
        SETTINGS, package_prompts(), samples=16, tokenizer=Characters(), generate=batched, most_tokens=most
    )
    case = Case(EPISODES, 0, SIMULATOR, AI_CLINICIAN_BINS, "model", at=1)
    case.observe()

    async def talk():
        try:
            found, _ = await learner.converse(case)
            return found
        except Failed as error:
            return error

    return case, asyncio.run(talk()), learner, shown


def test_its_words_are_its_own_and_what_it_was_told_is_not():
    case, found, learner, shown = converse("Let me see. " + SIMULATES, PRESCRIBES)
    assert found.action == (1, 2) and case.usage.requests == 2 and case.usage.malformed == {}
    said = learner.take(case)
    own = "".join(chr(token) for token, mine in zip(said.tokens, said.own, strict=True) if mine)
    assert own == f"Let me see. {SIMULATES}\x01{PRESCRIBES}\x01"
    told = "".join(chr(token) for token, mine in zip(said.tokens, said.own, strict=True) if not mine)
    assert "|tool:" in told and "[1,2]: in 4 h" in told and "prescription" not in told
    assert shown[0] == said.prompt and shown[1] == said.prompt + said.tokens[: len(shown[1]) - len(said.prompt)]
    assert [message["role"] for message in case.messages[-3:]] == ["assistant", "tool", "assistant"]


def test_malformed_answers_are_told_so_and_fail_in_the_end():
    case, found, learner, _ = converse("well", PRESCRIBES)
    assert found.action == (1, 2) and case.usage.malformed == {"no call": 1}
    assert "Not understood" in "".join(chr(token) for token in learner.take(case).tokens)
    case, found, _, _ = converse("well", call("prescription", vasopressor=9, iv_fluid=0))
    assert found.kind == "malformed answers" and sum(case.usage.malformed.values()) == 2


def test_answers_that_do_not_end_are_cut_off():
    case, found, learner, _ = converse("well and", "so on", ended=False)
    assert found.kind == "malformed answers" and set(case.usage.malformed) == {"cut off"}
    said = learner.take(case)
    assert 1 in said.tokens and all(not mine for token, mine in zip(said.tokens, said.own, strict=True) if token == 1)


def test_a_dialogue_that_outgrows_the_model_fails():
    _, found, _, shown = converse(PRESCRIBES, most=500)
    assert found.kind == "context overflow" and not shown


SOME = RLSettings(samples=32, horizon=2, caution=0.5, guideline=2.0, unfinished=4.0)


def values(**changes):
    settings = dataclasses.replace(SOME, **changes)
    rows, steps = np.array([0, 0, 1]), np.array([0, 1, 0])
    return rewards.of_decisions(MODEL, EPISODES, rows, steps, settings, rewards.luck_of(0, 0))


def test_values_of_decisions():
    found = values()
    assert found.shape == (3, 25) and (found >= -4.0).all() and np.array_equal(found, values())


def test_fluid_that_lowers_lactate_is_worth_more():
    levels = values(caution=0.0, guideline=0.0, unfinished=1000.0).reshape(3, 5, 5).mean(axis=(0, 1))
    assert (np.diff(levels) > 0).all()


def test_who_breaks_a_rule_is_charged():
    rows, steps = np.array([0, 0, 1]), np.array([0, 1, 0])
    broken = ~keeps_guideline(history_at(EPISODES, rows, steps))
    paid, charged = (values(caution=0.0, guideline=charge, unfinished=1000.0) for charge in (0.0, 2.0))
    usual = np.argwhere(paid == 0)  # a value over the usual action's
    assert len(usual) == 3 and broken.any() and not broken.all()
    less = 2.0 * (broken - broken[tuple(usual.T)][:, None].astype(float))
    np.testing.assert_allclose(paid - charged, less, atol=1e-5)


def test_what_clinicians_hardly_do_is_worth_less():
    bold, careful = (values(caution=caution, guideline=0.0, unfinished=1000.0) for caution in (0.0, 1.0))
    assert (careful <= bold + 1e-6).all()  # against the usual action, which pays least for caution
    assert (careful < bold - 10).any()  # the rule never does it


def test_who_decides_beside_it_changes_no_value():
    alone = rewards.of_decisions(MODEL, EPISODES, np.array([0]), np.array([1]), SOME, rewards.luck_of(0, 0))
    np.testing.assert_allclose(alone[0], values()[1], rtol=1e-6, atol=1e-6)


def test_what_pays_is_other_luck_than_what_answers():
    plain = RLSettings(samples=16, horizon=2, caution=0, guideline=0, unfinished=1000)
    keys = [*(rewards.luck_of(0, number) for number in (0, 0, 1)), jax.random.fold_in(jax.random.key(0), 3)]
    first, again, next_one, told = (
        rewards.of_decisions(MODEL, EPISODES, np.array([0, 1]), np.array([1, 0]), plain, key) for key in keys
    )
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, next_one) and not np.allclose(first, told)


def test_who_gives_up_is_paid_as_a_death():
    case = Case(EPISODES, 0, SIMULATOR, AI_CLINICIAN_BINS, "model")
    assert rewards.of_stay(case, SOME) == -15
    case.observe()
    asyncio.run(case.prescribe((0, 2)))
    assert not case.outcome.closed
    charge = 2.0 * ("guideline" in case.decisions[0].broken)
    assert rewards.of_stay(case, SOME) == -15 - charge  # one decision: no step between


@pytest.mark.parametrize(("lactates", "paid"), [((9.0, 1.0), -15.0), ((1.0, 9.0), -17.0)])
def test_who_gives_up_keeps_what_was_lost_and_nothing_gained(lactates, paid):
    case = Case(EPISODES, 0, SIMULATOR, AI_CLINICIAN_BINS, "model")
    for _ in lactates:
        case.observe()
        asyncio.run(case.prescribe((0, 2)))
    assert not case.outcome.closed
    for one, lactate in zip(case.decisions, lactates, strict=True):
        one.obs.update(case.decisions[0].obs | {"lactate": lactate})
    worth = rewards.of_stay(case, dataclasses.replace(SOME, guideline=0.0))
    assert worth == pytest.approx(paid, abs=0.5) and worth <= -15


def test_a_whole_stay_is_paid_as_published():
    settings = AgentSettings(split="all", stays=0, follow="model")
    kept = []

    class Watched(PlannerBackend):
        async def decide(self, case):
            await super().decide(case)
            if case.outcome.closed:
                kept.append(case)

    loop.run(
        EPISODES, [2], SIMULATOR, AI_CLINICIAN_BINS, Watched(package_prompts(), PlannerSettings(samples=16)), settings
    )
    (case,) = kept
    obs = np.array([[one.obs[name] for name in NAMES] for one in case.decisions])
    scores, urine = [], obs[:, INDEX["output_4hourly"]]
    for t, one in enumerate(case.decisions):
        day = urine[max(0, t - 5) : t + 1].sum()
        scores.append(float(sofa.published(obs[t], one.previous[0], day, one.ventilated)))
    paid = 15 * (1 - 2 * case.outcome.death_90d)
    for t in range(len(obs) - 1):
        paid += -0.025 * (scores[t + 1] == scores[t] > 0) - 0.125 * (scores[t + 1] - scores[t])
        paid -= 2 * np.tanh(obs[t + 1, INDEX["lactate"]] - obs[t, INDEX["lactate"]])
    broken = sum("guideline" in one.broken for one in case.decisions)
    assert rewards.of_stay(case, SOME) == pytest.approx(paid - 2.0 * broken, abs=1e-3)
    for one in case.decisions:
        one.broken[:] = ["guideline"]
    assert rewards.of_stay(case, dataclasses.replace(SOME, guideline=100.0)) == -15 - 4.0  # as who gives up at once


@pytest.mark.parametrize(
    ("malformed", "action", "failure", "reward"),
    [(0, (1, 1), "", 3.0), (2, (1, 1), "", 1.0), (4, None, "malformed answers", 3.0 - 4.0 - 4.0)],
)
def test_faults_cost(malformed, action, failure, reward):
    case = Case(EPISODES, 0, SIMULATOR, AI_CLINICIAN_BINS, "model")
    case.usage.malformed, case.usage.requests = {"no call": malformed}, malformed + 2
    paid = rewards.Paid.of(3.0, case, action, failure, SOME)
    assert paid.reward == reward and paid.malformed == malformed
    assert paid.simulated == (1 if action else 2)
