"""ICU-Sepsis (Choudhary et al. 2024, arXiv 2406.05646): a tabular MDP whose policies have exact values.

Built from MIMIC-III by its authors, with the 25 actions of the AI Clinician in the order 5 x fluid + vasopressor. The
package `icu-sepsis` holds its arrays; nothing else of it is used. Survival pays 1, nothing else pays, and there is no
discount, so a value is the chance to survive.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from sepsis_jax.errors import InputError
from sepsis_jax.ope.logged import Logged
from sepsis_jax.policies.offline_rl.transitions import Transitions, of_stays

LIVE, SURVIVAL = 713, 714
"""States 0 to 712 go on; 713 is death."""
STEPS = 160
"""Room for the longest stay that is drawn."""


@dataclasses.dataclass(frozen=True)
class Mdp:
    """The MDP.

    Attributes:
      to: f64[713,25,715] probability of the next state. start: f64[713] of the first.
      expert: f64[713,25] the clinicians; none of their rows is all zero. sofa: f64[713] mean SOFA of the state.
    """

    to: np.ndarray
    start: np.ndarray
    expert: np.ndarray
    sofa: np.ndarray

    def state_values(self, policy: np.ndarray) -> np.ndarray:
        """f64[713] chance to survive under f64[713,25]."""
        moves = np.einsum("sa,sat->st", policy, self.to)
        return np.linalg.solve(np.eye(LIVE) - moves[:, :LIVE], moves[:, SURVIVAL])

    def q(self, policy: np.ndarray) -> np.ndarray:
        """f64[713,25] values of the actions under f64[713,25]."""
        return self.to[..., SURVIVAL] + self.to[..., :LIVE] @ self.state_values(policy)

    def value(self, policy: np.ndarray) -> float:
        """Chance to survive of a stay under f64[713,25]."""
        return float(self.start @ self.state_values(policy))

    @functools.cached_property
    def best_q(self) -> np.ndarray:
        """f64[713,25] of the optimal policy, by policy iteration."""
        policy = self.expert
        while True:
            q = self.q(policy)
            better = np.eye(25)[q.argmax(axis=1)]
            if np.abs(self.start @ (self.state_values(better) - self.state_values(policy))) < 1e-14:
                return self.q(better)
            policy = better

    def tilt(self, temperature: float) -> np.ndarray:
        """f64[713,25]: the expert, drawn towards actions of higher value; the lower the temperature, the further."""
        weight = self.expert * np.exp((self.best_q - self.best_q.max(axis=1, keepdims=True)) / temperature)
        return weight / weight.sum(axis=1, keepdims=True)

    def soft(self, share: float = 0.99) -> np.ndarray:
        """f64[713,25]: the best action within the expert's support, softened over that support."""
        support = self.expert > 0
        best = np.eye(25)[np.where(support, self.best_q, -1).argmax(axis=1)]
        return share * best + (1 - share) * support / support.sum(axis=1, keepdims=True)

    def draw(self, stays: int, seed: int) -> tuple[Logged, np.ndarray]:
        """Stays under the expert, and their states i32[B,STEPS]."""
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
        if runs.any():
            raise ValueError(f"a stay of more than {STEPS} steps was drawn; take another seed")
        behaviour = self.expert[states, actions]
        return Logged(actions, reward, length, behaviour, np.arange(stays, dtype=np.int32)), states

    @functools.cached_property
    def _to_sums(self) -> np.ndarray:
        return _sums(self.to.reshape(-1, self.to.shape[-1]))

    @functools.cached_property
    def _expert_sums(self) -> np.ndarray:
        return _sums(self.expert)


def _sums(rows: np.ndarray) -> np.ndarray:
    """Cumulative sums f64[N,K], each row raised by its number, so that all are one ascending array."""
    sums = np.cumsum(rows, axis=1)
    return np.arange(len(rows))[:, None] + np.minimum(sums / sums[:, -1:], 1 - 1e-12)


def _draw(sums: np.ndarray, row: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    uniform = rng.random(len(row)) * (1 - 1e-9)
    found = np.searchsorted(sums.ravel(), row + uniform, side="right") - row * sums.shape[1]
    return np.minimum(found, sums.shape[1] - 1)


@functools.cache
def load() -> Mdp:
    """The MDP. InputError where the package is missing."""
    spec = importlib.util.find_spec("icu_sepsis")
    if spec is None or spec.origin is None:
        hint = "pip install --no-deps icu-sepsis==2.0.1"
        raise InputError("icu-sepsis", expected="the package", found="none", hint=hint)
    with np.load(Path(spec.origin).parent / "envs/assets/dynamics.npz") as arrays:
        to, start, expert, sofa = (arrays[name] for name in ("tx_mat", "d_0", "expert_policy", "sofa_scores"))
    return Mdp(to[:LIVE, :, :715], start[:LIVE], expert[:LIVE], sofa[:LIVE])


def experience(mdp: Mdp, data: Logged, states: np.ndarray) -> Transitions:
    """The transitions of drawn stays between one-hot states; row `LIVE` of the table is the end."""
    rows = of_stays(states[..., None], data.action, data.reward, data.length, sofa=mdp.sofa[states])
    state = jnp.asarray(np.append(states[data.valid], LIVE))
    table = jnp.asarray(np.concatenate([one_hot(), np.zeros((1, LIVE), np.float32)]))
    return rows.replace(inputs=table, now=state[rows.now], after=state[rows.after])  # type: ignore[attr-defined]


def one_hot() -> np.ndarray:
    """f32[713,713] inputs of all states."""
    return np.eye(LIVE, dtype=np.float32)
