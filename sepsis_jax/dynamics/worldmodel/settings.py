"""How a world model is trained; part of the one config of all scripts."""

from __future__ import annotations

import dataclasses
import math
from typing import get_args

from sepsis_jax.dynamics.worldmodel.model import Architecture, Precision, WorldModel
from sepsis_jax.errors import SEEDS, InputError, check_range


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """How to train a world model.

    Attributes:
      architecture: 'carry' or 'published'.
      hidden: GRU width.
      layers: GRU depth.
      dropout: rate while training.
      members: networks of the ensemble, trained side by side from different weights and in different orders of stays.
      epochs: passes over the train stays at most.
      patience: a member stops after this many epochs without a better validation loss.
      batch_size: stays in one update of one member, over all devices.
      learning_rate: peak of the cosine schedule.
      weight_decay: of AdamW.
      clip_norm: largest gradient norm.
      average: decay of the running average of the weights that is validated and kept; 0 keeps the weights themselves.
      precision: of the factors in products of matrices on accelerators; sums, losses and weights stay float32.
      seed: of the weights, the order of stays and dropout.
    """

    architecture: Architecture = "carry"
    hidden: int = 128
    layers: int = 2
    dropout: float = 0.2
    members: int = 1
    epochs: int = 100
    patience: int = 15
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    clip_norm: float = 1.0
    average: float = 0.0
    precision: Precision = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        check_range(self, "world_model", seed=SEEDS, weight_decay=(0, 10), average=(0, 0.9999))
        _ = self.model  # raises for an impossible network
        for name in ("epochs", "patience", "batch_size", "learning_rate", "clip_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError("world_model", field=name, expected="a positive number", found=getattr(self, name))
        if self.precision not in get_args(Precision):
            expected = " or ".join(get_args(Precision))
            raise InputError("world_model", field="precision", expected=expected, found=self.precision)

    @property
    def model(self) -> WorldModel:
        """The network that these settings train."""
        return WorldModel(self.architecture, self.hidden, self.layers, self.dropout, self.members)

    @property
    def published(self) -> TrainSettings:
        """The network as published (its depth and dropout too), trained in the same way."""
        return dataclasses.replace(self, architecture="published", members=1, layers=2, dropout=0.2)
