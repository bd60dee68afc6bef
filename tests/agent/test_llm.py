"""A model as backend: dialogues, limits, and every way in which a server or a model can fail. Nothing is prescribed
that the model did not say."""

from __future__ import annotations

import asyncio
import dataclasses
import html
import json

import numpy as np
import pytest
from factories import make_episodes
from stub_server import HANG, prescribes, says, serving, simulates
from toy import toy_simulator

from sepsis_jax.agent import loop, report, transcripts
from sepsis_jax.agent.llm import LLMBackend, check_local
from sepsis_jax.agent.prompting import Prompts
from sepsis_jax.agent.settings import AgentSettings, LLMSettings
from sepsis_jax.clinical.actions import AI_CLINICIAN_BINS
from sepsis_jax.errors import InputError

EPISODES = make_episodes(4, 3, seed=11)
SIMULATOR = toy_simulator(concurrency=4)
QUICK = LLMSettings(model="stub", timeout_s=5.0, retries=0)


def run(url, rows=(0,), settings=QUICK, episodes=EPISODES, **options):
    settings, prompts = dataclasses.replace(settings, base_urls=(url,)), Prompts(settings.prompts)
    backend = LLMBackend(settings, prompts, samples=16, seed=0)
    agent = AgentSettings(split="all", stays=0, **({"concurrency": 4, "follow": "model"} | options))
    return loop.run(episodes, rows, SIMULATOR, AI_CLINICIAN_BINS, backend, agent, prompts)


def test_simulate_then_prescribe_to_the_end():
    def script(request, number):
        asked = request["messages"][-1]["role"] == "tool"
        return prescribes(2, 1, rationale="MAP is low") if asked else simulates("[2,1]", "[0,0]")

    with serving(script) as (url, requests):
        (one,) = run(url)
    assert one["failed"] is None and one["decisions"]
    for decision in one["decisions"]:
        assert decision["action"] == [2, 1] and decision["rationale"] == "MAP is low"
        assert [future["action"] for future in decision["considered"]] == [[2, 1], [0, 0]]
    assert one["usage"]["requests"] == len(requests) == 2 * len(one["decisions"])
    assert one["usage"]["prompt_tokens"] == 10 * len(requests) and one["usage"]["malformed"] == {}
    first = requests[0]
    assert first["model"] == "stub" and first["tool_choice"] == "required" and first["parallel_tool_calls"] is False
    assert [message["role"] for message in first["messages"]] == ["system", "user"]
    assert len({request["seed"] for request in requests}) == len(requests)
    answer = requests[1]["messages"][-1]["content"]
    assert "[2,1]: in 4 h meanbp" in answer and "90-day mortality" in answer and "16 simulated" in answer


@pytest.mark.parametrize("context", ["step", "episode"])
def test_each_decision_knows_the_whole_history_once(context):
    with serving(lambda request, number: prescribes()) as (url, requests):
        (one,) = run(url, settings=dataclasses.replace(QUICK, context=context))
    assert len(one["decisions"]) >= 2
    for step, request in enumerate(requests):
        text = "\n".join(message["content"] for message in request["messages"])
        assert [text.count(f"Hour {4 * hour + 4} ") for hour in range(len(requests))] == [1] * (step + 1) + [0] * (
            len(requests) - step - 1
        )
        assert len(request["messages"]) == (2 if context == "step" else 2 + 3 * step)


def test_the_recorded_future_changes_nothing_that_is_asked():
    """All that is recorded after the first deviation is another: the requests are the same."""
    changed = EPISODES.replace(
        obs=np.where(np.arange(3)[None, :, None] > 0, 50.0, EPISODES.obs).astype(np.float32),
        mask=np.where(np.arange(3)[None, :, None] > 0, False, EPISODES.mask),
        mortality_90d=1 - EPISODES.mortality_90d,
    )
    seen = []
    for episodes in (EPISODES, changed):
        with serving(lambda request, number: prescribes(4, 4)) as (url, requests):
            run(url, episodes=episodes)
        seen.append(requests)
    assert seen[0] == seen[1]


GOOD = {"vasopressor": 1, "iv_fluid": 1}


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (says("I would give fluids."), "no call"),
        (says(None), "no call"),
        (says(None, ("prescription", '{"vasopressor": 1,')), "broken JSON"),
        (prescribes(7, 0), "wrong arguments"),
        (says(None, ("prescription", GOOD), ("prescription", GOOD)), "several calls"),
        (says(None, ("order", GOOD)), "unknown tool"),
        (says("<tool_call> and so on", reason="length"), "cut off"),
    ],
)
def test_malformed_answers_are_answered_counted_and_never_prescribed(answer, kind):
    with serving(lambda request, number: answer if number == 0 else prescribes(3, 2)) as (url, requests):
        (one,) = run(url)
    assert one["failed"] is None and one["usage"]["malformed"] == {kind: 1}
    assert all(decision["action"] == [3, 2] for decision in one["decisions"])
    assert "Not understood" in requests[1]["messages"][-1]["content"]
    for message in requests[1]["messages"]:  # what some servers refuse
        for call in message.get("tool_calls", []):
            json.loads(call["function"]["arguments"])

    with serving(lambda request, number: answer) as (url, requests):
        (one,) = run(url)
    assert one["failed"]["kind"] == "malformed answers" and one["decisions"] == []
    assert one["usage"]["malformed"] == {kind: 4} and len(requests) == 4


