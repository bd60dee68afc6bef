"""agent_loop.py as people run it: killed three times, it ends with what an unbroken run ends with."""

from __future__ import annotations

import json
import signal
import time

import processes
import pytest
from processes import finish, tiny_inputs

from sepsis_jax.agent import journal, transcripts

STAYS = 200


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Flags of a run over all stays."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "run.yaml").write_text("planner: {samples: 4, horizon: 1}\nagent: {split: all, stays: 0}\n")
    return f"--config={folder / 'run.yaml'}", *tiny_inputs(folder, STAYS, 3)


def start(inputs, out, *words):
    return processes.start("agent_loop.py", f"--out={out}", *inputs, *words)


def written(out):
    path = journal.path_of(out)
    return path.read_bytes().count(b"\n") - 1 if path.exists() else 0


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1500)  # two reports of 200 cases, whose figures take longer than the cases
def test_a_run_killed_three_times_equals_an_unbroken_one(inputs, tmp_path):
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    for kills in range(3):
        process = start(inputs, broken, *(["--resume"] if kills else []))
        before = written(broken)
        while process.poll() is None and written(broken) < before + 20:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL and not broken.exists()
        assert before + 20 <= written(broken) < STAYS
    assert "--resume goes on" in finish(start(inputs, broken), code=2)
    assert "other agent" in finish(start(inputs, broken, "--resume", "--agent.seed=1"), code=2)
    finish(start(inputs, broken, "--resume", "--agent.concurrency=3"))
    finish(start(inputs, whole))
    assert not journal.path_of(broken).exists()
    one, other = (transcripts.read(folder / transcripts.FILE) for folder in (broken, whole))
    assert len(one) == STAYS == len({case["stay_id"] for case in one})
    assert json.dumps(one) == json.dumps(other)
