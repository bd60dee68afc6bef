"""What a model would prescribe at recorded decisions, as probabilities of the 25 actions: for off-policy evaluation.

A policy is what it would do on average, never one sample. K dialogues lead up to a prescription; there the server is
asked how likely each level was, and the K answers are averaged. How likely a level is follows from the model's
log-probabilities among the five levels, at the temperature and nucleus with which it prescribes. Needs vLLM.
"""

from __future__ import annotations

import asyncio
import io
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sepsis_jax import files
from sepsis_jax.agent.backends import Failed
from sepsis_jax.agent.case import Case, Usage
from sepsis_jax.agent.llm import LLMBackend
from sepsis_jax.agent.prompting import Prompts
from sepsis_jax.agent.settings import LLMSettings
from sepsis_jax.agent.side_by_side import side_by_side
from sepsis_jax.agent.simulator import BatchedSimulator
from sepsis_jax.agent.transcripts import plain
from sepsis_jax.clinical.actions import LEVELS, NUM_ACTIONS, ActionBins
from sepsis_jax.data.episodes import Episodes
from sepsis_jax.errors import InputError

FILE = "probabilities.npz"
_LEVELS = [str(level) for level in range(LEVELS)]
_WRITTEN = {name: re.compile(rf'"{name}"\s*:\s*(?=[0-{LEVELS - 1}])') for name in ("vasopressor", "iv_fluid")}


def folder_of(run: Path) -> Path:
    """Where they are, for the agent whose courses are in `run`."""
    return run.with_name(f"{run.name}.probabilities")


class Scorer:
    """Asks how likely each prescription was.

    Args:
      backend: who prescribes. settings: how it is asked, for the temperature and the nucleus.
    """

    def __init__(self, backend: LLMBackend, settings: LLMSettings) -> None:
        self._backend, self._settings = backend, settings
        self._digits: list[int] | None = None

    async def close(self) -> None:
        """Let go of the server."""
        await self._backend.close()

    async def probabilities(self, case: Case, draw: int) -> tuple[np.ndarray, bool]:
        """See `_probabilities`, whose server may answer anything."""
        try:
            return await self._probabilities(case, draw)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise Failed(
                "no log-probabilities", f"the server's answer is another than vLLM's: {error!r:.200}"
            ) from error

    async def _probabilities(self, case: Case, draw: int) -> tuple[np.ndarray, bool]:
        """One dialogue about the open decision, and what it was likely to end with.

        Args:
          draw: which of several dialogues; each has seeds of its own.

        Returns:
          f64[25], and whether nothing was left to chance before the prescription, so that no other dialogue could say
          anything else.

        Raises:
          Failed: the dialogue does not end with a prescription, or the server cannot say how likely its tokens were.
        """
        before = len(case.messages)
        _, completion = await self._backend.converse(case, draw=draw, tokens=True)
        tokens, places = _levels(completion)
        at_once = len(case.messages) == before + 1 and not case.messages[-1]["content"]
        certain = at_once and self._settings.tool_choice == "required" and self._forced(completion, places)
        digits = await self._digit_tokens(case)
        # The level that is written first, then the other one given each value of the first.
        (first, i), (_, j) = sorted(places.items(), key=lambda item: item[1])
        if not {tokens[i], tokens[j]} <= set(digits):
            raise Failed("no log-probabilities", "a level is another token alone than in a call")
        likely = await self._level(case, [tokens[:i]])
        given = await self._level(case, [[*tokens[:i], digit, *tokens[i + 1 : j]] for digit in digits])
        joint = likely.T * given
        return (joint if first == "vasopressor" else joint.T).ravel(), certain

    def _forced(self, completion: Any, places: dict[str, int]) -> bool:
        """Whether no other token could have been drawn up to the last level, but for the levels themselves.

        The words before a level are fixed, but not how they fall into tokens, and a level depends on those.
        """
        start, settings = len(completion.prompt_token_ids), self._settings
        enough = settings.top_p if settings.temperature <= 1 else 1.0  # tempering then makes the likeliest likelier
        said = completion.choices[0].logprobs.content[: max(places.values()) - start]
        chances = [math.exp(one.logprob) for at, one in enumerate(said, start) if at not in places.values()]
        return all(chance >= min(enough, 1 - 1e-6) for chance in chances)

    async def _level(self, case: Case, prompts: list[list[int]]) -> np.ndarray:
        """f64[P,5] probabilities of the levels after each of the texts."""
        options = {"structured_outputs": {"choice": _LEVELS}}
        found = await self._backend.request(
            case, "text", prompt=prompts, max_tokens=1, temperature=0.0, logprobs=LEVELS, extra_body=options
        )
        logs = np.full((len(prompts), LEVELS), -np.inf)
        for row, choice in zip(logs, sorted(found.choices, key=lambda one: one.index), strict=True):
            for text, value in ((choice.logprobs and choice.logprobs.top_logprobs) or [{}])[0].items():
                if text in _LEVELS:
                    row[int(text)] = value
        if not (np.isfinite(logs) & (logs < 1e-3) & (logs > -1e4)).all():
            raise Failed("no log-probabilities", "the server does not say how likely each level is; it must be vLLM")
        return served(logs, self._settings.temperature, self._settings.top_p)

    async def _digit_tokens(self, case: Case) -> list[int]:
        if self._digits is None:
            options = {"return_token_ids": True}
            found = await self._backend.request(case, "text", prompt=_LEVELS, max_tokens=1, extra_body=options)
            choices = sorted(found.choices, key=lambda one: one.index)
            self._digits = [getattr(one, "prompt_token_ids", [])[-1] for one in choices]
        return self._digits


