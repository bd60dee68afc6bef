"""A run over test episodes as the published system releases them: no store, and a world model trained elsewhere.

Clinicians cannot be estimated from stays that are all test stays. They are estimated from another cohort, or else
taken to choose every action as often as any other.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from sepsis_jax import pipeline
from sepsis_jax.clinical.reward import PUBLISHED
from sepsis_jax.config import Config
from sepsis_jax.errors import InputError
from sepsis_jax.pipeline import Loaded
from sepsis_jax.policies.rules import Uniform
from sepsis_jax.simulation.course import World


@dataclasses.dataclass(frozen=True)
class ReleasedFiles:
    """Test episodes (a pickle) and the two JSON files that say what their numbers mean, see `data.released`."""

    episodes: Path
    scaler: Path
    feature_config: Path

    @classmethod
    def of(cls, episodes: Path | None, scaler: Path | None, feature_config: Path | None) -> ReleasedFiles | None:
        """As the flags name them; None if they name none. The feature config is looked for beside the scaler.

        Raises:
          InputError: one file is named without the other that it needs.
        """
        if episodes is not None and scaler is not None:
            return cls(episodes, scaler, feature_config or scaler.with_name(pipeline.RELEASED_FILES[2]))
        if episodes is not None:
            expected = f"--scaler, their {pipeline.RELEASED_FILES[1]}"
            raise InputError("--released_episodes", expected=expected, found="none")
        for flag, file in (("--scaler", scaler), ("--feature_config", feature_config)):
            if file is not None:
                raise InputError(flag, expected="--released_episodes, which it belongs to", found="none")
        return None


def load(config: Config, released: ReleasedFiles, teachers: Path, checkpoint: Path) -> Loaded:
    """Read the episodes and the world model, and estimate clinicians from the cohort at `teachers`.

    Where that is the run's own place for a cohort, and there is none, clinicians are uniform.

    Raises:
      InputError: a file cannot be read; levels of episodes, world model and teachers stand for different doses.
    """
    episodes, manifest = pipeline.released_cohort(released.episodes, released.scaler, released.feature_config)
    model, params = pipeline.load_model(checkpoint, manifest, released.episodes)
    if teachers == config.episodes and not teachers.exists():
        world = World(model, manifest.action_bins, PUBLISHED, Uniform())
        return Loaded(episodes, manifest, world, params, None, "unknown, taken as uniform: no cohort to learn from")
    taught = pipeline.load(config, teachers, checkpoint)  # of the same bins as the model, so as the episodes
    source = f"{taught.manifest.source}, {taught.manifest.source_version}, {taught.episodes.digest()[:12]}"
    clinicians = f"estimate from the train split of another cohort ({source})"
    return dataclasses.replace(taught, episodes=episodes, manifest=manifest, clinicians=clinicians)
