"""Estimates of what clinicians do: nearest neighbours by hand, cross-fitting, calibration, support."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from factories import fit_scaler, make_episodes

from sepsis_jax.clinical.actions import encode
from sepsis_jax.errors import InputError
from sepsis_jax.policies import behaviour, clinician
from sepsis_jax.policies.clinician import ClinicianSettings

EPISODES = make_episodes(60, 6, seed=4)
SCALER = fit_scaler(EPISODES)
SETTINGS = ClinicianSettings(updates=40, batch_size=64)
ACTIONS = np.asarray(encode(EPISODES.action))


def test_nearest_neighbours_by_hand(monkeypatch):
    monkeypatch.setattr(behaviour, "NEIGHBOURS", 7)
    train, held = EPISODES.subset("train"), EPISODES.subset("test")
    found = behaviour.fit("knn", SETTINGS, EPISODES, SCALER, jax.random.key(0))(held)
    known, done = behaviour._features(train, SCALER), np.asarray(encode(train.action[train.valid]))
    prior = np.bincount(done, minlength=25) + 1.0
    prior *= 10 / prior.sum()
    np.testing.assert_allclose(found.sum(-1), held.valid, rtol=1e-5)
    for one, probs in zip(behaviour._features(held, SCALER), found[held.valid], strict=True):
        near = np.argsort(((known - one) ** 2).sum(axis=1))[:7]
        count = sum(np.eye(25)[done[i]] for i in near)
        np.testing.assert_allclose(probs, (count + prior) / 17, rtol=1e-5)


@pytest.mark.parametrize("kind", ["knn", pytest.param("mlp", marks=pytest.mark.slow)])
def test_cross_fitting_never_shows_a_patient_to_their_own_estimate(kind, monkeypatch):
    twice = EPISODES.replace(subject_id=np.repeat(np.arange(30), 2).astype(np.int32))
    seen, fit = [], behaviour.fit

    def note(kind, settings, episodes, *rest):
        assert not episodes.subset("test").num_stays
        estimate = fit(kind, settings, episodes, *rest)

        def ask(some):
            seen.append((set(episodes.subject_id), set(some.subject_id)))
            return estimate(some)

        return ask

    monkeypatch.setattr(behaviour, "fit", note)
    probs = behaviour.cross_fitted(kind, SETTINGS, twice, SCALER, jax.random.key(0), folds=3)
    assert all(not known & asked for known, asked in seen)
    assert sorted(patient for _, asked in seen for patient in asked) == list(range(30))
    np.testing.assert_allclose(probs.sum(-1), twice.valid, rtol=1e-4)


def test_strange_is_the_way_to_what_clinicians_choose():
    """They choose (1, 1) and (2, 3), and (0, 4) now and then: two levels from the latter of the two, in fact three."""
    probs = np.zeros((1, 5, 5))
    probs[0, 1, 1], probs[0, 2, 3], probs[0, 0, 4] = 0.6, 0.391, 0.009
    far = [min(abs(v - 1) + abs(f - 1), abs(v - 2) + abs(f - 3)) for v in range(5) for f in range(5)]
    assert far[4] == 3
    found = behaviour.strange(probs.reshape(1, 25))
    np.testing.assert_allclose(found, [np.array(far) - 0.009 * 3], rtol=1e-5)
    np.testing.assert_allclose((probs.reshape(1, 25) * found).sum(axis=-1), 0, atol=1e-7)
    assert np.isfinite(behaviour.strange(np.zeros((1, 25)))).all()  # padding


def test_calibration_and_loss_equal_loops():
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.full(25, 0.3), ACTIONS.shape)
    edges = np.geomspace(1e-3, 1, 11)
    pairs = [
        (probs[b, t, a], a == ACTIONS[b, t]) for b in range(60) for t in range(EPISODES.length[b]) for a in range(25)
    ]
    rows = []
    for i in range(10):
        low, high = (-1 if i == 0 else edges[i]), (2 if i == 9 else edges[i + 1])
        inside = [pair for pair in pairs if low <= pair[0] < high]
        if inside:
            rows.append((*np.mean(inside, axis=0), len(inside)))
    np.testing.assert_allclose(behaviour.calibration(probs, EPISODES).to_numpy(), rows, rtol=1e-6)
    logs = [-np.log(probs[b, t, ACTIONS[b, t]]) for b in range(60) for t in range(EPISODES.length[b])]
    assert behaviour.loss(probs, EPISODES) == pytest.approx(np.mean(logs))


def test_support_counts_what_clinicians_hardly_ever_do():
    treated, policy = np.full((1, 1, 25), 0.005), np.zeros((1, 1, 25))
    treated[..., 3] = 1 - 24 * 0.005
    policy[..., 3], policy[..., 4] = 0.7, 0.3
    assert behaviour.unsupported(policy, treated) == pytest.approx(0.3)


def test_a_network_that_is_too_sure_is_cooled():
    """Actions are pure chance: what a long training finds in them, the temperature takes back."""
    noise = make_episodes(120, 6, seed=5)
    scaler = fit_scaler(noise)
    settings = ClinicianSettings(updates=60, batch_size=256, learning_rate=2e-2, smoothing=0.0)
    params = clinician.fit(settings, noise, scaler, jax.random.key(0))
    held = noise.subset("validation")
    cooled = behaviour.probs_on_record(clinician.Clinician(settings), params, held)
    raw = behaviour.probs_on_record(clinician.Clinician(settings), params | {"temperature": np.float32(1)}, held)
    assert params["temperature"] > 1 and behaviour.loss(cooled, held) < behaviour.loss(raw, held)
    nobody = noise.replace(split=np.where(noise.split == 1, 0, noise.split).astype(np.int8))
    assert clinician.fit(settings, nobody, scaler, jax.random.key(0))["temperature"] == 1


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda: behaviour.cross_fitted("knn", SETTINGS, EPISODES, SCALER, jax.random.key(0), folds=1), "folds"),
        (lambda: behaviour.cross_fitted("knn", SETTINGS, EPISODES, SCALER, jax.random.key(0), folds=61), "folds"),
        (
            lambda: behaviour.fit("knn", SETTINGS, EPISODES.subset("test"), SCALER, jax.random.key(0)),
            "train stays",
        ),
    ],
)
def test_bad_input(run, words):
    with pytest.raises(InputError, match=words):
        run()
