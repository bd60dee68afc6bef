"""Files of PyTorch itself: the networks compute what its modules do, and nothing but arrays comes in."""

import io
import itertools
import os
import pickle
import zipfile

import chex
import numpy as np
import pytest
from torch_files import predict

from sepsis_jax.dynamics.worldmodel.model import WorldModel
from sepsis_jax.dynamics.worldmodel.torch_import import load_networks, save_networks
from sepsis_jax.errors import InputError


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
    chex.assert_trees_all_equal(load_networks(*again)[1], network)


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
