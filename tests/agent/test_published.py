"""Results as the published system writes them: layout, rewards, outcomes, violations, dialogue."""

from __future__ import annotations

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from factories import make_episodes
from toy import ToyDynamics, toy_params, toy_simulator, toy_world

from sepsis_jax.agent import loop, published, tools
from sepsis_jax.agent.settings import AgentSettings
from sepsis_jax.agent.simulator import BatchedSimulator
from sepsis_jax.clinical import sofa
from sepsis_jax.clinical.actions import AI_CLINICIAN_BINS
from sepsis_jax.clinical.features import NAMES, PUBLISHED_MEAN, URINE
from sepsis_jax.policies.planner import PlannerSettings

EPISODES = make_episodes(6, 5, seed=3)
TYPICAL = PUBLISHED_MEAN.astype(np.float64)
TYPICAL[URINE] = 3000.0  # so that no part of a day looks dry


def lived(levels, lactate, *, stay=1000, ventilated=None, death_90d=1.0, broken=None, **other):
    """A finished case whose observations differ in lactate alone."""
    decisions = [
        {
            "obs": dict(zip(NAMES, TYPICAL, strict=True)) | {"lactate": lactate[t]},
            "ventilated": bool(ventilated and ventilated[t]),
            "action": list(levels[t]),
            "broken": broken[t] if broken else [],
        }
        for t in range(len(levels))
    ]
    record = {"length": 1, "exit": 0, "mortality_90d": 0}
    known = {"stay_id": stay, "decisions": decisions, "record": record, "failed": None, "messages": []}
    return known | {"outcome": {"death_90d": death_90d}} | other


def model_of(case):
    (one,) = published.results([case], EPISODES.replace(prior_action=np.zeros((6, 2), np.int8)))
    return one["metadata"]["model"]


class Clinicians:
    async def close(self):
        pass

    async def decide(self, case):
        row = list(EPISODES.stay_id).index(case.stay_id)
        await case.prescribe(tuple(int(level) for level in EPISODES.action[row, len(case.decisions)]))


def test_who_repeats_the_record_earns_the_record():
    simulator = toy_simulator(concurrency=1, samples=2, horizon=1)
    settings = AgentSettings(split="all", stays=0)
    cases = loop.run(EPISODES, range(6), simulator, AI_CLINICIAN_BINS, Clinicians(), settings)
    for row, one in enumerate(published.results(cases, EPISODES)):
        about = one["metadata"]
        assert about["episode_id"] == row and about["stay_id"] == EPISODES.stay_id[row]
        assert about["model"] == about["real"] | {
            "total_reward": pytest.approx(about["real"]["total_reward"], abs=1e-3)
        }
        assert about["real"]["outcome"] == ("death" if EPISODES.mortality_90d[row] else "release")
        actions = EPISODES.action[row, : EPISODES.length[row]].tolist()
        assert json.loads(f"[{about['real']['actions']}]") == actions
        assert (
            about["real"]["trajectory_length"] == len(actions) == about["guideline_compliance"]["total_prescriptions"]
        )


@dataclasses.dataclass(frozen=True)
class Intubating(ToyDynamics):
    def step(self, params, state, action, noise, shared=None):
        state, step = super().step(params, state, action, noise)
        return state, step.replace(vent_prob=jnp.float32(0.75), exit_hazard=jnp.zeros(2))


def test_ventilation_is_recorded_and_from_the_deviation_on_simulated():
    class Other:
        async def close(self):
            pass

        async def decide(self, case):
            recorded = tuple(int(level) for level in EPISODES.action[0, len(case.decisions)])
            await case.prescribe(recorded if len(case.decisions) < 1 else (recorded[0], (recorded[1] + 1) % 5))

    episodes = EPISODES.replace(ventilated=np.zeros_like(EPISODES.ventilated), length=np.full(6, 3, np.int32))
    world = dataclasses.replace(toy_world(), dynamics=Intubating())
    simulator = BatchedSimulator(world, toy_params(), None, PlannerSettings(), seed=0, concurrency=1)
    (one,) = loop.run(episodes, [0], simulator, AI_CLINICIAN_BINS, Other(), AgentSettings(split="all"))
    assert [d["ventilated"] for d in one["decisions"]] == [False, False, True, True, True]


def test_rewards_by_hand():
    """The published SOFA counts the vasopressor level of the step before: it rises by 1, then by 2, then falls by 3."""
    found = model_of(lived([(1, 0), (3, 0), (0, 4), (2, 2)], [4.0, 3.0, 3.0, 5.0], death_90d=0.0))
    steps = [-0.125 * 1 - 2 * np.tanh(-1.0), -0.125 * 2, -0.125 * -3 - 2 * np.tanh(2.0)]
    assert found["total_reward"] == pytest.approx(sum(steps) + 15, abs=1e-4)
    assert found["actions"] == "[1,0],[3,0],[0,4],[2,2]" and found["trajectory_length"] == 4
    stays = float(sofa.published(TYPICAL, 0, 9000.0))
    unchanged = model_of(lived([(0, 0), (0, 0)], [2.0, 2.0], death_90d=0.0))
    assert stays > 0 and unchanged["total_reward"] == pytest.approx(15 - 0.025, abs=1e-4)


