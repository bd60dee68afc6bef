"""What every stage's training shares: checkpoints to go on from, a log, and an end where going on makes no sense."""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sepsis_jax import files, plotting
from sepsis_jax.curriculum import stage
from sepsis_jax.curriculum.settings import BaseSettings
from sepsis_jax.errors import InputError

_WHOLE = "whole"
"""File that a checkpoint gets when all of it is written: digests of the others."""
_KEPT = 2
WIDTH = 64
"""Tokens that batches are padded to multiples of: for every other width oneDNN keeps a program, of some 50 MB."""
_CURVES = {
    "loss": "loss",
    "mean_token_accuracy": "tokens foretold",
    "reward": "reward",
    "frac_reward_zero_std": "groups rewarded alike",
    "rewards/malformed/mean": "malformed calls an answer",
    "rewards/simulated/mean": "simulations an answer",
    "rewards/unfinished/mean": "answers without a decision",
    "kl": "distance from the start (KL)",
    "entropy": "entropy a token",
    "step_time": "seconds an update",
}
"""Column of the log -> its title in the picture."""


def options(out: Path, base: BaseSettings, seed: int) -> dict[str, Any]:
    """Arguments of a trainer that writes its checkpoints to `out`/checkpoints and reports to nobody."""
    return {
        "output_dir": str(out / stage.CHECKPOINTS),
        "save_strategy": "steps",
        "logging_steps": 1,
        "report_to": "none",
        "seed": seed,
        "bf16": "bfloat16" in (base.dtype, base.precision),
        "use_cpu": not torch.cuda.is_available(),
        "gradient_checkpointing": torch.cuda.is_available(),  # what fits on a CPU need not be computed twice
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "logging_nan_inf_filter": False,  # `Guard` is to see them
    }


def check_devices() -> None:
    """InputError for several GPUs without a process each, and for weights in pieces, which no stage can leave whole."""
    if stage.PROCESSES == 1 and torch.cuda.device_count() > 1:
        hint = "accelerate launch train_agent.py ..., or CUDA_VISIBLE_DEVICES=0 for one"
        found = f"one for {torch.cuda.device_count()}"
        raise InputError("train_agent.py", expected="a process for each GPU", found=found, hint=hint)
    for name in ("FSDP", "DEEPSPEED"):
        if os.environ.get(f"ACCELERATE_USE_{name}") == "true":
            hint = "low-rank additions (curriculum.base.lora_rank) and bfloat16 need less memory"
            raise InputError("accelerate", expected="whole weights in every process", found=name, hint=hint)


def train(trainer: Any, out: Path) -> None:
    """To the end, from the last whole checkpoint if there is one. InputError where `Guard` stopped it."""
    last = last_checkpoint(out / stage.CHECKPOINTS)
    guard = next(one for one in trainer.callback_handler.callbacks if isinstance(one, Guard))
    trainer.remove_callback(PrinterCallback)  # `Log` says it in a line
    trainer.train(resume_from_checkpoint=None if last is None else str(last))
    if stage.leads():
        draw(out)
    if guard.why:
        kept = last_checkpoint(out / stage.CHECKPOINTS)
        hint = f"the last good checkpoint is {kept}" if kept else "nothing had been saved yet"
        raise InputError(out / stage.LOG, expected="a run that converges", found=guard.why, hint=hint)


