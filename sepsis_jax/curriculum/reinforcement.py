"""Stage III: GRPO inside the world model (Shao et al. 2024, arXiv 2402.03300), with TRL.

A group of answers to the same decision shares its random numbers, so that rewards within it differ by what was
prescribed. Their mean is subtracted; what is left is not divided by the group's SD, by which a hair's breadth would
count as much as a life (Liu et al. 2025, arXiv 2503.20783). Answers that are all alike teach nothing.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
from trl import GRPOConfig, GRPOTrainer

from sepsis_jax.agent.backends import Failed
from sepsis_jax.agent.case import Case
from sepsis_jax.agent.prompting import Prompts
from sepsis_jax.agent.settings import Follow, LLMSettings
from sepsis_jax.agent.simulator import BatchedSimulator, Batcher
from sepsis_jax.clinical.actions import ActionBins, encode
from sepsis_jax.curriculum import models, progress, rewards, stage
from sepsis_jax.curriculum.learner import Learner, Said
from sepsis_jax.curriculum.rewards import Model, Paid
from sepsis_jax.curriculum.settings import BaseSettings, CurriculumSettings, RLSettings
from sepsis_jax.data.episodes import Episodes
from sepsis_jax.errors import InputError

_AT_ONCE = 4096  # texts that go on together
FIGURES = ("reward", "malformed", "simulated", "unfinished", "seconds_simulated", "seconds_rollout")


class Decision(NamedTuple):
    """A stay's row and step to decide at, `alone` without the simulator. In 'episode' the whole stay is."""

    row: int
    step: int
    alone: bool


@dataclasses.dataclass(frozen=True)
class Practice:
    """Where the model practises.

    Attributes:
      episodes: the cohort. rows: int[N] its train stays. model: what pays. simulator: what answers.
      bins, prompts, llm: of the dialogue. samples: simulated courses behind an answer, as it says.
      chosen: settings of the curriculum.
    """

    episodes: Episodes
    rows: np.ndarray
    model: Model
    simulator: BatchedSimulator
    bins: ActionBins
    prompts: Prompts
    llm: LLMSettings
    samples: int
    chosen: CurriculumSettings

    @property
    def settings(self) -> RLSettings:
        """Of the stage."""
        return self.chosen.rl

    def decisions(self) -> list[Decision]:
        """Every decision that the run will ask for, in its order; stays begin anew in 'episode'.

        Those of one update are about the same step, so that their histories are about equally long. Over the updates
        each recorded decision (of the first `most_steps`) is equally likely.
        """
        settings, draw = self.settings, np.random.default_rng(self.chosen.seed)
        number, length = settings.updates * settings.decisions, np.asarray(self.episodes.length)[self.rows]
        length = np.minimum(length, settings.most_steps or length)
        alone = draw.random(number) < self.chosen.alone
        if settings.mode == "episode":
            rows, steps = draw.choice(self.rows, number), np.zeros(number, int)
        else:
            steps = np.repeat(
                draw.integers(draw.choice(length, settings.updates, p=length / length.sum())), settings.decisions
            )
            rows = np.array([draw.choice(self.rows[length > step]) for step in steps])
        return [Decision(*one) for one in zip(rows.tolist(), steps.tolist(), alone.tolist(), strict=True)]


async def answer(practice: Practice, learner: Learner, where: Decision) -> tuple[Case, Any, str]:
    """One answer: the case, what was prescribed first (None for nothing), and the kind of a failure, or ''."""
    follow: Follow = "model" if practice.settings.mode == "episode" else "recorded_until_deviation"
    case = Case(
        practice.episodes, where.row, practice.simulator, practice.bins, follow, practice.prompts, at=where.step
    )
    case.observe()
    try:
        if practice.settings.mode == "decision":
            call, _ = await learner.converse(case)
            return case, call.action, ""
        while not case.outcome.closed:
            case.observe()
            await learner.decide(case)
    except Failed as error:
        return case, case.decisions[0].action if case.decisions else None, error.kind
    return case, case.decisions[0].action, ""


def paid(
    practice: Practice, where: Sequence[Decision], answers: Sequence[tuple[Case, Any, str]], update: int
) -> list[Paid]:
    """What the answers to the decisions `where` earn; in 'decision' from one call of the simulator for all."""
    settings = practice.settings
    if settings.mode == "episode":
        worth = [rewards.of_stay(case, settings) for case, _, _ in answers]
    else:
        different = sorted({(one.row, one.step) for one in where})
        rows, steps = np.array(different).T
        luck = rewards.luck_of(practice.chosen.seed, update)
        table = rewards.of_decisions(practice.model, practice.episodes, rows, steps, settings, luck)
        values = dict(zip(different, table, strict=True))
        worth = [
            0.0 if action is None else float(values[at.row, at.step][int(encode(np.array(action)))])
            for at, (_, action, _) in zip(where, answers, strict=True)
        ]
    return [Paid.of(one, *rest, settings) for one, rest in zip(worth, answers, strict=True)]


