"""What can only be checked where PyTorch and TRL are; `test_stages` runs it there."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import TrainerControl, TrainerState
from trl import GRPOConfig, GRPOTrainer

from sepsis_jax import files
from sepsis_jax.curriculum import models, progress, reinforcement, small_models, stage
from sepsis_jax.curriculum.settings import BaseSettings, CurriculumSettings, RLSettings
from sepsis_jax.errors import InputError

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from factories import make_episodes

DIALOGUE = {
    "messages": [
        {"role": "system", "content": "Sepsis, ICU."},
        {"role": "user", "content": "Hour 4. meanbp 63."},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"type": "function", "function": {"name": "simulation", "arguments": {"actions": ["[1,2]"]}}}
            ],
        },
        {"role": "tool", "content": "meanbp 71"},
        {"role": "assistant", "content": "well"},
    ],
    "tools": [{"type": "function", "function": {"name": "simulation"}}],
}


def check_only_the_assistants_words_carry_loss() -> None:
    model, tokenizer = small_models.tiny([DIALOGUE] * 3, vocabulary=400, hidden=128, layers=1)
    (made,) = models.tokens(tokenizer, [DIALOGUE])
    own = [token for token, mine in zip(made["input_ids"], made["assistant_masks"], strict=True) if mine]
    said = tokenizer.decode(own)
    assert "simulation" in said and "well" in said and said.count(small_models.END) == 2, said
    assert "71" not in said and "Hour" not in said, said
    assert sum(p.numel() for p in model.parameters()) > 0


def guard_after(guard: progress.Guard, **logs: float) -> TrainerControl:
    control = TrainerControl(should_save=True)
    guard.on_log(None, TrainerState(global_step=7), control, logs={"loss": 0.1} | logs)
    return control


def check_the_guard() -> None:
    nan = progress.Guard()
    assert guard_after(nan, loss=float("nan")).should_training_stop and "no number" in nan.why
    steep = progress.Guard()
    assert guard_after(steep, grad_norm=float("inf")).should_training_stop
    far = progress.Guard(most_kl=0.5)
    assert not guard_after(far, kl=0.4).should_training_stop and not far.why
    control = guard_after(far, kl=0.6)
    assert control.should_training_stop and not control.should_save and "KL" in far.why
    alike = progress.Guard(patience=3)
    for at in range(3):
        stopped = guard_after(alike, frac_reward_zero_std=1.0).should_training_stop
        assert stopped == (at == 2)
    assert "no difference" in alike.why
    moving = progress.Guard(patience=2)
    for share in (1.0, 0.5, 1.0, 0.5):
        assert not guard_after(moving, frac_reward_zero_std=share).should_training_stop


def check_pieces_of_checkpoints_go() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for number, whole in ((2, True), (10, True), (12, False)):
            path = Path(folder) / f"checkpoint-{number}"
            path.mkdir()
            (path / "weights").write_text("1")
            if whole:
                files.write(path / "whole", json.dumps(files.digests(path)).encode())
        (Path(folder) / "checkpoint-last").mkdir()
        assert progress.last_checkpoint(Path(folder)) == Path(folder) / "checkpoint-10"
        assert not (Path(folder) / "checkpoint-12").exists()
        assert progress.last_checkpoint(Path(folder) / "none") is None
        (Path(folder) / "checkpoint-10" / "weights").write_text("2")
        try:
            progress.last_checkpoint(Path(folder))
        except InputError as error:
            assert "other bytes" in str(error)
        else:
            raise AssertionError("a changed checkpoint was taken")


def check_the_log_goes_on_where_the_checkpoint_is() -> None:
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / stage.LOG
        whole = "".join(json.dumps({"step": step, "seconds": 100.0 * step}) + "\n" for step in (1, 2, 3))
        log.write_bytes(b"\xff\n{bad}\n3\n" + whole.encode() + b'{"ste')
        kept = progress.Log(Path(folder))
        kept.on_train_begin(None, TrainerState(global_step=2), TrainerControl())
        kept.on_log(None, TrainerState(global_step=3, max_steps=9), TrainerControl(), logs={"loss": float("nan")})
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        assert [line["step"] for line in lines] == [1, 2, 3]
        assert 200 <= lines[2]["seconds"] < 260 and lines[2]["loss"] is None  # the clock goes on


def check_models_that_are_none_get_one_line() -> None:
    model, tokenizer = small_models.tiny([DIALOGUE] * 3, vocabulary=400, hidden=128, layers=1)
    with tempfile.TemporaryDirectory() as folder:
        small_models.keep(model, tokenizer, Path(folder) / "good")
        models.load(Path(folder) / "good", BaseSettings())
        for name, content in (
            ("model.safetensors", b""),
            ("model.safetensors", None),
            ("tokenizer.json", b"{}"),
            ("tokenizer_config.json", b"[]"),
            ("chat_template.jinja", None),
            ("chat_template.jinja", b"{{ raise_exception('no') }}"),
            ("config.json", b"{"),
        ):
            bad = Path(folder) / "bad"
            shutil.rmtree(bad, ignore_errors=True)
            shutil.copytree(Path(folder) / "good", bad)
            (bad / name).unlink() if content is None else (bad / name).write_bytes(content)
            try:
                models.load(bad, BaseSettings())
            except InputError as error:
                assert "a chat model" in str(error) and "\n" not in str(error), (name, str(error))
            else:
                raise AssertionError(f"{name} {content!r} was taken")


def check_decisions_of_an_update_are_alike_and_all_are_likely() -> None:
    episodes = make_episodes(60, 9, seed=1)
    chosen = CurriculumSettings(rl=RLSettings(updates=3000, decisions=2, group=4), alone=0.25)
    practice = reinforcement.Practice(episodes, np.arange(10, 60), *[None] * 4, None, 16, chosen)
    found = np.array(practice.decisions())
    steps = found[:, 1].reshape(-1, 2)
    assert (steps[:, 0] == steps[:, 1]).all() and (found[:, 1] < episodes.length[found[:, 0]]).all()
    length = episodes.length[10:]
    wanted = [(length > step).sum() / length.sum() for step in range(9)]
    share = np.bincount(steps[:, 0], minlength=9) / len(steps)
    assert np.abs(share - wanted).max() < 0.03 and abs(found[:, 2].mean() - 0.25) < 0.03
    assert found[:, 0].min() >= 10 and practice.decisions() == practice.decisions()


def moved_by(rewards: list[float], own: list[int]) -> float:
    """How far one update of GRPO moves the weights, with these rewards in a group and these tokens the model's own."""
    first = reinforcement.Decision(0, 0, alone=False)
    model, tokenizer = small_models.tiny([DIALOGUE] * 3, vocabulary=400, hidden=128, layers=1)
    before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])

    def rollout(prompts: list[Any], trainer: GRPOTrainer) -> dict[str, Any]:
        answers = [[10 + number, 20, 30, 40 + number] for number in range(len(prompts))]
        mask = [own for _ in prompts]
        told = {"prompt_ids": [[5, 6, 7]] * len(prompts), "completion_ids": answers, "env_mask": mask}
        return told | {"logprobs": None, "reward": rewards}

    with tempfile.TemporaryDirectory() as folder:
        options = progress.options(Path(folder), BaseSettings(), 0) | {"save_strategy": "no"}
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=[reinforcement._figure("reward")],
            args=GRPOConfig(
                **options,
                max_steps=1,
                num_generations=4,
                per_device_train_batch_size=4,
                learning_rate=1e-2,
                lr_scheduler_type="constant",
            ),
            train_dataset=Dataset.from_list([{"prompt": reinforcement._prompt(first)}] * 4),
            processing_class=tokenizer,
            rollout_func=rollout,
        )
        trainer.train()
    after = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    return float((after - before).abs().max())


def check_what_moves_the_weights() -> None:
    assert moved_by([0.0, 1.0, 2.0, 3.0], [1, 1, 1, 1]) > 1e-4
    assert moved_by([1.0, 1.0, 1.0, 1.0], [1, 1, 1, 1]) == 0  # equal rewards: no advantage
    assert moved_by([0.0, 1.0, 2.0, 3.0], [0, 0, 0, 0]) == 0  # what it was told carries no loss


if __name__ == "__main__":
    for name, check in list(globals().items()):
        if name.startswith("check_"):
            check()
    print("all well")
