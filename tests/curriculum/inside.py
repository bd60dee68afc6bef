"""What can only be checked where PyTorch and TRL are; `test_inside_training` runs it there."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, TrainerControl, TrainerState
from trl import GRPOConfig, GRPOTrainer, SFTTrainer

from sepsis_jax import files
from sepsis_jax.agent.case import Usage
from sepsis_jax.agent.settings import LLMSettings
from sepsis_jax.curriculum import models, progress, reinforcement, small_models, stage, tuning
from sepsis_jax.curriculum.rewards import Paid
from sepsis_jax.curriculum.settings import BaseSettings, CurriculumSettings, RLSettings, TuningSettings
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
    _, tokenizer = small_models.tiny([DIALOGUE] * 3, vocabulary=400, hidden=128, layers=1)
    (made,) = models.tokens(tokenizer, [DIALOGUE])
    own = [token for token, mine in zip(made["input_ids"], made["assistant_masks"], strict=True) if mine]
    said = tokenizer.decode(own)
    assert "simulation" in said and "well" in said and said.count(small_models.END) == 2, said
    assert "71" not in said and "Hour" not in said, said


class Stopped(Exception):
    """As a kill would."""


@contextmanager
def stopped_at(step: int) -> Iterator[None]:
    """Training ends in the middle of this update."""

    def on_step_begin(self: Any, args: Any, state: TrainerState, control: TrainerControl, **kept: Any) -> None:
        if state.global_step == step:
            raise Stopped

    progress.Log.on_step_begin = on_step_begin
    try:
        yield
    except Stopped:
        pass
    else:
        raise AssertionError("it was not stopped")
    finally:
        del progress.Log.on_step_begin


def weights(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def keep_a_model(folder: Path) -> Any:
    """In `folder`/start; its tokenizer."""
    model, tokenizer = small_models.tiny([DIALOGUE] * 3, vocabulary=400, hidden=128, layers=1)
    small_models.keep(model, tokenizer, folder / "start")
    return tokenizer


def check_what_is_taught_and_that_a_kill_changes_nothing() -> None:
    """Labels are what the assistant says; a run that was stopped ends with the weights of one that was not."""
    seen: list[list[int]] = []

    class Watched(SFTTrainer):
        def training_step(self, model: Any, inputs: Any, *rest: Any, **kept: Any) -> Any:
            seen.extend(inputs["labels"].tolist())
            return super().training_step(model, inputs, *rest, **kept)

    said = [f"{number} {'a' * number}" for number in range(12)]
    dialogues = [
        {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": one}]} for one in said
    ]
    settings = TuningSettings(batch=2, save_every=2)
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        tokenizer, first = keep_a_model(folder), tuning.SFTTrainer
        tuning.SFTTrainer = Watched
        try:
            tuning.run(dialogues, folder / "start", folder / "whole", BaseSettings(), settings, 0)
            told = [tokenizer.decode([token for token in row if token != -100]) for row in seen]
            assert sorted(told) == sorted(f"{one}{small_models.END}" for one in said), told
            with stopped_at(3):
                tuning.run(dialogues, folder / "start", folder / "killed", BaseSettings(), settings, 0)
            tuning.run(dialogues, folder / "start", folder / "killed", BaseSettings(), settings, 0)
        finally:
            tuning.SFTTrainer = first
        assert torch.equal(weights(folder / "whole"), weights(folder / "killed"))
        assert not torch.equal(weights(folder / "whole"), weights_of_start(folder))


def check_padding_changes_nothing() -> None:
    model, tokenizer = small_models.tiny([DIALOGUE] * 3, vocabulary=400, hidden=128, layers=1)
    rows = [{"input_ids": [*range(9, 9 + size)], "labels": [-100] * 4 + [*range(13, 9 + size)]} for size in (5, 12)]
    batch = tuning.Batches(tokenizer.pad_token_id)(rows)
    alone = [model(**tuning.Batches(tokenizer.pad_token_id)([row])).logits[0] for row in rows]
    for row, logits, one in zip(batch["labels"], model(**batch).logits, alone, strict=True):
        assert torch.allclose(logits[: len(one)], one, atol=1e-5), (logits[: len(one)] - one).abs().max()
        assert (row[len(one) :] == -100).all()


def check_products_are_rounded_and_weights_are_not() -> None:
    dialogues = [
        {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": one}]} for one in "abcdefgh"
    ]
    left = {}
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        keep_a_model(folder)
        for precision in ("float32", "bfloat16"):
            base = BaseSettings(precision=precision)
            tuning.run(dialogues, folder / "start", folder / precision, base, TuningSettings(batch=2), 0)
            left[precision] = weights(folder / precision)
        start = weights_of_start(folder)
    exact, rounded = (left[precision] - start for precision in ("float32", "bfloat16"))
    assert rounded.dtype == torch.float32 and not torch.equal(exact, rounded)
    alike = torch.nn.functional.cosine_similarity(exact, rounded, dim=0)
    assert alike > 0.9, alike


def weights_of_start(folder: Path) -> torch.Tensor:
    (folder / "begin").mkdir()
    (folder / "start").rename(folder / "begin" / "model")
    return weights(folder / "begin")


def check_practice_goes_on_where_it_was_stopped() -> None:
    """The same decisions as without a stop, and the same weights."""
    episodes = make_episodes(40, 6, seed=1)
    rl = RLSettings(updates=6, decisions=2, group=4, batch=8, save_every=2, learning_rate=1e-3, most_kl=100)
    chosen = CurriculumSettings(rl=rl)
    llm = LLMSettings(rationale=False, max_tokens=8)
    practice = reinforcement.Practice(episodes, np.arange(40), *[None] * 4, llm, 16, chosen)
    asked: list[reinforcement.Decision] = []

    class Answers:
        """Tokens and rewards that depend on the decision and on nothing else."""

        def __init__(self, *given: Any) -> None: ...

        def __call__(self, prompts: list[Any], trainer: GRPOTrainer) -> dict[str, Any]:
            where = [reinforcement._decision(prompt) for prompt in prompts]
            asked.extend(where[::4])
            answers = [[10 + number, 20, 30 + one.step] for number, one in enumerate(where)]
            figures = {name: [float(number) for number in range(len(where))] for name in reinforcement.FIGURES}
            told = {"prompt_ids": [[5, 6, 7 + one.row] for one in where], "completion_ids": answers}
            return figures | told | {"env_mask": [[1, 1, 1]] * len(where), "logprobs": None}

    with tempfile.TemporaryDirectory() as path:
        folder, first = Path(path), reinforcement.Rollouts
        keep_a_model(folder)
        reinforcement.Rollouts = Answers
        try:
            reinforcement.run(practice, folder / "start", folder / "whole", BaseSettings())
            whole = list(asked)
            asked.clear()
            with stopped_at(3):
                reinforcement.run(practice, folder / "start", folder / "killed", BaseSettings())
            before = list(asked)
            asked.clear()
            reinforcement.run(practice, folder / "start", folder / "killed", BaseSettings())
        finally:
            reinforcement.Rollouts = first
        assert whole == practice.decisions() and before == whole[:6], (len(whole), len(before))
        assert asked == whole[4:], "decisions after the checkpoint of update 2"
        assert torch.equal(weights(folder / "whole"), weights(folder / "killed"))


def guard_after(guard: progress.Guard, **logs: float) -> TrainerControl:
    control = TrainerControl(should_save=True)
    guard.on_log(None, TrainerState(global_step=7), control, logs={"loss": 0.1} | logs)
    return control


def check_the_guard() -> None:
    nowhere = Path("nowhere")
    nan = progress.Guard(nowhere)
    assert guard_after(nan, loss=float("nan")).should_training_stop and "no number" in nan.why
    steep = progress.Guard(nowhere)
    assert guard_after(steep, grad_norm=float("inf")).should_training_stop
    far = progress.Guard(nowhere, most_kl=0.5)
    assert not guard_after(far, kl=0.4).should_training_stop and not far.why
    control = guard_after(far, kl=0.6)
    assert control.should_training_stop and not control.should_save and "KL" in far.why
    alike = progress.Guard(nowhere, patience=3)
    for at in range(3):
        stopped = guard_after(alike, frac_reward_zero_std=1.0).should_training_stop
        assert stopped == (at == 2)
    assert "no difference" in alike.why
    moving = progress.Guard(nowhere, patience=2)
    for share in (1.0, 0.5, 1.0, 0.5):
        assert not guard_after(moving, frac_reward_zero_std=share).should_training_stop
    with tempfile.TemporaryDirectory() as folder:
        alike = {"frac_reward_zero_std": 1.0, "seconds": 1.0}
        lines = [json.dumps({"step": step} | alike) for step in range(1, 7)]
        (Path(folder) / stage.LOG).write_text("\n".join(lines))
        resumed = progress.Guard(Path(folder), patience=6)
        resumed.on_train_begin(None, TrainerState(global_step=5), TrainerControl())
        assert guard_after(resumed, frac_reward_zero_std=1.0).should_training_stop, "five before it was stopped"


def check_weights_in_pieces_are_refused() -> None:
    progress.check_devices()
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    try:
        progress.check_devices()
    except InputError as error:
        assert "whole weights" in str(error)
    else:
        raise AssertionError("FSDP was taken")
    finally:
        del os.environ["ACCELERATE_USE_FSDP"]


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
    for most in (0, 4):
        chosen = CurriculumSettings(rl=RLSettings(updates=3000, decisions=2, group=4, most_steps=most), alone=0.25)
        practice = reinforcement.Practice(episodes, np.arange(10, 60), *[None] * 4, None, 16, chosen)
        found = np.array(practice.decisions())
        steps = found[:, 1].reshape(-1, 2)
        assert (steps[:, 0] == steps[:, 1]).all() and (found[:, 1] < episodes.length[found[:, 0]]).all()
        length = np.minimum(episodes.length[10:], most or 9)
        wanted = [(length > step).sum() / length.sum() for step in range(9)]
        share = np.bincount(steps[:, 0], minlength=9) / len(steps)
        assert np.abs(share - wanted).max() < 0.03 and abs(found[:, 2].mean() - 0.25) < 0.03
        assert found[:, 0].min() >= 10 and practice.decisions() == practice.decisions()


ANSWERS = [[10 + number, 20, 30, 40 + number] for number in range(4)]


def updated(rewards: list[float], own: list[int]) -> tuple[float, torch.Tensor]:
    """One update of GRPO with these rewards in a group of `ANSWERS` (over and over) and these tokens the model's own.

    How far it moved the weights, and by how much each token f32[4,4] became likelier.
    """
    first, group = reinforcement.Decision(0, 0, alone=False), len(rewards)
    answers = [ANSWERS[number % 4] for number in range(group)]
    model, tokenizer = small_models.tiny([DIALOGUE] * 3, vocabulary=400, hidden=128, layers=1)
    before, likely = torch.cat([p.detach().flatten().clone() for p in model.parameters()]), how_likely(model)

    def rollout(prompts: list[Any], trainer: GRPOTrainer) -> dict[str, Any]:
        told = {"prompt_ids": [[5, 6, 7]] * group, "completion_ids": answers, "env_mask": [own] * group}
        return told | {"logprobs": None, "reward": rewards}

    with tempfile.TemporaryDirectory() as folder:
        options = progress.options(Path(folder), BaseSettings(), 0) | {"save_strategy": "no"}
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=[reinforcement._figure("reward")],
            args=GRPOConfig(
                **options,
                max_steps=1,
                num_generations=group,
                per_device_train_batch_size=group,
                learning_rate=1e-2,
                scale_rewards="none",
                lr_scheduler_type="constant",
            ),
            train_dataset=Dataset.from_list([{"prompt": reinforcement._prompt(first)}] * group),
            processing_class=tokenizer,
            rollout_func=rollout,
        )
        trainer.train()
    after = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    return float((after - before).abs().max()), how_likely(trainer.model) - likely


def how_likely(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits = model(torch.tensor([[5, 6, 7, *answer] for answer in ANSWERS])).logits[:, 2:-1]
    return logits.log_softmax(-1).gather(-1, torch.tensor(ANSWERS)[..., None])[..., 0]


def check_what_moves_the_weights() -> None:
    moved, likelier = updated([0.0, 1.0, 2.0, 3.0], [1, 1, 1, 1])
    assert moved > 1e-4 and likelier[3].sum() > 0 > likelier[0].sum()  # towards the best paid
    _, ends = updated([0.0, 1.0, 2.0, 3.0], [0, 0, 0, 1])
    assert ends[3, 3] > 0 > ends[0, 3]
    _, begins = updated([0.0, 1.0, 2.0, 3.0], [1, 0, 0, 0])
    assert begins[3, 0] > 0 > begins[0, 0]
    nobody = SimpleNamespace(usage=Usage(), decisions=[])
    for worth in np.random.default_rng(0).normal(size=3):  # the mean of eight such in float32 need not be theirs
        reward = Paid.of(worth, nobody, (0, 0), "", RLSettings()).reward
        assert updated([reward] * 8, [1, 1, 1, 1])[0] == 0 and abs(reward - worth) < 1e-3, "equal: no advantage"
    assert updated([0.0, 1.0, 2.0, 3.0], [0, 0, 0, 0])[0] == 0  # what it was told carries no loss


if __name__ == "__main__":
    for name, check in list(globals().items()):
        if name.startswith("check_"):
            check()
    print("all well")
