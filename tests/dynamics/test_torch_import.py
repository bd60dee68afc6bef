"""Files of PyTorch come in and go out bit for bit, compute the same, and nothing but arrays comes in."""

import io
import itertools
import os
import pickle
import re
import sys
import zipfile

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from factories import fit_scaler, make_episodes
from oracles import sigmoid, torch_gru_step

from sepsis_jax.dynamics.worldmodel import torch_import
from sepsis_jax.dynamics.worldmodel.bounds import Support
from sepsis_jax.dynamics.worldmodel.model import Params, WorldModel, merge
from sepsis_jax.dynamics.worldmodel.published import OUTCOME_WINDOW, STATE_WINDOW
from sepsis_jax.dynamics.worldmodel.torch_import import load_networks, save_networks
from sepsis_jax.errors import InputError

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


# --- without PyTorch -----------------------------------------------------------------------------------------


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
    jax.tree.map(np.testing.assert_array_equal, reloaded, network)


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


# --- with PyTorch --------------------------------------------------------------------------------------------


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="PyTorch is set up by `make test-slow` only")


def torch_module(torch, part, hidden=128):
    """A network of the documented layout with random weights, evaluating; called with rows [B,T,87], static [B,3]."""
    nn = torch.nn

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.static_embed, self.act_embed = nn.Linear(3, 32), nn.Linear(10, 32)
            self.gru = nn.GRU(141, hidden, num_layers=2, dropout=0.2, batch_first=True)

        def trunk(self, rows, static):
            embedded = self.static_embed(static)[:, None].expand(-1, rows.shape[1], -1)
            x = torch.cat([rows[..., :77], embedded, self.act_embed(rows[..., 77:])], dim=-1)
            return self.gru(x)[0][:, -1]

    class State(Network):
        def __init__(self):
            super().__init__()
            self.vent_head = nn.Sequential(nn.Linear(hidden, 64), nn.ReLU(), nn.Linear(64, 1))
            self.trans_pre = nn.Sequential(nn.Linear(hidden + 1, hidden), nn.ReLU(), nn.Dropout(0.2))
            self.mu_head, self.log_sigma_head = nn.Linear(hidden, 39), nn.Linear(hidden, 39)

        def forward(self, rows, static):
            last = self.trunk(rows, static)
            vent = self.vent_head(last)
            features = self.trans_pre(torch.cat([last, torch.sigmoid(vent)], dim=-1))
            mean, log_sigma = self.mu_head(features), self.log_sigma_head(features)
            return {"mean": mean, "log_sigma": log_sigma, "vent_logit": vent[:, 0]}

    class Outcome(Network):
        def __init__(self):
            super().__init__()
            self.outcome_head = nn.Sequential(nn.Linear(hidden, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 1))

        def forward(self, rows, static):
            return {"outcome_logit": self.outcome_head(self.trunk(rows, static))[:, 0]}

    return {"state": State, "outcome": Outcome}[part]().eval()


@pytest.fixture
def released(torch, tmp_path):
    """Modules and their files `state_model_log.pt`, `outcome.pt`."""
    torch.manual_seed(0)
    modules = [torch_module(torch, part) for part in ("state", "outcome")]
    with torch.no_grad():
        for parameter in itertools.chain(*(module.parameters() for module in modules)):
            parameter.mul_(3)  # training makes weights larger than they begin
    paths = tmp_path / "state_model_log.pt", tmp_path / "outcome.pt"
    for module, path in zip(modules, paths, strict=True):
        torch.save(module.state_dict(), path)
    return modules, paths


@pytest.mark.slow
def test_outputs_equal_pytorchs(torch, released):
    modules, paths = released
    model, network = load_networks(*paths)
    assert model == WorldModel("published", 128, 2)
    windows, outputs = predict(model, network, seed=3, count=1000)
    expected = {}
    with torch.no_grad():
        for module, arrays in zip(modules, windows, strict=True):
            expected |= module(*map(torch.from_numpy, arrays))
    assert expected.keys() == outputs.keys()
    for name, value in expected.items():
        difference = np.abs(value.numpy() - np.asarray(outputs[name])).max()
        print(f"{name}: max |difference| {difference:.1e}")
        assert difference <= 1e-5, name


