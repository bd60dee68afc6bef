"""The dialogue: what a case shows, how it follows the record, that nothing of the future leaks, and what is written."""

from __future__ import annotations

import asyncio
import dataclasses
import html
import json
import math
import threading
import time

import jax
import numpy as np
import pytest
from factories import make_episodes
from toy import MAP, toy_params, toy_simulator, toy_world

from sepsis_jax.agent import dialogues, loop, report, tools, transcripts
from sepsis_jax.agent.backends import PlannerBackend
from sepsis_jax.agent.case import Case
from sepsis_jax.agent.llm import LLMBackend
from sepsis_jax.agent.prompting import number, package_prompts
from sepsis_jax.agent.settings import AgentSettings, LLMSettings
from sepsis_jax.agent.simulator import BatchedSimulator, Batcher, Truth
from sepsis_jax.clinical.actions import AI_CLINICIAN_BINS, ALL_ACTIONS
from sepsis_jax.clinical.features import NAMES
from sepsis_jax.dynamics.patient.cohort import simulate_cohort
from sepsis_jax.errors import InputError
from sepsis_jax.evaluation.closed_loop import true_stage
from sepsis_jax.policies.planner import PlannerSettings
from sepsis_jax.policies.rules import Guideline
from sepsis_jax.simulation.batch import simulate
from sepsis_jax.simulation.record import Trajectories

EPISODES = make_episodes(8, 6, seed=11)
SIMULATOR = toy_simulator(concurrency=4, horizon=3)
PLANNER = PlannerBackend(package_prompts(), PlannerSettings(samples=16))


def case_of(row=0, follow="recorded_until_deviation", episodes=EPISODES):
    return Case(episodes, row, SIMULATOR, AI_CLINICIAN_BINS, follow)


def recorded(row, step, episodes=EPISODES):
    return tuple(int(level) for level in episodes.action[row, step])


def other(action):
    return ((action[0] + 1) % 5, action[1])


class Clinicians:
    """Backend that repeats the record."""

    async def close(self):
        pass

    async def decide(self, case):
        await case.prescribe(recorded(list(EPISODES.stay_id).index(case.stay_id), len(case.decisions)))


def run(backend, rows, **options):
    settings = AgentSettings(split="all", stays=0, concurrency=4, **options)
    return loop.run(EPISODES, rows, SIMULATOR, AI_CLINICIAN_BINS, backend, settings)


def test_following_the_record_lives_the_record():
    for one, row in zip(run(Clinicians(), range(8)), range(8), strict=True):
        length = int(EPISODES.length[row])
        assert len(one["decisions"]) == length and not one["outcome"]["deviated"]
        assert one["outcome"]["death_90d"] == float(EPISODES.mortality_90d[row])
        assert one["outcome"]["exit"] == int(EPISODES.exit[row])
        for step, decision in enumerate(one["decisions"]):
            assert decision["source"] == "record" and decision["action"] == list(recorded(row, step))
            np.testing.assert_allclose(list(decision["obs"].values()), EPISODES.obs[row, step], rtol=1e-5)


def test_a_deviation_leaves_the_record_for_good():
    row = int(EPISODES.length.argmax())

    async def play():
        case = case_of(row)
        await case.prescribe(recorded(row, 0))
        await case.prescribe(other(recorded(row, 1)))
        assert case.outcome.deviated and not np.array_equal(case.history.obs[2], EPISODES.obs[row, 2])
        await case.prescribe(recorded(row, 2))  # the same levels as the record's do not bring it back
        assert case.outcome.deviated
        return case

    case = asyncio.run(play())
    assert [d.source for d in case.decisions] == ["record", "record", "model"]


def test_model_from_the_start_never_reads_the_second_recorded_observation():
    changed = EPISODES.replace(obs=np.where(np.arange(6)[None, :, None] > 0, 77.0, EPISODES.obs).astype(np.float32))

    async def play(episodes):
        case = case_of(follow="model", episodes=episodes)
        while not case.outcome.closed:
            await case.prescribe((1, 1))
        return [decision.obs for decision in case.decisions]

    assert asyncio.run(play(EPISODES)) == asyncio.run(play(changed))


