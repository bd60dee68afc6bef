"""A language model as backend: any OpenAI-compatible server, asked until it prescribes or has failed."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import time
import urllib.parse
from typing import Any, Literal

import openai
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

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
        if not is_local(url):
            hint = "serve the model here, or make sure that you may send the data there and add --allow_remote_endpoint"
            expected = "a server on this machine, since the cohort is credentialed data"
            raise InputError("llm", field="base_urls", expected=expected, found=url, hint=hint)


def is_local(url: str) -> bool:
    """Whether an address is this machine's own."""
    host = urllib.parse.urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class LLMBackend(Conversation):
    """Asks a model behind a server, see `Conversation`."""

    def __init__(self, settings: LLMSettings, prompts: Prompts, *, samples: int, seed: int) -> None:
        super().__init__(settings, prompts, samples=samples, seed=seed)
        self._key = os.environ.get("OPENAI_API_KEY") or _NO_KEY
        self._clients = [self._client(url) for url in settings.base_urls]

    def _client(self, url: str) -> AsyncOpenAI:
        """What is for this machine goes to it, through no proxy of the environment and to no address it names."""
        own = DefaultAsyncHttpxClient(trust_env=not is_local(url), follow_redirects=False)
        limits: dict[str, Any] = {"timeout": self._settings.timeout_s, "max_retries": self._settings.retries}
        return AsyncOpenAI(base_url=url, api_key=self._key, http_client=own, **limits)

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
        except (openai.OpenAIError, TimeoutError, ValueError, RecursionError) as error:  # of answers that are no JSON
            raise _failure(error, str(client.base_url), self._key) from error
        wrong = _oddity(answer, kind)
        if wrong:
            raise Failed("server error", wrong)
        usage = case.usage
        usage.requests += 1
        usage.seconds += time.monotonic() - began
        if answer.usage is not None:
            usage.prompt_tokens += answer.usage.prompt_tokens
            usage.completion_tokens += answer.usage.completion_tokens or 0
        return answer


def _oddity(answer: Any, kind: str) -> str:
    """What is wrong with the shape of a completion, '' if nothing: the client takes whatever a server says."""
    choices = getattr(answer, "choices", None)
    if not isinstance(choices, list) or not choices:
        return "an answer without choices"
    told = getattr(answer, "usage", None)
    if told is not None:
        numbers = [getattr(told, "prompt_tokens", None), getattr(told, "completion_tokens", None) or 0]
        if not all(type(number) is int and 0 <= number < 2**40 for number in numbers):
            return "tokens that are no numbers"
    for choice in choices:
        message = getattr(choice, "message", None)
        if kind == "chat" and not isinstance(getattr(message, "content", 0), str | None):
            return "a message without content"
        calls = getattr(message, "tool_calls", None)
        if not isinstance(calls, list | None) or not all(map(_is_call, calls or [])):
            return "calls that are none"
    return ""


def _is_call(one: Any) -> bool:
    function = getattr(one, "function", None)
    return all(isinstance(getattr(function, name, None), str) for name in ("name", "arguments"))


def _failure(error: Exception, url: str, key: str) -> Failed:
    text = str(error).replace(key, "***")[:300] if key != _NO_KEY else str(error)[:300]
    if isinstance(error, TimeoutError | openai.APITimeoutError):
        return Failed("timeout", text or "no answer in time")
    if isinstance(error, openai.RateLimitError):
        return Failed("rate limit", text)
    if isinstance(error, openai.APIConnectionError):
        return Failed("no connection", f"{url}: {text} Is a server there? --serve MODEL starts one.")
    if isinstance(error, openai.BadRequestError) and any(words in text.lower() for words in _TOO_LONG):
        return Failed("context overflow", text)
    return Failed("server error", text)
