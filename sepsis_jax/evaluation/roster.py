"""Who stands in the policy table: the clinicians, naive policies, rules, learned policies, and the planner."""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from sepsis_jax.clinical.actions import ALL_ACTIONS, NUM_ACTIONS, encode
from sepsis_jax.clinical.reward import Reward
from sepsis_jax.data.episodes import Episodes
from sepsis_jax.data.scaler import Scaler
from sepsis_jax.evaluation.contenders import RULES, Contender, OnRecord, following
from sepsis_jax.evaluation.policy_settings import FREQUENT, RANDOM
from sepsis_jax.ope.logged import earned, ended, recorded_sofa
from sepsis_jax.policies import inputs
from sepsis_jax.policies.offline_rl import training, transitions
from sepsis_jax.policies.offline_rl.algorithms import ALGORITHMS
from sepsis_jax.policies.offline_rl.training import Learned, OfflineSettings
from sepsis_jax.policies.offline_rl.transitions import Transitions
from sepsis_jax.policies.rules import Fixed, Uniform
from sepsis_jax.simulation.policy import probs_on_record

_IMITATION = "BC"
DRAWN = 4
"""Actions drawn from a policy at each decision that is imitated."""
Progress = Callable[[str, int, float], None]
"""Called now and then with the algorithm, its updates so far and its loss."""


def _pass_on(name: str, progress: Progress | None, updates: int, networks: Any, loss: np.ndarray) -> None:
    del networks
    if progress is not None:
        progress(name, updates, float(loss.mean()))


def naive(train: Episodes) -> dict[str, Contender]:
    """Policies that learn next to nothing: chance, the most frequent action of the train stays, and rules."""
    frequent = np.bincount(np.asarray(encode(train.action[train.valid])), minlength=NUM_ACTIONS).argmax()
    fixed = Fixed(*(int(level) for level in ALL_ACTIONS[frequent]))
    return {RANDOM: following(Uniform()), FREQUENT: following(fixed)} | {
        name: following(rule) for name, rule in RULES.items()
    }


def learned(
    settings: OfflineSettings,
    train: Episodes,
    scaler: Scaler,
    reward: Reward,
    seed: int,
    report: Progress | None = None,
) -> dict[str, Contender]:
    """Every algorithm of offline reinforcement learning, each fitted when it is first asked."""
    rows = functools.cache(lambda: experience(train, scaler, reward))

    def learning(name: str) -> Contender:
        @functools.cache
        def params() -> Any:
            key = jax.random.fold_in(jax.random.key(seed), list(ALGORITHMS).index(name))
            networks = training.fit(name, settings, rows(), key, partial(_pass_on, name, report))
            return {"networks": networks, "scaler": scaler}

        policy = Learned(name, settings)
        return Contender(
            lambda decision: following(policy, params()).chances(decision),
            lambda episodes: probs_on_record(policy, params(), episodes),
        )

    return {name: learning(name) for name in ALGORITHMS}


def imitated(decide: OnRecord, number: int, settings: OfflineSettings, scaler: Scaler, seed: int) -> OnRecord:
    """`decide` on the first `number` stays, and a network that imitates what it does there on all others."""

    def on_record(episodes: Episodes) -> np.ndarray:
        first, rest = episodes.take(slice(number)), episodes.take(slice(number, None))
        decided = decide(first)
        if not rest.num_stays:
            return decided
        imitation = _imitation(first, decided.argmax(axis=-1), settings, scaler, seed)
        return np.concatenate([decided, imitation(rest)])

    return on_record


def imitating(probs: np.ndarray, some: Episodes, settings: OfflineSettings, scaler: Scaler, seed: int) -> OnRecord:
    """A network that imitates f32[B,T,25] at the recorded decisions of `some`: `DRAWN` actions are drawn from each."""
    cumulative = probs.cumsum(-1)
    chance = np.random.default_rng(seed).random((DRAWN, *probs.shape[:2], 1)) * cumulative[..., -1:]
    actions = (chance > cumulative).sum(-1).clip(max=NUM_ACTIONS - 1)
    many = some.take(np.tile(np.arange(some.num_stays), DRAWN))
    return _imitation(many, actions.reshape(-1, actions.shape[-1]), settings, scaler, seed)


def _imitation(some: Episodes, actions: np.ndarray, settings: OfflineSettings, scaler: Scaler, seed: int) -> OnRecord:
    """Behaviour cloning of int[B,T] actions on recorded states."""
    nothing = np.zeros(some.valid.shape, np.float32)
    rows = transitions.of_stays(inputs.on_record(some, scaler), actions, nothing, some.length)
    params = {"networks": training.fit(_IMITATION, settings, rows, jax.random.key(seed)), "scaler": scaler}
    return lambda episodes: probs_on_record(Learned(_IMITATION, settings), params, episodes)


def experience(train: Episodes, scaler: Scaler, reward: Reward) -> Transitions:
    """The transitions of recorded stays, whose outcomes are known wherever the reward pays them."""
    return transitions.of_stays(
        inputs.on_record(train, scaler),
        np.asarray(encode(train.action)),
        earned(train, reward),
        train.length,
        gamma=reward.gamma,
        sofa=recorded_sofa(train, reward),
        ended=ended(train, reward),
    )