def test_a_model_that_only_simulates_fails():
    """Three are allowed; then it is made to prescribe, and what it says instead is malformed."""
    with serving(lambda request, number: simulates("[1,1]")) as (url, requests):
        (one,) = run(url)
    assert one["failed"]["kind"] == "malformed answers" and one["decisions"] == [] and len(requests) == 3 + 4
    assert one["usage"]["malformed"] == {"too many simulations": 4}
    named = {"type": "function", "function": {"name": "prescription"}}
    assert [request["tool_choice"] for request in requests] == ["required"] * 3 + [named] * 4
    assert all(len(request["tools"]) == 2 for request in requests)


TOO_LONG = '{"error": {"message": "This model\'s maximum context length is 4096 tokens, you asked for 5000"}}'


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ((429, '{"error": {"message": "slow down"}}'), "rate limit"),
        ((500, "oops"), "server error"),
        ((404, '{"error": {"message": "no such model"}}'), "server error"),
        ((400, TOO_LONG), "context overflow"),
        ((200, "not json"), "server error"),
        ((200, '{"choices": []}'), "server error"),
        (HANG, "timeout"),
    ],
)
def test_what_a_server_does_fails_the_case_by_kind(answer, kind):
    with serving(lambda request, number: answer) as (url, _):
        (one,) = run(url, settings=dataclasses.replace(QUICK, timeout_s=0.3))
    assert one["failed"]["kind"] == kind and one["decisions"] == [] and one["failed"]["detail"]


def odd(**changes):
    """A completion whose parts are not what they should be."""
    whole = prescribes()
    for path, value in changes.items():
        place = whole
        *outer, last = path.split("__")
        for name in outer:
            place = place[int(name[1:]) if name[0] == "n" and name[1:].isdigit() else name]
        place[last] = value
    return 200, json.dumps(whole)


@pytest.mark.parametrize(
    "answer",
    [
        (200, "[]"),
        (200, "null"),
        (200, "3"),
        (200, "[" * 100_000),
        odd(usage={"prompt_tokens": "many"}),
        odd(usage={"prompt_tokens": 10**30, "completion_tokens": 1}),
        odd(choices="text"),
        odd(choices=[None]),
        odd(choices__n0__message=None),
        odd(choices__n0__message__content=[1]),
        odd(choices__n0__message__content={"a": 1}),
        odd(choices__n0__message__tool_calls="text"),
        odd(choices__n0__message__tool_calls=[None]),
        odd(choices__n0__message__tool_calls=[{"function": None}]),
        odd(choices__n0__message__tool_calls=[{"function": {"name": None, "arguments": "{}"}}]),
        odd(choices__n0__message__tool_calls=[{"function": {"name": "prescription", "arguments": {"vasopressor": 1}}}]),
    ],
)
def test_answers_of_another_shape_fail_the_case_and_nothing_else(answer):
    with serving(lambda request, number: answer if number == 0 else prescribes()) as (url, _):
        first, second = run(url, rows=(0, 1), concurrency=1)
    assert first["failed"]["kind"] == "server error" and first["decisions"] == []
    assert second["failed"] is None and second["decisions"]


@pytest.mark.parametrize("reason", ["length", "content_filter"])
def test_an_answer_that_was_cut_off_is_no_prescription(reason):
    cut = prescribes()
    cut["choices"][0]["finish_reason"] = reason
    with serving(lambda request, number: cut if number == 0 else prescribes(0, 2)) as (url, _):
        (one,) = run(url)
    assert one["usage"]["malformed"] == {"cut off": 1} and one["decisions"][0]["action"] == [0, 2]


def test_this_machine_is_asked_directly_and_sends_nobody_elsewhere(monkeypatch):
    answers = serving(lambda request, number: prescribes()), serving(lambda request, number: prescribes())
    with answers[0] as (url, requests), answers[1] as (other, stolen):
        monkeypatch.setenv("HTTP_PROXY", other.removesuffix("/v1"))
        monkeypatch.setenv("NO_PROXY", "")
        (one,) = run(url)
        assert one["failed"] is None and requests and not stolen


