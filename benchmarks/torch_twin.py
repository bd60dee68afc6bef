"""The `carry` network, its loss and one update in PyTorch, as the peer of benchmarks/training.py.

Whatever does not depend on the weights (scaling, one-hots, steps since measured, ends of intervals) is worked out
beforehand, in favour of PyTorch. `Twin.copy` takes JAX's weights, so that the benchmark can check that both compute
the same loss.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from sepsis_jax.clinical.actions import one_hot
from sepsis_jax.clinical.features import NUM_FEATURES, NUM_MASKED
from sepsis_jax.data.episodes import EXIT_DEATH, EXIT_DISCHARGE, EXIT_TRUNCATED, Episodes
from sepsis_jax.dynamics.worldmodel import carry, marginals
from sepsis_jax.dynamics.worldmodel.bounds import interval
from sepsis_jax.dynamics.worldmodel.model import Params, WorldModel
from sepsis_jax.dynamics.worldmodel.settings import TrainSettings

Batch = dict[str, torch.Tensor]


def prepare(model: WorldModel, params: Params, episodes: Episodes) -> Batch:
    """Everything a batch needs, by name with leading B, from Episodes."""

    def stay(episode: Episodes) -> dict[str, Any]:
        static = params.scaler.normalize_static(episode.static)
        z = params.support.normalize(jnp.asarray(episode.obs))
        before = one_hot(jnp.concatenate([episode.prior_action[None], episode.action[:-1]]))
        mask = model.read_mask(params, episode.obs, episode.mask)
        since, level, _ = carry.track(z, mask)
        steps = jnp.arange(len(z), dtype=jnp.float32)
        inputs = jax.vmap(carry.network_inputs, (None, 0, 0, 0, 0, 0, 0))(static, z, level, mask, before, since, steps)
        after = jnp.minimum(jnp.arange(len(z)) + 1, len(z) - 1)
        obs = episode.obs[after]
        observed = interval(params.support, obs)
        step, length = jnp.arange(len(z)), episode.length
        has_next, last = step < length - 1, step == length - 1
        knows_exit = has_next | (last & (episode.exit != EXIT_TRUNCATED))
        died, left = last & (episode.exit == EXIT_DEATH), last & (episode.exit == EXIT_DISCHARGE)
        outcomes = jnp.stack([episode.mortality_90d, episode.mortality_hospital])
        knows_outcome = ((step < length) & (episode.exit != EXIT_DEATH))[:, None] & (outcomes >= 0)[None]
        urine = jnp.ones((len(z), 1), bool)
        return {
            "inputs": inputs,
            "decision": jnp.concatenate([carry.squash(z), carry.squash(level - z), one_hot(episode.action)], axis=-1),
            "z": z,
            "above": level - z,
            "static": jnp.broadcast_to(static, (len(z), 3)),
            "low": observed.low,
            "high": observed.high,
            "point": observed.point,
            "per_z": jnp.where(observed.point, params.support.log_rate(obs) - params.scaler.log_rate(obs), 0.0),
            "measured": jnp.concatenate([episode.mask[after], urine], axis=-1) & has_next[:, None],
            "mask": episode.mask[after],
            "has_next": has_next,
            "ventilated": episode.ventilated[after].astype(jnp.float32),
            "exits": jnp.stack([died, left], axis=-1).astype(jnp.float32),
            "knows_exits": jnp.stack([knows_exit, knows_exit & ~died], axis=-1),
            "outcomes": jnp.broadcast_to(outcomes == 1, (len(z), 2)).astype(jnp.float32),
            "knows_outcomes": knows_outcome,
            "length": length,
        }

    arrays = jax.tree.map(np.array, jax.jit(jax.vmap(stay))(jax.tree.map(jnp.asarray, episodes)))
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


class Twin(nn.Module):
    """`carry.CarryNetwork` for a batch of whole stays."""

    def __init__(self, settings: TrainSettings) -> None:
        super().__init__()
        hidden = settings.hidden
        between = settings.dropout if settings.layers > 1 else 0.0
        self.gru = nn.GRU(carry.INPUTS, hidden, settings.layers, batch_first=True, dropout=between)
        self.trunk = nn.Linear(hidden + 2 * NUM_FEATURES + 10, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.heads = nn.Linear(hidden, sum(carry.OUTPUTS))
        self.loading = nn.Parameter(torch.zeros(NUM_FEATURES, carry.RANK))
        self.pull = nn.Parameter(torch.zeros(NUM_FEATURES))
        self.patterns = nn.Parameter(torch.zeros(carry.PATTERNS, NUM_MASKED))
        self.mortality = nn.Linear(hidden + 3, hidden // 2)
        self.mortality_head = nn.Linear(hidden // 2, 2)
        self.dropout = nn.Dropout(settings.dropout)

    def copy(self, network: dict[str, Any]) -> None:
        """Take the weights of one member."""
        with torch.no_grad():
            for layer, cell in network["gru"]["cells"].items():
                for ours, theirs in (("weight_ih", "weight_ih"), ("weight_hh", "weight_hh")):
                    getattr(self.gru, f"{theirs}_l{layer}").copy_(_tensor(cell[ours]).T)
                for name in ("bias_ih", "bias_hh"):
                    getattr(self.gru, f"{name}_l{layer}").copy_(_tensor(cell[name]))
            for name in ("trunk", "second", "heads", "mortality", "mortality_head"):
                getattr(self, name).weight.copy_(_tensor(network[name]["kernel"]).T)
                getattr(self, name).bias.copy_(_tensor(network[name]["bias"]))
            self.loading.copy_(_tensor(network["loading"]))
            self.pull.copy_(_tensor(network["pull"]))
            self.patterns.copy_(_tensor(network["patterns"]))

    def loss(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Average of each term of `losses.loss_terms`, by name."""
        hidden, _ = self.gru(batch["inputs"])
        features = torch.relu(self.trunk(torch.cat([hidden, batch["decision"]], -1)))
        features = features + torch.relu(self.second(features))
        change, slopes, pattern, mask, vent, exits, zero = self.heads(features).split(list(carry.OUTPUTS), -1)
        center = batch["z"] + self.pull * batch["above"] + change
        slopes = slopes.unflatten(-1, (marginals.SLOPES, NUM_FEATURES)).clamp(*carry.LOG_SLOPE).unbind(-2)
        values = _hurdle(_log_prob(center, slopes, batch), zero, batch) + batch["per_z"]
        measured, has_next = batch["measured"], batch["has_next"]
        logits = (self.patterns + mask.unsqueeze(-2)) * torch.where(batch["mask"], 1.0, -1.0).unsqueeze(-2)
        items = torch.logsumexp(torch.log_softmax(pattern, -1) + logsigmoid(logits).sum(-1), -1)
        mortality = torch.relu(self.mortality(torch.cat([self.dropout(hidden.detach()), batch["static"]], -1)))
        outcomes = _bernoulli(self.mortality_head(mortality), batch["outcomes"], batch["knows_outcomes"])
        death = _bernoulli(exits, batch["exits"], batch["knows_exits"])
        return {
            "values": -torch.where(measured, values, 0.0).sum() / measured.sum(),
            "copula": self._copula(center, slopes, zero, batch),
            "mask": -torch.where(has_next, items, 0.0).sum() / has_next.sum() / NUM_MASKED,
            "ventilation": _bernoulli(vent, batch["ventilated"].unsqueeze(-1), has_next.unsqueeze(-1))[0],
            "death": death[0],
            "discharge": death[1],
            "mortality_90d": outcomes[0],
            "mortality_hospital": outcomes[1],
        }

    def _copula(
        self, center: torch.Tensor, slopes: tuple[torch.Tensor, ...], zero: torch.Tensor, batch: Batch
    ) -> torch.Tensor:
        """At one random step of each stay."""
        with torch.no_grad():
            row = torch.arange(len(center))
            step = (torch.rand(len(center)) * (batch["length"] - 1).clamp(min=1)).long()
            center, slopes, zero = center[row, step], tuple(slope[row, step] for slope in slopes), zero[row, step]
            low, high, point, measured = (batch[name][row, step] for name in ("low", "high", "point", "measured"))
            below = _score(center, slopes, zero, low, -marginals.LARGEST_SCORE)
            above = _score(center, slopes, zero, high, marginals.LARGEST_SCORE)
            share, ndtr = torch.rand_like(below), torch.special.ndtr
            place = ((1 - share) * ndtr(below) + share * ndtr(above)).clamp(1e-6, 1 - 1e-6)
            score = torch.where(point, below, torch.special.ndtri(place))
        loading = self.loading * ((1 - 1e-3) / (1 + (self.loading**2).sum(-1, keepdim=True))).sqrt()
        weight, variance = measured.float(), 1 - (loading**2).sum(-1)
        scaled = loading * (weight / variance).unsqueeze(-1)
        factor = torch.linalg.cholesky(torch.eye(carry.RANK) + scaled.mT @ loading)
        half = torch.linalg.solve_triangular(factor, scaled.mT @ score.unsqueeze(-1), upper=False)
        quadratic = (weight * score**2 * (1 / variance - 1)).sum(-1) - (half**2).sum((-1, -2))
        log_det = (weight * variance.log()).sum(-1) + 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return 0.5 * (quadratic + log_det).sum() / weight.sum()


