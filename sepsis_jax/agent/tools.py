"""The two tools of the dialogue: their JSON schemas, and what an answer of a model asks for.

A call is taken as the server parsed it, or found in the text where its parser missed it. Whatever is not exactly one
valid call is `Malformed`; nothing is guessed, so nothing is prescribed that the model did not say.
"""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

from sepsis_jax.clinical.actions import LEVELS

MOST_CANDIDATES = 3
LONGEST_RATIONALE = 300
SIMULATION, PRESCRIPTION = "simulation", "prescription"

Message = dict[str, Any]
"""Of a dialogue, as the chat completions API has it: role, content, and a model's calls."""

_LEVEL = {"type": "integer", "minimum": 0, "maximum": LEVELS - 1}
_PAIR = rf"^\[[0-{LEVELS - 1}],[0-{LEVELS - 1}]\]$"
_OPEN, _CLOSE, _FENCE = "<tool_call>", "</tool_call>", "```"
_THINKING, _THOUGHT = "<think>", "</think>"


@dataclasses.dataclass(frozen=True)
class Simulate:
    """Show what these actions would lead to, (vasopressor, fluid) levels each."""

    actions: tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Prescribe:
    """Give this action for the next 4 h."""

    action: tuple[int, int]
    rationale: str = ""


class Malformed(Exception):
    """No valid call.

    Attributes:
      kind: 'no call', 'several calls', 'unknown tool', 'broken JSON' or 'wrong arguments'. detail: for the model.
    """

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind, self.detail = kind, detail


def schemas(*, simulator: bool, rationale: bool) -> list[dict[str, Any]]:
    """The tools as the chat completions API wants them.

    Args:
      simulator: offer the simulation. rationale: let a prescription say why.
    """
    candidates = {
        "type": "array",
        "items": {"type": "string", "pattern": _PAIR},
        "minItems": 1,
        "maxItems": MOST_CANDIDATES,
        "description": "Candidate actions, each '[vasopressor,fluid]', e.g. '[1,2]'.",
    }
    levels: dict[str, Any] = {
        "vasopressor": _LEVEL | {"description": "vasopressor level of the next 4 h"},
        "iv_fluid": _LEVEL | {"description": "IV fluid level of the next 4 h"},
    }
    if rationale:
        levels["rationale"] = {"type": "string", "maxLength": LONGEST_RATIONALE, "description": "why, in one sentence"}
    simulation = _tool(
        SIMULATION, "Simulate candidate actions from the open decision.", {"actions": candidates}, ["actions"]
    )
    prescription = _tool(
        PRESCRIPTION, "Prescribe the next 4 h and go on.", levels, [name for name in levels if name != "rationale"]
    )
    return [simulation, prescription] if simulator else [prescription]


def say(number: int, content: str, *calls: tuple[str, str]) -> Message:
    """An answer with its calls (name, arguments as JSON), as it goes back into a dialogue; `number` makes their ids."""
    message: Message = {"role": "assistant", "content": content}
    if calls:
        message["tool_calls"] = [
            {"id": f"call_{number}_{i}", "type": "function", "function": {"name": name, "arguments": arguments}}
            for i, (name, arguments) in enumerate(calls)
        ]
    return message


def sendable(messages: list[Message]) -> list[Message]:
    """A dialogue as servers take it: arguments that are no JSON become none, since some refuse the whole request."""
    return [
        one | {"tool_calls": [_with_json(call) for call in one["tool_calls"]]} if "tool_calls" in one else one
        for one in messages
    ]


