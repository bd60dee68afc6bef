"""The world-model table against loops over the record."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from factories import fit_scaler, make_episodes
from sklearn.metrics import roc_auc_score
from toy import ToyDynamics

from sepsis_jax.clinical.features import INDEX
from sepsis_jax.dynamics.baselines import VAR
from sepsis_jax.dynamics.protocol import Step, history_at
from sepsis_jax.dynamics.worldmodel import marginals
from sepsis_jax.dynamics.worldmodel.bounds import Support, confine
from sepsis_jax.dynamics.worldmodel.model import WorldModel
from sepsis_jax.dynamics.worldmodel.prediction import joint_log_density
from sepsis_jax.errors import InputError
from sepsis_jax.evaluation import groups, world_model
from sepsis_jax.evaluation.courses import draw_decisions
from sepsis_jax.evaluation.one_step import CONTINUOUS, analytic, sampled
from sepsis_jax.evaluation.persistence import persistence
from sepsis_jax.evaluation.rollouts import implausible, roll_out
from sepsis_jax.evaluation.scores import Scores, join
from sepsis_jax.evaluation.settings import EvaluationSettings
from sepsis_jax.evaluation.world_model import MODEL, Scored

EPISODES = make_episodes(40, 5, seed=5)
SCALER = fit_scaler(EPISODES)
SUPPORT = jax.tree.map(jnp.asarray, Support.fit(EPISODES, SCALER))
MODEL_OF_TWO = WorldModel("carry", hidden=8, layers=1, members=2)
DECISIONS = (draw_decisions(EPISODES, 20, ahead=1, seed=0), draw_decisions(EPISODES, 20, ahead=2, seed=0))
SETTINGS = EvaluationSettings(decisions=30, samples=10, rollouts=20, rollout_samples=10, draws=100)


class Still(ToyDynamics):
    """Nothing ever changes."""

    def step(self, params, state, action, noise, shared=None):
        return state, Step(state, jnp.ones(38, bool), jnp.float32(0), jnp.zeros(2), state)

    def outcome(self, params, state):
        return jnp.float32(0)


def random_params(model):
    params = model.init(SCALER, SUPPORT, jax.random.key(0))
    noise = np.random.default_rng(0)
    network = jax.tree.map(lambda leaf: leaf + 0.1 * noise.normal(size=leaf.shape).astype(np.float32), params.network)
    return dataclasses.replace(params, network=network)


PARAMS = random_params(MODEL_OF_TWO)


@pytest.fixture(scope="module")
def exact():
    return analytic(MODEL_OF_TWO, PARAMS, EPISODES, SCALER, SUPPORT)


def mean(scores, name):
    total = scores.means[name].sum(axis=0)
    return total[0] / total[1]


def test_no_change_equals_a_loop():
    z = np.asarray(SCALER.normalize(EPISODES.obs))
    measured, every = [], []
    for b in range(EPISODES.num_stays):
        for t in range(EPISODES.length[b] - 1):
            error = np.abs(z[b, t + 1] - z[b, t])
            every.extend(error)
            measured.extend(error[np.append(EPISODES.mask[b, t + 1], True)])
    scores = persistence(EPISODES, SCALER, *DECISIONS)
    assert mean(scores, "mae_1step") == pytest.approx(np.mean(measured), rel=1e-5)
    assert mean(scores, "mae_1step_all") == pytest.approx(np.mean(every), rel=1e-5)
    assert scores.means["mae_1step"][:, 1].sum() == len(measured)


def test_model_figures_equal_a_loop_over_decisions(exact):
    """Each decision encoded on its own, each member by itself, the mixture taken by hand."""
    rows, steps = np.nonzero(EPISODES.valid)
    following = np.minimum(steps + 1, EPISODES.num_steps - 1)
    measured = np.append(EPISODES.mask[rows, following], np.ones((len(rows), 1), bool), axis=1)
    keys = jax.vmap(
        lambda stay, step: jax.random.split(jax.random.fold_in(jax.random.key(0), stay), EPISODES.num_steps)[step]
    )(EPISODES.stay_id[rows], steps)

    def decide(member, history, action, obs, seen, key):
        own = MODEL_OF_TWO.member(PARAMS, member)
        state = MODEL_OF_TWO.encode(own, history)
        decoded = MODEL_OF_TWO.decode(own, state, action)
        hazard = jax.nn.sigmoid(decoded.exit_logit[0])
        death = hazard + (1 - hazard) * MODEL_OF_TWO.outcome(own, state)
        density = joint_log_density(decoded, own.support, SCALER, obs, seen, key)
        half = own.support.denormalize(marginals.value(decoded.values, jnp.zeros(39)))
        center = SCALER.normalize(jnp.clip(half, own.support.low, own.support.high))
        leaves = (1 - hazard) * jax.nn.sigmoid(decoded.exit_logit[1])
        ends = jnp.stack([hazard + leaves * MODEL_OF_TWO.outcome(own, state), hazard + leaves])
        return center, density, jax.nn.sigmoid(decoded.vent_logit), death, ends

    every = jax.jit(jax.vmap(jax.vmap(decide, (None, 0, 0, 0, 0, 0)), (0, None, None, None, None, None)))
    center, density, vent, death, ends = jax.tree.map(
        np.asarray,
        every(jnp.arange(2), history_at(EPISODES, rows, steps), EPISODES.action[rows, steps],
              EPISODES.obs[rows, following], measured, keys),
    )  # fmt: skip
    point = jax.vmap(lambda obs: confine(SUPPORT, obs, jnp.ones(39, bool)))(SCALER.denormalize(center.mean(axis=0)))
    error = np.abs(np.asarray(SCALER.normalize(point)) - np.asarray(SCALER.normalize(EPISODES.obs[rows, following])))
    has_next = steps + 1 < EPISODES.length[rows]
    kept = measured[has_next]
    assert mean(exact, "mae_1step") == pytest.approx(error[has_next][kept].mean(), rel=1e-4)
    mixed = -np.log(np.exp(density[:, has_next].astype(np.float64)).mean(axis=0))
    assert mean(exact, "nll") == pytest.approx(mixed.sum() / kept[:, CONTINUOUS].sum(), rel=1e-3)
    probability = vent.mean(axis=0)[has_next]
    labelled = exact.labelled["ventilation"]
    np.testing.assert_array_equal(labelled.label, EPISODES.ventilated[rows, following][has_next])
    np.testing.assert_allclose(labelled.chance, probability, atol=1e-5)
    last = death.mean(axis=0)[~has_next]
    np.testing.assert_allclose(exact.labelled["mortality_running"].chance, last, atol=1e-5)
    ending, leaving = ends.mean(axis=0)[~has_next].T
    expected = np.where(EPISODES.exit != 0, ending / leaving, last)  # the record cuts the others off
    np.testing.assert_allclose(exact.labelled["mortality"].chance, expected, atol=1e-5)


@pytest.fixture(scope="module")
def linear():
    return VAR().fit(EPISODES, SCALER, SUPPORT)


def test_linear_baseline_is_a_ridge_regression_and_beats_no_change(linear):
    scores = analytic(VAR(), linear, EPISODES, SCALER, SUPPORT)
    assert mean(scores, "mae_1step") < mean(persistence(EPISODES, SCALER, *DECISIONS), "mae_1step")
    feature = INDEX["meanbp"]
    stay, step = np.nonzero(np.arange(4) < EPISODES.length[:, None] - 1)
    kept = EPISODES.mask[stay, step + 1, feature]
    stay, step = stay[kept], step[kept]
    z = np.asarray(SCALER.normalize(EPISODES.obs))
    hot = np.eye(5)[EPISODES.action[stay, step].astype(int)].reshape(-1, 10)
    static = (EPISODES.static[stay] - SCALER.static_mean) / SCALER.static_sd
    x = np.concatenate([z[stay, step], EPISODES.mask[stay, step], hot, static, np.ones((len(stay), 1))], axis=1)
    y = z[stay, step + 1, feature]
    weight = np.linalg.solve(x.T @ x + np.eye(91), x.T @ y)
    np.testing.assert_allclose(linear.weight[:, feature], weight, atol=1e-4)
    np.testing.assert_allclose(linear.sd[feature], np.sqrt(np.mean((y - x @ weight) ** 2)), rtol=1e-4)


def test_samples_of_the_linear_baseline_agree_with_its_distribution(linear):
    """Two ways to the same figure: the sample median is near the median, intervals cover what they say."""
    decisions = draw_decisions(EPISODES, 200, ahead=1, seed=0)
    drawn = sampled(VAR(), linear, EPISODES, SCALER, decisions, samples=100)
    assert mean(drawn, "mae_1step_sampled") == pytest.approx(
        mean(analytic(VAR(), linear, EPISODES, SCALER, SUPPORT), "mae_1step"), rel=0.03
    )
    assert mean(drawn, "coverage80") == pytest.approx(0.8, abs=0.08)
    assert mean(drawn, "crps") < mean(drawn, "mae_1step_sampled")


def test_no_change_scores_as_samples_of_it_do():
    episodes = make_episodes(40, 16, seed=6)
    ahead, starts = (draw_decisions(episodes, 30, ahead=steps, seed=0) for steps in (1, 2))
    found = persistence(episodes, SCALER, ahead, starts).means
    drawn = sampled(Still(), None, episodes, SCALER, ahead, samples=3)
    drawn |= roll_out(Still(), None, episodes, SCALER, SUPPORT, starts, samples=3)
    compared = [name for name in drawn.means if name in found]
    assert len(compared) == 12
    for name in compared:
        np.testing.assert_allclose(found[name], drawn.means[name], rtol=1e-4, atol=2e-3, err_msg=name)


def test_roll_outs_of_no_change_equal_a_loop():
    episodes = make_episodes(40, 8, seed=6)
    decisions = draw_decisions(episodes, 15, ahead=6, seed=0)
    scores = roll_out(Still(), None, episodes, SCALER, SUPPORT, decisions, samples=2)
    z = np.asarray(SCALER.normalize(episodes.obs))
    ends = np.zeros((2, 39, 2))
    for hours in (8, 24):
        step = hours // 4
        seen = np.array([np.append(episodes.mask[b, t + step], True) for b, t in zip(*decisions, strict=True)])
        change = np.array([z[b, t + step] - z[b, t] for b, t in zip(*decisions, strict=True)])
        assert mean(scores, f"mae_{hours}h") == pytest.approx(np.abs(change)[seen].mean(), rel=1e-5)
        assert mean(scores, f"crps_{hours}h") == pytest.approx(np.abs(change)[seen].mean(), rel=1e-4)
        drift = scores.features[f"drift_{hours}h"].sum(axis=0)
        np.testing.assert_allclose(drift[:, 0], -(change * seen).sum(axis=0), atol=1e-3)
        np.testing.assert_array_equal(drift[:, 1], seen.sum(axis=0))
    for b, t in zip(*decisions, strict=True):
        for later in range(t + 1, min(t + 13, episodes.length[b])):
            seen = np.append(episodes.mask[b, later], True)
            for end, reached in enumerate((lambda x: x <= SUPPORT.low, lambda x: x >= SUPPORT.high)):
                excess = np.asarray(reached(episodes.obs[b, t])) * 1.0 - np.asarray(reached(episodes.obs[b, later]))
                ends[end] += np.stack([excess, np.ones(39)], axis=1) * seen[:, None]
    np.testing.assert_allclose(scores.features["at_bound"].sum(axis=0), ends.reshape(-1, 2), atol=1e-4)
    assert mean(scores, "implausible_share") == 0


@pytest.mark.parametrize(
    ("feature", "value"), [("gcs_eye", 2.5), ("spo2", 120.0), ("meanbp", 200.0), ("ph", np.nan), ("lactate", -1.0)]
)
def test_faults_are_seen(feature, value):
    obs = jnp.asarray(EPISODES.obs[0, 0])
    fine = Step(obs, jnp.ones(38, bool), 0.0, jnp.zeros(2), obs.at[jnp.array([8, 9, 10])].set(3.0))
    assert not implausible(fine)
    assert implausible(dataclasses.replace(fine, value=fine.value.at[INDEX[feature]].set(value)))


def test_table_with_a_compared_model_has_paired_differences(exact):
    same = Scored(EPISODES.subject_id, {MODEL: exact, "published": exact}, {})
    metrics = world_model.tabulate(same, SETTINGS).metrics
    assert metrics["diff_nll"] == metrics["diff_nll_low"] == metrics["diff_nll_high"] == 0
    assert metrics["published_nll"] == metrics["nll"]
    worse = {name: total + [0.1, 0] * total[:, 1:] for name, total in exact.means.items()}
    shifted = Scored(EPISODES.subject_id, {MODEL: Scores(worse), "published": exact}, {})
    metrics = world_model.tabulate(shifted, SETTINGS).metrics
    for end in ("", "_low", "_high"):
        assert metrics[f"diff_mae_1step{end}"] == pytest.approx(0.1, abs=1e-3)
    assert metrics["mae_1step_high"] - metrics["mae_1step_low"] > 0.005


def test_every_row_holds_its_value_or_a_reason(exact):
    evaluation = world_model.tabulate(Scored(EPISODES.subject_id, {MODEL: exact}, {}), SETTINGS)
    assert {"mae_1step", "mae_1step_all", "nll", "ventilation_auroc", "mortality_ece"} <= evaluation.metrics.keys()
    for row in evaluation.rows:
        if row["metric"].endswith("_ece"):  # see `discrimination.ece`
            assert np.isnan(row["low"]) and evaluation.metrics[row["metric"] + "_low"] is None and row["value"] > 0
            continue
        assert row["low"] <= row["value"] <= row["high"] and row["reason"] == "", row
        assert evaluation.metrics[row["metric"] + "_low"] == row["low"]
    assert world_model.wide(evaluation.rows).loc["nll", MODEL].startswith(f"{evaluation.metrics['nll']:.3g} [")


def test_an_absent_class_is_reported_with_its_reason():
    nobody = dataclasses.replace(
        EPISODES, mortality_90d=np.zeros(40, np.int8), mortality_hospital=-np.ones(40, np.int8)
    )
    scores = analytic(MODEL_OF_TWO, PARAMS, nobody, SCALER, SUPPORT)
    evaluation = world_model.tabulate(Scored(nobody.subject_id, {MODEL: scores}, {}), SETTINGS)
    reasons = {row["metric"]: row["reason"] for row in evaluation.rows}
    assert reasons["mortality_auroc"] == "every label is negative" and evaluation.metrics["mortality_auroc"] is None
    assert reasons["hospital_mortality_brier"] == "no label is known" and reasons["mae_1step"] == ""


def test_groups_equal_the_stays_in_them(exact):
    found = groups.group_rows(exact, EPISODES, ("sex", "age_band", "any_vasopressor"), SETTINGS)
    flat = groups.flat(found)
    woman = EPISODES.static[:, 1] == 0
    labelled = exact.labelled["mortality"]
    auroc = roc_auc_score(labelled.label[woman], labelled.chance[woman])
    assert flat["mortality_auroc_sex_female"] == pytest.approx(auroc)
    total = exact.means["mae_1step"][woman].sum(axis=0)
    assert flat["mae_1step_sex_female"] == pytest.approx(total[0] / total[1])
    bands = [flat[f"stays_age_band_{name}"] for name in ("18-49", "50-64", "65-79", "80+")]
    assert sum(bands) == 40 and flat["stays_sex_female"] == woman.sum()
    old = EPISODES.static[:, 0] >= 80
    assert bands[3] == old.sum()
    assert "sex: female" in groups.wide(found).index
    with pytest.raises(InputError, match="--by: expected some of sex"):
        groups.parse("sex,colour")
    with pytest.raises(InputError, match=r"by: expected some of sex, .* found Sex"):
        groups.levels(EPISODES, "Sex")


def test_policies_are_grouped_by_what_was_known_at_first():
    """What a patient was given later is a result of the decisions that are judged."""
    prior = np.zeros((40, 2), np.int8)
    prior[:10, 0] = 2
    ventilated = np.broadcast_to(np.arange(EPISODES.num_steps) >= 1, (40, EPISODES.num_steps))
    later = EPISODES.replace(prior_action=prior, ventilated=ventilated)
    for by, first in (("any_vasopressor", 10), ("ventilated", 0)):
        names, level = groups.levels(later, by, at_first=True)
        assert names == ["not at first", "at first"] and level.sum() == first and level[:first].all()
    assert groups.levels(later, "ventilated")[1].any()


def test_joined_parts_keep_their_stays_apart(exact):
    twice = join([exact, exact], [40, 40])
    np.testing.assert_array_equal(twice.means["nll"], np.concatenate([exact.means["nll"]] * 2))
    stay = exact.labelled["ventilation"].stay
    np.testing.assert_array_equal(twice.labelled["ventilation"].stay, np.concatenate([stay, stay + 40]))


def test_a_part_without_a_figure_counts_nothing_there(exact):
    """A fold of short stays has no decision that is followed for 8 h."""
    less = Scores(
        *(
            {n: v for n, v in part.items() if n not in ("nll", "drift_8h", "ventilation")}
            for part in (exact.means, exact.features, exact.labelled)
        )
    )
    for parts in ([less, exact], [exact, less], [Scores(), exact]):
        both = join(parts, [40, 40])
        assert both.means["nll"].shape == (80, 2)
        np.testing.assert_array_equal(both.means["nll"].sum(axis=0), exact.means["nll"].sum(axis=0))
        found = both.labelled["ventilation"]
        assert found.label.size == exact.labelled["ventilation"].label.size
        assert (found.stay.min() >= 40) == (parts[1] is exact)