def test_ventilation_counts():
    severe = {**dict(zip(NAMES, TYPICAL, strict=True)), "fio2": 100.0, "pao2": 90.0, "lactate": 2.0}
    case = lived([(0, 0), (0, 0)], [2.0, 2.0], ventilated=[False, True], death_90d=0.0)
    for decision in case["decisions"]:
        decision["obs"] = severe
    assert model_of(case)["total_reward"] == pytest.approx(15 - 0.125 * 2, abs=1e-4)


@pytest.mark.parametrize(
    ("chance", "outcome", "paid"), [(0.499, "release", 15), (0.5, "death", -15), (1, "death", -15)]
)
def test_the_outcome_is_the_likelier_one(chance, outcome, paid):
    found = model_of(lived([(0, 0)], [2.0], death_90d=chance))
    assert (found["outcome"], found["total_reward"]) == (outcome, paid)


def test_violations_are_counted_as_published():
    both = ["vasopressor_weaning", "guideline"]
    broken = [both, both, ["hypoperfusion", "guideline", "underdosing", "unsafe"], [], both]
    (one,) = published.results([lived([(0, 0)] * 5, [2.0] * 5, broken=broken)], EPISODES)
    counts = {"total_prescriptions": 5, "hypoperfusion_violations": 1, "vaso_weaning_violations": 2}
    assert one["metadata"]["guideline_compliance"] == counts


def test_messages():
    simulate = tools.say(1, "MAP is low.", ("simulation", '{"actions":["[1,2]"]}'))
    broken = tools.say(3, "", ("prescription", '{"vasopressor": 1,'))
    words = tools.say(5, "I wait.")
    dialogue = [{"role": "user", "content": "Hour 4"}]
    for said in (simulate, broken, words):
        dialogue += [said, *tools.reply(said, "understood")]
    (one,) = published.results([lived([(0, 0)], [2.0], messages=dialogue)], EPISODES)
    assert [message["role"] for message in one["messages"]] == [
        *("user", "assistant", "tool_call", "tool_response", "tool_call", "tool_response", "assistant", "user")
    ]
    assert [message["content"] for message in one["messages"]][:2] == ["Hour 4", "MAP is low."]
    called = [json.loads(message["content"]) for message in one["messages"] if message["role"].startswith("tool_")]
    assert called == [
        {"name": "simulation", "arguments": {"actions": ["[1,2]"]}},
        {"result": "understood"},
        {"name": "prescription", "arguments": '{"vasopressor": 1,'},
        {"result": "understood"},
    ]


def test_the_file_leaves_out_what_failed_or_is_unknown(tmp_path):
    unknown = lived([(0, 0)], [2.0], stay=1001, record={"length": 1, "exit": 0, "mortality_90d": -1})
    lost = lived([(0, 0)], [2.0], stay=1002, failed={"kind": "timeout", "detail": ""})
    g1 = [["hypoperfusion"], []]
    kept = [lived([(0, 0)] * 2, [2.0] * 2, stay=1004, death_90d=0.1, broken=g1), lived([(0, 0)], [2.0], stay=1003)]
    assert published.write(tmp_path / "r.json", [unknown, lost, *kept], EPISODES) == 2
    file = json.loads((tmp_path / "r.json").read_text())
    assert [(one["metadata"]["episode_id"], one["metadata"]["stay_id"]) for one in file["results"]] == [
        (4, 1004),
        (3, 1003),
    ]
    summary = file["summary"]
    assert summary["failed"] == {"count": 1, "by_type": {"timeout": 1}}
    rewards = [one["metadata"]["model"]["total_reward"] for one in file["results"]]
    assert summary["model"] == {
        "num_episodes": 2,
        "avg_reward": pytest.approx(np.mean(rewards)),
        "std_reward": pytest.approx(np.std(rewards)),
        "death_count": 1,
        "death_rate": 0.5,
    }
    assert summary["real_doctor"]["num_episodes"] == 2
    assert summary["guideline_compliance"] == {
        "total_prescriptions": 3,
        "hypoperfusion_violations": 1,
        "vaso_weaning_violations": 0,
        "hypoperfusion_violation_rate": pytest.approx(100 / 3),
        "vaso_weaning_violation_rate": 0,
        "full_compliance_rate": pytest.approx(200 / 3),
    }
    assert published.write(tmp_path / "none.json", [unknown, lost], EPISODES) == 0
    assert json.loads((tmp_path / "none.json").read_text()) == {"results": [], "summary": {}}
