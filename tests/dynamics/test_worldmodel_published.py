"""The published layout against NumPy, from raw episodes to outputs."""

import chex
import jax
import numpy as np
import oracles
import pytest
from factories import fit_scaler, make_episodes

from sepsis_jax.dynamics.protocol import history_at
from sepsis_jax.dynamics.worldmodel.bounds import Support
from sepsis_jax.dynamics.worldmodel.model import WorldModel, merge
from sepsis_jax.dynamics.worldmodel.published import OUTCOME_WINDOW, STATE_WINDOW

MODEL = WorldModel("published", hidden=8, layers=2)


@pytest.fixture(scope="module")
def world():
    episodes = make_episodes(3, 16, seed=1)
    scaler = fit_scaler(episodes)
    params = MODEL.member(MODEL.init(scaler, Support.plausible(scaler), jax.random.key(0)), 0)

    @jax.jit
    def predict(history, action):
        state = MODEL.encode(params, history)
        return MODEL.decode(params, state, action), MODEL.outcome(params, state)

    static_z = (episodes.static - np.asarray(scaler.static_mean)) / np.asarray(scaler.static_sd)
    return episodes, scaler, merge(MODEL, params), static_z, predict


@pytest.mark.parametrize("step", [0, 4, 5, 6, 11, 15])
def test_predictions_equal_the_oracle(world, step):
    episodes, scaler, network, static_z, predict = world
    action = np.array([3, 1])
    history = jax.tree.map(lambda leaf: leaf[0], history_at(episodes, [1], [step]))
    prediction, outcome = predict(history, action)
    rows = oracles.published_input(episodes, scaler, 1, step, action, STATE_WINDOW)
    expected = oracles.published_state(network.state, rows, static_z[1])
    got = {
        "mean": prediction.values.center,
        "log_sigma": prediction.values.log_slope[0],
        "vent_logit": prediction.vent_logit,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, atol=2e-5, err_msg=name)
    assert prediction.loading is None and prediction.mask is None and prediction.exit_logit is None

    before = episodes.action[1, step - 1] if step else episodes.prior_action[1]
    rows = oracles.published_input(episodes, scaler, 1, step, before, OUTCOME_WINDOW)
    logit = oracles.published_outcome(network.outcome, rows, static_z[1])
    np.testing.assert_allclose(outcome, oracles.sigmoid(logit), atol=2e-5)


def test_windows_in_flight_equal_windows_encoded_anew(world):
    episodes, scaler, *_ = world
    params = MODEL.member(MODEL.init(scaler, Support.plausible(scaler), jax.random.key(0)), 0)
    last = episodes.obs.shape[1] - 1
    whole = jax.tree.map(lambda leaf: leaf[0], history_at(episodes, [1], [last]))
    every = MODEL.encode_all(params, whole)  # nothing in flight
    decode, outcome, advance = map(jax.jit, (MODEL.decode, MODEL.outcome_logits, MODEL.advance))
    for start in (0, 3, 7, 12):  # shorter and longer than either window
        state = MODEL.encode(params, jax.tree.map(lambda leaf: leaf[0], history_at(episodes, [1], [start])))
        for step in range(start, last + 1):
            anew = jax.tree.map(lambda leaf: leaf[step], every)  # noqa: B023
            assert anew.memory.flight is None and state.memory.flight is not None
            predictions = (decode(params, each, whole.action[step]) for each in (state, anew))
            chex.assert_trees_all_close(*predictions, atol=1e-5)
            np.testing.assert_allclose(outcome(params, state), outcome(params, anew), atol=1e-5)
            if step < last:
                after = whole.obs[step + 1], whole.mask[step + 1]
                state = advance(params, state, whole.action[step], *after)


def test_layers_have_the_released_shapes():
    scaler = fit_scaler(make_episodes(3, 2, seed=0))
    support = Support.plausible(scaler)
    network = jax.eval_shape(lambda: WorldModel("published").init(scaler, support, jax.random.key(0))).network
    state, outcome = jax.tree.map(lambda leaf: leaf.shape[1:], (network["state"], network["outcome"]))
    for trunk in (state["trunk"], outcome["trunk"]):
        assert trunk["static_embed"]["kernel"] == (3, 32)
        assert trunk["act_embed"]["kernel"] == (10, 32)
        assert [trunk["gru"]["cells"][i]["weight_ih"] for i in (0, 1)] == [(141, 384), (128, 384)]
        assert trunk["gru"]["cells"][1]["bias_hh"] == (384,)
    assert [state["vent_head"][i]["kernel"] for i in (0, 1)] == [(128, 64), (64, 1)]
    assert state["trans_pre"]["kernel"] == (129, 128)
    assert state["mu_head"]["kernel"] == state["log_sigma_head"]["kernel"] == (128, 39)
    assert [outcome["outcome_head"][i]["kernel"] for i in (0, 1)] == [(128, 64), (64, 1)]
