"""import_weights.py: the published system's files become a world model that predicts as the weights say."""

import json
import sys
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
import safetensors.numpy
from factories import fit_scaler, make_episodes

from sepsis_jax.clinical.features import NAMES, STATICS, URINE
from sepsis_jax.dynamics.worldmodel.bounds import Support
from sepsis_jax.dynamics.worldmodel.model import WorldModel
from sepsis_jax.dynamics.worldmodel.torch_import import save_networks
from sepsis_jax.errors import InputError

sys.path.insert(0, str(Path(__file__).parents[2]))
import import_weights


@pytest.fixture
def released(tmp_path):
    """A folder of released files made from a world model of our own."""
    episodes = make_episodes(3, 4, seed=0)
    scaler = fit_scaler(episodes)
    model = WorldModel("published", 8, 2)
    params = model.init(scaler, Support.plausible(scaler), jax.random.key(3))
    folder = tmp_path / "released"
    folder.mkdir()
    paths = folder / "state_model_log.safetensors", folder / "outcome.safetensors"
    save_networks(model, params.network, *paths)
    mean, sd = (np.asarray(x).tolist() for x in (scaler.mean, scaler.sd))
    dynamic = {
        "dyn_cols": list(NAMES),
        "dyn_mean": mean,
        "dyn_std": sd,
        "urine_log_transform": True,
        "urine_idx": URINE,
    }
    (folder / "scaler_params_log.json").write_text(json.dumps(dynamic))
    static_mean, static_sd = (np.asarray(x)[[0, 2]].tolist() for x in (scaler.static_mean, scaler.static_sd))
    static = {"dynamic_cols": list(NAMES), "static_cols": list(STATICS)}
    static |= {"static_scaler_mean": static_mean, "static_scaler_std": static_sd}
    (folder / "episode_feature_config.json").write_text(json.dumps(static))
    return folder, params


def test_weights_arrive(released, tmp_path):
    folder, params = released
    import_weights.main(["--source", str(folder), "--out", str(tmp_path / "wm")])
    model, loaded, manifest = WorldModel.from_checkpoint(tmp_path / "wm")
    assert (model.architecture, model.hidden, model.layers, model.members) == ("published", 8, 2, 1)
    chex.assert_trees_all_equal(loaded.network, params.network)
    np.testing.assert_allclose(loaded.scaler.mean, params.scaler.mean, rtol=1e-6)
    assert manifest.source == "released"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "outcome.safetensors").unlink(), "expected outcome.safetensors or outcome.pt, found neither"),
        (lambda f: (f / "scaler_params_log.json").write_text("{"), "scaler_params_log.json"),
        (lambda f: (f / "outcome.safetensors").write_bytes(b"x" * 9), "outcome.safetensors"),
        (lambda f: (f / "outcome.safetensors").write_bytes(safetensors.numpy.save({})), "outcome.safetensors"),
    ],
)
def test_bad_folders(released, tmp_path, damage, message):
    folder, _ = released
    damage(folder)
    with pytest.raises(InputError, match=message):
        import_weights.main(["--source", str(folder), "--out", str(tmp_path / "wm")])
    assert not (tmp_path / "wm").exists()


def test_a_folder_must_be_named(tmp_path):
    with pytest.raises(InputError, match="name the folder of the released files with --source"):
        import_weights.main(["--out", str(tmp_path / "wm")])
