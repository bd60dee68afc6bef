"""Training: the loss counts the right entries, falls, beats persistence, and stops when it is not finite."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from factories import fit_scaler, make_episodes

from sepsis_jax.dynamics.worldmodel.losses import history_of, loss_terms, means
from sepsis_jax.dynamics.worldmodel.model import WorldModel
from sepsis_jax.dynamics.worldmodel.training import TrainSettings, train
from sepsis_jax.errors import InputError
from sepsis_jax.evaluation.world_model import evaluate

SETTINGS = TrainSettings(hidden=32, layers=1, epochs=30, batch_size=32, learning_rate=1e-2, patience=30)


@pytest.fixture(scope="module")
def cohort():
    return make_episodes(260, 8, seed=3)


def cross_entropy(logit, label):
    return np.logaddexp(0, logit) - logit * label


def test_loss_terms_equal_a_loop_over_the_record():
    episodes = make_episodes(6, 5, seed=4)
    episodes.exit[:], episodes.mortality_90d[:] = [0, 1, 2, 0, 1, 2], [0, 1, -1, 1, 0, 1]
    model = WorldModel("carry", 8, 1)
    params = model.init(fit_scaler(episodes), jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf + 0.01, params)

    def outputs(episode):
        states = model.encode_all(params, history_of(episode))
        decoded = jax.vmap(model.decode, (None, 0, 0))(params, states, episode.action)
        logits = jax.vmap(model.outcome_logit, (None, 0))(params, states)
        return decoded, logits, loss_terms(model, params, episode)

    decoded, logits, terms = jax.tree.map(np.asarray, jax.jit(jax.vmap(outputs))(episodes))
    z = np.asarray(params.scaler.normalize(episodes.obs))
    for b in range(6):
        expected = {name: [] for name in terms}
        for t in range(episodes.length[b]):
            at_end = t == episodes.length[b] - 1
            if not at_end:
                for f in range(39):
                    if f == 38 or episodes.mask[b, t + 1, f]:
                        sigma = np.exp(decoded.log_sigma[b, t, f])
                        error = (z[b, t + 1, f] - decoded.mean[b, t, f]) / sigma
                        expected["nll"].append(0.5 * error**2 + np.log(sigma * np.sqrt(2 * np.pi)))
                expected["mask"].extend(cross_entropy(decoded.mask_logit[b, t], episodes.mask[b, t + 1]))
                expected["ventilation"].append(cross_entropy(decoded.vent_logit[b, t], episodes.ventilated[b, t + 1]))
            if not at_end or episodes.exit[b] != 0:
                dies, leaves = at_end and episodes.exit[b] == 1, at_end and episodes.exit[b] == 2
                expected["death"].append(cross_entropy(decoded.exit_logit[b, t, 0], dies))
                if not dies:
                    expected["discharge"].append(cross_entropy(decoded.exit_logit[b, t, 1], leaves))
            if episodes.mortality_90d[b] >= 0 and episodes.exit[b] != 1:
                expected["mortality"].append(cross_entropy(logits[b, t], episodes.mortality_90d[b]))
        for name, values in expected.items():
            np.testing.assert_allclose(terms[name][b], [np.sum(values), len(values)], rtol=1e-4, err_msg=name)
    averages = means(jax.tree.map(jnp.asarray, terms))
    assert averages["loss"] == pytest.approx(sum(float(v) for name, v in averages.items() if name != "loss"), rel=1e-6)


def test_training_lowers_the_loss_and_beats_persistence(cohort):
    trained = train(SETTINGS, cohort, fit_scaler(cohort))
    assert trained.model == SETTINGS.model and len(trained.metrics) == SETTINGS.epochs
    assert trained.metrics[-1]["train_loss"] < 0.8 * trained.metrics[0]["train_loss"]
    metrics = evaluate(trained.model, trained.params, cohort.subset("test"), num_bootstrap=20).metrics
    assert metrics["mae_1step"] < 0.985 * metrics["persistence_mae_1step"]
    assert metrics["mae_1step_all"] < metrics["persistence_mae_1step_all"]
    assert metrics["ventilation_auroc"] > 0.7
    best = min(trained.metrics, key=lambda row: row["validation_loss"])
    assert best["validation_nll"] < trained.metrics[0]["validation_nll"]


def test_a_loss_that_is_not_finite_stops_the_training(cohort):
    broken = cohort.take(np.arange(cohort.num_stays))
    broken.obs[np.flatnonzero(broken.split == 0)[0], 0, 3] = np.nan
    with pytest.raises(InputError, match="in epoch 1: expected a finite loss, found nan; lower"):
        train(SETTINGS, broken, fit_scaler(cohort))


def test_an_empty_split_is_named(cohort):
    stays = dataclasses.replace(cohort, split=np.zeros_like(cohort.split))
    with pytest.raises(InputError, match="split: expected validation stays, found none"):
        train(SETTINGS, stays, fit_scaler(cohort))


@pytest.mark.parametrize(
    ("field", "value"),
    [("hidden", 0), ("architecture", "lstm"), ("epochs", -1), ("learning_rate", 0.0), ("dropout", 1.0)],
)
def test_impossible_settings_are_named(field, value):
    with pytest.raises(InputError, match=f"world_model: {field}: expected"):
        TrainSettings(**{field: value})
