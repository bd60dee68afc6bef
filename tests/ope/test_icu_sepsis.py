"""Off-policy estimators where the truth is exact: ICU-Sepsis, treated by its expert."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from truths import icu_mdp

from sepsis_jax.ope import bootstrap, logged
from sepsis_jax.ope.diagnostics import diagnose
from sepsis_jax.ope.estimators import estimate, log_weights, terms, value

STAYS = 2000


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def mdp():
    return icu_mdp()


@pytest.fixture(scope="module")
def data(mdp):
    return mdp.draw(STAYS, seed=0)


def follow(mdp, data, policy, q=None):
    stays, states = data
    return logged.target(stays, policy[states], None if q is None else q[states])


@pytest.mark.parametrize(
    ("policy", "exact"),
    [
        (lambda m: np.full((713, 25), 1 / 25), 0.780070904612),
        (lambda m: m.expert, 0.781844890256),
        (lambda m: np.eye(25)[m.best_q.argmax(axis=1)], 0.875141699610),
        (lambda m: np.eye(25)[np.zeros(713, int)], 0.782439),
        (lambda m: np.eye(25)[np.full(713, 24)], 0.763665),
        (lambda m: m.tilt(0.1), 0.789311),
        (lambda m: m.tilt(0.05), 0.796149),
        (lambda m: m.soft(), 0.873955),
    ],
)
def test_exact_values(mdp, policy, exact):
    assert mdp.value(policy(mdp)) == pytest.approx(exact, abs=1e-9 if len(str(exact)) > 9 else 5e-7)


def test_on_policy_identities(mdp, data):
    found, mean = value(data[0], follow(mdp, data, mdp.expert)), data[0].reward.sum(axis=1).mean()
    for name in ("is", "wis", "pdis", "wpdis", "dr", "wdr"):
        assert abs(found[name] - mean) < 1e-12, name


def test_an_outcome_alone_makes_pdis_is(mdp, data):
    found = value(data[0], follow(mdp, data, mdp.tilt(0.1)))
    assert abs(found["pdis"] - found["is"]) < 1e-12


def test_values_of_the_truth_make_dm_exact(mdp, data):
    policy = mdp.tilt(0.1)
    found = value(data[0], follow(mdp, data, policy, mdp.q(policy)))
    assert abs(found["dm"] - mdp.state_values(policy)[data[1][:, 0]].mean()) < 1e-12


def test_estimators_equal_scope_rl(mdp, data):
    theirs = _scope_rl()
    policy = 0.5 * mdp.tilt(0.05) + 0.5 * mdp.expert
    stays, states = data
    q = np.where(stays.valid[..., None], mdp.q(policy)[states], 0.0)
    # After the end both policies give the same action for sure.
    action = np.where(stays.valid, stays.action, 0)
    inputs = {
        "step_per_trajectory": stays.action.shape[1],
        "action": action.ravel(),
        "reward": stays.reward.ravel(),
        "pscore": np.where(stays.valid, stays.behaviour, 1.0).ravel(),
        "evaluation_policy_action_dist": np.where(stays.valid[..., None], policy[states], np.eye(25)[0]).reshape(
            -1, 25
        ),
        "state_action_value_prediction": q.reshape(-1, 25),
        "gamma": 0.97,
    }
    found = value(stays.replace(gamma=0.97), follow(mdp, data, policy, mdp.q(policy)))
    for name, kind in {
        "dm": theirs.DirectMethod,
        "is": theirs.TrajectoryWiseImportanceSampling,
        "pdis": theirs.PerDecisionImportanceSampling,
        "dr": theirs.DoublyRobust,
        "wis": theirs.SelfNormalizedTIS,
        "wpdis": theirs.SelfNormalizedPDIS,
        "wdr": theirs.SelfNormalizedDR,
    }.items():
        assert abs(found[name] - kind().estimate_policy_value(**inputs)) < 1e-9, name


def _scope_rl():
    """scope-rl's module of estimators without what it imports for training."""
    spec = importlib.util.find_spec("scope_rl")
    if spec is None:
        pytest.skip("needs the package scope-rl (pip install --no-deps)")
    stubs = {"gym": types.ModuleType("gym"), "d3rlpy": types.ModuleType("d3rlpy")}
    stubs["d3rlpy.preprocessing"] = types.ModuleType("d3rlpy.preprocessing")
    stubs["d3rlpy.preprocessing"].ActionScaler = stubs["gym"].Env = object
    root = Path(spec.submodule_search_locations[0])
    for name in ("scope_rl", "scope_rl.ope", "scope_rl.ope.discrete"):
        stubs[name] = types.ModuleType(name)
        stubs[name].__path__ = [str(root.joinpath(*name.split(".")[1:]))]
    with pytest.MonkeyPatch.context() as patch:
        for name, module in stubs.items():
            patch.setitem(sys.modules, name, module)
        return importlib.import_module("scope_rl.ope.discrete.basic_estimators")