def draw(out: Path) -> None:
    """Curves of what `out`/log.jsonl holds."""
    log = pd.read_json(out / stage.LOG, lines=True)
    shown = {name: title for name, title in _CURVES.items() if name in log}
    files.write(out / stage.CURVES, plotting.png(plotting.training(log, shown)))


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint; those that a kill has left in pieces are removed. InputError if it was changed."""
    found = _checkpoints(folder)
    whole = [path for path in found if (path / _WHOLE).exists()]
    for path in found if stage.leads() else []:
        if path not in whole:
            shutil.rmtree(path)
    if not whole:
        return None
    hint = "delete it to go on from the one before"
    try:
        expected = json.loads((whole[-1] / _WHOLE).read_text())
    except ValueError:
        expected = None
    files.check_digests(whole[-1], expected, whole[-1] / _WHOLE, hint)
    return whole[-1]


def _checkpoints(folder: Path) -> list[Path]:
    """Oldest first."""
    numbered = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdecimal()]
    return sorted(numbered, key=lambda path: int(path.name.removeprefix("checkpoint-")))


class Log(TrainerCallback):
    """One JSON line an update to `out`/log.jsonl, and one to the terminal now and then; marks whole checkpoints."""

    def __init__(self, out: Path) -> None:
        self._path, self._began, self._before, self._first, self._said = out / stage.LOG, time.monotonic(), 0.0, 0, 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Drop what was logged after the checkpoint that the run goes on from; the clock goes on."""
        self._first = state.global_step
        logged = _logged(self._path, state.global_step)
        self._before = logged[-1]["seconds"] if logged else 0.0
        self._began = time.monotonic() - self._before
        if stage.leads():
            files.write(self._path, "".join(f"{json.dumps(one)}\n" for one in logged).encode())

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Keep the figures of an update."""
        if "loss" not in logs or not stage.leads():
            return
        seconds = time.monotonic() - self._began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        figures = {name: value if value is not None and math.isfinite(value) else None for name, value in logs.items()}
        line = {"step": state.global_step, "seconds": round(seconds, 2), "peak_gb": round(peak, 3)} | figures
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        done, all_steps = state.global_step - self._first, state.max_steps - self._first
        if seconds - self._said > 10 or done == all_steps:
            self._said = seconds
            left = (seconds - self._before) / max(done, 1) * (all_steps - done)
            said = ", ".join(f"{name} {logs[name]:.3g}" for name in ("loss", "reward", "kl") if name in logs)
            print(f"update {state.global_step} of {state.max_steps}: {said}; {left:.0f} s left", flush=True)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Mark the checkpoint as whole; older ones than the last few go."""
        if not stage.leads():
            return
        folder = Path(args.output_dir)
        own = folder / f"checkpoint-{state.global_step}"
        files.write(own / _WHOLE, json.dumps(files.digests(own)).encode())
        for path in _checkpoints(folder)[:-_KEPT]:
            shutil.rmtree(path)


def _logged(path: Path, last: int) -> list[dict[str, Any]]:
    """Lines about the updates up to `last`."""
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return [one for one in map(_line, lines) if one is not None and one["step"] <= last]


def _line(text: str) -> dict[str, Any] | None:
    """A line of the log; None for what a kill has left of one."""
    try:
        one = json.loads(text)
        return one if type(one["step"]) is int and float(one["seconds"]) >= 0 else None
    except (ValueError, TypeError, KeyError):
        return None


class Guard(TrainerCallback):
    """Stops a run that has diverged or learns nothing, before its next checkpoint.

    Args:
      out: folder of the stage, whose log tells a run that goes on what it had seen.
      most_kl: distance to where the stage started. patience: updates in a row in which all answers of every group
        were rewarded alike.

    Attributes:
      why: empty while all is well.
    """

    def __init__(self, out: Path, most_kl: float = math.inf, patience: int = 0) -> None:
        self._log, self._most_kl, self._patience, self._alike, self.why = out / stage.LOG, most_kl, patience, 0, ""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count on from the checkpoint that the run goes on from."""
        for one in _logged(self._log, state.global_step):
            self._count(one)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Look at the figures of an update."""
        if "loss" not in logs:
            return
        figures = [float(logs[name]) for name in ("loss", "grad_norm") if name in logs]
        self._count(logs)
        if not all(math.isfinite(value) for value in figures):
            self.why = f"a loss or a gradient that is no number, at update {state.global_step}"
        elif float(logs.get("kl", 0)) > self._most_kl:
            self.why = (
                f"a distance of {float(logs['kl']):.3g} (KL) from where it started, at update {state.global_step}"
            )
        elif self._patience and self._alike >= self._patience:
            self.why = f"no difference in reward within any group for {self._alike} updates"
        if self.why:
            control.should_training_stop, control.should_save = True, False

    def _count(self, logs: dict[str, Any]) -> None:
        self._alike = self._alike + 1 if float(logs.get("frac_reward_zero_std") or 0) >= 1 else 0
