"""Stages I and II: supervised training on dialogues, with TRL. Only what the assistant says carries loss."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from sepsis_jax.curriculum import data, models, progress, stage
from sepsis_jax.curriculum.settings import BaseSettings, TuningSettings
from sepsis_jax.errors import InputError


class Batches(DataCollatorForLanguageModeling):
    """Dialogues padded at their ends, where no word looks; so a mask hides nothing, and costs a quarter of the time."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """`input_ids`, `labels` (-100 where no loss is) and `attention_mask` (ones), int64[B,T]."""
        made = super().torch_call(examples)
        return made | {"attention_mask": torch.ones_like(made["attention_mask"])}


def run(
    dialogues: Sequence[dict[str, Any]],
    start: Path,
    out: Path,
    base: BaseSettings,
    settings: TuningSettings,
    seed: int,
) -> None:
    """Train the model at `start` and leave the result in `out`/model; a run that was stopped goes on.

    Raises:
      InputError: no dialogue is short enough; processes cannot share an update; the run diverges (see
        `progress.Guard`).
    """
    model, tokenizer = models.load(start, base)
    rows = models.tokens(tokenizer, dialogues)
    lengths = np.array([len(row["input_ids"]) for row in rows])
    kept = np.flatnonzero(lengths <= settings.most_tokens)
    if not kept.size:
        expected = f"dialogues of at most {settings.most_tokens} tokens"
        raise InputError("curriculum", field="most_tokens", expected=expected, found=f"{lengths.min()} and more")
    print(f"{kept.size} of {len(rows)} dialogues, of at most {settings.most_tokens} tokens", flush=True)
    later = np.array([one.get("later", False) for one in dialogues])[kept]
    ordered = [
        rows[at]
        for part in (kept[~later], kept[later])
        for at in part[data.order(lengths[part], settings.epochs, settings.batch, seed)]
    ]
    batch, batches = stage.shared(settings.batch * settings.accumulate, settings.batch)
    options = SFTConfig(
        **progress.options(out, base, seed),
        num_train_epochs=1,  # the order holds every pass
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=batches,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,  # a share
        save_steps=settings.save_every,
        max_length=None,
        train_sampling_strategy="sequential",
    )
    trainer = SFTTrainer(
        model=model,
        args=options,
        train_dataset=Dataset.from_list(ordered),
        processing_class=tokenizer,
        data_collator=Batches(tokenizer.pad_token_id, pad_to_multiple_of=progress.WIDTH),
        peft_config=models.additions(base),
        callbacks=[progress.Log(out), progress.Guard(out)],
    )
    progress.train(trainer, out)
    models.leave(trainer.model, tokenizer, out / stage.MODEL)
