"""What a real vLLM server must stand: many turns, many cases, its own death, long cases, and being asked for odds."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import subprocess
import time

import numpy as np
import pytest
from factories import make_episodes
from processes import ROOT, finish, start, tiny_inputs
from toy import toy_simulator
from vllm_here import ENVIRONMENT, install, make_tiny, only_where_vllm_runs

from sepsis_jax.agent import loop, probabilities, server, tools, transcripts, vllm
from sepsis_jax.agent.case import Case
from sepsis_jax.agent.llm import LLMBackend
from sepsis_jax.agent.probabilities import Scorer
from sepsis_jax.agent.prompting import package_prompts
from sepsis_jax.agent.settings import AgentSettings, LLMSettings
from sepsis_jax.clinical.actions import AI_CLINICIAN_BINS

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1200), only_where_vllm_runs]
SETTINGS = LLMSettings(model="tiny", rationale=False, retries=1, vllm=ENVIRONMENT)
EPISODES = make_episodes(16, 24, seed=2)
SIMULATOR = toy_simulator()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    install()
    return make_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def asked(model, tmp_path_factory):
    """Settings that name a running server."""
    command = vllm.Serving.of(SETTINGS, str(model), 1).command(32_768)
    with server.serving(command, tmp_path_factory.mktemp("logs")) as urls:
        yield dataclasses.replace(SETTINGS, base_urls=tuple(urls))


def run(settings, rows, **options):
    backend = LLMBackend(settings, package_prompts(), samples=16, seed=0)
    agent = AgentSettings(split="all", stays=0, follow="model", **options)
    return loop.run(EPISODES, rows, SIMULATOR, AI_CLINICIAN_BINS, backend, agent)


@pytest.mark.parametrize("context", ["step", "episode"])
def test_many_turns_to_the_end_of_a_long_case(asked, context):
    row, few = int(np.argmax(EPISODES.length)), 1 if context == "episode" else 3
    (one,) = run(dataclasses.replace(asked, context=context, simulations=few), [row], concurrency=1)
    assert one["failed"] is None and one["outcome"]["closed"]
    assert len(one["decisions"]) == 24 or one["outcome"]["exit"]
    assert any(decision["considered"] for decision in one["decisions"])
    assert one["usage"]["malformed"] == {} and one["usage"]["requests"] > len(one["decisions"])


def test_sixteen_at_once(asked):
    cases = run(asked, range(16), concurrency=16)
    assert [one["stay_id"] for one in cases] == list(EPISODES.stay_id)
    assert all(one["failed"] is None and one["decisions"] for one in cases)


@pytest.mark.parametrize("simulator", [False, True])
def test_the_odds_are_those_of_its_samples(asked, simulator):
    """Each dialogue's own prescription against its odds there: no level is drawn more often than it was likely."""
    settings, number = dataclasses.replace(asked, simulator=simulator, simulations=1), 200
    scorer = Scorer(LLMBackend(settings, package_prompts(), samples=16, seed=0), settings)

    async def ask():
        free = asyncio.Semaphore(16)

        async def one(draw):
            case = Case(EPISODES, 0, SIMULATOR, AI_CLINICIAN_BINS, "model", at=1)
            case.observe()
            async with free:
                probs, _ = await scorer.probabilities(case, draw)
            call = case.messages[-1]["tool_calls"][0]["function"]
            return probs, tools.read("", [(call["name"], call["arguments"])], simulator=False).action

        said = await asyncio.gather(*(one(draw) for draw in range(number)))
        await scorer.close()
        return said

    found = asyncio.run(ask())
    probs, (vasopressor, fluid) = np.array([one.reshape(5, 5) for one, _ in found]), np.array([a for _, a in found]).T
    np.testing.assert_allclose(probs.sum((1, 2)), 1, rtol=1e-9)
    first = probs.sum(2)
    second = probs[np.arange(number), vasopressor] / first[np.arange(number), vasopressor, None]
    for likely, drawn in ((first, vasopressor), (second, fluid)):
        excess = np.eye(5)[drawn] - likely
        error = np.sqrt((likely * (1 - likely)).sum(0))
        assert (likely[np.arange(number), drawn] > 0).all()
        assert (np.abs(excess.sum(0)) <= 3 * error).all(), excess.sum(0) / error


def test_what_the_script_asks_and_keeps(asked, tmp_path):
    inputs, out = tiny_inputs(tmp_path, 3, 3), tmp_path / "out"
    words = (*inputs, "--agent.backend=llm", "--llm.model=tiny", f"--llm.base_urls=[{asked.base_urls[0]}]")
    words += ("--agent.split=all", "--agent.stays=3", "--planner.samples=4", "--planner.horizon=2", f"--out={out}")
    finish(start("agent_loop.py", *words, "--llm.simulator=false", "--llm.rationale=false", "--probabilities=2"))
    found = probabilities.read(probabilities.folder_of(out) / probabilities.FILE)
    told = found["dialogues"] == 2
    assert told.any() and abs(found["probs"][told].sum(-1) - 1).max() < 1e-5 and (found["se"][told] >= 0).all()
    assert "AUROC" in finish(start("agent_loop.py", *words, "--questions"))
    answers = [one["answers"] for one in transcripts.read(tmp_path / "out.questions" / transcripts.FILE)]
    assert len(answers) == 3 and all(0 < chance < 1 for one in answers for chance in one.values())


def test_a_server_that_dies_fails_its_cases_and_a_later_run_mends_them(model, tmp_path):
    inputs, out, port = tiny_inputs(tmp_path, 12, 12), tmp_path / "out", server._free_ports(1)[0]
    command = vllm.Serving.of(SETTINGS, str(model), 1).command(8192)(0, port)
    words = ("--agent.backend=llm", "--llm.model=tiny", f"--llm.base_urls=[http://127.0.0.1:{port}/v1]")
    words += (
        "--agent.split=all",
        "--agent.stays=0",
        "--agent.concurrency=4",
        "--planner.samples=4",
        "--llm.rationale=false",
    )
    words += ("--planner.horizon=2", "--llm.retries=0", f"--out={out}", *inputs)
    with serving(command, port, tmp_path / "1.log") as process:
        running = start("agent_loop.py", *words)
        journal = out.with_name("out.unfinished.jsonl")
        while running.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") > 2):
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        assert "Failed, no connection" in finish(running)
    first = {one["stay_id"]: one for one in transcripts.read(out / transcripts.FILE)}
    done = {stay: one for stay, one in first.items() if one["failed"] is None}
    assert 2 <= len(done) < len(first) == 12
    with serving(command, port, tmp_path / "2.log"):
        finish(start("agent_loop.py", *words, "--retry_failed"))
    second = {one["stay_id"]: one for one in transcripts.read(out / transcripts.FILE)}
    assert all(one["failed"] is None for one in second.values()) and len(second) == 12
    assert {stay: second[stay] for stay in done} == done


class serving:
    """A server that can be killed."""

    def __init__(self, command, port, log):
        self.command, self.port, self.log = command, port, log

    def __enter__(self):
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(self.command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
        end = time.monotonic() + 300
        while not server._is_well(self.port):
            assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()[-2000:]
            time.sleep(0.2)
        return self.process

    def __exit__(self, *error):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
