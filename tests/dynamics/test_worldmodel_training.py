"""Training: the loss falls, members are independent, a broken run goes on exactly, bad input is named."""

from __future__ import annotations

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from factories import fit_scaler, make_episodes

from sepsis_jax.clinical.actions import AI_CLINICIAN_BINS
from sepsis_jax.data.store import Manifest
from sepsis_jax.dynamics.worldmodel import sharding, steps
from sepsis_jax.dynamics.worldmodel.events import event_log
from sepsis_jax.dynamics.worldmodel.settings import TrainSettings
from sepsis_jax.dynamics.worldmodel.training import train, weights_to_adapt
from sepsis_jax.errors import InputError

SETTINGS = TrainSettings(
    hidden=32, layers=1, members=2, epochs=8, batch_size=32, learning_rate=1e-2, patience=8, average=0.5
)
ONE_DEVICE = jax.devices()[:1]


@pytest.fixture(scope="module")
def cohort():
    return make_episodes(260, 8, seed=3)


@pytest.fixture(scope="module")
def trained(cohort):
    return train(SETTINGS, cohort, fit_scaler(cohort), devices=ONE_DEVICE)


def of_member(rows, member):
    return [row for row in rows if row["member"] == member]


def same(left, right):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True))


def test_training_lowers_the_loss(trained):
    assert trained.model == SETTINGS.model and len(trained.metrics) == 2 * SETTINGS.epochs
    for member in range(2):
        first, *_, last = of_member(trained.metrics, member)
        assert last["train_loss"] < 0.8 * first["train_loss"]
        assert last["validation_loss"] < 0.8 * first["validation_loss"]


def test_members_differ(trained):
    rows = [of_member(trained.metrics, member) for member in range(2)]
    assert all(a["train_loss"] != b["train_loss"] for a, b in zip(*rows, strict=True))
    weights = trained.params.network["gru"]["cells"][0]["weight_ih"]
    assert not np.array_equal(weights[0], weights[1])


def test_the_best_epoch_of_each_member_is_kept(trained, cohort):
    mesh = sharding.mesh(ONE_DEVICE)
    stays = steps.stays_of(cohort, "validation", mesh)
    losses = steps.validate(SETTINGS, mesh, trained.params, trained.params.network, stays)
    for member in range(2):
        best = min(row["validation_loss"] for row in of_member(trained.metrics, member))
        assert losses["loss"][member] == pytest.approx(best, rel=1e-5)


def test_a_member_without_patience_stops_for_good(cohort):
    """Its rows end there, so that the least loss on record is that of the weights that are kept."""
    impatient = dataclasses.replace(SETTINGS, patience=1, epochs=40, learning_rate=0.05)
    trained = train(impatient, cohort, fit_scaler(cohort), devices=ONE_DEVICE)
    rows = [of_member(trained.metrics, member) for member in range(2)]
    assert len({len(some) for some in rows}) == 2 and max(map(len, rows)) < 40, "they stop apart, and early"
    stays = steps.stays_of(cohort, "validation", sharding.mesh(ONE_DEVICE))
    losses = steps.validate(impatient, sharding.mesh(ONE_DEVICE), trained.params, trained.params.network, stays)
    for member, some in enumerate(rows):
        held = [row["validation_loss"] for row in some]
        assert np.argmin(held) == len(held) - 2, "the first epoch that was worse is the last"
        assert losses["loss"][member] == pytest.approx(min(held), rel=1e-5)


def test_a_broken_run_ends_as_an_unbroken_one(trained, cohort, tmp_path):
    def stop(rows):
        if rows[0]["epoch"] == 3:
            raise KeyboardInterrupt

    again = {"unfinished": tmp_path / "state", "devices": ONE_DEVICE}
    with pytest.raises(KeyboardInterrupt):
        train(SETTINGS, cohort, fit_scaler(cohort), report=stop, **again)
    seen: list = []
    second = train(SETTINGS, cohort, fit_scaler(cohort), report=seen.extend, **again)
    assert 1 < seen[0]["epoch"] <= 4
    assert second.metrics == trained.metrics and same(second.params, trained.params)