class Rollouts:
    """What TRL calls for answers: all of a batch at once, each in a case of its own."""

    def __init__(self, practice: Practice, tokenizer: Any, most_tokens: int) -> None:
        self._practice, self._tokenizer, self._most = practice, tokenizer, most_tokens

    def __call__(self, prompts: list[Any], trainer: GRPOTrainer) -> dict[str, list[Any]]:
        """Prompts name decisions; see `rollout_func` of TRL's GRPOTrainer."""
        practice, began = self._practice, time.monotonic()
        where = [_decision(prompt) for prompt in prompts]
        simulated = practice.simulator.seconds
        both = self._learners(trainer)

        async def everyone() -> list[tuple[Case, Any, str]]:
            return await asyncio.gather(*(answer(practice, both[one.alone], one) for one in where))

        answers = asyncio.run(everyone())
        answered = time.monotonic()
        earned = paid(practice, where, answers, trainer.state.global_step)
        seconds = time.monotonic() - answered + practice.simulator.seconds - simulated
        said = [both[one.alone].take(case) for one, (case, _, _) in zip(where, answers, strict=True)]
        figures = [
            (one.reward, one.malformed, one.simulated, bool(one.unfinished), seconds, time.monotonic() - began)
            for one in earned
        ]
        columns = zip(FIGURES, np.array(figures, float).T.tolist(), strict=True)
        return dict(columns) | _tokens(said, self._tokenizer.eos_token_id)

    def _learners(self, trainer: GRPOTrainer) -> tuple[Learner, Learner]:
        """The model with the simulator and without; whatever they are asked at once is answered in one batch."""

        def generate(texts: list[list[int]]) -> list[list[int]]:
            if torch.cuda.is_available():  # a device is chosen by thread, and this is another one
                torch.cuda.set_device(trainer.accelerator.device)
            answers, _ = trainer._generate_single_turn(texts, None, {}, 1)
            return [list(one) for one in answers]

        practice, batched = self._practice, Batcher(generate, _AT_ONCE)

        def learner(settings: LLMSettings) -> Learner:
            return Learner(
                settings,
                practice.prompts,
                samples=practice.samples,
                tokenizer=self._tokenizer,
                generate=batched,
                most_tokens=self._most,
            )

        return learner(practice.llm), learner(dataclasses.replace(practice.llm, simulator=False))


def _prompt(decision: Decision) -> list[dict[str, str]]:
    """A decision by name, which is all that TRL hands on; `Rollouts` knows what is told about it."""
    return [{"role": "user", "content": json.dumps(decision)}]


def _decision(prompt: list[dict[str, str]]) -> Decision:
    return Decision(*json.loads(prompt[0]["content"]))


def _tokens(said: Sequence[Said], end: int) -> dict[str, list[Any]]:
    """The model's words carry loss, what it was told does not; who said nothing has an `end` that carries none."""
    return {
        "prompt_ids": [one.prompt for one in said],
        "completion_ids": [one.tokens or [end] for one in said],
        "env_mask": [one.own or [0] for one in said],
        "logprobs": None,  # type: ignore[dict-item]
    }


def _figure(name: str) -> Any:
    def figure(prompts: Any, completions: Any, **kept: Any) -> list[float]:
        """One of `FIGURES` of each answer, as `Rollouts` found it."""
        return list(kept[name])

    figure.__name__ = name
    return figure


def run(practice: Practice, start: Path, out: Path, base: BaseSettings) -> None:
    """Train the model at `start` and leave the result in `out`/model; a run that was stopped goes on.

    Raises:
      InputError: whole stays are asked for in dialogues of single decisions; vLLM is asked for and is not there; the
        run diverges, or nothing in it makes a difference (see `progress.Guard`).
    """
    settings = practice.settings
    if settings.mode == "episode" and practice.llm.context != "episode":
        hint = "whole stays are learned from one growing dialogue: --llm.context episode"
        raise InputError("llm", field="context", expected="episode", found=practice.llm.context, hint=hint)
    if settings.vllm and find_spec("vllm") is None:
        hint = "make llm-train DEVICE=cuda brings it; --curriculum.rl.vllm false lets the model in training answer"
        raise InputError("curriculum.rl", field="vllm", expected="vLLM in this environment", found="none", hint=hint)
    model, tokenizer = models.load(start, base)
    reads = model.config.max_position_embeddings
    most = min(reads, practice.llm.max_model_len or reads)
    if practice.llm.max_tokens >= most:
        expected = f"answers within the {most} tokens of a dialogue"
        raise InputError("llm", field="max_tokens", expected=expected, found=practice.llm.max_tokens)
    answers = settings.decisions * settings.group
    batch, batches = stage.shared(answers, settings.batch)
    options = GRPOConfig(
        **progress.options(out, base, practice.chosen.seed),
        max_steps=settings.updates,
        num_generations=settings.group,
        generation_batch_size=answers,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=batches,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=min(10, settings.updates // 10),
        beta=settings.kl,
        scale_rewards="none",
        temperature=settings.temperature,
        max_completion_length=practice.llm.max_tokens,
        save_steps=settings.save_every,
        shuffle_dataset=False,
        pad_to_multiple_of=progress.WIDTH,
        reward_weights=[1.0] + [0.0] * (len(FIGURES) - 1),
        use_vllm=settings.vllm,
        vllm_mode="colocate",
        vllm_max_model_length=most,
        vllm_importance_sampling_correction=False,  # dialogues keep no log-probabilities of a server to correct by
    )
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=[_figure(name) for name in FIGURES],
        args=options,
        train_dataset=Dataset.from_list([{"prompt": _prompt(one)} for one in practice.decisions()]),
        processing_class=tokenizer,
        peft_config=models.additions(base),
        rollout_func=Rollouts(practice, tokenizer, most),
        callbacks=[progress.Log(out), progress.Guard(out, settings.most_kl, settings.patience)],
    )
    progress.train(trainer, out)
    models.leave(trainer.model, tokenizer, out / stage.MODEL)