def _levels(completion: Any) -> tuple[list[int], dict[str, int]]:
    """All tokens from the first of the dialogue on, and where among them each level stands."""
    choice = completion.choices[0]
    prompt, said = getattr(completion, "prompt_token_ids", None), getattr(choice, "token_ids", None)
    texts = [one.token for one in (choice.logprobs.content if choice.logprobs else None) or []]
    if not prompt or not said or len(said) != len(texts):
        raise Failed("no log-probabilities", "the server does not tell its tokens; it must be vLLM")
    whole, ends, places = "".join(texts), np.cumsum([len(text) for text in texts]), {}
    for name, pattern in _WRITTEN.items():
        found = list(pattern.finditer(whole))
        place = int(np.searchsorted(ends, found[-1].end(), side="right")) if found else -1
        if place < 0 or texts[place] not in _LEVELS:
            raise Failed("no log-probabilities", f"the level {name!r} is not a token of its own")
        places[name] = len(prompt) + place
    return [*prompt, *said], places


def served(logs: np.ndarray, temperature: float, top_p: float) -> np.ndarray:
    """Probabilities with which a server draws: tempered, then cut to the smallest set that holds `top_p`.

    Args:
      logs: log-probabilities f64[...,N]. temperature: 0 always takes the likeliest.
    """
    if temperature == 0:
        return np.asarray(np.eye(logs.shape[-1])[logs.argmax(-1)])
    tempered = np.exp((logs - logs.max(-1, keepdims=True)) / temperature)
    tempered /= tempered.sum(-1, keepdims=True)
    order = np.argsort(-tempered, axis=-1, kind="stable")
    ranked = np.take_along_axis(tempered, order, -1)
    kept = np.cumsum(ranked, -1) - ranked < top_p
    cut = np.zeros_like(tempered)
    np.put_along_axis(cut, order, np.where(kept, ranked, 0.0), -1)
    return np.asarray(cut / cut.sum(-1, keepdims=True))


