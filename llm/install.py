"""Build an environment for language models: `make vllm`, which serves them, or `make llm-train`, which trains them.

By hand `python llm/install.py vllm FOLDER [--device cpu]`. vLLM's pins of PyTorch, those of what trains and JAX's for
accelerators do not mix, so each has an environment of its own, from a lock of its own for each kind of machine
(requirements-vllm-*.txt, requirements-train-*.txt). Standard library only.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEVICES = ("cpu", "cuda", "tpu")
WHAT = {"vllm": "vLLM", "train": "What trains"}
INDEX = "TORCH_CPU_INDEX"
"""Environment variable: package index of PyTorch's builds for the CPU."""


def main(argv: list[str]) -> int:
    """Exit status: 0, or 2 with a line that says what is wrong."""
    parser = argparse.ArgumentParser(description="Build an environment for language models.")
    parser.add_argument("what", choices=list(WHAT))
    parser.add_argument("folder", type=Path, help="of the environment")
    parser.add_argument("--device", choices=DEVICES, help="default: what this machine has")
    given = parser.parse_args(argv)
    device, why = (given.device, "asked for") if given.device else detect()
    lock, what = ROOT / f"requirements-{given.what}-{device}.txt", WHAT[given.what]
    if not lock.is_file():
        return _refuse(f"{what}: expected a machine with one of {_devices(given.what)}, found {device}")
    if sys.platform != "linux" and given.what == "vllm":
        return _refuse(f"vLLM runs on Linux, found {sys.platform}; name a server elsewhere with --llm.base_urls")
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        return _refuse(f"expected Python 3.11 to 3.13, found {sys.version.split()[0]}; set PYTHON=...")
    marker, wanted = given.folder / "sepsis_jax.txt", f"{device}\n{lock.read_text()}"
    if marker.is_file() and marker.read_text() == wanted:
        print(f"{given.folder}: {what} for {device} is there")
        return 0
    if given.folder.exists() and any(given.folder.iterdir()) and not (given.folder / "pyvenv.cfg").is_file():
        return _refuse(f"{given.folder}: expected a new folder or a virtual environment, found other files")
    print(f"{what} for {device} ({why}), from {lock.name} into {given.folder}: some minutes, once", flush=True)
    try:
        venv.create(given.folder, clear=True, with_pip=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return _refuse(f"{given.folder}: no virtual environment could be made, for {sys.executable} says: {error}")
    python = given.folder / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "-q", "--no-deps", "-r", str(lock)]
    if device == "cpu" and os.environ.get(INDEX):
        pip += ["--extra-index-url", os.environ[INDEX]]
    if subprocess.run(pip, check=False).returncode:
        return _refuse(f"{lock.name} could not be installed; pip said why above")
    if given.what == "train":  # it runs this project's own code
        own = subprocess.run([*pip[:5], "--no-deps", "-e", str(ROOT)], check=False)
        if own.returncode:
            return _refuse(f"{ROOT}: this project could not be installed; pip said why above")
    _say_which_torch(python, device)
    marker.write_text(wanted)
    return 0


def detect() -> tuple[str, str]:
    """(device, why): what this machine has."""
    smi = shutil.which("nvidia-smi")
    if smi:
        found = subprocess.run([smi, "-L"], capture_output=True, text=True, check=False)
        if found.returncode == 0 and found.stdout.strip():
            return "cuda", found.stdout.strip().splitlines()[0]
    if Path("/dev/accel0").exists() or "TPU_WORKER_ID" in os.environ:
        return "tpu", "a TPU is attached"
    return "cpu", "neither an NVIDIA GPU nor a TPU was found"


def _devices(what: str) -> str:
    return ", ".join(device for device in DEVICES if (ROOT / f"requirements-{what}-{device}.txt").is_file())


def _say_which_torch(python: Path, device: str) -> None:
    program = "import torch; print(torch.__version__, torch.version.cuda or '')"
    said = subprocess.run([python, "-c", program], capture_output=True, text=True, check=False)
    print(f"PyTorch {said.stdout.strip() or said.stderr.strip()[-200:]}")
    if device == "cpu" and len(said.stdout.split()) > 1:
        print(f"That build is made for CUDA and is large; {INDEX}=ADDRESS names an index with builds for the CPU.")


def _refuse(text: str) -> int:
    print(f"error: {text}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