def test_what_no_data_can_tell_is_refused(mdp, data):
    for policy, least in ((mdp.tilt(0.1), 1500), (mdp.soft(), None)):
        found = diagnose(log_weights(data[0], follow(mdp, data, policy)), data[0].subject_id)
        if least is None:
            assert not found.reliable and found.ess < 50 and "ESS" in found.reason
        else:
            assert found.reliable and found.ess > least and found.max_share < 0.01


BANDS = {  # temperature, estimator: |mean - J|, RMSE from and to, |paired error|
    (0.1, "is"): (0.0065, 0.0075, 0.0155, 0.0035),
    (0.1, "pdis"): (0.0065, 0.0075, 0.0155, 0.0035),
    (0.1, "wis"): (0.0055, 0.0063, 0.0127, 0.0018),
    (0.1, "dr"): (0.0055, 0.0063, 0.0127, 0.0018),
    (0.1, "wdr"): (0.0055, 0.0063, 0.0127, 0.0018),
    (0.1, "wpdis"): (0.0060, 0.0068, 0.0138, 0.0028),
    (0.05, "wis"): (0.0065, 0.0073, 0.0160, 0.0036),
    (0.05, "dr"): (0.0065, 0.0073, 0.0160, 0.0036),
    (0.05, "wdr"): (0.0065, 0.0073, 0.0160, 0.0036),
    (0.05, "wpdis"): (0.0085, 0.0105, 0.0215, 0.0062),
    (0.05, "dm"): (0.0007, 0.0009, 0.0018, np.inf),
}


@pytest.mark.slow
def test_estimates_scatter_around_the_truth(mdp):
    repeats = [mdp.draw(STAYS, seed=1 + number) for number in range(50)]
    naive = np.array([data[0].reward.sum(axis=1).mean() for data in repeats])
    for temperature in (0.1, 0.05):
        policy = mdp.tilt(temperature)
        q, exact, before = mdp.q(policy), mdp.value(policy), mdp.value(mdp.expert)
        run = jax.jit(value)
        found = [run(data[0], follow(mdp, data, policy, q)) for data in repeats]
        for (at, name), (bias, low, high, paired) in BANDS.items():
            if at == temperature:
                estimates = np.array([one[name] for one in found])
                assert abs(estimates.mean() - exact) <= bias, (at, name)
                assert low <= np.sqrt(((estimates - exact) ** 2).mean()) <= high, (at, name)
                assert abs(((estimates - naive) - (exact - before)).mean()) <= paired, (at, name)


@pytest.mark.slow
@pytest.mark.long
def test_intervals_cover_the_truth(mdp):
    repeats, covered = 300, {}
    policy = mdp.tilt(0.1)
    q, exact = mdp.q(policy), mdp.value(policy)
    counts = bootstrap.patient_counts(np.arange(STAYS), draws=1000, seed=0).astype(np.float64)
    prepare = jax.jit(terms)
    for number in range(repeats):
        data = mdp.draw(STAYS, seed=1000 + number)
        each, scale = prepare(data[0], follow(mdp, data, policy, q))
        draws = bootstrap.draw(each, scale, counts)
        total = jax.tree.map(lambda leaf: leaf.sum(axis=0), each)
        point, without = estimate(total, scale), bootstrap.leave_out(each, scale, data[0].subject_id)
        for name in ("wis", "dr", "wdr"):
            one = np.asarray(draws[name])
            for kind, (low, high) in {
                "percentile": bootstrap.interval(one),
                "bca": bootstrap.bca_interval(one, float(point[name]), np.asarray(without[name])),
            }.items():
                covered.setdefault((name, kind), []).append(low <= exact <= high)
    rates = {key: np.mean(inside) for key, inside in covered.items()}
    assert all(0.92 <= rate <= 0.98 for rate in rates.values()), rates