def test_the_recorded_future_changes_nothing_that_a_case_shows():
    """Same past, another future: messages, simulations and history at the open decision are equal."""
    step = 2
    future = np.arange(6)[None, :, None]
    changed = EPISODES.replace(
        obs=np.where(future > step, 50.0, EPISODES.obs).astype(np.float32),
        mask=np.where(future > step, False, EPISODES.mask),
        action=np.where(future >= step, 4, EPISODES.action).astype(np.int8),
        mortality_90d=1 - EPISODES.mortality_90d,
        exit=((EPISODES.exit + 1) % 3).astype(np.int8),
    )

    async def play(episodes):
        case, shown = case_of(episodes=episodes), []
        for t in range(step):
            shown += case.observe()
            await case.prescribe(recorded(0, t))
        shown += case.observe()
        return shown, await case.simulate(ALL_ACTIONS[:5]), case.history

    (seen_a, futures_a, history_a), (seen_b, futures_b, history_b) = (
        asyncio.run(play(EPISODES)),
        asyncio.run(play(changed)),
    )
    assert seen_a == seen_b and futures_a == futures_b and len(seen_a) == step + 1
    np.testing.assert_array_equal(history_a.obs, history_b.obs)


def test_observe_speaks_once_a_decision_and_shows_only_new_measurements():
    case = case_of()
    (message,) = case.observe()
    assert case.observe() == []
    listed = message["content"].split("Newly measured: ")[1].split(", ")
    measured = [name for name, seen in zip(NAMES[:38], EPISODES.mask[0, 0], strict=True) if seen]
    assert [item.split()[0] for item in listed] == [*measured, "output_4hourly"]


@pytest.mark.parametrize("action", [(5, 0), (0, -1), (0,), (1, 2, 3)])
def test_prescribe_refuses_what_is_no_action(action):
    case = case_of()
    with pytest.raises(ValueError, match="levels are two integers"):
        asyncio.run(case.prescribe(action))
    assert case.decisions == [] and not case.outcome.closed


def test_a_closed_case_stays_closed():
    async def play():
        case = case_of(follow="model")
        while not case.outcome.closed:
            await case.prescribe((0, 1))
        with pytest.raises(ValueError, match="is closed"):
            await case.prescribe((0, 1))
        with pytest.raises(ValueError, match="is closed"):
            await case.simulate(ALL_ACTIONS)
        return case

    assert asyncio.run(play()).observe() == []


def test_answers_do_not_depend_on_who_else_asks():
    async def alone():
        return await case_of(2).simulate(ALL_ACTIONS)

    async def together():
        answers = await asyncio.gather(*(case_of(row).simulate(ALL_ACTIONS) for row in (0, 2, 5, 6, 7)))
        return answers[1]

    assert asyncio.run(alone()) == asyncio.run(together())


def test_batcher_gathers_and_passes_errors_on():
    sizes = []

    def square(requests):
        sizes.append(len(requests))
        if -1 in requests:
            raise RuntimeError("no")
        return [r * r for r in requests]

    async def ask(*requests):
        batcher = Batcher(square, size=3)
        return await asyncio.gather(*(batcher.ask(r) for r in requests), return_exceptions=True)

    assert asyncio.run(ask(1, 2, 3, 4)) == [1, 4, 9, 16] and sizes == [3, 1]
    assert all(isinstance(answer, RuntimeError) for answer in asyncio.run(ask(-1, 2)))


