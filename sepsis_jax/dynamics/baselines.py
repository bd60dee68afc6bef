"""A linear autoregression as `Dynamics`: a forecast that any world model has to beat."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from sepsis_jax.clinical import actions
from sepsis_jax.clinical.features import NUM_FEATURES
from sepsis_jax.data.episodes import Episodes
from sepsis_jax.data.scaler import Scaler
from sepsis_jax.dynamics.protocol import History, Step
from sepsis_jax.dynamics.worldmodel.bounds import Support
from sepsis_jax.dynamics.worldmodel.marginals import Marginals
from sepsis_jax.dynamics.worldmodel.prediction import Noise, Prediction, draw, draw_noise
from sepsis_jax.errors import InputError

_RIDGE = 1.0  # in units of one decision; keeps features that never vary from an infinite coefficient
_LEAST_SD = 1e-2  # z-scores


@struct.dataclass
class Last:
    """The last row of a record: obs f32[F] (clinical units), mask bool[38], static f32[3] (years, 1 = male, points)."""

    obs: Any
    mask: Any
    static: Any


def _last(history: History) -> Last:
    return Last(history.obs[history.length - 1], history.mask[history.length - 1], history.static)


@struct.dataclass
class VARParams:
    """Attributes: weight f32[91,F] and sd f32[F] (z-scores) of the regression; scaler; support of the draws."""

    weight: Any
    sd: Any
    scaler: Scaler
    support: Support


@dataclasses.dataclass(frozen=True)
class VAR:
    """Vector autoregression of order 1: the next measured value is linear in the last row, the action and the statics.

    Residuals are independent Gaussians. What is measured, ventilation, exits and mortality are not modelled: the mask
    stays as it was and probabilities are 0.
    """

    members: ClassVar[int] = 1
    precision: ClassVar[str] = "float32"

    def member(self, params: VARParams, index: Any) -> VARParams:
        """There is one."""
        del index
        return params

    def fit(self, episodes: Episodes, scaler: Scaler, support: Support) -> VARParams:
        """Ridge regression on the recorded steps of `episodes`, each feature on the entries where it is measured.

        Raises:
          InputError: no stay has a next step.
        """
        stay, step = np.nonzero(np.arange(episodes.num_steps) < np.asarray(episodes.length)[:, None] - 1)
        if not stay.size:
            raise InputError("episodes", field="length", expected="train stays with two steps", found="none")
        obs, mask = np.asarray(episodes.obs), np.asarray(episodes.mask)
        seen = _inputs(
            scaler.normalize(obs[stay, step]),
            mask[stay, step],
            actions.one_hot(np.asarray(episodes.action)[stay, step]),
            scaler.normalize_static(np.asarray(episodes.static)[stay]),
        )
        inputs, targets = np.asarray(seen, np.float64), np.asarray(scaler.normalize(obs[stay, step + 1]), np.float64)
        measured = np.concatenate([mask[stay, step + 1], np.ones((stay.size, 1), bool)], axis=1)
        weight, sd = np.zeros((inputs.shape[1], NUM_FEATURES)), np.ones(NUM_FEATURES)
        for i in range(NUM_FEATURES):
            x, y = inputs[measured[:, i]], targets[measured[:, i], i]
            weight[:, i] = np.linalg.solve(x.T @ x + _RIDGE * np.eye(x.shape[1]), x.T @ y)
            sd[i] = np.sqrt(((y - x @ weight[:, i]) ** 2).mean()) if y.size > 1 else 1.0
        sd = np.maximum(sd, _LEAST_SD)
        return VARParams(weight.astype(np.float32), sd.astype(np.float32), scaler, support.in_z(scaler))

    def encode(self, params: VARParams, history: History) -> Last:
        """The last row."""
        return _last(history)

    def encode_all(self, params: VARParams, history: History) -> Last:
        """Every row, with leading T."""
        static = jnp.broadcast_to(jnp.asarray(history.static), (len(history.obs), len(history.static)))
        return Last(history.obs, history.mask, static)

    def decode(self, params: VARParams, state: Last, action: jax.Array) -> Prediction:
        """Distribution of the next step (z-scores) under `action` int[2]."""
        static = params.scaler.normalize_static(state.static)
        row = _inputs(params.scaler.normalize(jnp.asarray(state.obs)), state.mask, actions.one_hot(action), static)
        values = Marginals(row @ params.weight, jnp.log(jnp.asarray(params.sd))[None])
        return Prediction(values, loading=None, mask=None, vent_logit=None, exit_logit=None)

    def noise(self, key: jax.Array) -> Noise:
        """Random numbers of one step. Consumes `key`."""
        return draw_noise(key, rank=0, masks=False)

    def shared(self, params: VARParams, state: Last) -> None:
        """Nothing."""
        del params, state

    def step(
        self, params: VARParams, state: Last, action: jax.Array, noise: Noise, shared: None = None
    ) -> tuple[Last, Step]:
        """The next 4 h under `action` int[2] with what `noise` drew."""
        del shared
        prediction = self.decode(params, state, action)
        value, obs, mask = draw(prediction, params.support, state.obs, state.mask, noise)
        return Last(obs, mask, state.static), Step(obs, mask, jnp.float32(0), jnp.zeros(2), value)

    def outcome(self, params: VARParams, state: Last) -> jax.Array:
        """0."""
        return jnp.float32(0)


def _inputs(z: Any, mask: Any, action: Any, static: Any) -> jax.Array:
    """f32[...,91]: z f32[...,F], mask bool[...,38], action one-hot f32[...,10], static f32[...,3] (z), 1."""
    parts = [jnp.asarray(part, jnp.float32) for part in (z, mask, action, static)]
    return jnp.concatenate([*parts, jnp.ones_like(parts[-1][..., :1])], axis=-1)
