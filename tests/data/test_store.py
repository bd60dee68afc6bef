"""The Episodes store: exact round trip, atomic writing, and one clear line for anything wrong with it."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
from factories import fit_scaler, make_episodes

from sepsis_jax.clinical.actions import AI_CLINICIAN_BINS
from sepsis_jax.data import store
from sepsis_jax.data.episodes import DTYPES
from sepsis_jax.data.store import Manifest
from sepsis_jax.errors import InputError

EPISODES = make_episodes(10, 4, seed=0, known_propensity=True)
MANIFEST = Manifest(
    source="test",
    source_version="1",
    cohort={"seed": 1},
    action_bins=AI_CLINICIAN_BINS,
    scaler=fit_scaler(EPISODES),
    attrition=(("all", 12), ("kept", 10)),
    facts={"dropped": 3},
)


@pytest.fixture
def saved(tmp_path):
    store.save(tmp_path / "e", EPISODES, MANIFEST)
    return tmp_path / "e"


def assert_same(a, b):
    for name, (dtype, _) in DTYPES.items():
        left, right = getattr(a, name), getattr(b, name)
        if left is None or right is None:
            assert left is right
            continue
        assert right.dtype == dtype
        np.testing.assert_array_equal(left, right)


def test_round_trip_is_exact(saved):
    episodes, manifest = store.load(saved)
    assert_same(EPISODES, episodes)
    for field in dataclasses.fields(Manifest):
        if field.name != "scaler":
            assert getattr(manifest, field.name) == getattr(MANIFEST, field.name)
    for name, value in MANIFEST.scaler.__dict__.items():
        np.testing.assert_array_equal(value, getattr(manifest.scaler, name))


def test_unknown_propensity_stays_none(tmp_path):
    store.save(tmp_path / "e", EPISODES.replace(propensity=None), MANIFEST)
    assert store.load(tmp_path / "e")[0].propensity is None


def test_labels_and_units_are_in_the_dataset():
    dataset = store.to_dataset(EPISODES)
    assert dataset.obs.dims == ("stay", "step", "feature") and dataset.obs.sel(feature="lactate").shape == (10, 4)
    assert dataset.fluid_ml.attrs["units"].startswith("mL")
    assert dict(zip(dataset.feature.values, dataset.feature_units.values, strict=True))["meanbp"] == "mmHg"


def test_replaces_its_own_kind_only(saved, tmp_path):
    store.save(saved, EPISODES.take([0, 1]), MANIFEST)
    assert store.load(saved)[0].num_stays == 2
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="expected a new folder or an Episodes store, found something else"):
        store.save(tmp_path / "other", EPISODES, MANIFEST)
    assert (tmp_path / "other" / "thesis.txt").read_text() == "mine"


def test_a_failed_write_leaves_nothing_and_keeps_the_old(saved, tmp_path):
    def fail(folder):
        raise RuntimeError("disk")

    for out in (saved, tmp_path / "new"):
        with pytest.raises(RuntimeError):
            store.save(out, EPISODES.take([0]), MANIFEST, extra=fail)
    assert store.load(saved)[0].num_stays == 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e"]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("sofa", None, "sofa: expected an array, found nothing"),
        ("static", np.nan, "static: expected finite values"),
        ("vaso_dose", np.inf, "vaso_dose: expected finite values"),
        ("mortality_hospital", 77, "mortality_hospital: expected values from -1 to 1, found 77 to 77"),
    ],
)
def test_impossible_values_are_refused(name, value, words):
    dataset = store.to_dataset(EPISODES)
    dataset = dataset.drop_vars(name) if value is None else dataset.assign({name: dataset[name] * 0 + value})
    with pytest.raises(InputError, match=words):
        store.from_dataset(dataset)


def edit_manifest(folder, **changes):
    plain = json.loads((folder / store.MANIFEST).read_text())
    (folder / store.MANIFEST).write_text(json.dumps(plain | changes))


def truncate_zarr(folder):
    for file in (folder / store.EPISODES / "obs").rglob("*"):
        if file.is_file() and file.name != "zarr.json":
            file.write_bytes(file.read_bytes()[:10])


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda f: shutil.rmtree(f), "manifest.json: expected an Episodes store, found no such file"),
        (lambda f: (f / store.MANIFEST).write_text("{"), "manifest.json: expected JSON with a schema_version"),
        (lambda f: edit_manifest(f, schema_version=99), "schema_version: expected 1, found 99"),
        (lambda f: edit_manifest(f, scaler=None), "manifest.json: expected the fields of a manifest"),
        (lambda f: edit_manifest(f, unknown=1), "manifest.json: expected the fields of a manifest"),
        (lambda f: edit_manifest(f, sha256=None), "manifest.json: sha256: expected a digest a file, found NoneType"),
        (lambda f: edit_manifest(f, time_step_h=1), "manifest.json: expected the fields of a manifest"),
        (lambda f: shutil.rmtree(f / store.EPISODES), "expected the file as it was written, found no file"),
        (lambda f: shutil.rmtree(f / store.EPISODES / "sofa"), "expected the file as it was written, found no file"),
        (lambda f: shutil.rmtree(f / store.EPISODES / "action/c"), "action/c/0/0/0: expected the file as it was"),
        (truncate_zarr, "obs/c/0/0/0: expected the file as it was written, found other bytes; prepare the data again"),
    ],
)
def test_bad_stores_get_one_line(saved, break_it, words):
    break_it(saved)
    with pytest.raises(InputError) as error:
        store.load(saved)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_wrong_shape_is_named():
    dataset = store.to_dataset(EPISODES)
    dataset["weight_kg"] = (("stay", "feature"), np.zeros((10, 39), np.float32))
    with pytest.raises(InputError, match=r"weight_kg: expected shape \(10,\), found \(10, 39\)"):
        store.from_dataset(dataset)
    del dataset.attrs["schema_version"]
    with pytest.raises(InputError, match="schema_version: expected 1, found None"):
        store.from_dataset(dataset)


def test_take_and_subset():
    assert list(EPISODES.take([3, 1]).stay_id) == [EPISODES.stay_id[3], EPISODES.stay_id[1]]
    sizes = [EPISODES.subset(name).num_stays for name in ("train", "validation", "test")]
    assert sum(sizes) == 10 and EPISODES.subset("test").valid.sum() == EPISODES.length[EPISODES.split == 2].sum()


def test_the_digest_tells_other_stays_by_any_field():
    episodes = make_episodes(3, 4, seed=1)
    digests = {episodes.digest()}
    assert digests == {make_episodes(3, 4, seed=1).digest()}
    others = [name for name, value in episodes.__dict__.items() if value is not None]
    for name in others:
        value = np.array(getattr(episodes, name))
        value.flat[0] = not value.flat[0] if value.dtype == bool else value.flat[0] + 1
        digests.add(episodes.replace(**{name: value}).digest())
    assert len(digests) == 1 + len(others)
