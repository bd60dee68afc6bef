"""Weights come in and go out bit for bit and compute the same; bad files get one line. PyTorch is not needed here."""

import pickle
import re
import sys

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from factories import fit_scaler, make_episodes
from oracles import sigmoid, torch_gru_step
from torch_files import HIDDEN, predict, random_weights, write

from sepsis_jax.dynamics.worldmodel import torch_import
from sepsis_jax.dynamics.worldmodel.bounds import Support
from sepsis_jax.dynamics.worldmodel.model import WorldModel
from sepsis_jax.dynamics.worldmodel.torch_import import load_networks, save_networks
from sepsis_jax.errors import InputError


def linear(weights, name, x):
    return weights[f"{name}.weight"].astype(np.float64) @ x + weights[f"{name}.bias"]


def oracle_trunk(weights, rows, static):
    """Last hidden state from the state_dict by PyTorch's formulas."""
    layers = sum(key.startswith("gru.weight_hh") for key in weights)
    hidden = np.zeros((layers, weights["gru.weight_hh_l0"].shape[1]))
    for row in rows.astype(np.float64):
        x = np.concatenate([row[:77], linear(weights, "static_embed", static), linear(weights, "act_embed", row[77:])])
        for layer in range(layers):
            names = (f"gru.{name}_l{layer}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
            x = hidden[layer] = torch_gru_step(*(weights[name] for name in names), hidden[layer], x)
    return hidden[-1]


def oracle_outputs(state, outcome, windows):
    results = []
    for rows, static in zip(*windows[0], strict=True):
        hidden = oracle_trunk(state, rows, static)
        vent = linear(state, "vent_head.2", np.maximum(linear(state, "vent_head.0", hidden), 0))
        features = np.maximum(linear(state, "trans_pre.0", np.append(hidden, sigmoid(vent))), 0)
        results.append((linear(state, "mu_head", features), linear(state, "log_sigma_head", features), vent[0]))
    columns = dict(zip(("mean", "log_sigma", "vent_logit"), map(np.array, zip(*results, strict=True)), strict=True))
    logits = []
    for rows, static in zip(*windows[1], strict=True):
        hidden = oracle_trunk(outcome, rows, static)
        logits.append(linear(outcome, "outcome_head.3", np.maximum(linear(outcome, "outcome_head.0", hidden), 0))[0])
    return columns | {"outcome_logit": np.array(logits)}


@pytest.mark.parametrize("layers", [1, 2])
def test_loaded_networks_compute_what_the_formulas_say(tmp_path, layers):
    weights = [random_weights(part, seed, layers=layers) for seed, part in enumerate(("state", "outcome"))]
    model, network = load_networks(*write(tmp_path, *weights))
    assert model == WorldModel("published", HIDDEN, layers)
    windows, outputs = predict(model, network, seed=2, count=24)
    for name, expected in oracle_outputs(*weights, windows).items():
        np.testing.assert_allclose(outputs[name], expected, atol=1e-5, err_msg=name)


def test_weights_are_those_of_the_world_model(tmp_path):
    model, network = load_networks(*write(tmp_path))
    scaler = fit_scaler(make_episodes(3, 4, seed=0))
    fresh = model.init(scaler, Support.plausible(scaler), jax.random.key(0)).network
    assert jax.tree.structure(network) == jax.tree.structure(fresh)
    assert jax.tree.map(jnp.shape, network) == jax.tree.map(jnp.shape, fresh)


def test_round_trip_is_bit_exact(tmp_path):
    weights = [random_weights("state", 1), random_weights("outcome", 2)]
    weights[0]["mu_head.bias"][:3] = -0.0, 1e-40, np.finfo(np.float32).max
    paths = write(tmp_path, *weights)
    model, network = load_networks(*paths)
    again = tmp_path / "new" / "state.safetensors", tmp_path / "new" / "outcome.safetensors"
    save_networks(model, network, *again)
    for old, new in zip(paths, again, strict=True):
        assert old.read_bytes() == new.read_bytes()
    assert len(list(again[0].parent.iterdir())) == 2
    reloaded = load_networks(*again)[1]
    chex.assert_trees_all_equal(reloaded, network)


def edited(**changes):
    """State weights with some arrays replaced; None removes one, '__' stands for a dot."""
    weights = random_weights("state")
    for name, value in changes.items():
        weights.pop(name.replace("__", "."), None)
        if value is not None:
            weights[name.replace("__", ".")] = value
    return weights


def as_dtype(dtype):
    return {key: array.astype(dtype) for key, array in random_weights("state").items()}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (edited(mu_head__bias=None), "mu_head.bias: expected an array, found no such key; .*plain state_dict"),
        (edited(gru__weight_hh_l0=None), "gru.weight_hh_l0: expected an array, found no such key"),
        (edited(gru__bias_hh_l1=None), "gru.bias_hh_l1: expected an array, found no such key"),
        (edited(extra=np.zeros(2, np.float32)), "extra: expected no such key, found an array"),
        (edited(gru__weight_hh_l0_reverse=np.zeros(2)), "gru.weight_hh_l0_reverse: expected no such key"),
        ({f"module.{key}": array for key, array in random_weights("state").items()}, "without prefixes on its keys"),
        (random_weights("outcome"), "log_sigma_head.bias: expected an array, found no such key"),
        ({}, "gru.weight_hh_l0: expected an array, found no such key"),
        (edited(mu_head__bias=np.zeros(38, np.float32)), r"mu_head.bias: expected float32\[39\], found float32\[38\]"),
        (edited(act_embed__weight=np.zeros((10, 32), np.float32)), r"float32\[32, 10\], found float32\[10, 32\]"),
        (edited(gru__weight_hh_l0=np.zeros(())), r"expected the shape \[3H,H\], found \[\]"),
        (edited(gru__weight_hh_l0=np.zeros((0, 0))), r"expected the shape \[3H,H\], found \[0, 0\]"),
        (edited(gru__weight_hh_l0=np.zeros((1, 10**6))), r"expected the shape \[3H,H\], found \[1, 1000000\]"),
        (as_dtype(np.float16), r"expected float32.*found float16.*convert with .float\(\)"),
        (as_dtype(np.float64), r"expected float32.*found float64.*convert with .float\(\)"),
        (as_dtype(np.int32), "expected float32.*found int32"),
        (as_dtype(ml_dtypes.bfloat16), "float32"),
        (edited(mu_head__bias=np.full(39, np.nan, np.float32)), "mu_head.bias: expected finite numbers, found NaN"),
        (edited(mu_head__bias=np.full(39, np.inf, np.float32)), "mu_head.bias: expected finite numbers"),
        (safetensors.numpy.save(random_weights("state"))[:-100], "cut short"),
        (b"", "cut short"),
        (b"\xff" * 100, "cut short"),
        (pickle.dumps({"a": 1}), "cut short"),
    ],
)
def test_bad_files_get_one_line(tmp_path, state, message):
    paths = write(tmp_path, state)
    with pytest.raises(InputError, match=message) as caught:
        load_networks(*paths)
    assert str(caught.value).startswith(str(paths[0])) and "\n" not in str(caught.value)