def _with_json(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return call if _is_json(function["arguments"]) else call | {"function": function | {"arguments": "{}"}}


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def reply(said: Message, text: str) -> list[Message]:
    """What `said` is answered: every call gets the text, as the API demands; words without a call get it in words."""
    calls = said.get("tool_calls")
    if not calls:
        return [{"role": "user", "content": text}]
    return [{"role": "tool", "tool_call_id": one["id"], "content": text} for one in calls]


def written(call: Simulate | Prescribe) -> tuple[str, str]:
    """(name, arguments as compact JSON) that `read` reads as this call."""
    if isinstance(call, Simulate):
        arguments: dict[str, Any] = {"actions": [level_pair(action) for action in call.actions]}
        return SIMULATION, json.dumps(arguments, separators=(",", ":"))
    arguments = {"vasopressor": call.action[0], "iv_fluid": call.action[1]}
    if call.rationale:
        arguments["rationale"] = call.rationale
    return PRESCRIPTION, json.dumps(arguments, separators=(",", ":"))


def called(call: dict[str, Any]) -> str:
    """A call of a dialogue as JSON of `name` and `arguments`, those as the model wrote them; broken ones as text."""
    name, arguments = call["function"]["name"], call["function"]["arguments"]
    if not _is_json(arguments):
        arguments = json.dumps(arguments)
    return f'{{"name": {json.dumps(name)}, "arguments": {arguments}}}'


def level_pair(action: tuple[int, int]) -> str:
    """'[v,f]'."""
    return f"[{action[0]},{action[1]}]"


def given(call: Prescribe) -> str:
    """What a prescription is answered."""
    return f"Given: {level_pair(call.action)}."


def _tool(name: str, description: str, properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def read(content: str | None, calls: list[tuple[str, str]], *, simulator: bool) -> Simulate | Prescribe:
    """The one call of an answer.

    Args:
      content: its text. calls: (name, arguments) as the server parsed them, arguments still JSON.
      simulator: whether the simulation was offered.

    Raises:
      Malformed: there is no such call.
    """
    said = _without_thoughts(content or "")
    if calls and _THINKING in (content or "") and _THOUGHT not in (content or ""):
        raise Malformed("no call", "a call in thoughts that do not end; answer with one call of a tool")
    if calls and _OPEN in said:
        raise Malformed("several calls", "a call in words beside one of a tool; make one")
    found = calls or _from_text(said)
    if not found:
        raise Malformed("no call", "answer with one call of a tool")
    if len(found) > 1:
        raise Malformed("several calls", f"{len(found)} calls in one answer; make one")
    name, text = found[0]
    if name != PRESCRIPTION and not (simulator and name == SIMULATION):
        raise Malformed("unknown tool", f"there is no tool {name[:40]!r} here")
    try:
        arguments = _loads(text)
    except (ValueError, RecursionError) as error:
        raise Malformed("broken JSON", f"arguments are not JSON ({str(error)[:80]})") from error
    if not isinstance(arguments, dict):
        raise Malformed("wrong arguments", "arguments are an object")
    return _simulate(arguments) if name == SIMULATION else _prescribe(arguments)


def spoken(text: str) -> tuple[str, list[tuple[str, str]]]:
    """(content, calls) of an answer as a server parses it; all of it is content where a call is not JSON."""
    said = _without_thoughts(text)
    try:
        calls = _from_text(said) if _OPEN in said else []
    except Malformed:
        calls = []
    return (text.partition(_OPEN)[0], calls) if calls else (text, [])


def _without_thoughts(text: str) -> str:
    """What a model says to itself is no answer, whatever calls it tries there.

    Thoughts may begin in the prompt, where some templates open them.
    """
    before, opened, rest = text.partition(_THINKING)
    if _THOUGHT in rest or not opened:
        return (before if opened else "") + text.rpartition(_THOUGHT)[2]
    return before


def _from_text(content: str) -> list[tuple[str, str]]:
    """(name, arguments) of calls that stand in the text, as `<tool_call>` or as bare JSON. Raises Malformed."""
    if _OPEN in content:
        return [_written_call(part.partition(_CLOSE)) for part in content.split(_OPEN)[1:]]
    bare = content.strip()
    if len(bare) > 2 * len(_FENCE) and bare.startswith(_FENCE) and bare.endswith(_FENCE):
        bare = bare[len(_FENCE) : -len(_FENCE)].removeprefix("json")
    try:
        call = _loads(bare)
    except (ValueError, RecursionError):
        return []
    named = isinstance(call, dict) and isinstance(call.get("name"), str)
    return [(call["name"], json.dumps(call.get("arguments")))] if named else []


def _written_call(part: tuple[str, str, str]) -> tuple[str, str]:
    text, closed, _ = part
    try:
        call = _loads(text) if closed else None
    except (ValueError, RecursionError) as error:
        raise Malformed("broken JSON", f"a call is not JSON ({str(error)[:80]})") from error
    if not (isinstance(call, dict) and isinstance(call.get("name"), str)):
        raise Malformed("broken JSON", "a call is an object with 'name' and 'arguments', and ends")
    return call["name"], json.dumps(call.get("arguments"))


def _loads(text: str) -> Any:
    """JSON whose objects name each key once. Raises ValueError or RecursionError."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({name for name, _ in pairs}) < len(pairs):
            raise ValueError("a key is there twice")
        return dict(pairs)

    return json.loads(text, object_pairs_hook=once)


def _simulate(arguments: dict[str, Any]) -> Simulate:
    actions = arguments.get("actions")
    if set(arguments) != {"actions"} or not isinstance(actions, list) or not 1 <= len(actions) <= MOST_CANDIDATES:
        raise Malformed("wrong arguments", f"'actions' is a list of 1 to {MOST_CANDIDATES} strings like '[1,2]'")
    if not all(isinstance(one, str) and re.fullmatch(_PAIR, one) for one in actions):
        raise Malformed("wrong arguments", f"an action is a string '[v,f]' with levels 0 to {LEVELS - 1}")
    return Simulate(tuple((int(one[1]), int(one[3])) for one in actions))


def _prescribe(arguments: dict[str, Any]) -> Prescribe:
    vasopressor: Any = arguments.get("vasopressor")
    fluid: Any = arguments.get("iv_fluid")
    if not set(arguments) <= {"vasopressor", "iv_fluid", "rationale"}:
        raise Malformed("wrong arguments", "only 'vasopressor', 'iv_fluid' and 'rationale' are known")
    if not (_is_level(vasopressor) and _is_level(fluid)):
        raise Malformed("wrong arguments", f"'vasopressor' and 'iv_fluid' are integers from 0 to {LEVELS - 1}")
    rationale = arguments.get("rationale", "")
    if not isinstance(rationale, str):
        raise Malformed("wrong arguments", "'rationale' is a string")
    return Prescribe((int(vasopressor), int(fluid)), rationale[:LONGEST_RATIONALE])


def _is_level(value: Any) -> bool:
    return type(value) is int and 0 <= value < LEVELS  # True is no level
