"""ICU-Sepsis (Choudhary et al. 2024, arXiv 2406.05646), a tabular MDP: exact values, and draws, from its arrays."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from sepsis_jax.ope.logged import Logged

LIVE, DEATH, SURVIVAL = 713, 713, 714  # states from which the stay goes on; then its two ends
STEPS = 160  # room for the longest stay that is drawn


@dataclasses.dataclass(frozen=True)
class Mdp:
    """Attributes: to f[713,25,715] next state; start, sofa f[713]; expert f[713,25]. Only survival pays, 1."""

    to: np.ndarray
    start: np.ndarray
    expert: np.ndarray
    sofa: np.ndarray

    def state_values(self, policy):
        """f[713] chance to survive under f[713,25]."""
        moves = np.einsum("sa,sat->st", policy, self.to)
        return np.linalg.solve(np.eye(LIVE) - moves[:, :LIVE], moves[:, SURVIVAL])

    def q(self, policy):
        """f[713,25]."""
        return self.q_of(self.state_values(policy))

    def q_of(self, values):
        return self.to[..., SURVIVAL] + self.to[..., :LIVE] @ values

    def value(self, policy):
        return float(self.start @ self.state_values(policy))

    @functools.cached_property
    def best_q(self):
        """f[713,25] of the optimal policy, by policy iteration."""
        policy = self.expert
        while True:
            q = self.q(policy)
            better = np.eye(25)[q.argmax(axis=1)]
            if np.abs(self.start @ (self.state_values(better) - self.state_values(policy))) < 1e-14:
                return self.q(better)
            policy = better

    def tilt(self, temperature):
        """The expert, drawn towards actions of higher value."""
        weight = self.expert * np.exp((self.best_q - self.best_q.max(axis=1, keepdims=True)) / temperature)
        return weight / weight.sum(axis=1, keepdims=True)

    def soft(self, share=0.99):
        """The best action within the expert's support, softened over that support."""
        support = self.expert > 0
        best = np.eye(25)[np.where(support, self.best_q, -1).argmax(axis=1)]
        return share * best + (1 - share) * support / support.sum(axis=1, keepdims=True)

    def draw(self, stays, seed):
        """Logged stays of the expert, and their states i32[B,STEPS]."""
        rng = np.random.default_rng(seed)
        state, runs = rng.choice(LIVE, size=stays, p=self.start), np.ones(stays, bool)
        states, actions = np.zeros((2, stays, STEPS), np.int32)
        reward, length = np.zeros((stays, STEPS)), np.zeros(stays, np.int32)
        for t in range(STEPS):
            rows = np.flatnonzero(runs)
            if not rows.size:
                break
            states[rows, t] = state[rows]
            action = _draw(self._expert_sums, state[rows], rng)
            actions[rows, t] = action
            state[rows] = _draw(self._to_sums, state[rows] * 25 + action, rng)
            reward[rows, t], length[rows] = state[rows] == SURVIVAL, t + 1
            runs[rows] = state[rows] < LIVE
        assert not runs.any(), "STEPS is too small"
        behaviour = self.expert[states, actions]
        return Logged(actions, reward, length, behaviour, np.arange(stays, dtype=np.int32)), states

    @functools.cached_property
    def _to_sums(self):
        return _sums(self.to.reshape(-1, self.to.shape[-1]))

    @functools.cached_property
    def _expert_sums(self):
        return _sums(self.expert)


def _sums(rows):
    """Cumulative sums f[N,K], each row raised by its number, so that all are one ascending array."""
    sums = np.cumsum(rows, axis=1)
    return np.arange(len(rows))[:, None] + np.minimum(sums / sums[:, -1:], 1 - 1e-12)


def _draw(sums, row, rng):
    uniform = rng.random(len(row)) * (1 - 1e-9)
    found = np.searchsorted(sums.ravel(), row + uniform, side="right") - row * sums.shape[1]
    return np.minimum(found, sums.shape[1] - 1)


@functools.cache
def load():
    """The MDP; skips where the package is missing."""
    spec = importlib.util.find_spec("icu_sepsis")
    if spec is None or spec.origin is None:
        pytest.skip("needs the package icu-sepsis")
    with np.load(Path(spec.origin).parent / "envs/assets/dynamics.npz") as arrays:
        to, pays, start, expert, sofa = (
            arrays[name] for name in ("tx_mat", "r_mat", "d_0", "expert_policy", "sofa_scores")
        )
    assert set(np.unique(pays[:LIVE, :, SURVIVAL])) <= {0.0, 1.0}
    return Mdp(to[:LIVE, :, :715], start[:LIVE], expert[:LIVE], sofa[:LIVE])