@pytest.mark.parametrize("request_", [3, -1])
def test_who_gives_up_keeps_nobody_waiting(request_):
    """Who asked may be cancelled while the call runs; the others of its batch are answered, by an error too."""
    began = threading.Event()

    def slow(requests):
        began.set()
        time.sleep(0.05)
        if -1 in requests:
            raise RuntimeError("no")
        return requests

    async def ask():
        batcher = Batcher(slow, size=3)
        first, second = asyncio.create_task(batcher.ask(request_)), asyncio.create_task(batcher.ask(4))
        await asyncio.to_thread(began.wait)
        first.cancel()
        return await asyncio.wait_for(asyncio.gather(second, return_exceptions=True), 5)

    (answer,) = asyncio.run(ask())
    assert isinstance(answer, RuntimeError) if request_ < 0 else answer == 4


def test_planner_backend_prescribes_its_best_allowed_candidate():
    (one,) = run(PLANNER, [3])
    for decision in one["decisions"]:
        allowed = [f for f in decision["considered"] if f["keeps_guideline"]]
        assert len(decision["considered"]) == 25
        assert (
            decision["action"] == max(allowed, key=lambda f: f["value"] + math.log(max(f["support"], 1e-9)))["action"]
        )
        assert "guideline" not in decision["broken"] and decision["rationale"]


@pytest.mark.parametrize(
    ("changes", "rank"),
    [({"caution": 0.0}, "value"), ({"caution": 1000.0}, "support"), ({"caution": 0.0, "candidates": 1}, "support")],
)
def test_the_planner_is_as_cautious_as_it_is_told(changes, rank):
    planner = PlannerBackend(package_prompts(), PlannerSettings(samples=16, shield=False, **changes))
    for row in range(3):
        case = case_of(row, follow="model")
        case.observe()
        futures = asyncio.run(case.simulate(ALL_ACTIONS))
        asyncio.run(planner.decide(case))
        wanted = max(futures, key=lambda one: getattr(one, rank)).action
        assert tuple(case.decisions[0].action) == tuple(wanted)


def test_runs_repeat_and_do_not_depend_on_concurrency():
    first = run(PLANNER, range(5))
    assert first == run(PLANNER, range(5))
    alone = [run(PLANNER, [row])[0] for row in range(5)]
    assert first == alone


def test_transcripts_round_trip_as_strict_json(tmp_path):
    cases = run(PLANNER, [0, 1])
    transcripts.write(tmp_path / "t.jsonl", cases)
    assert transcripts.read(tmp_path / "t.jsonl") == json.loads(json.dumps(cases))
    (tmp_path / "t.jsonl").write_text('{"a": 1}\n{"a": ')
    with pytest.raises(InputError, match="one JSON object a line"):
        transcripts.read(tmp_path / "t.jsonl")


def test_report_is_self_contained_and_escapes_text(tmp_path):
    cases = run(PLANNER, [0, 1])
    evil = "<script>alert('x')</script>"
    cases[0]["decisions"][0]["rationale"] = evil
    cases[0]["patient"]["sex"] = evil
    report.write(tmp_path / "r.html", cases, {"Cohort": evil})
    page = (tmp_path / "r.html").read_text()
    assert evil not in page and page.count(html.escape(evil, quote=False)[:15]) == 3
    assert "not for care" in page
    assert "http://" not in page.replace("http://www.w3.org", "") and "https://" not in page and "<link" not in page
    assert page.count("data:image/svg+xml;base64,") == 4
    for one in cases:
        assert f"Stay {one['stay_id']}" in page


def test_report_survives_nobody_left_in_the_icu(tmp_path):
    """NaN statistics (all samples have left) become blanks."""
    simulator = BatchedSimulator(
        toy_world(policy=Guideline()),
        dataclasses.replace(toy_params(), discharge=np.float32(1.0)),
        None,
        PlannerSettings(samples=4, horizon=2),
        seed=0,
        concurrency=1,
    )
    settings = AgentSettings(split="all")
    cases = loop.run(EPISODES, [0], simulator, AI_CLINICIAN_BINS, PLANNER, settings)
    assert cases[0]["decisions"][0]["considered"][0]["median"]["meanbp"] == [None, None]
    report.write(tmp_path / "r.html", cases, {})
    assert "NaN" not in (tmp_path / "r.html").read_text()


