"""Rewards of a trajectory: steps are paid by what they did to the patient, the end by the outcome.

With SOFA s and lactate l (mmol/L) before and after a 4-h step, and p the probability of death within 90 days:

    r_t = w_same 1[s' = s > 0] + w_sofa (s' - s) + w_lactate tanh(l' - l)      r_end = w_end (1 - 2 p)

The weights -0.025, -0.125, -2 and the form are those of Raghu et al. 2017 (arXiv 1711.09602); the published
system (arXiv 2605.14723) uses them with w_end = 15. Its last step earns the outcome alone. It also subtracts a
guideline penalty during reinforcement learning, whose size is not released: `guideline` is 0 unless you say otherwise.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from sepsis_jax.clinical import guidelines
from sepsis_jax.clinical.features import INDEX

SofaVersion = Literal["proper", "published"]


@dataclasses.dataclass(frozen=True)
class Reward:
    """What a trajectory is worth. Hashable, so it can be a static argument of a jitted function.

    Attributes:
      sofa: the version of SOFA to feed it. `published` contains the vasopressor level, so it punishes every
        vasopressor directly; `proper` does so through the dose.
      unchanged_sofa: paid when SOFA stays where it is, above 0.
      sofa_change: paid per point of SOFA gained.
      lactate_change: paid per unit of tanh(change of lactate in mmol/L).
      outcome: paid for survival to day 90; its negative for death.
      guideline: paid at each decision, the last one too, that breaks G1 or G2 (`clinical.guidelines`).
      gamma: discount per 4-h step.
    """

    sofa: SofaVersion = "published"
    unchanged_sofa: float = -0.025
    sofa_change: float = -0.125
    lactate_change: float = -2.0
    outcome: float = 15.0
    guideline: float = 0.0
    gamma: float = 1.0

    @property
    def pays_outcome(self) -> bool:
        """True: the last recorded step is terminal, whatever `exit` says; False: truncation bootstraps."""
        return self.outcome != 0

    def step(self, sofa: ArrayLike, sofa_next: ArrayLike, lactate: ArrayLike, lactate_next: ArrayLike) -> jax.Array:
        """f32[...] reward of a step, from SOFA and lactate (mmol/L) f32[...] before and after it."""
        sofa, sofa_next = jnp.asarray(sofa), jnp.asarray(sofa_next)
        unchanged = (sofa_next == sofa) & (sofa_next > 0)
        trend = jnp.tanh(jnp.asarray(lactate_next) - jnp.asarray(lactate))
        paid = self.unchanged_sofa * unchanged + self.sofa_change * (sofa_next - sofa)
        return paid + self.lactate_change * trend

    def penalty(self, obs: ArrayLike, previous_vasopressor: ArrayLike, action: ArrayLike) -> jax.Array:
        """f32[...] reward of breaking a guideline rule.

        Args:
          obs: f32[...,39] (clinical units). previous_vasopressor: int[...] level before, -1 where unknown.
          action: int[...,2] levels.
        """
        obs, action = jnp.asarray(obs), jnp.asarray(action)
        nothing = jnp.zeros(action.shape[:-1])  # G1 and G2 look at levels alone
        meanbp, lactate = obs[..., INDEX["meanbp"]], obs[..., INDEX["lactate"]]
        steps = guidelines.Steps(meanbp, lactate, action, jnp.asarray(previous_vasopressor), nothing, nothing, True)
        return self.guideline * guidelines.guideline(steps, guidelines.Thresholds())[0]

    def terminal(self, death_probability: ArrayLike) -> jax.Array:
        """f32[...] expected reward of the end, from the probability of death within 90 days f32[...]."""
        return self.outcome * (1 - 2 * jnp.asarray(death_probability))

    def episode(
        self, sofa: ArrayLike, lactate: ArrayLike, length: ArrayLike, death_probability: ArrayLike
    ) -> jax.Array:
        """f32[...,T] rewards of recorded stays: steps that have a next one, then the outcome, then 0.

        Args:
          sofa: f32[...,T] of the version `self.sofa`.
          lactate: f32[...,T] (mmol/L).
          length: i32[...] recorded steps, at least 1.
          death_probability: f32[...]; 0 or 1 where the outcome is known.
        """
        sofa, lactate = jnp.asarray(sofa), jnp.asarray(lactate)
        change = self.step(sofa[..., :-1], sofa[..., 1:], lactate[..., :-1], lactate[..., 1:])
        change = jnp.concatenate([change, jnp.zeros_like(sofa[..., :1])], axis=-1)
        end = jnp.broadcast_to(self.terminal(death_probability)[..., None], sofa.shape)
        index = jnp.broadcast_to(jnp.arange(sofa.shape[-1]), sofa.shape)
        last = jnp.broadcast_to(jnp.asarray(length)[..., None] - 1, sofa.shape)
        return jnp.where(index < last, change, jnp.where(index == last, end, 0.0))


PUBLISHED = Reward()
"""The published reward, with the published SOFA."""

OUTCOME_ONLY = Reward(sofa="proper", unchanged_sofa=0.0, sofa_change=0.0, lactate_change=0.0)
"""90-day mortality and nothing else: +15 or -15 at the end."""
