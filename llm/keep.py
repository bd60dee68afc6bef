"""A model and its tokenizer as a Hugging Face folder, all of it or nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase


def keep(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """Written aside and renamed; an earlier model at `out` is replaced."""
    aside = out.with_name(f".{out.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    model.save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    if (out / "config.json").exists():
        shutil.rmtree(out)
    aside.rename(out)