def test_report_shows_so_many_stays_failed_ones_first(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "MOST_CASES", 1)
    cases = run(PLANNER, [0, 1, 2])
    cases[2]["failed"] = {"kind": "timeout", "detail": ""}
    report.write(tmp_path / "r.html", cases, {})
    page = (tmp_path / "r.html").read_text()
    assert page.count("<h2 ") == 1 and f'id="stay-{cases[2]["stay_id"]}"' in page and "2 more stays" in page


def test_nobody_is_told_which_world_it_lives_in():
    """Else a model hears whether it has done what the clinician did, and other texts on the record than in a course."""

    async def text(follow, action):
        case = case_of(follow=follow)
        case.observe()
        await case.prescribe(action)
        (case._step, case._obs[1]), case._mask[1] = (1, EPISODES.obs[0, 1]), EPISODES.mask[0, 1]
        case.observe()
        return case.observations

    given = recorded(0, 0)
    assert asyncio.run(text("recorded_until_deviation", given)) == asyncio.run(text("model", given))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (999.7, "1000"),
        (999.4, "999"),
        (1234.5, "1234"),
        (0.00005, "0.00005"),
        (36.62, "36.6"),
        (-0.126, "-0.126"),
        (85, "85"),
        (0, "0"),
    ],
)
def test_numbers_have_three_digits_and_no_exponent(value, text):
    assert number(value) == text and number(None) == number(math.nan) == "-"


def test_choose_stays():
    assert list(loop.choose_stays(EPISODES, AgentSettings(split="all", stays=3))) == [0, 1, 2]
    test_rows = np.flatnonzero(EPISODES.split == 2)
    assert list(loop.choose_stays(EPISODES, AgentSettings(split="test", stays=0))) == list(test_rows)
    with pytest.raises(InputError, match="a split with stays"):
        loop.choose_stays(EPISODES.replace(split=np.zeros(8, np.int8)), AgentSettings(split="test"))


def test_living_noise_is_not_the_judging_noise():
    """What a deviating case lives through must not be one of the samples its candidates were judged with."""

    async def play():
        case = case_of(follow="model")
        history = case.history
        await case.prescribe((1, 1))
        return history, case.history.obs[1, MAP]

    history, lived = asyncio.run(play())
    batch = jax.tree.map(lambda leaf: np.asarray(leaf)[None], history)
    plans = np.ones((1, 1, 1, 2), np.int8)
    judged = simulate(
        toy_world(),
        toy_params(),
        None,
        batch,
        plans,
        jax.random.fold_in(jax.random.key(0), 3),
        record=Trajectories(),
        samples=16,
        horizon=1,
    )
    assert np.abs(np.asarray(judged.steps.obs[0, 0, :, 0, MAP]) - lived).min() > 1e-3


def test_the_planner_speaks_as_a_model_does():
    (one,) = run(PLANNER, [3], follow="model")
    for step, decision in enumerate(one["decisions"]):
        assert one["messages"][decision["message"]]["role"] == "user"
        asked, answer, prescribed, given = one["messages"][decision["message"] + 1 :][:4]
        assert [message["role"] for message in (asked, answer, prescribed, given)] == ["assistant", "tool"] * 2
        calls = [message["tool_calls"][0]["function"] for message in (asked, prescribed)]
        shown, said = (tools.read("", [(call["name"], call["arguments"])], simulator=True) for call in calls)
        assert list(said.action) == decision["action"] and said.rationale == decision["rationale"], step
        usual = max(decision["considered"], key=lambda future: future["support"])
        wanted = {said.action, tuple(usual["action"]), tuple(decision["previous"])}
        assert wanted <= set(shown.actions) and len(shown.actions) == 3
        assert list(shown.actions) == sorted(shown.actions)