def run(
    episodes: Episodes,
    rows: np.ndarray,
    simulator: BatchedSimulator,
    bins: ActionBins,
    scorer: Scorer,
    prompts: Prompts,
    *,
    dialogues: int,
    concurrency: int,
    finished: Callable[[dict[str, Any]], None],
) -> None:
    """Probabilities at every recorded decision of the stays `rows`.

    Args:
      dialogues: K for each decision. concurrency: dialogues open at once.
      finished: called with each stay as soon as it is there: stay_id, probs [T][25], se [T][25] (Monte Carlo standard
        error of the mean; null where K = 1 says nothing of it), dialogues [T] that came to a prescription, usage, and
        failed (a decision without any).
    """

    async def one_dialogue(row: int, step: int, draw: int, usage: Usage) -> Any:
        async with free:
            case = Case(episodes, row, simulator, bins, "recorded_until_deviation", prompts, at=step)
            case.observe()
            case.usage = usage
            try:
                return await scorer.probabilities(case, draw)
            except Failed as error:
                return error

    free = asyncio.Semaphore(concurrency)

    async def one_stay(row: int) -> dict[str, Any]:
        usage, length = Usage(), int(episodes.length[row])
        asked = [one_dialogue(row, step, draw, usage) for step in range(length) for draw in range(dialogues)]
        said = await asyncio.gather(*asked)
        decisions = [said[at : at + dialogues] for at in range(0, len(said), dialogues)]
        return _stay(int(episodes.stay_id[row]), decisions, usage)

    side_by_side(rows, one_stay, finished, at_once=max(2, concurrency // 8), close=scorer.close)


def _stay(stay_id: int, decisions: list[list[Any]], usage: Usage) -> dict[str, Any]:
    found = [[one for one in said if not isinstance(one, Failed)] for said in decisions]
    mute = next((said for said, some in zip(decisions, found, strict=True) if not some), None)
    failed = None if mute is None else {"kind": mute[0].kind, "detail": mute[0].detail}
    known = failed is None
    return plain(
        {
            "stay_id": stay_id,
            "probs": [np.mean([probs for probs, _ in some], axis=0).tolist() for some in found] if known else [],
            "se": [_error(some) for some in found] if known else [],
            "dialogues": [len(some) for some in found],
            "usage": vars(usage),
            "failed": failed,
        }
    )


def _error(some: list[tuple[np.ndarray, bool]]) -> list[float]:
    if all(certain for _, certain in some):
        return [0.0] * NUM_ACTIONS
    drawn = np.array([probs for probs, _ in some])
    return (
        drawn.std(axis=0, ddof=1) / np.sqrt(len(drawn)) if len(drawn) > 1 else np.full(NUM_ACTIONS, np.nan)
    ).tolist()


def write(path: Path, stays: list[dict[str, Any]], steps: int) -> None:
    """The finished stays as arrays: stay_id i64[N], probs and se f32[N,T,25], dialogues i32[N,T]; zeros at padding."""
    known = [one for one in stays if one["failed"] is None]
    shape = (len(known), steps, NUM_ACTIONS)
    arrays: dict[str, np.ndarray] = {
        "stay_id": np.array([one["stay_id"] for one in known], np.int64),
        "probs": np.zeros(shape, np.float32),
        "se": np.zeros(shape, np.float32),
        "dialogues": np.zeros(shape[:2], np.int32),
    }
    for row, one in enumerate(known):
        length = len(one["dialogues"])
        probs = np.array(one["probs"], np.float64)
        arrays["probs"][row, :length] = probs / probs.sum(-1, keepdims=True)
        arrays["se"][row, :length] = np.array(one["se"], np.float64)
        arrays["dialogues"][row, :length] = one["dialogues"]
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    files.write(path, buffer.getvalue())


def read(path: Path) -> dict[str, np.ndarray]:
    """Inverse of `write`. Raises InputError for a missing or damaged file."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in ("stay_id", "probs", "se", "dialogues")}
    except (OSError, ValueError, KeyError, EOFError) as error:
        hint = "make it: agent_loop.py --probabilities"
        raise InputError(path, expected="probabilities of a model", found=str(error)[:100], hint=hint) from error
