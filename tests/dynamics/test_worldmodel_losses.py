"""The loss counts the right entries: every term against a loop over the record."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from factories import fit_scaler, make_episodes
from scipy.special import logsumexp

from sepsis_jax.dynamics.worldmodel.bounds import Support
from sepsis_jax.dynamics.worldmodel.losses import history_of, loss_terms, means
from sepsis_jax.dynamics.worldmodel.model import WorldModel
from sepsis_jax.dynamics.worldmodel.prediction import value_log_prob


def cross_entropy(logit, label):
    return np.logaddexp(0, logit) - logit * label


def test_loss_terms_equal_a_loop_over_the_record():
    episodes = make_episodes(6, 5, seed=4)
    episodes.exit[:], episodes.mortality_90d[:] = [0, 1, 2, 0, 1, 2], [0, 1, -1, 1, 0, 1]
    episodes.mortality_hospital[:] = [0, 1, 0, -1, 1, 1]
    model = WorldModel("carry", 8, 1)
    scaler = fit_scaler(episodes)
    params = model.init(scaler, Support.fit(episodes, scaler), jax.random.key(0))
    params = model.member(jax.tree.map(lambda leaf: leaf + 0.01, params), 0)

    def outputs(episode):
        states = model.encode_all(params, history_of(episode))
        decoded = jax.vmap(model.decode, (None, 0, 0))(params, states, episode.action)
        logits = jax.vmap(model.outcome_logits, (None, 0))(params, states)
        terms = loss_terms(model, params, episode, jax.random.key(1), train=False)
        following = jnp.roll(episode.obs, -1, axis=0)
        scores = value_log_prob(decoded, params.support, params.scaler, following, jnp.ones(following.shape, bool))
        return decoded, logits, terms, scores

    decoded, logits, terms, scores = jax.tree.map(np.asarray, jax.jit(jax.vmap(outputs))(episodes))
    for b in range(6):
        expected = {name: [] for name in terms}
        for t in range(episodes.length[b]):
            at_end = t == episodes.length[b] - 1
            if not at_end:
                for f in range(39):
                    if f == 38 or episodes.mask[b, t + 1, f]:
                        expected["values"].append(-scores[b, t, f])
                items = cross_entropy(decoded.mask.logit[b, t], episodes.mask[b, t + 1][None])
                pattern = logsumexp(decoded.mask.log_weight[b, t] - items.sum(axis=-1))
                expected["mask"].extend([-pattern / 38] * 38)
                expected["ventilation"].append(cross_entropy(decoded.vent_logit[b, t], episodes.ventilated[b, t + 1]))
            if not at_end or episodes.exit[b] != 0:
                dies, leaves = at_end and episodes.exit[b] == 1, at_end and episodes.exit[b] == 2
                expected["death"].append(cross_entropy(decoded.exit_logit[b, t, 0], dies))
                if not dies:
                    expected["discharge"].append(cross_entropy(decoded.exit_logit[b, t, 1], leaves))
            for i, name in enumerate(("mortality_90d", "mortality_hospital")):
                label = getattr(episodes, name)[b]
                if label >= 0 and episodes.exit[b] != 1:
                    expected[name].append(cross_entropy(logits[b, t, i], label))
        for name, values in expected.items():
            if name != "copula":  # of one random step a stay
                np.testing.assert_allclose(terms[name][b], [np.sum(values), len(values)], rtol=1e-4, err_msg=name)
    averages = means(jax.tree.map(jnp.asarray, terms))
    assert averages["loss"] == pytest.approx(sum(float(v) for name, v in averages.items() if name != "loss"), rel=1e-6)
