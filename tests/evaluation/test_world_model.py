"""The world-model table against loops over the record."""

import dataclasses

import jax
import numpy as np
import pytest
from factories import fit_scaler, make_episodes
from sklearn.metrics import roc_auc_score

from sepsis_jax.dynamics.protocol import history_at
from sepsis_jax.dynamics.worldmodel.model import WorldModel
from sepsis_jax.evaluation.world_model import evaluate

MODEL = WorldModel("carry", hidden=8, layers=1)


@pytest.fixture(scope="module")
def world():
    episodes = make_episodes(40, 5, seed=5)
    params = MODEL.init(fit_scaler(episodes), jax.random.key(0))
    noise = np.random.default_rng(0)
    network = jax.tree.map(lambda leaf: leaf + 0.1 * noise.normal(size=leaf.shape).astype(np.float32), params.network)
    params = dataclasses.replace(params, network=network)
    return episodes, params, evaluate(MODEL, params, episodes, num_bootstrap=50)


def test_persistence_equals_a_loop(world):
    episodes, params, evaluation = world
    z = np.asarray(params.scaler.normalize(episodes.obs))
    measured, every = [], []
    for b in range(episodes.num_stays):
        for t in range(episodes.length[b] - 1):
            error = np.abs(z[b, t + 1] - z[b, t])
            every.extend(error)
            measured.extend(error[np.append(episodes.mask[b, t + 1], True)])
    metrics = evaluation.metrics
    assert metrics["persistence_mae_1step"] == pytest.approx(np.mean(measured), rel=1e-5)
    assert metrics["persistence_mae_1step_all"] == pytest.approx(np.mean(every), rel=1e-5)
    counts = {row["metric"]: row["n"] for row in evaluation.rows}
    assert counts["mae_1step"] == len(measured) and counts["mae_1step_all"] == len(every)


def test_model_figures_equal_a_loop_over_decisions(world):
    """Each decision encoded on its own: error, ventilation and mortality know nothing later."""
    episodes, params, evaluation = world
    rows, steps = np.nonzero(episodes.valid)

    def decide(history, action):
        state = MODEL.encode(params, history)
        return MODEL.decode(params, state, action), MODEL.outcome(params, state)

    decide_all = jax.jit(jax.vmap(decide))
    decoded, outcome = jax.tree.map(
        np.asarray, decide_all(history_at(episodes, rows, steps), episodes.action[rows, steps])
    )
    z = np.asarray(params.scaler.normalize(episodes.obs))
    errors, likelihoods, vents, deaths = [], [], [], []
    for i, (b, t) in enumerate(zip(rows, steps, strict=True)):
        if t + 1 < episodes.length[b]:
            measured = np.append(episodes.mask[b, t + 1], True)
            error, sigma = z[b, t + 1] - decoded.mean[i], np.exp(decoded.log_sigma[i])
            errors.extend(np.abs(error)[measured])
            likelihoods.extend((0.5 * (error / sigma) ** 2 + np.log(sigma * np.sqrt(2 * np.pi)))[measured])
            vents.append((episodes.ventilated[b, t + 1], decoded.vent_logit[i]))
        else:
            hazard = 1 / (1 + np.exp(-decoded.exit_logit[i, 0]))
            deaths.append((episodes.mortality_90d[b], hazard + (1 - hazard) * outcome[i]))
    metrics = evaluation.metrics
    assert metrics["mae_1step"] == pytest.approx(np.mean(errors), rel=1e-4)
    assert metrics["nll"] == pytest.approx(np.mean(likelihoods), rel=1e-4)
    assert metrics["ventilation_auroc"] == pytest.approx(roc_auc_score(*np.array(vents).T), abs=1e-3)
    died, probability = np.array(deaths).T
    assert metrics["mortality_auroc"] == pytest.approx(roc_auc_score(died, probability), abs=1e-3)
    assert metrics["mortality_brier"] == pytest.approx(np.mean((probability - died) ** 2), rel=1e-4)


def test_intervals_hold_their_values(world):
    for row in world[2].rows:
        assert row["low"] <= row["value"] <= row["high"], row["metric"]
        assert row["low"] < row["high"] and row["reason"] == ""
        assert world[2].metrics[row["metric"] + "_low"] == row["low"]


def test_an_absent_class_is_reported_with_its_reason(world):
    episodes, params, _ = world
    nobody = dataclasses.replace(
        episodes, mortality_90d=np.zeros(40, np.int8), ventilated=np.ones_like(episodes.ventilated)
    )
    evaluation = evaluate(MODEL, params, nobody, num_bootstrap=5)
    assert evaluation.metrics["mortality_auroc"] is None and evaluation.metrics["mortality_auroc_high"] is None
    reasons = {row["metric"]: row["reason"] for row in evaluation.rows}
    assert reasons["mortality_auroc"] == "every label is negative"
    assert reasons["ventilation_auroc"] == "every label is positive"
    unknown = dataclasses.replace(episodes, mortality_90d=np.full(40, -1, np.int8))
    reasons = {row["metric"]: row["reason"] for row in evaluate(MODEL, params, unknown, num_bootstrap=5).rows}
    assert reasons["mortality_brier"] == "no label is known" and reasons["mae_1step"] == ""


def test_names_of_the_published_architecture_say_so(world):
    episodes, params, _ = world
    model = WorldModel("published", hidden=4, layers=1)
    published = model.init(params.scaler, jax.random.key(0))
    names = evaluate(model, published, episodes, num_bootstrap=5).metrics.keys()
    assert {"published_mae_1step", "published_mortality_brier_low"} <= names
    assert all(name.startswith("published_") for name in names)
