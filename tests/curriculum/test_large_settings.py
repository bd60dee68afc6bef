"""The settings for large models, tried with a small one in their place."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from training_here import TRAINING, finish, install_training, logged, start

from sepsis_jax.checkpoints import CARRY, TINY_AGENT

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1200)]
COMMON = (f"--checkpoint={CARRY}", "--clinician.updates=50")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with a cohort, and with examples for the first two stages."""
    install_training()
    folder = tmp_path_factory.mktemp("run")
    words = ("--config=configs/curriculum_tiny.yaml", *COMMON[1:], f"--run={folder}", "--cohort.patients=80")
    words += ("--curriculum.dynamics.examples=20", "--curriculum.demonstrations.examples=24", "--curriculum.stays=4")
    finish(start("prepare_data.py", *words, python=sys.executable))
    words = ("train_agent.py", "--stage=data", *words, COMMON[0])
    assert "decisions of a teacher" in finish(start(*words, python=sys.executable))
    assert "this stage is finished" in finish(start(*words, python=sys.executable))
    other = finish(start(*words, "--curriculum.stays=5", python=sys.executable), code=2)
    assert "expected a stage of these settings" in other
    return folder


@pytest.mark.parametrize("large", ["smollm2", "qwen3_4b"])
def test_large_settings_start_with_a_small_model(run, large):
    """Batches, low-rank additions, 16-bit numbers and texts of the large ones; a short run, without their vLLM."""
    words = (f"--config=configs/curriculum_{large}.yaml", *COMMON, f"--run={run}", f"--start={TINY_AGENT}")
    few = ("--curriculum.rl.updates=1", "--curriculum.rl.decisions=1", "--curriculum.rl.group=4")
    for stage, more in (
        ("demonstrations", ()),
        ("rl", (*few, "--curriculum.rl.vllm=false", "--llm.max_tokens=32")),
    ):
        out = run / f"{large} {stage}"
        finish(start("train_agent.py", f"--stage={stage}", *words, *more, f"--out={out}"))
        assert (out / "model" / "model.safetensors").is_file() and not list((out / "model").glob("adapter*"))
        assert all(np.isfinite(line["loss"]) for line in logged(out))


def test_two_processes_share_a_stage(run):
    """Updates of one size whatever their number, one log, and a model of both; on CPUs as on several GPUs."""
    common = ("--config=configs/curriculum_tiny.yaml", *COMMON, f"--run={run}", f"--start={TINY_AGENT}")
    launch = ("--cpu", "--num_processes=2", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no")
    few = ("--curriculum.rl.updates=2", "--curriculum.rl.decisions=2", "--curriculum.rl.group=4")
    for stage, more, updates in (("demonstrations", (), 3), ("rl", few, 2)):
        words = (f"--stage={stage}", *common, *more, f"--out={run / stage}")
        finish(start("launch", *launch, "train_agent.py", *words, python=str(TRAINING / "bin" / "accelerate")))
        lines = logged(run / stage)
        assert [line["step"] for line in lines] == list(range(1, updates + 1))
        assert all(np.isfinite(line["loss"]) for line in lines)
        finish(start("train_agent.py", *words))  # one process finds it finished
