"""Transcripts as Markdown: everything that was said, and none of it out of its block."""

from __future__ import annotations

import json
import re

import pytest

from sepsis_jax.agent import markdown, tools

PATIENT = {"age": 64.4, "sex": "female", "charlson": 9.0, "weight_kg": 71.2}


def case(messages, failed=None, decisions=2, **outcome):
    outcome = {"closed": True, "deviated": True, "exit": 2, "death_90d": 0.25} | outcome
    record = {"length": 5, "exit": 1, "mortality_90d": 1}
    about = {"stay_id": 7, "patient": PATIENT, "outcome": outcome, "record": record, "failed": failed}
    return about | {"decisions": [{}] * decisions, "messages": messages}


def written(folder, *cases):
    markdown.write(folder / markdown.FILE, cases)
    return (folder / markdown.FILE).read_text(encoding="utf-8")


def outside(text):
    """Headings and paragraphs, and the contents of the fenced blocks, as CommonMark reads them."""
    words, blocks, fence = [], [], None
    for line in re.split(r"\r\n|\r|\n", text):
        mark = re.match(r" {0,3}(`{3,})([^`]*)$", line)
        if fence is None and mark:
            fence = mark[1]
            blocks.append([])
        elif fence is None:
            words.append(line)
        elif mark and len(mark[1]) >= len(fence) and not mark[2].strip():
            fence = None
        else:
            blocks[-1].append(line)
    assert fence is None
    return [line for line in words if line], ["\n".join(block) for block in blocks]


def test_outcome_and_whole_dialogue(tmp_path):
    call = tools.say(1, "MAP is low.", ("simulation", '{"actions":["[1,2]","[0,0]"]}'))
    dialogue = [{"role": "user", "content": "Hour 4"}, call, *tools.reply(call, "[1,2]: MAP 70")]
    words, blocks = outside(written(tmp_path, case(dialogue)))
    assert words == [
        "# Transcripts",
        "**Research software, not for care.**",
        "## Stay 7",
        "- Patient: female, 64 years, Charlson 9, 71 kg",
        "- Under the policy: left the ICU alive; simulated 90-day mortality 25%",
        "- In the record: 5 decisions, died in the ICU; at 90 days: died",
        "### User",
        "### Assistant",
        "### Tool",
    ]
    assert blocks[:2] == ["Hour 4", "MAP is low."] and blocks[3:] == ["[1,2]: MAP 70"]
    assert json.loads(blocks[2]) == {"name": "simulation", "arguments": {"actions": ["[1,2]", "[0,0]"]}}


def test_failures_and_words_without_a_call(tmp_path):
    failed = {"kind": "timeout", "detail": "# no answer\n- in time"}
    unasked = tools.say(1, "I would wait.")
    text = written(tmp_path, case([unasked, *tools.reply(unasked, "one call")], failed), case([], failed, decisions=0))
    words, blocks = outside(text)
    assert words.count("- Under the policy: failed after 2 decisions, timeout") == 1
    assert words.count("- Under the policy: failed after 0 decisions, timeout") == 1
    assert words[-4:-3] == ["## Stay 7"] and blocks == [
        "# no answer\n- in time",
        "I would wait.",
        "one call",
        "# no answer\n- in time",
    ]


@pytest.mark.parametrize(
    "evil",
    [
        "```\n# Stay 8",
        "``````\n# Stay 8\n```````",
        "`" * 40 + "\r# Stay 8",
        "a ```` b\n````\n# Stay 8",
        "~~~\n# Stay 8",
        "\n\n# Stay 8\n</details>",
    ],
)
def test_nothing_that_is_said_leaves_its_block(tmp_path, evil):
    call = tools.say(0, evil, (evil, evil), ("prescription", json.dumps({"rationale": evil})))
    text = written(tmp_path, case([call, *tools.reply(call, evil)], {"kind": "server error", "detail": evil}))
    words, blocks = outside(text)
    assert [line for line in words if "Stay" in line] == ["## Stay 7"]
    lines = re.sub(r"\r", "\n", evil)
    assert blocks[:2] == [lines] * 2 and blocks[4:] == [lines] * 2
    assert [json.loads(block) for block in blocks[2:4]] == [
        {"name": evil, "arguments": evil},
        {"name": "prescription", "arguments": {"rationale": evil}},
    ]


def test_half_a_character_and_deep_arguments(tmp_path):
    deep = "[" * 900 + "]" * 900
    text = written(tmp_path, case([tools.say(0, "half \ud83d here", ("simulation", deep))]))
    assert "half ? here" in text and deep in text
