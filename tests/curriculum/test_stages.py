"""All three stages on a few examples, as people start them, with real training and a real server."""

from __future__ import annotations

import os
import re
import signal
import sys
import time

import numpy as np
import pytest
from training_here import finish, install_training, logged, start
from vllm_here import ENVIRONMENT, install, only_where_vllm_runs

from sepsis_jax.agent import transcripts

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1500)]
SIZES = (
    "--config=configs/curriculum_tiny.yaml",
    "--cohort.patients=160",
    "--clinician.updates=50",
    "--curriculum.base.reading=300",
    "--curriculum.stays=24",
    "--curriculum.dynamics.examples=300",
    "--curriculum.dynamics.batch=8",
    "--curriculum.dynamics.save_every=5",
    "--curriculum.demonstrations.examples=240",
    "--curriculum.demonstrations.epochs=2",
    "--curriculum.demonstrations.batch=2",
    "--curriculum.rl.updates=4",
    "--curriculum.rl.decisions=2",
    "--curriculum.rl.group=4",
    "--curriculum.rl.batch=8",
)


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """Words that name a run, and its folder; stages I and II are done, and the first was killed on its way."""
    install_training()
    folder = tmp_path_factory.mktemp("run")
    words = (*SIZES, f"--run={folder}")
    finish(start("prepare_data.py", *words, python=sys.executable))
    words += ("--checkpoint=sepsis_jax/checkpoints/carry",)
    assert "questions about courses" in finish(start("train_agent.py", "--stage=data", *words, python=sys.executable))
    first, whole = start("train_agent.py", "--stage=dynamics", *words), folder / "curriculum" / "dynamics"
    while first.poll() is None and not list(whole.glob("checkpoints/checkpoint-*/whole")):
        time.sleep(0.1)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    assert not (whole / "done.json").exists()
    for stage in ("dynamics", "demonstrations"):
        finish(start("train_agent.py", f"--stage={stage}", *words))
    return words, folder / "curriculum"


@pytest.mark.parametrize("stage", ["dynamics", "demonstrations"])
def test_losses_fall(stages, stage):
    lines = logged(stages[1] / stage)
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))  # a kill loses and repeats nothing
    losses = np.array([line["loss"] for line in lines])
    fifth = len(losses) // 5
    assert losses[-fifth:].mean() < 0.7 * losses[:fifth].mean()
    assert (stages[1] / stage / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_finished_stage_is_not_trained_again_and_another_one_is_refused(stages):
    words, folder = stages
    assert "finished" in finish(start("train_agent.py", "--stage=dynamics", *words))
    said = finish(start("train_agent.py", "--stage=dynamics", *words, "--curriculum.seed=1"), code=2)
    assert re.search(r"^error: .*dynamics: expected a stage of these settings", said, re.MULTILINE)
    assert (folder / "dynamics" / "model" / "config.json").is_file()


def test_the_model_is_that_of_its_last_checkpoint(stages):
    """Logits of the exported folder in transformers, against those of the weights that training kept."""
    folder = stages[1] / "demonstrations"
    checkpoint = max(folder.glob("checkpoints/checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    script = (
        "import sys, torch; from transformers import AutoModelForCausalLM as M, AutoTokenizer as T\n"
        "one, other = (M.from_pretrained(path) for path in sys.argv[1:])\n"
        "tokens = T.from_pretrained(sys.argv[1])('[1,2]: 4 h meanbp 71', return_tensors='pt')['input_ids']\n"
        "print('difference', float((one(tokens).logits - other(tokens).logits).abs().max()))"
    )
    said = finish(start("-c", script, str(folder / "model"), str(checkpoint)))
    assert float(said.rsplit("difference ", 1)[1]) <= 1e-4


@only_where_vllm_runs
def test_rl_learns_soundly_and_the_result_calls_tools_through_vllm(stages):
    words, folder = stages
    finish(start("train_agent.py", "--stage=rl", *words))
    lines = logged(folder / "rl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert lines[0]["kl"] == pytest.approx(0, abs=1e-6) and lines[-1]["kl"] > 0
    assert any(line["frac_reward_zero_std"] < 1 for line in lines)  # answers of a group differ
    install()
    out = folder / "agent"
    words += (f"--llm.vllm={ENVIRONMENT}", "--agent.backend=llm", "--agent.stays=4", f"--out={out}")
    finish(start("agent_loop.py", *words, f"--serve={folder / 'rl' / 'model'}", python=sys.executable))
    decisions = [one for case in transcripts.read(out / transcripts.FILE) for one in case["decisions"]]
    assert len(decisions) > 2 and any(one["considered"] for one in decisions)


def test_a_run_that_goes_too_far_stops_with_a_reason(stages):
    words, folder = stages
    words += ("--curriculum.rl.most_kl=0", "--curriculum.rl.learning_rate=0.01", f"--out={folder / 'far'}")
    said = finish(start("train_agent.py", "--stage=rl", *words), code=2)
    assert re.search(
        r"^error: .*log.jsonl: expected a run that converges, found a distance of .* \(KL\)", said, re.MULTILINE
    )
    assert not (folder / "far" / "model").exists() and "Traceback" not in said
