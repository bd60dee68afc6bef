"""What counts as a call, and the schemas that say so to a server."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sepsis_jax.agent import tools
from sepsis_jax.agent.tools import Malformed, Prescribe, Simulate

GOOD = '{"vasopressor": 1, "iv_fluid": 2}'


def call(name, arguments):
    return [(name, arguments if isinstance(arguments, str) else json.dumps(arguments))]


@pytest.mark.parametrize(
    ("content", "calls", "expected"),
    [
        (None, call("simulation", {"actions": ["[0,0]", "[4,3]"]}), Simulate(((0, 0), (4, 3)))),
        ("words", call("prescription", GOOD), Prescribe((1, 2))),
        (
            "",
            call("prescription", {"vasopressor": 0, "iv_fluid": 0, "rationale": "r" * 999}),
            Prescribe((0, 0), "r" * 300),
        ),
        (f'I say <tool_call>{{"name": "prescription", "arguments": {GOOD}}}</tool_call>', [], Prescribe((1, 2))),
        (f'{{"name": "prescription", "arguments": {GOOD}}}', [], Prescribe((1, 2))),
        (f'```json\n{{"name": "prescription", "arguments": {GOOD}}}\n```', [], Prescribe((1, 2))),
    ],
)
def test_valid_calls(content, calls, expected):
    assert tools.read(content, calls, simulator=True) == expected


def text_call(*arguments):
    return "".join(f'<tool_call>{{"name": "prescription", "arguments": {one}}}</tool_call>' for one in arguments)


@pytest.mark.parametrize(
    ("content", "calls", "kind"),
    [
        (None, [], "no call"),
        ("", [], "no call"),
        ("Give [1,2].", [], "no call"),
        ("<tool_call>{broken</tool_call>", [], "broken JSON"),
        ("<tool_call>{broken</tool_call>" + text_call(GOOD), [], "broken JSON"),
        (text_call(GOOD) + '<tool_call>{"name": "prescription"', [], "broken JSON"),
        (text_call(GOOD), call("prescription", GOOD), "several calls"),
        (f"<think>Never {text_call(GOOD)}</think> I do not know.", [], "no call"),
        (f"<think>Or {text_call(GOOD)}", [], "no call"),
        (f"Or {text_call(GOOD)}</think> I do not know.", [], "no call"),  # opened in the prompt
        ("<think>Or ", call("prescription", GOOD), "no call"),  # a parser that looks into thoughts
        (text_call('{"vasopressor": 4, "vasopressor": 0, "iv_fluid": 0}'), [], "broken JSON"),
        (None, call("prescription", '{"vasopressor": 4, "vasopressor": 0, "iv_fluid": 0}'), "broken JSON"),
        ("[1, 2]", [], "no call"),
        ('{"name": 3}', [], "no call"),
        ("[" * 100_000, [], "no call"),
        (text_call(GOOD, GOOD), [], "several calls"),
        (None, call("prescription", GOOD) * 2, "several calls"),
        (None, call("shell", {}), "unknown tool"),
        (None, call("prescription", '{"vasopressor": 1'), "broken JSON"),
        (None, call("prescription", ""), "broken JSON"),
        (None, call("prescription", "[" * 100_000), "broken JSON"),
        (None, call("prescription", [1, 2]), "wrong arguments"),
        (None, call("prescription", "null"), "wrong arguments"),
        (text_call("null"), [], "wrong arguments"),
        (None, call("prescription", {"vasopressor": 5, "iv_fluid": 0}), "wrong arguments"),
        (None, call("prescription", {"vasopressor": -1, "iv_fluid": 0}), "wrong arguments"),
        (None, call("prescription", {"vasopressor": 1.0, "iv_fluid": 0}), "wrong arguments"),
        (None, call("prescription", {"vasopressor": True, "iv_fluid": 0}), "wrong arguments"),
        (None, call("prescription", {"vasopressor": "1", "iv_fluid": 0}), "wrong arguments"),
        (None, call("prescription", {"vasopressor": 1}), "wrong arguments"),
        (None, call("prescription", {"vasopressor": 1, "iv_fluid": 0, "dose": 3}), "wrong arguments"),
        (None, call("prescription", {"vasopressor": 1, "iv_fluid": 0, "rationale": 3}), "wrong arguments"),
        (None, call("prescription", '{"vasopressor": NaN, "iv_fluid": 0}'), "wrong arguments"),
        (None, call("simulation", {"actions": []}), "wrong arguments"),
        (None, call("simulation", {"actions": ["[0,0]"] * 4}), "wrong arguments"),
        (None, call("simulation", {"actions": ["[0,5]"]}), "wrong arguments"),
        (None, call("simulation", {"actions": ["[0,1]\n"]}), "wrong arguments"),
        (None, call("simulation", {"actions": [[0, 1]]}), "wrong arguments"),
        (None, call("simulation", {"actions": "[0,1]"}), "wrong arguments"),
    ],
)
def test_malformed_answers_by_kind(content, calls, kind):
    with pytest.raises(Malformed) as caught:
        tools.read(content, calls, simulator=True)
    assert caught.value.kind == kind and caught.value.detail


def test_reading_takes_no_time_however_odd_the_text():
    began = time.monotonic()
    for text in ("<tool_call>" + "\n" * 50_000, "```" + "\n" * 50_000, "<tool_call>" * 20_000, "<think>" * 50_000):
        with pytest.raises(Malformed):
            tools.read(text, [], simulator=True)
    assert time.monotonic() - began < 2


def test_thoughts_before_a_call_are_no_call():
    said = f"<think>Perhaps {text_call(GOOD)}</think>" + text_call('{"vasopressor": 0, "iv_fluid": 3}')
    assert tools.read(said, [], simulator=True) == Prescribe((0, 3))


def test_without_a_simulator_there_is_no_simulation():
    with pytest.raises(Malformed, match="unknown tool"):
        tools.read(None, call("simulation", {"actions": ["[0,0]"]}), simulator=False)
    assert [one["function"]["name"] for one in tools.schemas(simulator=False, rationale=True)] == ["prescription"]


@given(st.text(max_size=60), st.text(max_size=60))
def test_any_text_is_a_call_or_malformed(content, arguments):
    for calls in ([], [("prescription", arguments)], [("simulation", arguments)]):
        try:
            found = tools.read(content, calls, simulator=True)
        except Malformed:
            continue
        assert isinstance(found, Simulate | Prescribe)


def test_schemas_are_strict_objects():
    for one in tools.schemas(simulator=True, rationale=False):
        parameters = one["function"]["parameters"]
        assert parameters["additionalProperties"] is False
        assert set(parameters["required"]) == set(parameters["properties"])
    with_reason = tools.schemas(simulator=False, rationale=True)[0]["function"]["parameters"]
    assert set(with_reason["properties"]) - set(with_reason["required"]) == {"rationale"}
