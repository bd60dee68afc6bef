"""Checkpoints: bit-exact round trip, one clear line for every bad one."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from disks import full_disk
from factories import fit_scaler, make_episodes

from sepsis_jax.clinical.actions import AI_CLINICIAN_BINS
from sepsis_jax.data.store import Manifest
from sepsis_jax.dynamics.worldmodel import checkpoint
from sepsis_jax.dynamics.worldmodel.bounds import Support
from sepsis_jax.dynamics.worldmodel.model import WorldModel
from sepsis_jax.errors import InputError


@pytest.fixture(scope="module")
def trained():
    """One model of each architecture with its manifest."""
    scaler = fit_scaler(make_episodes(5, 4, seed=0))
    manifest = Manifest("test", "1", {"window": 3}, AI_CLINICIAN_BINS, scaler, (("all", 5),))
    models = [WorldModel("carry", 4, 1, members=3), WorldModel("published", 4, 2, 0.3)]
    support = Support.plausible(scaler)
    return [(model, model.init(scaler, support, jax.random.key(1))) for model in models], manifest


@pytest.fixture
def saved(trained, tmp_path):
    (model, params), manifest = trained[0][0], trained[1]
    model.save(tmp_path / "wm", params, manifest, training={"epochs": 2}, metrics=[{"epoch": 1, "loss": 0.5}])
    return tmp_path / "wm"


@pytest.mark.parametrize("which", [0, 1])
def test_round_trip_is_bit_exact(trained, tmp_path, which):
    model, params = trained[0][which]
    model.save(tmp_path / "wm", params, trained[1])
    loaded_model, loaded_params, manifest = WorldModel.from_checkpoint(tmp_path / "wm")
    assert loaded_model == model
    assert manifest.action_bins == AI_CLINICIAN_BINS and manifest.attrition == (("all", 5),)
    assert jax.tree.structure(loaded_params) == jax.tree.structure(params)
    for left, right in zip(jax.tree.leaves(loaded_params), jax.tree.leaves(params), strict=True):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)


def test_metrics_and_training_are_kept(saved):
    assert (saved / checkpoint.METRICS).read_text().splitlines() == ["epoch,loss", "1,0.5"]
    assert checkpoint.load(saved).training == {"epochs": 2}
    assert [path.name for path in saved.parent.iterdir()] == ["wm"]


def test_a_foreign_folder_is_not_replaced(trained, tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    model, params = trained[0][0]
    with pytest.raises(InputError, match="a new folder or a world-model checkpoint"):
        model.save(tmp_path, params, trained[1])
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_a_failed_save_leaves_the_older_checkpoint(trained, saved):
    model, params = trained[0][0]
    with pytest.raises(TypeError):
        model.save(saved, params, trained[1], training={"not": {"json"}})
    assert checkpoint.load(saved).training == {"epochs": 2}
    assert [path.name for path in saved.parent.iterdir()] == ["wm"]


def test_a_full_disk_leaves_the_older_checkpoint(trained, saved):
    model, params = trained[0][1]
    with (
        full_disk(),
        pytest.raises(InputError, match=r"wm: expected a disk that can be written, found File too large$"),
    ):
        model.save(saved, params, trained[1])
    assert checkpoint.load(saved).training == {"epochs": 2}
    assert [path.name for path in saved.parent.iterdir()] == ["wm"]


def edit(change):
    def damage(path):
        file = path / checkpoint.DESCRIPTION
        description = json.loads(file.read_text())
        change(description)
        file.write_text(json.dumps(description))

    return damage


def largest_array(path):
    return max((path / checkpoint.ARRAYS).rglob("*"), key=lambda file: file.stat().st_size if file.is_file() else 0)


def flip_a_bit(path):
    content = bytearray(largest_array(path).read_bytes())
    content[len(content) // 2] ^= 1
    largest_array(path).write_bytes(content)


def truncate_arrays(path):
    largest = largest_array(path)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: shutil.rmtree(path), "expected a world-model checkpoint, found no such file"),
        (lambda path: (path / checkpoint.DESCRIPTION).write_text("{"), "expected JSON with a schema_version"),
        (lambda path: (path / checkpoint.DESCRIPTION).write_text("[]"), "expected JSON with a schema_version"),
        (edit(lambda d: d.update(schema_version=99)), "schema_version: expected 4, found 99"),
        (edit(lambda d: d.pop("manifest")), "expected the fields of a checkpoint"),
        (edit(lambda d: d["manifest"].pop("scaler")), "expected the fields of a checkpoint"),
        (edit(lambda d: d["model"].update(architecture="lstm")), "expected carry or published, found lstm"),
        (edit(lambda d: d["model"].update(width=3)), "model: expected fields of WorldModel"),
        (edit(lambda d: d["model"].update(hidden="wide")), "model: expected"),
        (edit(lambda d: d["model"].update(hidden=5)), r"expected shape \("),
        (edit(lambda d: d["model"].update(layers=2)), "found nothing"),
        (edit(lambda d: d["manifest"].update(time_step_h=1)), "manifest of schema 1 and steps of 1 h"),
        (edit(lambda d: d["manifest"]["scaler"]["mean"].__setitem__(0, np.nan)), "scaler with NaN"),
        (edit(lambda d: d["manifest"]["scaler"]["sd"].__setitem__(0, 0)), "scaler with an SD of 0"),
        (edit(lambda d: d["support"]["mean"].__setitem__(0, np.nan)), "ValueError: NaN or infinity"),
        (edit(lambda d: d["support"]["log"].__setitem__(0, "x")), "log of other values"),
        (edit(lambda d: d.pop("sha256")), "sha256: expected a digest a file, found NoneType"),
        (truncate_arrays, "expected the file as it was written, found other bytes; train again, or copy it anew"),
        (flip_a_bit, "expected the file as it was written, found other bytes"),
        (lambda path: shutil.rmtree(path / checkpoint.ARRAYS), "expected the file as it was written, found no file"),
    ],
)
def test_bad_checkpoints_get_one_line(saved, damage, message):
    damage(saved)
    with pytest.raises(InputError, match=message) as caught:
        WorldModel.from_checkpoint(saved)
    assert str(saved) in str(caught.value) and "\n" not in str(caught.value)


def test_another_scaler_travels_with_the_params(trained, tmp_path):
    (model, params), manifest = trained[0][0], trained[1]
    other = dataclasses.replace(params, scaler=dataclasses.replace(params.scaler, mean=params.scaler.mean + 1))
    model.save(tmp_path / "wm", other, manifest)
    np.testing.assert_array_equal(WorldModel.from_checkpoint(tmp_path / "wm")[1].scaler.mean, params.scaler.mean + 1)
