"""How vLLM is started on each kind of machine, and what is refused before anything is loaded."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys

import pytest

from sepsis_jax.agent.settings import LLMSettings
from sepsis_jax.agent.vllm import Serving
from sepsis_jax.errors import InputError


@pytest.fixture
def model(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    return tmp_path / "model"


def settings(tmp_path, device="cpu", **options):
    (tmp_path / "venv").mkdir(exist_ok=True)
    (tmp_path / "venv" / "sepsis_jax.txt").write_text(f"{device}\nlock")
    return LLMSettings(model="m", vllm=tmp_path / "venv", **options)


def line(tmp_path, model, device, replicas=1, number=0, **options):
    command = Serving.of(settings(tmp_path, device, **options), str(model), replicas).command(4096)(number, 8001)
    python = next(at for at, word in enumerate(command) if word.endswith("bin/python"))
    return dict(word.split("=", 1) for word in command[1:python]), command[python:]


def value(words, flag):
    return words[words.index(flag) + 1]


@pytest.mark.parametrize("device", ["cpu", "cuda", "tpu"])
def test_a_server_of_this_machine_alone(tmp_path, model, device):
    environment, words = line(tmp_path, model, device, serve_options=("--reasoning-parser", "qwen3"))
    assert value(words, "--host") == "127.0.0.1" and value(words, "--port") == "8001"
    assert value(words, "--model") == str(model) and value(words, "--served-model-name") == "m"
    assert value(words, "--max-model-len") == "4096" and value(words, "--reasoning-parser") == "qwen3"
    assert json.loads(value(words, "--structured-outputs-config"))["backend"] == "xgrammar"
    assert environment["HF_HUB_OFFLINE"] == environment["VLLM_NO_USAGE_STATS"] == "1"
    assert ("--no-enable-chunked-prefill" in words) == ("float32" in words) == (device == "cpu")


@pytest.mark.parametrize(
    ("allowed", "shared"), [(None, ["0", "1"]), ("2,3,5", ["2", "3"]), ("GPU-a, GPU-b", ["GPU-a", "GPU-b"])]
)
def test_replicas_have_a_gpu_each_and_hubs_are_reached_by_name(tmp_path, monkeypatch, allowed, shared):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if allowed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", allowed)
    environments = [line(tmp_path, "org/name", "cuda", 2, number)[0] for number in range(2)]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in environments] == shared
    assert all("HF_HUB_OFFLINE" not in one for one in environments)


def test_more_replicas_than_gpus_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with pytest.raises(InputError, match="at most 1"):
        line(tmp_path, "org/name", "cuda", 2, 0)


def test_who_has_set_a_variable_keeps_it(tmp_path, model, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "7")
    assert line(tmp_path, model, "cpu")[0]["VLLM_CPU_KVCACHE_SPACE"] == "7"


def test_what_cannot_be_served(tmp_path, model):
    good = settings(tmp_path)
    with pytest.raises(InputError, match="make vllm"):
        Serving.of(dataclasses.replace(good, vllm=tmp_path / "none"), str(model), 1)
    with pytest.raises(InputError, match="replicas"):
        Serving.of(good, str(model), 0)
    for name in (str(tmp_path / "nothing"), str(tmp_path), "./nothing"):
        with pytest.raises(InputError, match=r"config\.json"):
            Serving.of(good, name, 1)
    (tmp_path / "venv" / "bin").mkdir()
    (tmp_path / "venv" / "bin" / "python").symlink_to(sys.executable)
    with pytest.raises(InputError, match="a model with a tokenizer"):
        Serving.of(good, str(model), 1).count([], [], "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--serve", "x"], "agent.backend llm"),
        (["--probabilities", "2"], "agent.backend llm"),
        (["--questions"], "agent.backend llm"),
        (["--probabilities", "-1"], "a number of dialogues"),
        (["--probabilities", "1", "--questions"], "one of them"),
        (["--probabilities", "1", "--dialogues", "x"], "one of them"),
        (["--agent.backend", "llm", "--serve", "x", "--llm.vllm", "nowhere"], "make vllm"),
        (["--agent.backend", "llm", "--llm.base_urls", "[]"], "at least one address"),
        (["--out", "."], "a folder with a name"),
        (["--dialogues", "."], "expected a file"),
        (["--dialogues", "x.json", "--export", "x.json"], "a file outside the results"),
        (["--out", "x", "--dialogues", "x/transcripts.jsonl"], "a file outside the results"),
        (["--out", "x", "--export", "x.unfinished.jsonl"], "a file outside the results"),
    ],
)
def test_bad_flags_end_before_anything_is_read(tmp_path, words, message):
    with pytest.raises(InputError, match=message):
        importlib.import_module("agent_loop").main(["--run", str(tmp_path / "run"), *words])
    assert list(tmp_path.iterdir()) == []
