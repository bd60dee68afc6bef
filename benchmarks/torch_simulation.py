"""The two networks and their draws in PyTorch, as the peers of benchmarks/simulation.py.

Each is written as one would in PyTorch: a batch of trajectories, one step after the other, no gradients. A
batch of one, called for one candidate and one sample after the other, is how the published agent simulates.
"""

from __future__ import annotations

import itertools
from typing import Any

import jax
import numpy as np
import torch
from torch.nn.functional import linear, log_softmax

from sepsis_jax.clinical.features import GCS, HIGH, INDEX, LOW, NUM_FEATURES, NUM_MASKED, URINE
from sepsis_jax.dynamics.worldmodel import carry, marginals, published
from sepsis_jax.dynamics.worldmodel.bounds import PRESSURE_GAP, Support

Tensors = dict[str, Any]
_SYS, _DIA, _MEAN = INDEX["sysbp"], INDEX["diabp"], INDEX["meanbp"]
_GCS = [INDEX[name] for name in GCS]
_KNOTS = (0.0, 0.5, 1.0, 1.6, 2.4)


def tensors(tree: Any) -> Any:
    """Every array of a tree of arrays as a tensor, numbers in PyTorch's default precision."""

    def tensor(leaf: Any) -> torch.Tensor:
        found = torch.from_numpy(np.array(leaf))
        return found.to(torch.get_default_dtype()) if found.is_floating_point() else found

    return jax.tree.map(tensor, tree)


class Axes:
    """`bounds.Support` in PyTorch."""

    def __init__(self, support: Support) -> None:
        self.low, self.high, self.log, self.mean, self.sd, self.least, self.most = tensors(
            (support.low, support.high, support.log, support.mean, support.sd, LOW, HIGH)
        )
        self.offset = torch.zeros(NUM_FEATURES)
        self.offset[URINE] = 1.0

    def normalize(self, obs: torch.Tensor) -> torch.Tensor:
        return (torch.where(self.log, torch.log((obs + self.offset).clamp(min=1e-3)), obs) - self.mean) / self.sd

    def denormalize(self, z: torch.Tensor) -> torch.Tensor:
        value = z * self.sd + self.mean
        return torch.where(self.log, torch.exp(torch.where(self.log, value, 0.0)) - self.offset, value)

    def confine(self, obs: torch.Tensor, measured: torch.Tensor) -> torch.Tensor:
        low, high = torch.where(measured, self.low, self.least), torch.where(measured, self.high, self.most)
        obs = obs.clamp(low, high)
        obs[:, _GCS] = torch.where(measured[:, _GCS], obs[:, _GCS].round(), obs[:, _GCS])
        dia, sys, mean = obs[:, _DIA], obs[:, _SYS], obs[:, _MEAN]
        floor = torch.where(measured[:, _DIA], self.low[_DIA], dia) + PRESSURE_GAP
        ceiling = torch.where(measured[:, _SYS], self.high[_SYS], sys) - PRESSURE_GAP
        mean = torch.where(measured[:, _MEAN], mean.clamp(floor, ceiling), mean)
        near = PRESSURE_GAP - 1e-3
        obs[:, _DIA] = torch.where(mean - dia < near, mean - PRESSURE_GAP, dia)
        obs[:, _SYS] = torch.where(sys - mean < near, mean + PRESSURE_GAP, sys)
        obs[:, _MEAN] = mean
        return obs