def test_both_networks_have_one_size(tmp_path):
    paths = write(tmp_path, None, random_weights("outcome", hidden=6))
    with pytest.raises(InputError, match=r"found float32\[.*those of the state network") as caught:
        load_networks(*paths)
    assert str(caught.value).startswith(str(paths[1]))


def test_other_paths_are_refused(tmp_path):
    state, outcome = write(tmp_path)
    with pytest.raises(InputError, match="expected a file, found none"):
        load_networks(state, tmp_path / "none.safetensors")
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(InputError, match="expected a file, found none"):
        load_networks(tmp_path / "folder.pt", outcome)
    with pytest.raises(InputError, match=re.escape("expected a file named .pt or .safetensors, found .pkl")):
        load_networks(state.rename(tmp_path / "state.pkl"), outcome)


def test_large_files_are_not_read(tmp_path, monkeypatch):
    paths = write(tmp_path)
    monkeypatch.setattr(torch_import, "MAX_BYTES", 1000)
    with pytest.raises(InputError, match="at most 1,000 bytes"):
        load_networks(*paths)


def test_only_one_published_network_is_written(tmp_path):
    model, network = load_networks(*write(tmp_path))
    paths = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    for other in (WorldModel("carry"), WorldModel("published", HIDDEN, members=2)):
        with pytest.raises(InputError, match="architecture, members: expected published, 1"):
            save_networks(other, network, *paths)
    with pytest.raises(InputError, match="no suffix"):
        save_networks(model, network, paths[0], tmp_path / "b")
    assert not any(path.exists() for path in paths)
    (tmp_path / "note").write_text("")
    with pytest.raises(InputError, match="expected a file that can be written"):
        save_networks(model, network, tmp_path / "note" / "a.safetensors", paths[1])


@pytest.mark.parametrize("version", [None, (2, 9)])
def test_pt_without_pytorch_says_what_to_install(tmp_path, monkeypatch, version):
    class Old:
        __version__ = version

    monkeypatch.setitem(sys.modules, "torch", version and Old)
    state, outcome = write(tmp_path)
    model, network = load_networks(state, outcome)
    (tmp_path / "state.pt").write_bytes(b"")
    for attempt in (
        lambda: load_networks(tmp_path / "state.pt", outcome),
        lambda: save_networks(model, network, tmp_path / "new.pt", outcome),
    ):
        with pytest.raises(InputError, match=r"expected PyTorch 2.10 or newer.*pip install 'torch>=2.10'"):
            attempt()
    assert not (tmp_path / "new.pt").exists()
