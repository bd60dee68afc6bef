"""Weights of the released layout, the files they come in, and what the networks make of random windows."""

import jax
import numpy as np
import safetensors.numpy
from factories import fit_scaler, make_episodes

from sepsis_jax.dynamics.worldmodel.bounds import Support
from sepsis_jax.dynamics.worldmodel.model import Params, merge
from sepsis_jax.dynamics.worldmodel.published import OUTCOME_WINDOW, STATE_WINDOW

HIDDEN = 8


def shapes(part, hidden=HIDDEN, layers=2):
    """The documented keys, and their shapes as PyTorch has them."""
    linears = {"static_embed": (32, 3), "act_embed": (32, 10)}
    if part == "state":
        linears |= {"vent_head.0": (64, hidden), "vent_head.2": (1, 64), "trans_pre.0": (hidden, hidden + 1)}
        linears |= {"mu_head": (39, hidden), "log_sigma_head": (39, hidden)}
    else:
        linears |= {"outcome_head.0": (64, hidden), "outcome_head.3": (1, 64)}
    keys = {}
    for name, shape in linears.items():
        keys |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for layer in range(layers):
        for name, width in (("ih", hidden if layer else 141), ("hh", hidden)):
            keys |= {f"gru.weight_{name}_l{layer}": (3 * hidden, width), f"gru.bias_{name}_l{layer}": (3 * hidden,)}
    return keys


def random_weights(part, seed=0, **size):
    rng = np.random.default_rng(seed)
    return {key: rng.uniform(-0.4, 0.4, shape).astype(np.float32) for key, shape in shapes(part, **size).items()}


def random_windows(steps, count, seed=0):
    """Rows f32[count,steps,87] with up to steps - 1 rows of zeros in front, statics f32[count,3] (z)."""
    rng = np.random.default_rng(seed)
    levels = np.eye(5, dtype=np.float32)[rng.integers(0, 5, (count, steps, 2))].reshape(count, steps, 10)
    measured = rng.integers(0, 2, (count, steps, 38))
    rows = np.concatenate([rng.normal(size=(count, steps, 39)), measured, levels], axis=-1, dtype=np.float32)
    missing = np.arange(count) % steps
    rows[np.arange(steps) < missing[:, None]] = 0
    return rows, rng.normal(size=(count, 3)).astype(np.float32)


def predict(model, network, seed, count):
    """Windows, and all outputs of both networks for them through the world model's own modules."""
    scaler = fit_scaler(make_episodes(3, 4, seed=0))
    params = model.member(Params(network, scaler, Support.plausible(scaler)), 0)
    modules = merge(model, params)
    windows = random_windows(STATE_WINDOW, count, seed), random_windows(OUTCOME_WINDOW, count, seed + 1)
    prediction = jax.jit(jax.vmap(lambda rows, static: modules.state(rows, static)))(*windows[0])
    outcome = jax.jit(jax.vmap(lambda rows, static: modules.outcome(rows, static)))(*windows[1])
    outputs = {
        "mean": prediction.values.center,
        "log_sigma": prediction.values.log_slope[..., 0, :],
        "vent_logit": prediction.vent_logit,
        "outcome_logit": outcome,
    }
    return windows, outputs


def write(folder, state=None, outcome=None):
    """Both files as .safetensors."""
    paths = folder / "state_model_log.safetensors", folder / "outcome.safetensors"
    for path, part, weights in zip(paths, ("state", "outcome"), (state, outcome), strict=True):
        content = random_weights(part) if weights is None else weights
        path.write_bytes(content if isinstance(content, bytes) else safetensors.numpy.save(content))
    return paths
