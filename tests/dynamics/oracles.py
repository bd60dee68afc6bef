"""Slow, plain NumPy versions of the networks."""

from __future__ import annotations

from typing import Any

import numpy as np

from sepsis_jax.data.episodes import Episodes
from sepsis_jax.data.scaler import Scaler


def sigmoid(x: Any) -> np.ndarray:
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def linear(layer: Any, x: np.ndarray) -> np.ndarray:
    return x @ np.asarray(layer.kernel[...], np.float64) + np.asarray(layer.bias[...], np.float64)


def gru_step(cell: Any, hidden: np.ndarray, x: np.ndarray) -> np.ndarray:
    """One step with weights turned into PyTorch's [3H, in] layout."""
    w_ih, w_hh = (np.asarray(weight[...], np.float64).T for weight in (cell.weight_ih, cell.weight_hh))
    b_ih, b_hh = (np.asarray(bias[...], np.float64) for bias in (cell.bias_ih, cell.bias_hh))
    return torch_gru_step(w_ih, w_hh, b_ih, b_hh, hidden, x)


def torch_gru_step(
    w_ih: np.ndarray, w_hh: np.ndarray, b_ih: np.ndarray, b_hh: np.ndarray, hidden: np.ndarray, x: np.ndarray
) -> np.ndarray:
    """One step as `torch.nn.GRU` documents it, gate by gate."""
    width = len(hidden)
    r, z, n = (slice(k * width, (k + 1) * width) for k in range(3))
    reset = sigmoid(w_ih[r] @ x + b_ih[r] + w_hh[r] @ hidden + b_hh[r])
    update = sigmoid(w_ih[z] @ x + b_ih[z] + w_hh[z] @ hidden + b_hh[z])
    new = np.tanh(w_ih[n] @ x + b_ih[n] + reset * (w_hh[n] @ hidden + b_hh[n]))
    return (1 - update) * new + update * hidden


def published_input(
    episodes: Episodes, scaler: Scaler, stay: int, step: int, last_action: np.ndarray, window: int
) -> np.ndarray:
    """f64[window,87]: z-scores, mask and action one-hot of the steps up to `step`, rows of zeros in front."""
    rows = np.zeros((window, 39 + 38 + 10))
    for row, t in zip(range(window - 1, -1, -1), range(step, -1, -1), strict=False):
        action = last_action if t == step else episodes.action[stay, t]
        values = episodes.obs[stay, t].astype(np.float64).copy()
        values[38] = np.log1p(values[38])
        rows[row, :39] = (values - np.asarray(scaler.mean)) / np.asarray(scaler.sd)
        rows[row, 39:77] = episodes.mask[stay, t]
        rows[row, 77 + action[0]] = rows[row, 82 + action[1]] = 1
    return rows


def published_trunk(trunk: Any, rows: np.ndarray, static_z: np.ndarray) -> np.ndarray:
    """f64[H]: [obs, mask, static embedding, action embedding] through the GRU stack."""
    embedded = linear(trunk.static_embed, static_z)
    hidden = np.zeros(trunk.gru.shape)
    for row in rows:
        x = np.concatenate([row[:77], embedded, linear(trunk.act_embed, row[77:])])
        for layer, cell in enumerate(trunk.gru.cells):
            x = hidden[layer] = gru_step(cell, hidden[layer], x)
    return hidden[-1]


def published_state(network: Any, rows: np.ndarray, static_z: np.ndarray) -> dict[str, np.ndarray]:
    hidden = published_trunk(network.trunk, rows, static_z)
    vent_logit = linear(network.vent_head[1], np.maximum(linear(network.vent_head[0], hidden), 0))
    features = np.maximum(linear(network.trans_pre, np.append(hidden, sigmoid(vent_logit))), 0)
    return {
        "mean": linear(network.mu_head, features),
        "log_sigma": linear(network.log_sigma_head, features),
        "vent_logit": vent_logit[0],
    }


def published_outcome(network: Any, rows: np.ndarray, static_z: np.ndarray) -> float:
    hidden = published_trunk(network.trunk, rows, static_z)
    return linear(network.outcome_head[1], np.maximum(linear(network.outcome_head[0], hidden), 0))[0]