class Carry:
    """`carry` of one member."""

    def __init__(self, network: Tensors, support: Support) -> None:
        self.axes = Axes(support)
        self.cells = [cell for _, cell in sorted(network["gru"]["cells"].items())]
        self.linear = {
            n: (network[n]["kernel"].T.contiguous(), network[n]["bias"])
            for n in ("trunk", "second", "heads", "mortality", "mortality_head")
        }
        self.gru = [
            (c["weight_ih"].T.contiguous(), c["bias_ih"], c["weight_hh"].T.contiguous(), c["bias_hh"])
            for c in self.cells
        ]
        free = network["loading"]
        self.loading = free * torch.sqrt((1 - 1e-3) / (1 + (free**2).sum(-1, keepdim=True)))
        self.own = torch.sqrt(1 - (self.loading**2).sum(-1))
        self.pull, self.log_spread, self.patterns = network["pull"], network["log_spread"], network["patterns"]

    def step(self, state: Tensors, action: torch.Tensor, noise: Tensors) -> Tensors:
        """One step of N trajectories: action f32[N,10] one-hot; noise as `WorldModel.noise`, leading N."""
        obs, level = state["obs"], state["level"]
        z = self.axes.normalize(obs)
        above = level - z
        seen = torch.cat([state["hidden"][-1], z.clamp(-8, 8), above.clamp(-8, 8), action], -1)
        features = torch.relu(linear(seen, *self.linear["trunk"]))
        features = features + torch.relu(linear(features, *self.linear["second"]))
        parts = linear(features, *self.linear["heads"]).split(list(carry.OUTPUTS), -1)
        change, slopes, pattern, mask_logit, vent, exits, zero = parts
        slopes = slopes.unflatten(-1, (marginals.SLOPES, NUM_FEATURES)).clamp(*carry.LOG_SLOPE) + self.log_spread
        score = noise["normal"][:, NUM_FEATURES:] @ self.loading.T + self.own * noise["normal"][:, :NUM_FEATURES]
        value = self._value(z + self.pull * above + change, slopes.exp(), zero[:, 0], score)
        value = self.axes.confine(self.axes.denormalize(value), torch.ones_like(value, dtype=torch.bool))
        mask = self._mask(pattern, mask_logit, noise["uniform"])
        measured = torch.cat([mask, torch.ones_like(mask[:, :1])], -1)
        obs = self.axes.confine(torch.where(measured, value, obs), measured)
        return self._observe(state, obs, mask, action) | {"vent": torch.sigmoid(vent), "hazard": torch.sigmoid(exits)}

    def outcome(self, state: Tensors) -> torch.Tensor:
        """f32[N] probability of death within 90 days."""
        seen = torch.cat([state["hidden"][-1], state["static"]], -1)
        return torch.sigmoid(
            linear(torch.relu(linear(seen, *self.linear["mortality"])), *self.linear["mortality_head"])[:, 0]
        )

    def _value(self, center: Any, slopes: Any, zero: Any, score: Any) -> torch.Tensor:
        tail = torch.special.ndtr(-score[:, -1]) / torch.sigmoid(-zero)
        last = -torch.special.ndtri(tail.clamp(1e-30, 1 - 1e-6))
        score = torch.cat([score[:, :-1], last[:, None]], -1)
        middle = marginals.SLOPES // 2
        z = center + _rise(slopes[:, middle:], score) - _rise(slopes[:, : middle + 1].flip(1), -score)
        return torch.cat([z[:, :-1], torch.where(tail < 1, z[:, -1], -1e3)[:, None]], -1)

    def _mask(self, pattern: torch.Tensor, logit: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
        weight = torch.exp(log_softmax(pattern, -1)).cumsum(-1)[:, :-1]
        chosen = (uniform[:, :1] > weight).sum(-1)
        return uniform[:, 1:] < torch.sigmoid(self.patterns[chosen] + logit)

    def _observe(self, state: Tensors, obs: torch.Tensor, mask: torch.Tensor, action: torch.Tensor) -> Tensors:
        z = self.axes.normalize(obs)
        read = torch.cat([mask, (obs[:, URINE] > self.axes.low[URINE])[:, None]], -1)
        since = torch.where(read, 0.0, (state["since"] + 1).clamp(max=24.0))
        number = (state["number"] + read).clamp(max=6.0)
        level = state["level"] + torch.where(read, (z - state["level"]) / number.clamp(min=1), 0.0)
        time = torch.log1p(state["steps"])
        x = [z.clamp(-8, 8), level.clamp(-8, 8), read.float(), torch.log1p(since), action, state["static"], time]
        hidden = _layers(self.gru, state["hidden"], torch.cat(x, -1))
        new = {"hidden": hidden, "obs": obs, "mask": mask, "level": level, "number": number, "since": since}
        return new | {"static": state["static"], "steps": state["steps"] + 1}


class Published:
    """`published`: the window is encoded anew for every step."""

    def __init__(self, network: Tensors, support: Support) -> None:
        self.axes, state, outcome = Axes(support), network["state"], network["outcome"]
        heads = ("trans_pre", "mu_head", "log_sigma_head")
        self.linear = {n: (state[n]["kernel"].T.contiguous(), state[n]["bias"]) for n in heads}
        self.vent, self.death = (
            [(layer["kernel"].T, layer["bias"]) for _, layer in sorted(head.items())]
            for head in (state["vent_head"], outcome["outcome_head"])
        )
        self.state_trunk, self.outcome_trunk = _Trunk(state["trunk"]), _Trunk(outcome["trunk"])

    def step(self, state: Tensors, action: torch.Tensor, noise: Tensors) -> Tensors:
        """One step of N trajectories: state rows f32[N,12,87], static f32[N,3] (z); action f32[N,10] one-hot."""
        rows, static = state["rows"].clone(), state["static"]
        rows[:, -1, -10:] = action
        hidden = self.state_trunk(rows[:, -published.STATE_WINDOW :], static)
        vent = torch.sigmoid(linear(torch.relu(linear(hidden, *self.vent[0])), *self.vent[1]))
        features = torch.relu(linear(torch.cat([hidden, vent], -1), *self.linear["trans_pre"]))
        sigma = torch.exp(linear(features, *self.linear["log_sigma_head"]))
        z = linear(features, *self.linear["mu_head"]) + sigma * noise["normal"]
        obs = self.axes.confine(self.axes.denormalize(z), torch.ones_like(z, dtype=torch.bool))
        new = torch.cat([self.axes.normalize(obs), state["mask"], action], -1)
        return {"rows": torch.cat([rows[:, 1:], new[:, None]], 1), "static": static, "mask": state["mask"], "obs": obs}

    def outcome(self, state: Tensors) -> torch.Tensor:
        """f32[N] probability of death within 90 days; the last action is taken to go on."""
        hidden = self.outcome_trunk(state["rows"], state["static"])
        return torch.sigmoid(linear(torch.relu(linear(hidden, *self.death[0])), *self.death[1]))[:, 0]


class _Trunk:
    """Embeddings and GRU."""

    def __init__(self, trunk: Tensors) -> None:
        self.embed = {n: (trunk[n]["kernel"].T, trunk[n]["bias"]) for n in ("static_embed", "act_embed")}
        cells = [cell for _, cell in sorted(trunk["gru"]["cells"].items())]
        hidden = len(cells[0]["weight_hh"])
        self.gru = torch.nn.GRU(len(cells[0]["weight_ih"]), hidden, len(cells), batch_first=True)
        with torch.no_grad():
            for number, cell in enumerate(cells):
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                    getattr(self.gru, f"{name}_l{number}").copy_(cell[name].T if cell[name].ndim == 2 else cell[name])

    def __call__(self, window: torch.Tensor, static: torch.Tensor) -> torch.Tensor:
        """Rows f32[N,W,87], static f32[N,3] (z) -> f32[N,H] after the last."""
        embedded = linear(static, *self.embed["static_embed"])[:, None].expand(-1, window.shape[1], -1)
        seen = torch.cat([window[..., :-10], embedded, linear(window[..., -10:], *self.embed["act_embed"])], -1)
        return self.gru(seen)[0][:, -1]


def draw(count: int, rank: int) -> Tensors:
    """Noise of one step of `count` trajectories."""
    return {"normal": torch.randn(count, NUM_FEATURES + rank), "uniform": torch.rand(count, NUM_MASKED + 1)}


def _layers(cells: Any, hidden: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    out = []
    for layer, (weight_ih, bias_ih, weight_hh, bias_hh) in enumerate(cells):
        x = torch.gru_cell(x, hidden[layer], weight_ih, weight_hh, bias_ih, bias_hh)
        out.append(x)
    return torch.stack(out)


def _rise(slopes: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
    rise = slopes[:, -1] * (score - _KNOTS[-1]).clamp(min=0)
    for number, (low, high) in enumerate(itertools.pairwise(_KNOTS)):
        left, right = slopes[:, number], slopes[:, number + 1]
        part = (score - low).clamp(0, high - low)
        rise = rise + part * (left + (right - left) * (part * (0.5 / (high - low))))
    return rise
