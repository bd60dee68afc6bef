"""How long texts are for a model. Run as a file by the environment that serves it: JSON in, one line of JSON out."""

from __future__ import annotations

import json
import sys
from typing import Any


def main(asked: dict[str, Any]) -> dict[str, int]:
    """Tokens of `messages` with `tools`, of `answer` alone, and the longest text that `model` reads."""
    from transformers import AutoConfig, AutoTokenizer  # type: ignore[import-not-found,unused-ignore]

    tokenizer = AutoTokenizer.from_pretrained(asked["model"])
    dialogue = tokenizer.apply_chat_template(
        asked["messages"], tools=asked["tools"], add_generation_prompt=True, tokenize=False
    )
    config = AutoConfig.from_pretrained(asked["model"])
    return {
        "dialogue": len(tokenizer(dialogue, add_special_tokens=False)["input_ids"]),
        "answer": len(tokenizer(asked["answer"], add_special_tokens=False)["input_ids"]),
        "limit": int(config.get_text_config().max_position_embeddings),
    }


if __name__ == "__main__":
    print(json.dumps(main(json.load(sys.stdin))))