@pytest.mark.slow
def test_pt_round_trip_is_bit_exact(torch, released, tmp_path):
    modules, paths = released
    model, network = load_networks(*paths)
    again = tmp_path / "state.pt", tmp_path / "outcome_2.pt"
    save_networks(model, network, *again)
    for part, module, path in zip(("state", "outcome"), modules, again, strict=True):
        fresh = torch_module(torch, part)
        fresh.load_state_dict(torch.load(path, weights_only=True), strict=True)
        for name, value in module.state_dict().items():
            assert torch.equal(fresh.state_dict()[name], value), name
    jax.tree.map(np.testing.assert_array_equal, load_networks(*again)[1], network)


class Malicious:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.slow
@pytest.mark.parametrize("saved_by", ["torch", "pickle", "inside"])
def test_malicious_pickles_are_refused(torch, released, tmp_path, saved_by):
    victim = tmp_path / "victim"
    evil = Malicious(f"touch {victim}")
    state_file, outcome_file = released[1]
    if saved_by == "pickle":
        state_file.write_bytes(pickle.dumps(evil))
    else:
        torch.save(evil if saved_by == "torch" else torch.load(state_file) | {"mu_head.bias": evil}, state_file)
    with pytest.raises(InputError, match=r"nothing was loaded|no zip archive") as caught:
        load_networks(state_file, outcome_file)
    assert not victim.exists() and "weights_only" not in str(caught.value)
    if saved_by != "pickle":  # the same file does run under the unsafe loader
        torch.load(state_file, weights_only=False)
        assert victim.exists()


def saved(torch, content, **options):
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def bomb():
    """An archive of kilobytes that unpacks to 300 MiB."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(300 << 20))
    return file.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda torch, state: torch.nn.Linear(2, 3), "holds objects, which could run code; nothing was loaded"),
        (lambda torch, state: {"state_dict": state}, "state_dict: expected a tensor, found .*plain state_dict"),
        (lambda torch, state: list(state.values()), "expected a state_dict, found list"),
        (lambda torch, state: state | {"epoch": 3}, "epoch: expected a tensor, found int"),
        (lambda torch, state: {3: torch.zeros(2)}, "gru.weight_hh_l0: expected an array, found no such key"),
        (lambda torch, state: state | {"mu_head.bias": torch.zeros(39).half()}, "found float16"),
        (lambda torch, state: state | {"mu_head.bias": torch.zeros(39).double()}, "found float64"),
        (lambda torch, state: state | {"mu_head.bias": torch.zeros(39).bfloat16()}, "found torch.bfloat16"),
        (
            lambda torch, state: state | {"mu_head.bias": torch.zeros(39).to_sparse()},
            "found torch.float32, torch.sp",
        ),
        (
            lambda torch, state: state | {"mu_head.bias": torch.zeros(39, device="meta")},
            "torch.float32, .*, meta",
        ),
        (
            lambda torch, state: state | {"mu_head.bias": torch.zeros(1).expand(10**12)},
            "268,435,456 bytes, found 4,",
        ),
        (lambda torch, state: saved(torch, state)[:-1000], "no zip archive; it is cut short"),
        (lambda torch, state: b"", "no zip archive"),
        (lambda torch, state: saved(torch, state, _use_new_zipfile_serialization=False), "by PyTorch before 1.6"),
        (lambda torch, state: bomb(), "expected at most 268,435,456 bytes, found 314,572,800"),
    ],
)
def test_bad_pt_files_get_one_line(torch, released, content, message):
    modules, paths = released
    content = content(torch, modules[0].state_dict())
    paths[0].write_bytes(content if isinstance(content, bytes) else saved(torch, content))
    with pytest.raises(InputError, match=message) as caught:
        load_networks(*paths)
    line = str(caught.value)
    assert line.startswith(str(paths[0])) and "\n" not in line and "weights_only" not in line