def test_a_case_begun_later_is_the_case_that_followed_the_record():
    row = int(np.argmax(EPISODES.length))

    async def play():
        case = case_of(row=row)
        for _ in range(3):
            case.observe()
            await case.prescribe(recorded(row, len(case.decisions)))
        case.observe()
        return case

    lived = asyncio.run(play())
    begun = Case(EPISODES, row, SIMULATOR, AI_CLINICIAN_BINS, "recorded_until_deviation", at=3)
    begun.observe()
    assert begun.observations == lived.observations and len(begun.observations) == 4
    assert begun.previous == lived.previous == recorded(row, 2)
    for mine, theirs in zip(jax.tree.leaves(begun.history), jax.tree.leaves(lived.history), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    said = [message for message in begun.messages if message["role"] == "assistant"]
    calls = [message["tool_calls"][0]["function"] for message in said]
    actions = [tools.read("", [(call["name"], call["arguments"])], simulator=False).action for call in calls]
    assert actions == [recorded(row, step) for step in range(3)]


def test_one_sample_is_the_same_luck_for_all_candidates():
    states = asyncio.run(case_of().sample(np.array([[1, 1], [2, 2], [1, 1]])))
    np.testing.assert_array_equal(states[0].obs, states[2].obs)
    assert states[0].obs[MAP] != states[1].obs[MAP]


def test_living_in_the_truth_is_its_own_record():
    """With the recorded actions, the patient simulator gives the recorded course again, to its exit."""
    episodes, truth = simulate_cohort(6, seed=3)
    home = Truth(*_stage(truth, episodes))
    simulator = toy_simulator(concurrency=6, truth=home)

    class Record(Clinicians):
        async def decide(self, case):
            row = list(episodes.stay_id).index(case.stay_id)
            await case.prescribe(tuple(int(level) for level in episodes.action[row, len(case.decisions)]))

    settings = AgentSettings(split="all", stays=0, concurrency=6, follow="truth")
    cases = loop.run(episodes, range(6), simulator, AI_CLINICIAN_BINS, Record(), settings)
    for row, one in enumerate(cases):
        length = int(episodes.length[row])
        assert len(one["decisions"]) == length and one["outcome"]["exit"] == int(episodes.exit[row])
        lived = np.array([list(decision["obs"].values()) for decision in one["decisions"]])
        np.testing.assert_allclose(lived, episodes.obs[row, :length], rtol=1e-4, atol=1e-4)
        assert [d["source"] for d in one["decisions"]] == ["record"] + ["truth"] * (length - 1)


def _stage(truth, episodes):
    stage = true_stage(truth, episodes, AI_CLINICIAN_BINS)
    return stage.world, stage.params, stage.seed


@pytest.mark.parametrize("rationale", [True, False])
def test_dialogues_to_learn_from_are_what_a_model_reads(tmp_path, rationale):
    cases = run(PLANNER, [0, 1])
    cases[1]["failed"] = {"kind": "timeout", "detail": ""}
    asking = LLMBackend(LLMSettings(rationale=rationale), package_prompts(), samples=16, seed=0)
    number = dialogues.write(tmp_path / "d.jsonl", cases, asking, AI_CLINICIAN_BINS)
    found = [json.loads(line) for line in (tmp_path / "d.jsonl").read_text().splitlines()]
    assert number == len(found) == sum(len(one["decisions"]) for one in cases) - 1
    assert {one["stay_id"] for one in found} <= {one["stay_id"] for one in cases}
    case = Case(EPISODES, 0, SIMULATOR, AI_CLINICIAN_BINS, "recorded_until_deviation")
    case.observe()
    assert found[0]["messages"][:2] == asking.context(case) and found[0]["tools"] == asking.tools
    for one in found:
        assert [message["role"] for message in one["messages"]][2:] == ["assistant", "tool"] * 2
        arguments = json.loads(one["messages"][4]["tool_calls"][0]["function"]["arguments"])
        assert ("rationale" in arguments) == rationale
