"""Training language models in tests: its environment, and scripts started in it."""

from __future__ import annotations

import json
import subprocess
import sys

from processes import ROOT

TRAINING = ROOT / ".venv-train"
PYTHON = str(TRAINING / "bin" / "python")


def install_training():
    """About two minutes the first time, then nothing."""
    subprocess.run([sys.executable, "llm/install.py", "train", str(TRAINING)], cwd=ROOT, check=True, timeout=600)


def start(script, *words, python=PYTHON):
    return subprocess.Popen([python, script, *words], cwd=ROOT, text=True, stdout=-1, stderr=subprocess.STDOUT)


def finish(process, code=0):
    output, _ = process.communicate(timeout=900)
    assert process.returncode == code, output[-3000:]
    return output


def logged(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
