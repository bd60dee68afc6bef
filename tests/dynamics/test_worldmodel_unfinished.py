"""The state of an unfinished training: whole after a full disk, refused where it is another one or broken."""

from __future__ import annotations

import gc
import json
import time

import numpy as np
import pytest
from disks import full_disk

from sepsis_jax.dynamics.worldmodel import checkpoint
from sepsis_jax.dynamics.worldmodel.unfinished import EPOCHS, IDENTITY, Unfinished, digest, remove
from sepsis_jax.errors import InputError

IDENTITY_OF_TEST = {"seed": 0, "stays": "ab"}
STATE = {"weights": np.random.default_rng(0).random((100, 300), np.float32), "epoch": np.int32(2)}


def rows(epochs):
    return [{"epoch": epoch, "member": 0, "validation_loss": 1 / 3 + epoch} for epoch in range(1, epochs + 1)]


@pytest.fixture
def folder(tmp_path):
    """A training with one epoch on disk."""
    with Unfinished(tmp_path / "wm.training", IDENTITY_OF_TEST) as unfinished:
        unfinished.save(1, STATE, rows(1))
    return tmp_path / "wm.training"


def loaded(folder):
    with Unfinished(folder, IDENTITY_OF_TEST) as unfinished:
        return unfinished.load(STATE)


def test_a_new_training_starts_at_the_start(tmp_path):
    assert loaded(tmp_path / "new") is None
    assert loaded(tmp_path / "new") is None  # and again, where the folder is there


def test_state_and_metrics_come_back_bit_for_bit(folder):
    state, found = loaded(folder)
    assert found == rows(1)
    for name, array in STATE.items():
        assert state[name].dtype == array.dtype
        np.testing.assert_array_equal(state[name], array)
    assert (folder / checkpoint.METRICS).read_text().startswith("epoch,member,validation_loss\n1,0,1.33")


def test_the_newest_epoch_is_kept(folder):
    with Unfinished(folder, IDENTITY_OF_TEST) as unfinished:
        unfinished.save(2, STATE | {"epoch": np.int32(7)}, rows(2))
    assert [path.name for path in (folder / EPOCHS).iterdir()] == ["2"]
    state, found = loaded(folder)
    assert state["epoch"] == 7 and found == rows(2)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("noticed", ["before", "while writing"])
def test_a_full_disk_is_one_line_and_leaves_the_last_epoch(folder, monkeypatch, noticed):
    if noticed == "while writing":  # in the background, where others fill the disk
        monkeypatch.setattr(checkpoint, "reserve", lambda folder, arrays: None)
    expected = r"wm.training: expected a disk that can be written, found File too large$"
    with (
        full_disk(),
        pytest.raises(InputError, match=expected),
        Unfinished(folder, IDENTITY_OF_TEST) as unfinished,
    ):
        unfinished.save(2, STATE, rows(2))
    time.sleep(0.5)  # the other writes of that checkpoint fail now, not in the next test
    gc.collect()
    state, found = loaded(folder)
    assert found == rows(1)
    np.testing.assert_array_equal(state["weights"], STATE["weights"])


def test_another_training_is_refused(folder):
    with pytest.raises(InputError, match=r"seed: expected the unfinished training's 0, found 1; remove .*wm.training"):
        Unfinished(folder, IDENTITY_OF_TEST | {"seed": 1})


def truncate(folder):
    largest = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: truncate(folder), "expected a readable training state, found .*; remove"),
        (lambda folder: (folder / IDENTITY).write_text("{"), "expected a JSON object, found"),
        (lambda folder: (folder / IDENTITY).write_text(json.dumps([1])), "expected a JSON object, found"),
        (lambda folder: (folder / IDENTITY).unlink(), "expected a new folder or an unfinished training"),
    ],
)
def test_a_broken_folder_is_one_line(folder, damage, message):
    damage(folder)
    with pytest.raises(InputError, match=message) as caught:
        loaded(folder)
    assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="expected a folder that can be written, found "):
        Unfinished(tmp_path / "file" / "wm.training", IDENTITY_OF_TEST)


def test_removed_means_gone(folder):
    remove(folder)
    assert list(folder.parent.iterdir()) == []


def test_the_digest_sees_values_types_and_names():
    arrays = {"a": np.arange(3), "b": np.zeros(2, np.float32)}
    others = [
        {"a": np.arange(3) + 1, "b": arrays["b"]},
        {"a": arrays["a"], "b": np.zeros(2, np.int32)},
        {"a": arrays["a"], "c": arrays["b"]},
    ]
    assert len({digest(tree) for tree in [arrays, *others]}) == 4
    assert digest({"b": arrays["b"], "a": np.arange(3)}) == digest(arrays)
