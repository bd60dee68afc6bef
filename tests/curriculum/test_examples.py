"""What a model is taught with: answers are the record's, kinds and answers are balanced, nothing lies ahead."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter

import numpy as np
import pytest
from factories import make_episodes
from toy import toy_simulator

from sepsis_jax.agent import loop, transcripts
from sepsis_jax.agent.backends import PlannerBackend
from sepsis_jax.agent.llm import LLMBackend
from sepsis_jax.agent.prompting import package_prompts
from sepsis_jax.agent.settings import AgentSettings, LLMSettings
from sepsis_jax.clinical.actions import AI_CLINICIAN_BINS
from sepsis_jax.clinical.features import INDEX
from sepsis_jax.curriculum import data, demonstrations, dynamics
from sepsis_jax.errors import InputError
from sepsis_jax.policies.planner import PlannerSettings

EPISODES = make_episodes(24, 9, seed=5)
ROWS = np.arange(3, 24)
SIMULATOR = toy_simulator()
ASKING = LLMBackend(LLMSettings(rationale=False), package_prompts(), samples=16, seed=0)


def source(episodes=EPISODES):
    return dynamics.Source(episodes, ROWS, SIMULATOR, AI_CLINICIAN_BINS, package_prompts())


@pytest.fixture(scope="module")
def examples():
    return list(dynamics.examples(source(), 450, seed=1))


def test_kinds_and_answers_are_balanced(examples):
    kinds = Counter(one["kind"] for one in examples)
    assert kinds == {"mortality": 150, "vasopressor": 150, "values": 50, "directions": 50, "effect": 50}
    for kind in ("mortality", "vasopressor"):
        assert Counter(one["answer"] for one in examples if one["kind"] == kind) == {"yes": 75, "no": 75}
    assert {one["stay_id"] for one in examples} <= set(EPISODES.stay_id[ROWS].tolist())


def test_the_same_seed_asks_the_same(examples):
    assert list(dynamics.examples(source(), 450, seed=1)) == examples
    assert list(dynamics.examples(source(), 450, seed=2)) != examples


def place(one):
    """(row, step) of an example: its observations tell the step."""
    row = int(np.flatnonzero(EPISODES.stay_id == one["stay_id"])[0])
    return row, one["messages"][1]["content"].count("Newly measured") - 1


def test_answers_are_those_of_the_record(examples):
    for one in examples:
        row, step = place(one)
        said = one["messages"][-1]["content"]
        then = EPISODES.obs[row, min(step + 1, 8)]
        if one["kind"] == "mortality":
            assert (said == "yes") == bool(EPISODES.mortality_hospital[row])
        elif one["kind"] == "vasopressor":
            ahead = [EPISODES.action[row, t, 0] > 0 for t in range(step, min(step + 6, EPISODES.length[row]))]
            assert (said == "yes") == any(ahead)
        elif one["kind"] in ("values", "directions"):
            name = asked(one)
            before, after = float(EPISODES.obs[row, step, INDEX[name]]), float(then[INDEX[name]])
            assert name == "output_4hourly" or EPISODES.mask[row, step + 1, INDEX[name]]  # urine is always counted
            if one["kind"] == "values":
                assert np.isclose(float(said), after, rtol=6e-3)
            else:
                assert name == "output_4hourly" or EPISODES.mask[row, : step + 1, INDEX[name]].any()
                small = abs(after - before) <= 0.05 * abs(before)
                assert said == ("stayed" if small else "rose" if after > before else "fell")


def asked(one):
    task = one["messages"][0]["content"].splitlines()[-1]
    (name,) = {name for name in dynamics.KEY if name in re.findall(r"\w+", task)}
    return name


def test_effects_are_those_of_the_model(examples):
    """In the toy world the vasopressor raises MAP and fluid lowers lactate, whatever else."""
    asked = [one for one in examples if one["kind"] == "effect"]
    checked = 0
    for one in asked:
        words = one["messages"][1]["content"].rsplit("First: ", 1)[1]
        first, second = ([int(c) for c in part if c.isdigit()] for part in words.split("Second: "))
        task = one["messages"][0]["content"]
        if "higher meanbp" in task:
            checked += 1
            assert (one["answer"] == "first") == (first[0] > second[0])
        if "higher lactate" in task:
            checked += 1
            assert (one["answer"] == "first") == (first[1] < second[1])
    assert checked > 5


def test_nothing_lies_ahead(examples):
    """What is asked does not change with what is recorded later; at most the answer does."""
    changed = dataclasses.replace(EPISODES, obs=EPISODES.obs.copy())
    step = 2
    changed.obs[:, step + 1 :] += 7.0
    other = list(dynamics.examples(source(changed), 450, seed=1))
    early = [
        (one, new)
        for one, new in zip(examples, other, strict=True)
        if one["kind"] in ("mortality", "vasopressor", "values") and place(one)[1] <= step
    ]
    assert len(early) > 20 and all(one["messages"][:2] == new["messages"][:2] for one, new in early)
    assert any(one["messages"][2] != new["messages"][2] for one, new in early if one["kind"] == "values")


@pytest.mark.parametrize(
    ("now", "then", "word"),
    [(100, 105, "stayed"), (100, 106, "rose"), (100, 94, "fell"), (0, 0, "stayed"), (-2, -1, "rose")],
)
def test_direction(now, then, word):
    assert dynamics.direction(now, then) == word


@pytest.fixture(scope="module")
def cases():
    settings = AgentSettings(split="all", stays=0, follow="model", concurrency=8)
    planner = PlannerBackend(package_prompts(), PlannerSettings(samples=16))
    return loop.run(EPISODES, range(6), SIMULATOR, AI_CLINICIAN_BINS, planner, settings)


def accepted(cases):
    counts = Counter()
    return list(demonstrations.accepted(cases, ASKING, AI_CLINICIAN_BINS, counts)), counts


def test_the_teachers_decisions_are_kept(cases):
    kept, counts = accepted(cases)
    assert sum(counts.values()) == sum(len(case["decisions"]) for case in cases)
    assert len(kept) == counts["kept"] > 0.9 * sum(counts.values()) and counts["malformed"] == counts["failed"] == 0
    for one in kept:
        assert [message["role"] for message in one["messages"]] == [
            "system",
            "user",
            "assistant",
            "tool",
            "assistant",
            "tool",
        ]
        assert "rationale" not in json.dumps(one["messages"][4]) and one["tools"] == ASKING.tools


def test_what_changes_the_vasopressor_is_half_of_it(cases):
    kept, _ = accepted(cases)
    previous = {
        (case["stay_id"], d["step"]): d["action"][0] != d["previous"][0] for case in cases for d in case["decisions"]
    }
    assert sum(one["changed"] for one in kept) == sum(previous.values()) > 3  # all of them were kept
    examples = [{"at": at, "changed": at < 20} for at in range(100)]
    for number, half in ((6, 1), (60, 10), (100, 16), (120, 20), (10_000, 20)):
        plain, later = lessons(examples, number)
        assert len(later) == 2 * sum(one["changed"] for one in later) == 2 * half
        assert len(plain) == min(number - 2 * half, 100) == len({one["at"] for one in plain})
        assert len({one["at"] for one in later}) == 2 * half
    plain, later = lessons(examples, 60)
    assert len({one["at"] for one in plain} & {one["at"] for one in later}) <= 12  # as few as there can be
    assert abs(np.mean([one["changed"] for seed in range(50) for one in lessons(examples, 60, seed)[0]]) - 0.2) < 0.03
    assert [len(part) for part in lessons([{"changed": True}] * 9, 60)] == [9, 0]


def lessons(examples, number, seed=1):
    """As they come, and for later."""
    some = demonstrations.lessons(examples, number, np.random.default_rng(seed))
    plain = [one for one in some if not one["later"]]
    assert len(some) <= number and some[: len(plain)] == plain
    return plain, some[len(plain) :]


def test_a_decision_without_the_simulator_is_the_same_one(cases):
    kept, _ = accepted(cases)
    alone = LLMBackend(LLMSettings(rationale=False, simulator=False), package_prompts(), samples=16, seed=0)
    one = demonstrations.alone(kept[3], alone, AI_CLINICIAN_BINS)
    assert [message["role"] for message in one["messages"]] == ["system", "user", "assistant", "tool"]
    assert one["messages"][1:] == [kept[3]["messages"][1], *kept[3]["messages"][-2:]]
    assert "simulation" not in json.dumps(one["tools"]) and "simulation" not in one["messages"][0]["content"]
    assert one["answer"] == kept[3]["answer"] and one["kind"] == "decision alone"


@pytest.mark.parametrize(
    "reason", ["malformed", "against the guideline", "not simulated", "worse than usual", "failed"]
)
def test_what_is_no_example_is_left_out(cases, reason):
    case = json.loads(json.dumps(cases[0]))
    decision = case["decisions"][0]
    if reason == "malformed":
        said = case["messages"][decision["message"] + 1]
        said["tool_calls"][0]["function"]["arguments"] = '{"actions": ["[9,9]"]}'
    elif reason == "against the guideline":
        decision["broken"] = ["overdosing"]
    elif reason == "not simulated":
        decision["considered"] = [one for one in decision["considered"] if one["action"] != decision["action"]]
    elif reason == "worse than usual":
        allowed = [one for one in decision["considered"] if one["keeps_guideline"]]
        usual = max(allowed, key=lambda one: one["support"])
        for one in decision["considered"]:
            one["value"] = 1.0 if one is usual else 0.0
        decision["action"] = next(one["action"] for one in decision["considered"] if one is not usual)
    else:
        case["failed"] = {"kind": "timeout", "detail": ""}
        case["messages"] = case["messages"][: case["decisions"][-1]["message"] + 1]
    kept, counts = accepted([case])
    assert counts[reason] == 1 and len(kept) == len(accepted([cases[0]])[0]) - 1


def test_usual_is_what_a_guideline_allows(cases):
    """A teacher that does better than clinicians by the guideline alone is to be imitated."""
    case = json.loads(json.dumps(cases[0]))
    decision = case["decisions"][0]
    for one in decision["considered"]:
        chosen = one["action"] == decision["action"]
        one.update(support=0.1 if chosen else 0.9, value=0.0 if chosen else 1.0, keeps_guideline=chosen)
    assert len(accepted([case])[0]) == len(accepted([cases[0]])[0])


def test_every_decision_comes_once_before_any_comes_again():
    pool = dynamics._Pool(np.arange(10), np.repeat([0, 1], 5), np.random.default_rng(0))
    taken = [pool.take() for _ in range(400)]
    counts = Counter(row for row, _ in taken)
    assert max(counts[row] for row in range(5, 10)) - min(counts[row] for row in range(5, 10)) <= 1
    assert 0.75 < sum(step == 0 for _, step in taken) / 400 < 0.9  # FIRST, and some of all


def test_folders_of_examples_are_read_again(tmp_path, cases):
    kept, _ = accepted(cases)
    assert data.write(tmp_path / "some", kept, {"teacher": "planner"}) == len(kept)
    found = data.read(tmp_path / "some")
    assert [one["messages"][0] for one in found] == [one["messages"][0] for one in kept]
    assert isinstance(found[0]["messages"][2]["tool_calls"][0]["function"]["arguments"], dict)
    card = (tmp_path / "some" / data.CARD).read_text()
    assert "planner" in card and f"| stays | {len({one['stay_id'] for one in kept})} |" in card


SAID = {"role": "assistant", "content": "yes"}


def line(**changes):
    return json.dumps({"kind": "a", "messages": [{"role": "user", "content": "well?"}, SAID]} | changes)


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "{",
        "[]",
        "3",
        '{"messages": 1',
        line(messages=None),
        line(messages="well"),
        line(messages=[]),
        line(messages=[{"role": "user", "content": "nobody answers"}]),
        line(messages=[SAID | {"role": "doctor"}, SAID]),
        line(messages=[SAID | {"content": None}]),
        line(messages=[{"content": "who?"}, SAID]),
        line(messages=[SAID | {"tool_calls": None}]),
        line(messages=[SAID | {"tool_calls": [{"id": "1"}]}]),
        line(messages=[SAID | {"tool_calls": [{"function": {"name": "a", "arguments": "{"}}]}]),
        line(messages=[SAID | {"tool_calls": [{"function": {"name": "a", "arguments": "[1]"}}]}]),
        line(tools=7),
        "[" * 100_000,
    ],
)
def test_bad_examples_get_one_line(tmp_path, text):
    if text is not None:
        (tmp_path / data.FILE).write_text(f"{line()}\n{text}" if text else "")
    with pytest.raises(InputError, match=re.escape(data.FILE)):
        data.read(tmp_path)


def test_bytes_that_are_no_text_get_one_line(tmp_path):
    (tmp_path / data.FILE).write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="UTF-8"):
        data.read(tmp_path)


def test_no_examples_are_not_written(tmp_path):
    (tmp_path / "some").mkdir()
    with pytest.raises(InputError, match="none that can be learned from"):
        data.write(tmp_path / "some", [], {})
    assert list((tmp_path / "some").iterdir()) == []


@pytest.mark.parametrize(("number", "epochs", "batch"), [(0, 2, 4), (7, 1, 2), (403, 2, 4), (5, 1, 8), (100, 3, 1)])
def test_every_pass_holds_each_dialogue_once(number, epochs, batch):
    lengths = np.random.default_rng(0).integers(10, 900, number)
    found = data.order(lengths, epochs, batch, seed=3)
    assert (np.bincount(found, minlength=number) == epochs).all()
    assert np.array_equal(found, data.order(lengths, epochs, batch, seed=3))
    assert number < 50 or not np.array_equal(found[:50], data.order(lengths, epochs, batch, seed=4)[:50])


def test_neighbours_in_a_batch_are_about_equally_long():
    lengths = np.random.default_rng(0).integers(10, 900, 800)
    batches = lengths[data.order(lengths, 1, 8, seed=0)].reshape(-1, 8)
    assert np.ptp(batches, axis=1).mean() < 60 and np.ptp(lengths) > 800
    assert abs(np.corrcoef(batches.mean(1), np.arange(100))[0, 1]) < 0.3  # no longest first


@pytest.mark.parametrize("what", ["another stay", "not whole", "twice", "none"])
def test_other_teachers_are_looked_at_first(tmp_path, cases, what):
    kept = json.loads(json.dumps(cases[:2]))
    stays = np.array([one["stay_id"] for one in kept])
    transcripts.write(tmp_path / transcripts.FILE, kept)
    assert demonstrations.taught(tmp_path, stays) == kept
    if what == "another stay":
        stays = stays[1:]
    elif what == "not whole":
        kept[0]["decisions"][0]["action"] = [9, 9]
    else:
        kept = [kept[0], kept[0]] if what == "twice" else []
    transcripts.write(tmp_path / transcripts.FILE, kept)
    with pytest.raises(InputError, match=transcripts.FILE):
        demonstrations.taught(tmp_path, stays)
