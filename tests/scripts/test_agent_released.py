"""agent_loop.py over test episodes as released: no store of them, a world model and clinicians from elsewhere."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from processes import tiny_inputs
from released_files import make_stay, write

from sepsis_jax import agent_run, config
from sepsis_jax.agent import markdown, report, transcripts
from sepsis_jax.clinical.actions import AI_CLINICIAN_BINS
from sepsis_jax.data import store
from sepsis_jax.errors import InputError
from sepsis_jax.policies.clinician import Clinician
from sepsis_jax.policies.rules import Uniform
from sepsis_jax.released_run import ReleasedFiles

sys.path.insert(0, str(Path(__file__).parents[2]))
import agent_loop

COURSE = {"actions": str, "outcome": str, "total_reward": float, "trajectory_length": int}
RESULT = {
    "metadata": {
        "episode_id": int,
        "stay_id": int,
        "model": COURSE,
        "real": COURSE,
        "guideline_compliance": {
            "total_prescriptions": int,
            "hypoperfusion_violations": int,
            "vaso_weaning_violations": int,
        },
    },
    "messages": list,
}
"""Keys and types of a published result, from its documentation."""
SMALL = ("--planner.samples=2", "--planner.horizon=1", "--agent.stays=0")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Flags: the released files; a teaching cohort and a world model of other patients."""
    folder = tmp_path_factory.mktemp("inputs")
    rng = np.random.default_rng(0)
    stays = [make_stay(rng, stay_id, steps)[0] for stay_id, steps in ((30000001, 2), (30000002, 3))]
    episodes, scaler, _ = write(folder, stays)
    return (f"--released-episodes={episodes}", f"--scaler={scaler}"), tiny_inputs(folder, 20, 3)


def run(folder, *words):
    agent_loop.main([f"--run={folder}", *SMALL, *words])


def types_of(value):
    return {key: types_of(inner) for key, inner in value.items()} if isinstance(value, dict) else type(value)


def test_released_episodes_run_and_are_exported_as_published(inputs, tmp_path, capsys):
    released, (_, *others) = inputs
    run(tmp_path, *released, *others, f"--export={tmp_path / 'results.json'}")
    shown = " ".join(capsys.readouterr().out.split())
    assert "Clinicians: unknown, taken as uniform" in shown and "(0 left out" in shown
    cases = transcripts.read(tmp_path / "agent" / transcripts.FILE)
    assert [one["stay_id"] for one in cases] == [30000001, 30000002]
    assert {f["support"] for one in cases for d in one["decisions"] for f in d["considered"]} == {0.04}
    for file in (report.FILE, markdown.FILE):
        assert "not for care" in (tmp_path / "agent" / file).read_text()
    file = json.loads((tmp_path / "results.json").read_text())
    assert set(file) == {"results", "summary"} and len(file["results"]) == 2
    for number, (one, case) in enumerate(zip(file["results"], cases, strict=True)):
        about, messages = one["metadata"], one["messages"]
        assert types_of(one) == RESULT
        assert (about["episode_id"], about["stay_id"]) == (number, case["stay_id"])
        assert about["real"]["outcome"] == ("release", "death")[case["stay_id"] % 2 == 1]
        assert about["model"]["actions"].count("[") == about["model"]["trajectory_length"] == len(case["decisions"])
        assert about["real"]["trajectory_length"] == number + 2
        each = ["user", *["tool_call", "tool_response"] * 2]
        assert [message["role"] for message in messages] == each * len(case["decisions"])
        assert all(set(message) == {"role", "content"} for message in messages)
        calls = [json.loads(message["content"]) for message in messages if message["role"] == "tool_call"]
        assert [call["name"] for call in calls] == ["simulation", "prescription"] * len(case["decisions"])


def prepared(folder, released, words):
    settings, flags = config.load([f"--run={folder}", *SMALL, *released, *words], agent_loop.Flags, description="")
    files = ReleasedFiles.of(flags.released_episodes, flags.scaler, flags.feature_config)
    return agent_run.prepare(settings, flags.episodes or settings.episodes, flags.checkpoint, False, files)


def test_clinicians_are_estimated_from_another_cohort(inputs, tmp_path):
    released, others = inputs
    taught, alone = prepared(tmp_path, released, others), prepared(tmp_path, released, others[1:])
    assert taught.describe()["Clinicians"].startswith("estimate from the train split of another cohort (test, 1, ")
    assert isinstance(taught.loaded.policy, Clinician) and isinstance(alone.loaded.policy, Uniform)
    known, _ = store.load(Path(others[0].partition("=")[2]))
    assert taught.describe()["Clinicians"].endswith(f"{known.digest()[:12]})")
    for run_of in (taught, alone):
        np.testing.assert_array_equal(run_of.episodes.stay_id, [30000001, 30000002])
        assert run_of.private and run_of.describe()["Cohort"].startswith("released")
    one, other = taught.identity(None), alone.identity(None)
    assert {name for name in one if one[name] != other[name]} == {"clinicians"}


def test_released_episodes_stay_on_this_machine(inputs, tmp_path):
    released, others = inputs
    far = ("--agent.backend=llm", '--llm.base_urls=["https://api.example.com/v1"]')
    with pytest.raises(InputError, match="on this machine, since the cohort is credentialed"):
        run(tmp_path, *released, *others, *far)


def test_levels_must_stand_for_the_same_doses(inputs, tmp_path):
    released, (episodes, checkpoint, *rest) = inputs
    known, manifest = store.load(Path(episodes.partition("=")[2]))
    bins = AI_CLINICIAN_BINS._replace(fluid_dose=(0.0, 1.0, 2.0, 3.0, 4.0))
    plain = manifest.to_dict() | {"action_bins": bins._asdict()}
    store.save(tmp_path / "other", known, store.Manifest.from_dict(plain))
    with pytest.raises(InputError, match=r"action_bins: expected the action bins of .*other, found others"):
        run(tmp_path, *released, f"--episodes={tmp_path / 'other'}", checkpoint, *rest)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--released_episodes=x.pkl",), "--released_episodes: expected --scaler"),
        (("--scaler=x.json",), "--scaler: expected --released_episodes"),
        (("--feature-config=x.json",), "--feature_config: expected --released_episodes"),
        (("--released_episodes=x.pkl", "--scaler=nowhere.json"), "nowhere.json: expected a file, found none"),
        (("--export=.",), "expected a file, found a folder"),
        (("--export=x.json", "--probabilities=2"), "--dialogues or --export: expected one of them"),
    ],
)
def test_bad_flags(tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        run(tmp_path, *words)
    assert said in str(error.value) and "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_no_truth_no_store_no_model(inputs, tmp_path):
    released, others = inputs
    with pytest.raises(InputError, match="found released stays without"):
        run(tmp_path, *released, *others, "--agent.follow=truth")
    with pytest.raises(InputError, match="nowhere"):
        run(tmp_path, *released, *others[1:], "--episodes=nowhere")
    with pytest.raises(InputError, match="world_model"):
        run(tmp_path, *released)