def test_a_key_that_a_server_repeats_is_not_kept(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with serving(lambda request, number: (401, '{"error": {"message": "bad key sk-secret"}}')) as (url, _):
        (one,) = run(url)
    assert one["failed"] and "sk-secret" not in json.dumps(one)


@pytest.mark.parametrize(
    "url",
    [
        "nonsense",
        "",
        "ftp://x",
        "http://[::1",
        "http://h:abc",
        "http://h:99999",
        "http://ü/v1",
        "http://me:secret@h/v1",
    ],
)
def test_addresses_that_are_none(url):
    with pytest.raises(InputError, match="base_urls"):
        LLMSettings(base_urls=(url,))


def test_an_error_ends_the_others_before_anything_is_closed():
    """An error of ours is no failure of the cases beside it, which are neither finished nor marked."""
    finished = []

    class Breaks:
        async def close(self):
            self.closed = True

        async def decide(self, case):
            if case.stay_id == EPISODES.stay_id[0]:
                raise RuntimeError("ours")
            await asyncio.sleep(30)

    backend = Breaks()
    settings = AgentSettings(split="all", stays=0, concurrency=4)
    with pytest.raises(RuntimeError, match="ours"):
        loop.run(EPISODES, range(4), SIMULATOR, AI_CLINICIAN_BINS, backend, settings, finished=finished.append)
    assert finished == [] and backend.closed


def test_nobody_at_the_address():
    (one,) = run("http://127.0.0.1:9/v1")
    assert one["failed"]["kind"] == "no connection"


def test_what_passes_is_tried_again():
    with serving(lambda request, number: (503, "busy") if number < 2 else prescribes()) as (url, _):
        (one,) = run(url, settings=dataclasses.replace(QUICK, retries=2))
    assert one["failed"] is None and one["decisions"]


def test_one_case_that_fails_leaves_the_others_alone(tmp_path):
    evil = "<script>alert('x')</script>"

    def script(request, number):
        if any("Hour 8 " in message["content"] for message in request["messages"]):
            return says(evil)
        return prescribes(1, 1, rationale=evil)

    with serving(script) as (url, _):
        cases = run(url, rows=range(4))
    failed = transcripts.failures(cases)
    assert set(failed) <= {"malformed answers"}
    lost = sum(one["failed"] is not None for one in cases)
    assert 0 < lost == sum(map(len, failed.values())) and all(
        len(one["decisions"]) == 1 for one in cases if one["failed"]
    )
    transcripts.write(tmp_path / "t.jsonl", cases)
    report.write(tmp_path / "r.html", cases, {})
    page = (tmp_path / "r.html").read_text()
    assert evil not in page and html.escape(evil, quote=False)[:15] in page and "malformed answers" in page
    assert len(transcripts.table(cases)) == 4


def test_without_simulator_and_with_texts_of_ones_own(tmp_path):
    (tmp_path / "system.jinja").write_text("Levels {{ bins.vaso_dose | length }}, {{ simulator }}")
    own = dataclasses.replace(QUICK, prompts=tmp_path, simulator=False)
    with serving(lambda request, number: prescribes()) as (url, requests):
        run(url, settings=own)
    assert requests[0]["messages"][0]["content"] == "Levels 5, False"
    assert [tool["function"]["name"] for tool in requests[0]["tools"]] == ["prescription"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [("other.jinja", "", "some of system.jinja"), ("system.jinja", "{% if %}", "system.jinja")],
)
def test_bad_folders_of_texts(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        Prompts(tmp_path)


def test_unknown_names_in_a_text(tmp_path):
    (tmp_path / "system.jinja").write_text("{{ nobody }}")
    with pytest.raises(InputError, match="nobody"):
        Prompts(tmp_path).system(AI_CLINICIAN_BINS, simulator=True, simulations=1)


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://127.0.0.1:8000/v1", True),
        ("http://localhost:1/v1", True),
        ("http://[::1]:8000/v1", True),
        ("https://api.example.com/v1", False),
        ("http://10.0.0.4:8000/v1", False),
        ("http://localhost.example.com/v1", False),
    ],
)
def test_credentialed_data_stays_on_this_machine(url, local):
    settings = dataclasses.replace(QUICK, base_urls=("http://127.0.0.1:1/v1", url))
    if local:
        check_local(settings)
    else:
        with pytest.raises(InputError, match="on this machine"):
            check_local(settings)


def test_transcripts_hold_the_dialogue(tmp_path):
    with serving(lambda request, number: prescribes()) as (url, _):
        cases = run(url)
    transcripts.write(tmp_path / "t.jsonl", cases)
    (back,) = transcripts.read(tmp_path / "t.jsonl")
    assert back == json.loads(json.dumps(cases[0]))
    assert [message["role"] for message in back["messages"][:3]] == ["user", "assistant", "tool"]
