"""The folder of a stage: whose it is, who works on it, and what binds later settings."""

from __future__ import annotations

import fcntl

import pytest

import train_agent
from sepsis_jax.curriculum import stage
from sepsis_jax.curriculum.settings import BaseSettings, RLSettings
from sepsis_jax.errors import InputError

TOLD = {"stage": "rl", "settings": [1, 2.5]}


def finish(out):
    with stage.working(out, TOLD) as finished:
        assert not finished
        (out / stage.MODEL).mkdir(parents=True)
        (out / stage.MODEL / "config.json").write_text("{}")


def test_a_finished_stage_says_so(tmp_path):
    out = tmp_path / "a" / "rl"
    finish(out)
    with stage.working(out, TOLD) as finished:
        assert finished
    (out / stage.MODEL / "config.json").unlink()
    with stage.working(out, TOLD) as finished:
        assert not finished  # its model is gone


def test_other_settings_are_refused(tmp_path):
    finish(tmp_path / "rl")
    with pytest.raises(InputError, match="one of others"), stage.working(tmp_path / "rl", TOLD | {"settings": [1]}):
        pass


def test_settings_that_came_to_nothing_bind_nobody(tmp_path):
    out = tmp_path / "rl"
    with pytest.raises(InputError, match="no such model"), stage.working(out, TOLD | {"start": "mistyped"}):
        (out / "base").mkdir()
        raise InputError("start", expected="a model", found="no such model")
    assert not out.exists()
    with stage.working(out, TOLD | {"start": "right"}) as finished:
        assert not finished


def test_settings_bind_once_there_is_an_update(tmp_path):
    out = tmp_path / "rl"
    with pytest.raises(InputError, match="diverged"), stage.working(out, TOLD):
        (out / stage.LOG).write_text("")
        raise InputError("log", expected="a run that converges", found="one that diverged")
    with pytest.raises(InputError, match="one of others"), stage.working(out, TOLD | {"settings": []}):
        pass


def test_somebody_elses_folder_is_left_alone(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("mine")
    with pytest.raises(InputError, match="something else"), stage.working(tmp_path, TOLD):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "config.json"]
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="something else"), stage.working(tmp_path / "file", TOLD):
        pass


def test_two_at_once_are_refused(tmp_path):
    out = tmp_path / "rl"
    with stage.working(out, TOLD):
        with (out / stage.LOCK).open() as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(InputError, match="a process works on"), stage.working(out, TOLD):
            pass


@pytest.mark.parametrize("text", ["", "{", "\udcff"])
def test_damaged_settings_get_one_line(tmp_path, text):
    finish(tmp_path / "rl")
    (tmp_path / "rl" / stage.DONE).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=stage.DONE), stage.working(tmp_path / "rl", TOLD):
        pass


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: RLSettings(decisions=3, group=2, batch=4), "batch"),
        (lambda: RLSettings(kl=0), "kl"),
        (lambda: RLSettings(group=1), "group"),
        (lambda: BaseSettings(hidden=320), "hidden"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(make, field):
    with pytest.raises(InputError, match=field):
        make()


@pytest.mark.parametrize(
    ("name", "flag"), [("data", "out"), ("data", "start"), ("dynamics", "teacher"), ("rl", "teacher")]
)
def test_flags_that_a_stage_does_not_read_are_refused(tmp_path, name, flag):
    words = ["--stage", name, "--run", str(tmp_path / "run"), f"--{flag}", str(tmp_path / "it")]
    with pytest.raises(InputError, match=f"no --{flag}"):
        train_agent.main(words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("processes", "number", "batch", "each"), [(1, 32, 8, (8, 4)), (2, 32, 8, (8, 2)), (4, 8, 8, (2, 1))]
)
def test_an_update_is_the_same_whatever_the_number_of_processes(monkeypatch, processes, number, batch, each):
    monkeypatch.setattr(stage, "PROCESSES", processes)
    assert stage.shared(number, batch) == each and processes * each[0] * each[1] == number


@pytest.mark.parametrize(("processes", "number", "batch"), [(3, 32, 8), (8, 4, 4), (2, 24, 8)])
def test_an_update_that_cannot_be_shared_is_refused(monkeypatch, processes, number, batch):
    monkeypatch.setattr(stage, "PROCESSES", processes)
    with pytest.raises(InputError, match=f"{processes} processes can share"):
        stage.shared(number, batch)


@pytest.mark.parametrize("word", ["--llm.simulator=false", "--llm.simulation=sample"])
def test_dialogues_that_the_planner_cannot_write_are_refused(tmp_path, word):
    with pytest.raises(InputError, match="as the planner simulates"):
        train_agent.main(["--stage", "data", "--run", str(tmp_path / "run"), word])
    assert not (tmp_path / "run").exists()


def test_examples_are_made_by_one_process(tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "PROCESSES", 2)
    with pytest.raises(InputError, match="one process"):
        train_agent.main(["--stage", "data", "--run", str(tmp_path / "run")])
