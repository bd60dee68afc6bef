"""How likely a model's prescriptions were: from log-probabilities to 25 numbers, and what a server may fail to tell."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math

import numpy as np
import pandas as pd
import pytest
from factories import make_episodes
from sklearn.metrics import average_precision_score, roc_auc_score
from stub_server import prescribes, says, serving, simulates
from toy import toy_simulator

from sepsis_jax.agent import probabilities, questions
from sepsis_jax.agent.backends import Failed
from sepsis_jax.agent.case import Case
from sepsis_jax.agent.llm import LLMBackend
from sepsis_jax.agent.probabilities import Scorer, served
from sepsis_jax.agent.prompting import package_prompts
from sepsis_jax.agent.settings import LLMSettings
from sepsis_jax.clinical.actions import AI_CLINICIAN_BINS
from sepsis_jax.errors import InputError
from sepsis_jax.evaluation import intrinsic

EPISODES = make_episodes(6, 4, seed=3)
SIMULATOR = toy_simulator(concurrency=4)
ALONE = LLMSettings(
    model="stub", simulator=False, rationale=False, retries=0, timeout_s=5.0, temperature=1.0, top_p=1.0
)
FIRST = np.array([0.1, 0.2, 0.3, 0.25, 0.15])
SECOND = np.array([FIRST[np.arange(5) - row] for row in range(5)])  # of the other level, given each value of the first
DIGITS = [20, 21, 22, 23, 24]
PROMPT = [1, 2, 3]


def tokens_of(text):
    """Every character is a token; digits have the ids of `DIGITS`."""
    return [DIGITS[int(one)] if one in "01234" else 100 + ord(one) for one in text]


def tell(answer, text, *, prompt=True, logprob=0.0):
    """With what vLLM adds: tokens of the prompt and of the answer, and how likely they were."""
    choice = answer["choices"][0]
    choice["token_ids"] = tokens_of(text)
    choice["logprobs"] = {
        "content": [{"token": one, "logprob": logprob, "bytes": None, "top_logprobs": []} for one in text]
    }
    return answer | ({"prompt_token_ids": PROMPT} if prompt else {})


def likely(prompts):
    """Completions whose next level is as likely as `FIRST`, or as `SECOND` after the first level has been written."""
    choices = []
    for index, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            choices.append({"index": index, "text": "x", "finish_reason": "length", "logprobs": None})
            choices[-1]["prompt_token_ids"] = [7, DIGITS[int(prompt)]]
            continue
        before = [DIGITS.index(token) for token in prompt if token in DIGITS]
        probs = SECOND[before[-1]] if before else FIRST
        top = {str(level): math.log(probs[level]) for level in range(5)}
        logs = {"tokens": ["0"], "token_logprobs": [-1.0], "top_logprobs": [top], "text_offset": [0]}
        choices.append({"index": index, "text": "0", "finish_reason": "length", "logprobs": logs})
    return {"id": "x", "object": "text_completion", "created": 0, "model": "stub", "choices": choices[::-1]}


def ask(script, settings=ALONE, at=0):
    with serving(script) as (url, requests):
        settings = dataclasses.replace(settings, base_urls=(url,))
        scorer = Scorer(LLMBackend(settings, package_prompts(), samples=16, seed=0), settings)
        case = Case(EPISODES, 0, SIMULATOR, AI_CLINICIAN_BINS, "model", at=at)
        case.observe()
        return *asyncio.run(scorer.probabilities(case, 0)), requests


@pytest.mark.parametrize("order", [("vasopressor", "iv_fluid"), ("iv_fluid", "vasopressor")])
def test_the_product_of_both_levels_whichever_comes_first(order):
    text = json.dumps({order[0]: 3, order[1]: 1})

    def script(request, number):
        return likely(request["prompt"]) if "prompt" in request else tell(prescribes(), text)

    probs, certain, requests = ask(script)
    joint = FIRST[:, None] * SECOND
    np.testing.assert_allclose(probs.reshape(5, 5), joint if order[0] == "vasopressor" else joint.T, rtol=1e-9)
    assert certain and requests[0]["logprobs"] is True and requests[0]["return_token_ids"] is True
    at = text.index("3")
    first, second = [one["prompt"] for one in requests if "prompt" in one and isinstance(one["prompt"][0], list)]
    assert first == [PROMPT + tokens_of(text[:at])]
    assert second == [PROMPT + tokens_of(text[:at] + level + text[at + 1 : text.index("1")]) for level in "01234"]


def test_a_simulation_or_words_before_leave_it_to_chance():
    text = '{"vasopressor": 3, "iv_fluid": 1}'

    def simulating(request, number):
        if "prompt" in request:
            return likely(request["prompt"])
        return tell(prescribes(), text) if request["messages"][-1]["role"] == "tool" else tell(simulates("[0,1]"), "[]")

    def talking(request, number):
        if "prompt" in request:
            return likely(request["prompt"])
        answer = prescribes()
        answer["choices"][0]["message"]["content"] = "Let me think."
        return tell(answer, f"Let me think. {text}")

    assert ask(simulating, dataclasses.replace(ALONE, simulator=True))[1] is False
    assert ask(talking)[1] is False


@pytest.mark.parametrize(
    ("logprob", "top_p", "certain"), [(-0.02, 0.95, True), (-0.1, 0.95, False), (-0.02, 1.0, False)]
)
def test_how_words_fall_into_tokens_is_chance_too(logprob, top_p, certain):
    answer = tell(prescribes(), '{"vasopressor": 3, "iv_fluid": 1}', logprob=logprob)
    found = ask(
        lambda request, _: likely(request["prompt"]) if "prompt" in request else answer,
        dataclasses.replace(ALONE, top_p=top_p),
    )
    assert found[1] is certain


@pytest.mark.parametrize(
    "answer",
    [
        prescribes(),
        tell(prescribes(), '{"vasopressor": 3, "iv_fluid": 1}', prompt=False),
        tell(prescribes(), '{"dose": 3}'),
    ],
)
def test_a_server_that_does_not_tell(answer):
    with pytest.raises(Failed, match="no log-probabilities"):
        ask(lambda request, number: likely(request["prompt"]) if "prompt" in request else answer)


def test_served_is_what_a_server_draws_from():
    rng = np.random.default_rng(0)
    for temperature, top_p in ((1.0, 1.0), (0.7, 0.95), (0.3, 0.5), (2.0, 0.01)):
        probs = rng.dirichlet(np.ones(5))
        tempered = probs ** (1 / temperature)
        tempered /= tempered.sum()
        kept, total = np.zeros(5), 0.0
        for level in np.argsort(-tempered):
            if total < top_p:
                kept[level] = tempered[level]
            total += tempered[level]
        np.testing.assert_allclose(served(np.log(probs), temperature, top_p), kept / kept.sum(), rtol=1e-9)
    assert served(np.log([0.2, 0.5, 0.3]), 0.0, 0.9).tolist() == [0.0, 1.0, 0.0]


def run(script, rows=(0, 1), dialogues=3, settings=ALONE):
    found = []
    with serving(script) as (url, _):
        settings = dataclasses.replace(settings, base_urls=(url,))
        scorer = Scorer(LLMBackend(settings, package_prompts(), samples=16, seed=0), settings)
        probabilities.run(
            EPISODES,
            np.array(rows),
            SIMULATOR,
            AI_CLINICIAN_BINS,
            scorer,
            package_prompts(),
            dialogues=dialogues,
            concurrency=4,
            finished=found.append,
        )
    return sorted(found, key=lambda one: one["stay_id"])


def test_every_recorded_decision_is_asked_and_kept(tmp_path):
    text = '{"vasopressor": 3, "iv_fluid": 1}'
    stays = run(lambda request, _: likely(request["prompt"]) if "prompt" in request else tell(prescribes(), text))
    for row, one in enumerate(stays):
        length = int(EPISODES.length[row])
        assert one["failed"] is None and one["dialogues"] == [3] * length
        np.testing.assert_allclose(one["probs"], np.tile((FIRST[:, None] * SECOND).ravel(), (length, 1)), atol=1e-6)
        assert (np.array(one["se"]) == 0).all()
    probabilities.write(tmp_path / "p.npz", stays, 4)
    found = probabilities.read(tmp_path / "p.npz")
    assert found["stay_id"].tolist() == [one["stay_id"] for one in stays] and found["probs"].shape == (2, 4, 25)
    valid = np.asarray(EPISODES.valid)[:2]
    np.testing.assert_allclose(found["probs"].sum(-1), valid, atol=1e-6)
    (tmp_path / "p.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match="--probabilities"):
        probabilities.read(tmp_path / "p.npz")


def test_a_stay_with_a_decision_without_answer_fails(tmp_path):
    def script(request, number):
        if "prompt" in request:
            return likely(request["prompt"])
        late = "Hour 8" in request["messages"][1]["content"]
        return says("no") if late else tell(prescribes(), '{"vasopressor": 3, "iv_fluid": 1}')

    (one,) = run(script, rows=[int(np.argmax(EPISODES.length))])
    assert one["failed"]["kind"] == "malformed answers" and one["probs"] == [] and one["dialogues"][0] == 3
    probabilities.write(tmp_path / "p.npz", [one], 4)
    assert probabilities.read(tmp_path / "p.npz")["stay_id"].size == 0


def yes_or_no(chance, words=("yes", "no")):
    answer = says("yes")
    logs = [{"token": word, "logprob": math.log(p), "bytes": None} for word, p in zip(words, chance, strict=True)]
    answer["choices"][0]["logprobs"] = {"content": [logs[0] | {"top_logprobs": logs}]}
    return answer


def test_questions_are_answered_by_the_odds_of_yes():
    def script(request, number):
        dying = "die in hospital" in request["messages"][0]["content"]
        return yes_or_no((0.2, 0.6)) if dying else yes_or_no((0.3, 0.3, 0.2, 0.1), ("y", " Yes", "n", "maybe"))

    found = []
    with serving(script) as (url, requests):
        backend = LLMBackend(dataclasses.replace(ALONE, base_urls=(url,)), package_prompts(), samples=16, seed=0)
        where = (EPISODES, np.arange(6), SIMULATOR, AI_CLINICIAN_BINS, backend, package_prompts())
        questions.run(*where, concurrency=2, finished=found.append)
    assert len(requests) == 12 and all("tools" not in one for one in requests)
    for one in found:
        assert one["failed"] is None and one["answers"] == {"mortality": 0.25, "vasopressor": 0.75}
    known = questions.answered(EPISODES, found)
    mortality = EPISODES.mortality_hospital[EPISODES.mortality_hospital >= 0]
    assert known[known["question"] == "mortality"]["label"].tolist() == (mortality == 1).tolist()
    given = [bool((EPISODES.action[row, : EPISODES.length[row], 0] > 0).any()) for row in range(6)]
    assert known[known["question"] == "vasopressor"]["label"].tolist() == given


def test_intrinsic_figures_are_those_of_scikit_learn():
    rng = np.random.default_rng(1)
    chance, label = rng.random(200).round(2), rng.random(200) < 0.3
    frame = pd.DataFrame({"question": "mortality", "subject_id": np.arange(200), "label": label, "chance": chance})
    found = intrinsic.table(frame, draws=200, seed=0).loc["mortality"]
    assert abs(found["AUROC"] - roc_auc_score(label, chance)) < 1e-9
    assert abs(found["AUPRC"] - average_precision_score(label, chance)) < 1e-9
    assert found["AUROC_low"] < found["AUROC"] < found["AUROC_high"] and found["n"] == 200
    assert "AUROC" in intrinsic.wide(intrinsic.table(frame, draws=20, seed=0))
