"""A language model as backend: any OpenAI-compatible server, asked until it prescribes or has failed."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import time
import urllib.parse
from typing import Any, Literal

import openai
from openai import AsyncOpenAI

from sepsis_jax.agent.backends import Failed
from sepsis_jax.agent.case import Case
from sepsis_jax.agent.conversation import Conversation
from sepsis_jax.agent.prompting import Prompts
from sepsis_jax.agent.settings import LLMSettings
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


class LLMBackend(Conversation):
    """Asks a model behind a server, see `Conversation`."""

    def __init__(self, settings: LLMSettings, prompts: Prompts, *, samples: int, seed: int) -> None:
        super().__init__(settings, prompts, samples=samples, seed=seed)
        key = os.environ.get("OPENAI_API_KEY", _NO_KEY)
        self._clients = [
            AsyncOpenAI(base_url=url, api_key=key, timeout=settings.timeout_s, max_retries=settings.retries)
            for url in settings.base_urls
        ]

    async def close(self) -> None:
        """See `Backend.close`."""
        for client in self._clients:
            await client.close()

    async def request(self, case: Case, kind: Literal["chat", "text"], **request: Any) -> Any:
        """A completion for this case: its server, limits and accounts. Raises Failed."""
        settings, began = self._settings, time.monotonic()
        client = self._clients[case.stay_id % len(self._clients)]
        ask: Any = client.chat.completions.create if kind == "chat" else client.completions.create
        try:
            async with asyncio.timeout(settings.timeout_s * (settings.retries + 1)):
                answer = await ask(model=settings.model, **request)
        except (openai.OpenAIError, TimeoutError, ValueError) as error:  # ValueError: an answer that is no JSON
            raise _failure(error) from error
        usage = case.usage
        usage.requests += 1
        usage.seconds += time.monotonic() - began
        if answer.usage is not None:
            usage.prompt_tokens += answer.usage.prompt_tokens
            usage.completion_tokens += answer.usage.completion_tokens or 0
        if not answer.choices:
            raise Failed("server error", "an answer without choices")
        return answer


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