def make_update(settings: TrainSettings, twin: Twin) -> Any:
    """A function that does one update on a batch, as `steps.update`: clipping, then AdamW."""
    adam = torch.optim.AdamW(twin.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    twin.train()

    def update(batch: Batch) -> None:
        adam.zero_grad(set_to_none=True)
        torch.stack(list(twin.loss(batch).values())).sum().backward()
        nn.utils.clip_grad_norm_(twin.parameters(), settings.clip_norm)
        adam.step()

    return update


def _tensor(array: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(array))


def _bernoulli(logits: torch.Tensor, labels: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Averages over all but the last axis."""
    each = torch.where(counts, binary_cross_entropy_with_logits(logits, labels, reduction="none"), 0.0)
    return each.flatten(0, -2).sum(0) / counts.flatten(0, -2).sum(0).clamp(min=1)


def _log_prob(center: torch.Tensor, slopes: tuple[torch.Tensor, ...], batch: Batch) -> torch.Tensor:
    """`marginals.log_prob`."""
    infinite = batch["low"].isinf(), batch["high"].isinf()
    low, log_slope = _locate(center, slopes, torch.where(infinite[0], center, batch["low"]))
    high, _ = _locate(center, slopes, torch.where(infinite[1], center, batch["high"]))
    density = -0.5 * low**2 - 0.5 * math.log(2 * math.pi) - log_slope
    low = torch.where(infinite[0], -marginals.LARGEST_SCORE, low)
    high = torch.where(infinite[1], marginals.LARGEST_SCORE, high)
    flip, ndtr = low + high > 0, torch.special.ndtr
    mass = ndtr(torch.where(flip, -low, high)) - ndtr(torch.where(flip, -high, low))
    mass = torch.where(batch["point"], 1.0, mass)
    return torch.where(batch["point"], density, torch.log(mass + 1e-8))


def _hurdle(found: torch.Tensor, zero: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The last value of `marginals.log_prob`."""
    over = logsigmoid(-zero) + found[..., -1:]
    at_zero = torch.logaddexp(logsigmoid(zero), over)
    last = torch.where(batch["low"][..., -1:].isinf(), at_zero, over)
    return torch.cat([found[..., :-1], last], -1)


def _score(
    center: torch.Tensor, slopes: tuple[torch.Tensor, ...], zero: torch.Tensor, end: torch.Tensor, beyond: float
) -> torch.Tensor:
    """`marginals.score`; `beyond` for an infinite end."""
    at = _locate(center, slopes, torch.where(end.isinf(), center, end))[0]
    tail = torch.special.ndtr(-at[..., -1:]) * torch.sigmoid(-zero)
    last = (-torch.special.ndtri(tail)).clamp(-marginals.LARGEST_SCORE, marginals.LARGEST_SCORE)
    return torch.where(end.isinf(), beyond, torch.cat([at[..., :-1], last], -1))


def _locate(
    center: torch.Tensor, slopes: tuple[torch.Tensor, ...], z: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`marginals._locate`."""
    steep, middle, rise = [slope.exp() for slope in slopes], len(slopes) // 2, z - center
    (down, slope_below), (up, slope_above) = _climb(steep[middle::-1], -rise), _climb(steep[middle:], rise)
    at = torch.where(rise < 0, -down, up).clamp(-marginals.LARGEST_SCORE, marginals.LARGEST_SCORE)
    return at, torch.where(rise < 0, slope_below, slope_above).log()


def _climb(slopes: list[torch.Tensor], rise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`marginals._climb`."""
    rest, knots = rise.clamp(min=0), (*marginals._KNOTS, math.inf)
    edge, start, left, bend, inside = (torch.zeros_like(rest) for _ in range(5))
    for i, (low, high) in enumerate(itertools.pairwise(knots)):
        right, reached = slopes[min(i + 1, len(slopes) - 1)], rest >= edge
        start, left = torch.where(reached, low, start), torch.where(reached, slopes[i], left)
        bend = torch.where(reached, (right - slopes[i]) / (high - low), bend)
        inside, edge = torch.where(reached, rest - edge, inside), edge + (slopes[i] + right) * ((high - low) / 2)
    slope = (left**2 + 2 * bend * inside).clamp(min=marginals._LEAST_SLOPE**2).sqrt()
    return start + 2 * inside / (left + slope), slope
