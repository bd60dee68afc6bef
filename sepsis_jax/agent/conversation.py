"""How a language model decides: it is told, it may simulate, it prescribes. Whoever makes the words, a server or not.

A malformed answer is told so and counted. What cannot be answered fails the case, by kind; nothing is ever prescribed
in the model's place.
"""

from __future__ import annotations

import abc
import zlib
from typing import Any, Literal

import numpy as np

from sepsis_jax.agent import tools
from sepsis_jax.agent.backends import Failed
from sepsis_jax.agent.case import Case
from sepsis_jax.agent.prompting import Prompts
from sepsis_jax.agent.settings import LLMSettings
from sepsis_jax.agent.tools import Malformed, Message, Prescribe, Simulate
from sepsis_jax.clinical.actions import ActionBins

NOT_UNDERSTOOD = "Not understood"
"""How an answer begins that tells a model what was wrong with its own."""


class Conversation(abc.ABC):
    """A backend that talks until it prescribes.

    Args:
      settings: limits, and how it is asked. prompts: texts. samples: simulated courses a candidate, as the answer says.
      seed: of the run; every request gets a seed of its own.

    Attributes:
      tools: their schemas. rationale: whether a prescription may say why.
    """

    def __init__(self, settings: LLMSettings, prompts: Prompts, *, samples: int, seed: int) -> None:
        self._settings, self._prompts, self._samples, self._seed = settings, prompts, samples, seed
        self.rationale = settings.rationale
        self.tools = tools.schemas(simulator=settings.simulator, rationale=settings.rationale)

    @abc.abstractmethod
    async def request(self, case: Case, kind: Literal["chat", "text"], **request: Any) -> Any:
        """A completion for this case, as the chat (or text) completions API has it. Raises Failed."""

    async def decide(self, case: Case) -> None:
        """See `Backend.decide`. Raises Failed."""
        call, _ = await self.converse(case)
        await case.prescribe(call.action, call.rationale)
        case.messages += tools.reply(case.messages[-1], tools.given(call))

    async def converse(self, case: Case, *, draw: int = 0, tokens: bool = False) -> tuple[Prescribe, Any]:
        """Talk about the open decision until the model prescribes; nothing is given yet.

        Args:
          draw: which of several dialogues about the same decision; each has seeds of its own.
          tokens: ask the server (vLLM) for token ids and their log-probabilities.

        Returns:
          The prescription, and the completion that it stands in.

        Raises:
          Failed: the model does not prescribe, or the server does not answer.
        """
        left, malformed = self._settings.simulations if self._settings.simulator else 0, 0
        start = len(case.messages)
        while True:
            completion = await self._ask(case, start, draw, tokens, may_simulate=left > 0)
            answer = completion.choices[0].message
            calls = [(one.function.name, one.function.arguments) for one in answer.tool_calls or []]
            case.messages.append(tools.say(len(case.messages), answer.content or "", *calls))
            try:
                if completion.choices[0].finish_reason in ("length", "content_filter"):
                    raise Malformed("cut off", f"the answer did not end within {self._settings.max_tokens} tokens")
                call = tools.read(answer.content, calls, simulator=self._settings.simulator)
                if isinstance(call, Simulate) and not left:
                    raise Malformed("too many simulations", "no simulation is left in this decision; prescribe")
            except Malformed as error:
                malformed += 1
                counts = case.usage.malformed
                counts[error.kind] = counts.get(error.kind, 0) + 1
                if malformed > self._settings.malformed:
                    raise Failed("malformed answers", str(error)) from error
                case.messages += tools.reply(case.messages[-1], f"{NOT_UNDERSTOOD}: {error.detail}.")
                continue
            if isinstance(call, Prescribe):
                return call, completion
            left -= 1
            case.messages += tools.reply(case.messages[-1], await self.simulated(case, np.array(call.actions, np.int8)))

    async def simulated(self, case: Case, actions: np.ndarray) -> str:
        """What a simulation of int8[K,2] at the open decision is answered."""
        futures = await case.simulate(actions)
        if self._settings.simulation == "sample":
            return self._prompts.sample([one.action for one in futures], await case.sample(actions))
        return self._prompts.simulation(futures, self._samples)

    def context(self, case: Case, start: int | None = None) -> list[Message]:
        """What the model reads at the open decision.

        Args:
          start: where its dialogue begins in the case's messages; None if nothing has been said yet.
        """
        settings, observed = self._settings, case.observations
        if settings.context == "episode":
            return [self.system(case.bins), *case.messages]
        return decision_dialogue(self.system(case.bins), observed, [] if start is None else case.messages[start:])

    def system(self, bins: ActionBins) -> Message:
        """The task, as it stands before every dialogue."""
        settings = self._settings
        text = self._prompts.system(bins, simulator=settings.simulator, simulations=settings.simulations)
        return {"role": "system", "content": text}

    async def _ask(self, case: Case, start: int, draw: int, tokens: bool, *, may_simulate: bool) -> Any:
        settings = self._settings
        seed = zlib.crc32(f"{self._seed} {case.stay_id} {len(case.messages)} {draw}".encode())
        more: dict[str, Any] = {"logprobs": True, "extra_body": {"return_token_ids": True}} if tokens else {}
        choice: Any = settings.tool_choice
        if choice == "required" and not may_simulate:  # all tools stay in the prompt, whose beginning is cached
            choice = {"type": "function", "function": {"name": tools.PRESCRIPTION}}
        request = {
            "messages": tools.sendable(self.context(case, start)),
            "tools": self.tools,
            "tool_choice": choice,
            "parallel_tool_calls": False,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "max_tokens": settings.max_tokens,
            "seed": seed % 2**31,
        }
        return await self.request(case, "chat", **request, **more)


def decision_dialogue(system: Message, observed: list[str], said: list[Message]) -> list[Message]:
    """One decision as a dialogue of its own: the task, all observations so far, and what has been said since."""
    return [system, {"role": "user", "content": "\n\n".join(observed)}, *said]