def test_another_cohort_or_setting_does_not_go_on(cohort, tmp_path):
    def stop(rows):
        raise KeyboardInterrupt

    again = {"unfinished": tmp_path / "state", "devices": ONE_DEVICE}
    with pytest.raises(KeyboardInterrupt):
        train(SETTINGS, cohort, fit_scaler(cohort), report=stop, **again)
    other = dataclasses.replace(SETTINGS, learning_rate=1e-3)
    with pytest.raises(
        InputError, match=r"learning_rate: expected the unfinished training's 0.01, found 0.001; remove"
    ):
        train(other, cohort, fit_scaler(cohort), **again)
    with pytest.raises(InputError, match="stays: expected the unfinished training's"):
        train(SETTINGS, cohort.take(np.arange(200)), fit_scaler(cohort), **again)


def test_a_loss_that_is_not_finite_stops_the_training(cohort, tmp_path):
    broken = cohort.take(np.arange(cohort.num_stays))
    broken.obs[np.flatnonzero(broken.split == 0)[0], 0, 3] = np.nan
    with pytest.raises(InputError, match=r"of member 0 in epoch 1: expected a finite loss, found nan; lower"):
        train(SETTINGS, broken, fit_scaler(cohort), unfinished=tmp_path / "state", devices=ONE_DEVICE)
    assert not list((tmp_path / "state" / "epochs").iterdir())


def test_an_empty_split_is_named(cohort):
    stays = dataclasses.replace(cohort, split=np.zeros_like(cohort.split))
    with pytest.raises(InputError, match="split: expected validation stays, found none"):
        train(SETTINGS, stays, fit_scaler(cohort), devices=ONE_DEVICE)


def test_adapting_starts_from_a_checkpoint(trained, cohort, tmp_path):
    manifest = Manifest("test", "1", {}, AI_CLINICIAN_BINS, fit_scaler(cohort), (("all", 260),))
    trained.model.save(tmp_path / "wm", trained.params, manifest)
    first = weights_to_adapt(dataclasses.replace(SETTINGS, dropout=0.5), tmp_path / "wm")
    assert same(first, trained.params)
    elsewhere = make_episodes(260, 8, seed=5)
    adapted = train(SETTINGS, elsewhere, fit_scaler(elsewhere), first=first, devices=ONE_DEVICE)
    assert adapted.metrics[0]["validation_loss"] < trained.metrics[0]["validation_loss"]
    assert same(adapted.params.scaler, trained.params.scaler) and same(adapted.params.support, trained.params.support)
    for field, value in (("hidden", 16), ("members", 1), ("architecture", "published")):
        with pytest.raises(InputError, match=f"wm: {field}: expected {value}, found .*; set world_model.{field} to"):
            weights_to_adapt(dataclasses.replace(SETTINGS, **{field: value}), tmp_path / "wm")


@pytest.mark.parametrize(
    ("decay", "count", "share"), [(0.0, 5, 0.0), (0.9, 0, 0.1), (0.9, 10_000, 0.9), (0.05, 0, 0.05)]
)
def test_the_running_average_of_the_weights(decay, count, share):
    old, new = {"w": jnp.full(3, 2.0)}, {"w": jnp.full(3, 4.0)}
    np.testing.assert_allclose(steps.averaged(decay, new, old, count)["w"], share * 2 + (1 - share) * 4, rtol=1e-6)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden", 0),
        ("architecture", "lstm"),
        ("members", 0),
        ("epochs", -1),
        ("learning_rate", 0.0),
        ("dropout", 1.0),
        ("average", 1.0),
        ("precision", "float16"),
    ],
)
def test_impossible_settings_are_named(field, value):
    with pytest.raises(InputError, match=f"world_model: {field}: expected"):
        TrainSettings(**{field: value})


def test_event_files_need_tensorboardx(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    expected = "--tensorboard: expected tensorboardX, found no such package; pip install"
    with pytest.raises(InputError, match=expected), event_log(tmp_path, 1):
        pass


def test_event_files_hold_every_term(tmp_path):
    pytest.importorskip("tensorboardX")
    with event_log(tmp_path / "events", 1) as report:
        report([{"epoch": 3, "member": 0, "train_loss": 1.5, "validation_loss": 2.5}])
    (file,) = (tmp_path / "events").iterdir()
    assert b"loss/validation" in file.read_bytes() and b"loss/train" in file.read_bytes()
