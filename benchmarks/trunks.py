"""Alternatives to the GRU of the `carry` network under the same budget: `python benchmarks/trunks.py [--json FILE]`.

Each trunk reads the same inputs, feeds the same heads, and is trained by the same program for the same number of
updates; the table shows the validation losses (nats) and the time of an epoch. None of them is part of the package:
what was seen stands in docs/decisions.md.
"""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from flax import nnx
from jsonargparse import auto_cli

from sepsis_jax import cli
from sepsis_jax.data.episodes import Episodes
from sepsis_jax.data.scaler import Scaler
from sepsis_jax.dynamics.patient.cohort import simulate_cohort
from sepsis_jax.dynamics.worldmodel import carry
from sepsis_jax.dynamics.worldmodel.gru import StackedGRU
from sepsis_jax.dynamics.worldmodel.settings import TrainSettings
from sepsis_jax.dynamics.worldmodel.training import train

HEADS = 4


class DiagonalSSM(nnx.Module):
    """Linear recurrences with learned real decays, h' = a h + (1 - a) x, then a gated feed-forward block a layer.

    A diagonal state-space layer (Gu et al. 2022, S4D; Orvieto et al. 2023, LRU) with real poles: an associative scan
    instead of a loop over steps.
    """

    def __init__(self, in_features: int, hidden: int, layers: int, dropout: float, *, rngs: nnx.Rngs) -> None:
        del dropout
        self.embed = nnx.Linear(in_features, hidden, rngs=rngs)
        spread = jnp.linspace(-2.0, 4.0, hidden)  # half-lives from a fraction of a step to a stay
        self.decay = nnx.List([nnx.Param(spread) for _ in range(layers)])
        self.gate = nnx.List([nnx.Linear(2 * hidden, 2 * hidden, rngs=rngs) for _ in range(layers)])
        self.norm = nnx.List([nnx.LayerNorm(hidden, rngs=rngs) for _ in range(layers)])

    def unroll(self, xs: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """f32[T,in] -> f32[T,1,H]."""
        x = self.embed(xs)
        for decay, gate, norm in zip(self.decay, self.gate, self.norm, strict=True):
            keep = jnp.broadcast_to(jax.nn.sigmoid(decay[...])[None], x.shape)
            normal = norm(x)
            state = jax.lax.associative_scan(_compose, (keep, (1 - keep) * normal))[1]
            value, opening = jnp.split(gate(jnp.concatenate([state, normal], axis=-1)), 2, axis=-1)
            x = x + value * jax.nn.sigmoid(opening)
        return x[:, None]


def _compose(first: tuple[Any, Any], second: tuple[Any, Any]) -> tuple[Any, Any]:
    return first[0] * second[0], second[0] * first[1] + second[1]


class CausalTransformer(nnx.Module):
    """Pre-norm self-attention over the steps so far, with learned positions."""

    def __init__(self, in_features: int, hidden: int, layers: int, dropout: float, *, rngs: nnx.Rngs) -> None:
        del dropout
        self.embed = nnx.Linear(in_features, hidden, rngs=rngs)
        self.position = nnx.Param(0.02 * jax.random.normal(rngs.params(), (256, hidden)))
        self.qkv = nnx.List([nnx.Linear(hidden, 3 * hidden, rngs=rngs) for _ in range(layers)])
        self.out = nnx.List([nnx.Linear(hidden, hidden, rngs=rngs) for _ in range(layers)])
        self.up = nnx.List([nnx.Linear(hidden, 2 * hidden, rngs=rngs) for _ in range(layers)])
        self.down = nnx.List([nnx.Linear(2 * hidden, hidden, rngs=rngs) for _ in range(layers)])
        self.norm = nnx.List([nnx.LayerNorm(hidden, rngs=rngs) for _ in range(2 * layers)])

    def unroll(self, xs: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """f32[T,in] -> f32[T,1,H]."""
        steps, x = len(xs), self.embed(xs) + self.position[: len(xs)]
        seen = jnp.tril(jnp.ones((steps, steps), bool))
        for i in range(len(self.qkv)):
            query, keys, value = (
                part.reshape(steps, HEADS, -1) for part in jnp.split(self.qkv[i](self.norm[2 * i](x)), 3, -1)
            )
            weight = jnp.einsum("thd,shd->hts", query, keys) / np.sqrt(query.shape[-1])
            weight = jax.nn.softmax(jnp.where(seen[None], weight, -jnp.inf), axis=-1)
            x = x + self.out[i](jnp.einsum("hts,shd->thd", weight, value).reshape(steps, -1))
            x = x + self.down[i](jax.nn.gelu(self.up[i](self.norm[2 * i + 1](x))))
        return x[:, None]


TRUNKS: dict[str, tuple[type[nnx.Module], int]] = {
    "GRU, 1 layer (carry)": (StackedGRU, 1),
    "GRU, 2 layers": (StackedGRU, 2),
    "diagonal SSM, 2 layers": (DiagonalSSM, 2),
    "causal transformer, 2 layers": (CausalTransformer, 2),
}


def measure(name: str, patients: int, epochs: int) -> dict[str, Any]:
    """One trunk: its numbers of weights, seconds an epoch and best validation losses. For a process of its own."""
    kind, layers = TRUNKS[name]
    carry.StackedGRU = kind  # type: ignore[misc,assignment]
    episodes, _ = simulate_cohort(patients, seed=0)
    settings = TrainSettings(hidden=128, layers=layers, dropout=0.1, epochs=epochs, learning_rate=3e-3, average=0.99)
    times = [time.perf_counter()]
    trained = train(settings, episodes, fit_scaler(episodes), report=lambda rows: times.append(time.perf_counter()))
    best = min(trained.metrics, key=lambda row: row["validation_loss"])
    weights = sum(leaf.size for leaf in jax.tree.leaves(trained.params.network))
    losses = {term: best[f"validation_{term}"] for term in ("loss", "values", "mask", "ventilation", "mortality_90d")}
    return {"trunk": name, "weights": weights, "s/epoch": float(np.median(np.diff(times)[1:]))} | losses


def fit_scaler(episodes: Episodes) -> Scaler:
    """As `prepare_data.py` does for the embedded cohort."""
    train_stays = episodes.subset("train")
    observed = np.concatenate([train_stays.mask, np.ones((*train_stays.valid.shape, 1), bool)], axis=-1)
    return Scaler.fit(train_stays.obs, observed & train_stays.valid[..., None], train_stays.static)


def main(patients: int = 4000, epochs: int = 12, json: Path | None = None) -> None:
    """Run the comparison.

    Args:
      patients: simulated; 70 % of them train.
      epochs: of every trunk.
      json: file for the same numbers as one flat object.
    """
    rows = []
    for name in TRUNKS:  # a process each: programs and networks are cached by layout
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows.append(pool.apply(measure, (name, patients, epochs)))
    cli.console.print(cli.table(pd.DataFrame(rows).set_index("trunk"), title="Trunks under the same budget"))
    if json is not None:
        cli.write_json(json, {f"{row['trunk']}: {k}": v for row in rows for k, v in row.items() if k != "trunk"})


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
