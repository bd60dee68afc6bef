"""The model in training as a backend: it decides in the same `Case`, by the same rules, as behind a server.

Its tokens are kept as it said them. What it was told carries no loss, so every token is marked as said or read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Literal

from sepsis_jax.agent import tools
from sepsis_jax.agent.backends import Failed
from sepsis_jax.agent.case import Case
from sepsis_jax.agent.conversation import Conversation
from sepsis_jax.agent.prompting import Prompts
from sepsis_jax.agent.settings import LLMSettings
from sepsis_jax.agent.simulator import Batcher
from sepsis_jax.agent.tools import Message

Generate = Batcher[list[int], list[int]]
"""Token ids of a text -> those that go on, up to the end mark or the limit of an answer."""


@dataclasses.dataclass
class Said:
    """A dialogue in tokens: what it began with, and what came then, of which `own` (1) are the model's words."""

    prompt: list[int]
    tokens: list[int] = dataclasses.field(default_factory=list)
    own: list[int] = dataclasses.field(default_factory=list)
    messages: int = 0

    def add(self, tokens: Sequence[int], *, own: bool) -> None:
        """Go on with these."""
        self.tokens.extend(tokens)
        self.own.extend([int(own)] * len(tokens))


class Learner(Conversation):
    """See `Conversation`.

    Args:
      tokenizer: with a chat template that keeps earlier turns as they were.
      generate: makes answers, in batches; several learners may share it.
      most_tokens: of a dialogue; one that grows longer fails as 'context overflow'.
    """

    def __init__(
        self,
        settings: LLMSettings,
        prompts: Prompts,
        *,
        samples: int,
        tokenizer: Any,
        generate: Generate,
        most_tokens: int,
    ) -> None:
        super().__init__(settings, prompts, samples=samples, seed=0)
        self._tokenizer, self._generate, self._most = tokenizer, generate, most_tokens
        self._said: dict[Case, Said] = {}

    async def close(self) -> None:
        """See `Backend.close`."""

    def take(self, case: Case) -> Said:
        """All that was said in a case, which is then forgotten here."""
        return self._said.pop(case)

    async def request(self, case: Case, kind: Literal["chat", "text"], **request: Any) -> Any:
        """See `Conversation.request`."""
        messages: list[Message] = request["messages"]
        said = self._said.get(case)
        if said is None:
            said = self._said[case] = Said(self._tokens(messages, request["tools"]))
        else:
            said.add(self._since(messages[said.messages + 1 :]), own=False)
        context = said.prompt + said.tokens
        if len(context) + self._settings.max_tokens > self._most:
            raise Failed("context overflow", f"{len(context)} tokens, and at most {self._most} with the answer")
        answer = await self._generate.ask(context)
        said.add(answer, own=True)
        said.messages = len(messages)
        ended = bool(answer) and answer[-1] == self._tokenizer.eos_token_id
        if not ended:
            said.add([self._tokenizer.eos_token_id], own=False)
        case.usage.requests += 1
        case.usage.prompt_tokens += len(context)
        case.usage.completion_tokens += len(answer)
        text = self._tokenizer.decode(answer[:-1] if ended else answer, skip_special_tokens=False)
        return _completion(text, ended=ended)

    def _tokens(self, messages: list[Message], schemas: Any) -> list[int]:
        return list(
            self._tokenizer.apply_chat_template(
                messages, tools=schemas, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        )

    def _since(self, replies: list[Message]) -> list[int]:
        """What stands between the end mark of an answer and the beginning of the next one."""
        before: list[Message] = [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}]
        whole = self._tokens([*before, *replies], None)
        ends = [at for at, token in enumerate(whole) if token == self._tokenizer.eos_token_id]
        return whole[ends[_marks(self._tokenizer, before) - 1] + 1 :]


def _marks(tokenizer: Any, messages: list[Message]) -> int:
    """How many end marks these messages have."""
    tokens = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    return sum(token == tokenizer.eos_token_id for token in tokens)


def _completion(text: str, *, ended: bool) -> Any:
    """As a server with a parser of calls hands it over."""
    content, calls = tools.spoken(text)
    made = [SimpleNamespace(function=SimpleNamespace(name=name, arguments=words)) for name, words in calls]
    message = SimpleNamespace(content=content, tool_calls=made or None)
    return SimpleNamespace(choices=[SimpleNamespace(message=message, finish_reason="stop" if ended else "length")])
