"""All three stages on a few examples, as people start them, with real training and a real server."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from processes import ROOT
from vllm_here import ENVIRONMENT, install, only_where_vllm_runs

from sepsis_jax.agent import transcripts

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1500)]
TRAINING = ROOT / ".venv-train"
PYTHON = str(TRAINING / "bin" / "python")
SIZES = (
    "--config=configs/curriculum_tiny.yaml",
    "--cohort.patients=160",
    "--clinician.updates=50",
    "--curriculum.base.reading=300",
    "--curriculum.stays=24",
    "--curriculum.dynamics.examples=300",
    "--curriculum.dynamics.save_every=5",
    "--curriculum.demonstrations.examples=240",
    "--curriculum.rl.updates=4",
    "--curriculum.rl.decisions=2",
    "--curriculum.rl.group=4",
    "--curriculum.rl.batch=8",
)


def start(script, *words, python=PYTHON):
    return subprocess.Popen([python, script, *words], cwd=ROOT, text=True, stdout=-1, stderr=subprocess.STDOUT)


def finish(process, code=0):
    output, _ = process.communicate(timeout=900)
    assert process.returncode == code, output[-3000:]
    return output


def logged(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """Words that name a run, and its folder; stages I and II are done, and the first was killed on its way."""
    subprocess.run([sys.executable, "llm/install.py", "train", str(TRAINING)], cwd=ROOT, check=True, timeout=600)
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
    words += (f"--llm.vllm={ENVIRONMENT}", "--agent.backend=llm", "--agent.stays=2", f"--out={out}")
    finish(start("agent_loop.py", *words, f"--serve={folder / 'rl' / 'model'}", python=sys.executable))
    decisions = [one for case in transcripts.read(out / transcripts.FILE) for one in case["decisions"]]
    assert len(decisions) > 2 and any(one["considered"] for one in decisions)


@pytest.mark.parametrize("large", ["smollm2", "qwen3_4b"])
def test_large_settings_start_with_a_small_model(stages, large):
    """Batches, low-rank additions, 16-bit numbers and texts of the large ones; a short run, without their vLLM."""
    words, folder = stages
    small = [word for word in words if word.split("=")[0] in ("--run", "--checkpoint", "--clinician.updates")]
    words = (f"--config=configs/curriculum_{large}.yaml", *small, f"--start={folder / 'dynamics' / 'model'}")
    few = ("--curriculum.rl.updates=1", "--curriculum.rl.decisions=1", "--curriculum.rl.group=4")
    for stage, more in (
        ("demonstrations", ("--curriculum.demonstrations.epochs=0.1",)),
        ("rl", (*few, "--curriculum.rl.vllm=false", "--llm.max_tokens=32")),
    ):
        out = folder / f"{large} {stage}"
        finish(start("train_agent.py", f"--stage={stage}", *words, *more, f"--out={out}"))
        assert (out / "model" / "model.safetensors").is_file() and not list((out / "model").glob("adapter*"))
        assert all(np.isfinite(line["loss"]) for line in logged(out))


def test_a_run_that_goes_too_far_stops_with_a_reason(stages):
    words, folder = stages
    words += ("--curriculum.rl.most_kl=0", "--curriculum.rl.learning_rate=0.01", f"--out={folder / 'far'}")
    said = finish(start("train_agent.py", "--stage=rl", *words), code=2)
    assert re.search(r"^error: .*log.jsonl: expected a run that converges, found a distance \(KL\)", said, re.MULTILINE)
    assert not (folder / "far" / "model").exists() and "Traceback" not in said


def test_checks_inside_the_training_environment():
    assert "all well" in finish(start(str(ROOT / "tests" / "curriculum" / "inside.py")))
