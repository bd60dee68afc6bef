"""A tiny Qwen3 that anyone can make: 2.6 million weights, tokens and manners learned from dialogues of this project.

`python llm/tiny_qwen3.py --dialogues FILE --out FOLDER [--steps 0]`, in the environment of `make vllm`. It is there to
try the way from a model to a report, and for tests: it has learned how tools are called, and next to nothing about
treatment. `FILE` comes from `agent_loop.py --dialogues`. Without steps the weights stay random.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from pathlib import Path
from typing import Any

import torch
from keep import keep
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

HERE = Path(__file__).resolve().parent
VOCABULARY, MOST_TOKENS = 1024, 32_768
END, PAD = "<|im_end|>", "<|endoftext|>"
SPECIAL = [PAD, "<|im_start|>", END, "<tool_call>", "</tool_call>"]
LEARNING_RATE, WARM_UP, OTHERS = 2e-3, 20, 0.1


def main(argv: list[str]) -> int:
    """Exit status."""
    parser = argparse.ArgumentParser(description="Make a tiny Qwen3 from dialogues.")
    parser.add_argument("--dialogues", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=0, help="of training, one dialogue each; 0 leaves it random")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)
    try:
        dialogues = [_ready(json.loads(line)) for line in given.dialogues.read_text().splitlines()]
    except (OSError, ValueError, KeyError) as error:
        print(f"error: {given.dialogues}: expected dialogues of agent_loop.py, found {error}", file=sys.stderr)
        return 2
    torch.manual_seed(given.seed)
    tokenizer = make_tokenizer(dialogues)
    model = Qwen3ForCausalLM(_shape(tokenizer))
    print(f"{sum(p.numel() for p in model.parameters()):,} weights, {len(dialogues)} dialogues", flush=True)
    if given.steps:
        train(model, tokenizer, dialogues, given.steps, given.seed)
    keep(model, tokenizer, given.out)
    return 0


def _ready(dialogue: dict[str, Any]) -> dict[str, Any]:
    """Arguments as objects, which is how a server hands them to the chat template."""
    for message in dialogue["messages"]:
        for call in message.get("tool_calls", []):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return dialogue


def make_tokenizer(dialogues: list[dict[str, Any]]) -> PreTrainedTokenizerFast:
    """Byte-level pairs learned from the dialogues' own texts; digits stay apart."""
    raw = Tokenizer(models.BPE())
    digits = pre_tokenizers.Split(Regex(r"\d"), "isolated")
    raw.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    raw.decoder = decoders.ByteLevel()
    texts = [message["content"] for one in dialogues[:: max(1, len(dialogues) // 200)] for message in one["messages"]]
    texts += [json.dumps(one) for one in dialogues[0]["tools"]] * 20
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token=END, pad_token=PAD, extra_special_tokens=["<|im_start|>"]
    )
    tokenizer.chat_template = (HERE / "chat_template.jinja").read_text()
    return tokenizer


def _shape(tokenizer: PreTrainedTokenizerFast) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=MOST_TOKENS,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )


def train(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, dialogues: list[dict[str, Any]], steps: int, seed: int
) -> None:
    """One dialogue a step; what the assistant says counts whole, all other words a tenth."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    chosen, began, smooth = random.Random(seed), time.monotonic(), math.nan
    for step in range(steps):
        inputs, said = _tokens(tokenizer, chosen.choice(dialogues))
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / steps))
        logits = model(inputs[:, :-1]).logits[0]
        losses = torch.nn.functional.cross_entropy(logits, inputs[0, 1:], reduction="none")
        loss = losses[said[1:]].mean() + OTHERS * losses[~said[1:]].mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        now = float(losses[said[1:]].detach().mean())
        smooth = now if math.isnan(smooth) else 0.95 * smooth + 0.05 * now
        if step % 20 == 19 or step == steps - 1:
            seconds = time.monotonic() - began
            left = seconds / (step + 1) * (steps - step - 1)
            print(f"step {step + 1} of {steps}: loss {smooth:.3f}, {seconds:.0f} s, {left:.0f} s left", flush=True)


def _tokens(tokenizer: PreTrainedTokenizerFast, dialogue: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """int64[1,N] tokens, and bool[N] which of them the assistant says."""
    made = tokenizer.apply_chat_template(
        dialogue["messages"],
        tools=dialogue["tools"],
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    return torch.tensor([made["input_ids"]]), torch.tensor(made["assistant_masks"]).bool()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
