"""A language model as backend: any OpenAI-compatible server, asked until it prescribes or has failed.

A malformed answer is told so and counted. What cannot be answered fails the case, by kind; nothing is ever prescribed
in the model's place.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import time
import urllib.parse
import zlib
from typing import Any

import numpy as np
import openai
from openai import AsyncOpenAI

from sepsis_jax.agent import tools
from sepsis_jax.agent.backends import Failed
from sepsis_jax.agent.case import Case, Message
from sepsis_jax.agent.prompting import Prompts
from sepsis_jax.agent.settings import LLMSettings
from sepsis_jax.agent.tools import Malformed, Prescribe, Simulate
from sepsis_jax.errors import InputError

_NO_KEY = "none"  # servers on one's own machine ask for none, but the client wants one
_TOO_LONG = ("context length", "maximum context", "max_model_len", "longer than the maximum")


def check_local(settings: LLMSettings) -> None:
    """InputError if a server is on another machine: for data that may not leave this one."""
    for url in settings.base_urls:
        host = urllib.parse.urlsplit(url).hostname or ""
        if host != "localhost" and not _is_loopback(host):
            hint = "serve the model here, or make sure that you may send the data there and add --allow_remote_endpoint"
            expected = "a server on this machine, since the cohort is credentialed data"
            raise InputError("llm", field="base_urls", expected=expected, found=url, hint=hint)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class LLMBackend:
    """Asks a model to decide.

    Args:
      settings: server and limits. prompts: texts. samples: simulated courses a candidate, as the answer says.
      seed: of the run; every request gets a seed of its own.
    """

    def __init__(self, settings: LLMSettings, prompts: Prompts, *, samples: int, seed: int) -> None:
        self._settings, self._prompts, self._samples, self._seed = settings, prompts, samples, seed
        self._tools = tools.schemas(simulator=settings.simulator, rationale=settings.rationale)
        key = os.environ.get("OPENAI_API_KEY", _NO_KEY)
        self._clients = [
            AsyncOpenAI(base_url=url, api_key=key, timeout=settings.timeout_s, max_retries=settings.retries)
            for url in settings.base_urls
        ]

    async def decide(self, case: Case) -> None:
        """See `Backend.decide`. Raises Failed."""
        simulations = malformed = 0
        start = len(case.messages)
        while True:
            answer = await self._ask(case, start)
            case.messages.append(_said(answer))
            calls = [(call.function.name, call.function.arguments) for call in answer.tool_calls or []]
            try:
                call = tools.read(answer.content, calls, simulator=self._settings.simulator)
            except Malformed as error:
                malformed += 1
                counts = case.usage.malformed
                counts[error.kind] = counts.get(error.kind, 0) + 1
                if malformed > self._settings.malformed:
                    raise Failed("malformed answers", str(error)) from error
                _reply(case, answer, f"Not understood: {error.detail}.")
                continue
            if isinstance(call, Prescribe):
                await case.prescribe(call.action, call.rationale)
                _reply(case, answer, f"Given: [{call.action[0]},{call.action[1]}].")
                return
            simulations += 1
            if simulations > self._settings.simulations:
                raise Failed("too many simulations", f"more than {self._settings.simulations} in one decision")
            _reply(case, answer, await self._simulated(case, call))

    async def _simulated(self, case: Case, call: Simulate) -> str:
        futures = await case.simulate(np.array(call.actions, np.int8))
        return self._prompts.simulation(futures, self._samples)

    def _context(self, case: Case, start: int) -> list[Message]:
        """What the model reads: `start` is where the dialogue of the open decision begins in the case's messages."""
        settings = self._settings
        system = self._prompts.system(case.bins, simulator=settings.simulator, simulations=settings.simulations)
        first: Message = {"role": "system", "content": system}
        if settings.context == "episode":
            return [first, *case.messages]
        return [first, {"role": "user", "content": "\n\n".join(case.observations)}, *case.messages[start:]]

    async def _ask(self, case: Case, start: int) -> Any:
        settings, began = self._settings, time.monotonic()
        client = self._clients[case.stay_id % len(self._clients)]
        seed = zlib.crc32(f"{self._seed} {case.stay_id} {len(case.messages)}".encode())
        try:
            async with asyncio.timeout(settings.timeout_s * (settings.retries + 1)):
                answer = await client.chat.completions.create(
                    model=settings.model,
                    messages=self._context(case, start),  # type: ignore[arg-type]
                    tools=self._tools,  # type: ignore[arg-type]
                    tool_choice=settings.tool_choice,
                    parallel_tool_calls=False,
                    temperature=settings.temperature,
                    top_p=settings.top_p,
                    max_tokens=settings.max_tokens,
                    seed=seed % 2**31,
                )
        except (openai.OpenAIError, TimeoutError, ValueError) as error:  # ValueError: an answer that is no JSON
            raise _failure(error) from error
        usage = case.usage
        usage.requests += 1
        usage.seconds += time.monotonic() - began
        if answer.usage is not None:
            usage.prompt_tokens += answer.usage.prompt_tokens
            usage.completion_tokens += answer.usage.completion_tokens
        if not answer.choices:
            raise Failed("server error", "an answer without choices")
        return answer.choices[0].message


def _failure(error: Exception) -> Failed:
    text = str(error)[:300]
    if isinstance(error, TimeoutError | openai.APITimeoutError):
        return Failed("timeout", text or "no answer in time")
    if isinstance(error, openai.RateLimitError):
        return Failed("rate limit", text)
    if isinstance(error, openai.APIConnectionError):
        return Failed("no connection", text)
    if isinstance(error, openai.BadRequestError) and any(words in text.lower() for words in _TOO_LONG):
        return Failed("context overflow", text)
    return Failed("server error", text)


def _said(answer: Any) -> Message:
    """The model's answer as it goes back into the dialogue."""
    said: Message = {"role": "assistant", "content": answer.content or ""}
    if answer.tool_calls:
        said["tool_calls"] = [
            {
                "id": one.id,
                "type": "function",
                "function": {"name": one.function.name, "arguments": one.function.arguments},
            }
            for one in answer.tool_calls
        ]
    return said


def _reply(case: Case, answer: Any, text: str) -> None:
    """Every call gets an answer, as the API demands; words without a call are answered in words."""
    if answer.tool_calls:
        case.messages += [{"role": "tool", "tool_call_id": one.id, "content": text} for one in answer.tool_calls]
    else:
        case.messages.append({"role": "user", "content": text})
