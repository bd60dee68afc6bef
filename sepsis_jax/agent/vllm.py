"""vLLM in its own environment (`make vllm`): how it is started here, and how long a text is for its model."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sepsis_jax.agent import count_tokens
from sepsis_jax.agent.server import HOST
from sepsis_jax.agent.settings import LLMSettings
from sepsis_jax.agent.tools import MOST_CANDIDATES, Message
from sepsis_jax.clinical.actions import ALL_ACTIONS
from sepsis_jax.errors import InputError

MOST = np.asarray(ALL_ACTIONS[:MOST_CANDIDATES], np.int8)
"""As many candidates as one simulation takes."""
_MARKER = "sepsis_jax.txt"
_GPUS = "CUDA_VISIBLE_DEVICES"
_ALWAYS = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_ENFORCE_STRICT_TOOL_CALLING": "0"}
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
# Strict schemas in every tool call, and no free white space, in which a small model gets lost.
_STRUCTURED = json.dumps({"backend": "xgrammar", "disable_any_whitespace": True})


@dataclasses.dataclass(frozen=True)
class Serving:
    """A model to be served.

    Attributes:
      python: of vLLM's environment. device: it was built for. model: folder, or name on a hub. replicas: servers.
      settings: of the run.
    """

    python: Path
    device: str
    model: str
    replicas: int
    settings: LLMSettings

    @classmethod
    def of(cls, settings: LLMSettings, model: str, replicas: int) -> Serving:
        """InputError if vLLM is not installed, or the model is a folder without one."""
        if replicas < 1:
            raise InputError("--replicas", expected="at least 1", found=replicas)
        try:
            device = (settings.vllm / _MARKER).read_text().splitlines()[0]
        except OSError as error:
            hint = "build it: make vllm"
            raise InputError(settings.vllm, expected="an environment with vLLM", found="none", hint=hint) from error
        folder = Path(model)
        no_hub_name = model.startswith((".", "/")) or model.count("/") > 1
        if (folder.exists() or no_hub_name) and not (folder / "config.json").is_file():
            expected = "a folder with config.json, or the name of a model on a hub"
            raise InputError(model, expected=expected, found="no config.json" if folder.exists() else "nothing")
        return cls((settings.vllm / "bin" / "python").absolute(), device, model, replicas, settings)

    def command(self, length: int) -> Callable[[int, int], list[str]]:
        """(number of the replica, port) -> command line of a server with contexts of `length` tokens."""

        def line(number: int, port: int) -> list[str]:
            served = ["--model", self.model, "--served-model-name", self.settings.model]
            served += ["--host", HOST, "--port", str(port), "--max-model-len", str(length)]
            served += ["--enable-auto-tool-choice", "--tool-call-parser", self.settings.tool_parser]
            served += ["--structured-outputs-config", _STRUCTURED, "--enable-prefix-caching"]
            served += [*self._device_options(length), *self.settings.serve_options]
            environment = [f"{name}={value}" for name, value in self._environment(number).items()]
            return ["env", *environment, str(self.python), "-m", "vllm.entrypoints.openai.api_server", *served]

        return line

    def _device_options(self, length: int) -> list[str]:
        if self.device != "cpu":
            return []
        # In 32 bits, since half precision is slower where it is emulated; eager, since compiling takes minutes. Prompts
        # are read at once, since a request with a seed that is read in parts ends the server (vLLM 0.32 on a CPU).
        whole = ["--no-enable-chunked-prefill", "--max-num-batched-tokens", str(length)]
        return [*whole, "--dtype", "float32", "--enforce-eager", "--distributed-executor-backend", "uni"]

    def _environment(self, number: int) -> dict[str, str]:
        """Of one replica; whoever has set a variable keeps it, but GPUs are shared out."""
        wanted = dict(_ALWAYS) | (_OFFLINE if Path(self.model).is_dir() else {})
        if self.device == "cpu":
            threads = max(1, (os.cpu_count() or 1) // (2 * self.replicas))
            wanted |= {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": str(threads)}
            wanted |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
        elif self.device == "cuda" and self.replicas > 1:
            return {name: os.environ.get(name, value) for name, value in wanted.items()} | {_GPUS: self._gpu(number)}
        return {name: os.environ.get(name, value) for name, value in wanted.items()}

    def _gpu(self, number: int) -> str:
        """Which GPU a replica gets, of those that this process may use."""
        allowed = os.environ.get(_GPUS)
        if allowed is None:
            return str(number)
        gpus = [one.strip() for one in allowed.split(",") if one.strip()]
        if len(gpus) < self.replicas:
            raise InputError("--replicas", expected=f"at most {len(gpus)}, as {_GPUS}={allowed}", found=self.replicas)
        return gpus[number]

    def count(self, messages: list[Message], tools: list[Any], answer: str) -> tuple[int, int, int]:
        """Tokens of a dialogue with its tools, tokens of one answer of a tool, and how many the model can read.

        Raises:
          InputError: the model's tokenizer cannot be read.
        """
        asked = json.dumps({"model": self.model, "messages": messages, "tools": tools, "answer": answer})
        command = [str(self.python), count_tokens.__file__]
        env = os.environ | (_OFFLINE if Path(self.model).is_dir() else {})
        said = subprocess.run(command, input=asked, capture_output=True, text=True, check=False, env=env)
        if said.returncode:
            last = (said.stderr.strip().splitlines() or ["nothing"])[-1]
            raise InputError(self.model, expected="a model with a tokenizer", found=last[:200])
        found = json.loads(said.stdout.splitlines()[-1])
        return found["dialogue"], found["answer"], found["limit"]
