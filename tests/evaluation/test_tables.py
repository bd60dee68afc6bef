"""Table 1, the safety table and the patient bootstrap, against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from factories import make_episodes

from sepsis_jax.clinical.actions import AI_CLINICIAN_BINS
from sepsis_jax.clinical.features import INDEX
from sepsis_jax.evaluation import cohort, safety
from sepsis_jax.ope.bootstrap import patient_counts, ratio_interval

EPISODES = make_episodes(30, 6, seed=2)
MAP, LACTATE = INDEX["meanbp"], INDEX["lactate"]


def test_table_one_counts():
    table = cohort.table_one(EPISODES)
    assert [int(table[name]["stays"]) for name in ("train", "validation", "test")] == list(
        np.bincount(EPISODES.split, minlength=3)
    )
    died = int((EPISODES.mortality_90d == 1).sum())
    assert table["all"]["90-day mortality"] == f"{died} ({died / 30:.1%})"
    low, median, high = np.quantile(EPISODES.static[:, 0], [0.25, 0.5, 0.75])
    assert table["all"]["age, years"] == f"{median:.3g} ({low:.3g}-{high:.3g})"


def test_unknown_mortality_is_said():
    unknown = EPISODES.replace(mortality_90d=np.full(30, -1, np.int8))
    assert cohort.table_one(unknown)["all"]["90-day mortality"] == "unknown"
    assert cohort.flat(unknown)["mortality_90d"] is None


def test_table_one_with_an_empty_split():
    assert cohort.table_one(EPISODES.replace(split=np.zeros(30, np.int8)))["test"]["stays"] == "0"


def test_feature_table_is_over_measured_entries():
    table = cohort.feature_table(EPISODES)
    values = [
        float(EPISODES.obs[b, t, LACTATE])
        for b in range(30)
        for t in range(EPISODES.length[b])
        if EPISODES.mask[b, t, LACTATE]
    ]
    row = table.loc["lactate"]
    np.testing.assert_allclose([row["mean"], row["SD"]], [np.mean(values), np.std(values)], rtol=1e-5)
    np.testing.assert_allclose(row["measured share"], len(values) / EPISODES.length.sum())
    assert table.loc["output_4hourly", "measured share"] == 1


def test_action_shares():
    shares = cohort.action_shares(EPISODES)
    count = sum(tuple(EPISODES.action[b, t]) == (2, 3) for b in range(30) for t in range(EPISODES.length[b]))
    np.testing.assert_allclose(shares.loc[2, 3], count / EPISODES.length.sum())
    np.testing.assert_allclose(shares.to_numpy().sum(), 1)


def certain(levels, episodes=EPISODES):
    """f32[B,T,25] of levels int[B,T,2]."""
    return np.eye(25, dtype=np.float32)[5 * levels[..., 0] + levels[..., 1]] * episodes.valid[..., None]


def test_a_policy_of_chance_breaks_a_rule_with_its_probability():
    one, other = (certain(np.broadcast_to(np.array(pair), EPISODES.action.shape)) for pair in ((0, 0), (4, 1)))
    policies = {"one": one, "other": other, "both": 0.25 * one + 0.75 * other}
    table = safety.safety_table(EPISODES, policies, AI_CLINICIAN_BINS, draws=100).set_index(["policy", "rule"])
    violated = table["violated"].unstack(0)
    assert violated["one"].sum() > 0 and violated["other"].sum() > 0
    np.testing.assert_allclose(violated["both"], 0.25 * violated["one"] + 0.75 * violated["other"], rtol=1e-6)


def test_safety_table_equals_a_loop():
    rng = np.random.default_rng(0)
    obs = EPISODES.obs.copy()
    obs[..., MAP] = rng.uniform(45, 105, obs.shape[:2])
    episodes = EPISODES.replace(obs=obs)
    levels = rng.integers(0, 5, episodes.action.shape).astype(np.int8) * (rng.random((*obs.shape[:2], 1)) < 0.5)
    table = safety.safety_table(episodes, {"mine": certain(levels, episodes)}, AI_CLINICIAN_BINS, draws=100)
    count = {"hypoperfusion": [0, 0], "vasopressor_weaning": [0, 0], "underdosing": [0, 0], "overdosing": [0, 0]}
    for b in range(30):
        for t in range(episodes.length[b]):
            meanbp, lactate = obs[b, t, MAP], obs[b, t, LACTATE]
            vaso, fluid = levels[b, t]
            before = episodes.action[b, t - 1, 0] if t else episodes.prior_action[b, 0]
            for rule, at_risk, violated in (
                ("hypoperfusion", lactate > 2 or meanbp < 65, vaso == 0 and fluid == 0),
                ("vasopressor_weaning", meanbp >= 65, vaso > before),
                ("underdosing", meanbp < 55, vaso == 0 and AI_CLINICIAN_BINS.fluid_dose[int(fluid)] / 4 <= 20),
                ("overdosing", meanbp > 95, vaso == 4),
            ):
                count[rule][0] += bool(at_risk and violated)
                count[rule][1] += bool(at_risk)
    for rule, (violated, at_risk) in count.items():
        row = table[(table.policy == "mine") & (table.rule == rule)].iloc[0]
        assert (row.violated, row.at_risk, row.steps) == (violated, at_risk, episodes.length.sum())
        assert violated > 0 and row.rate_low <= row.rate <= row.rate_high


def test_all_policies_are_judged_on_the_same_steps():
    table = safety.safety_table(
        EPISODES, {"none": certain(np.zeros_like(EPISODES.action))}, AI_CLINICIAN_BINS, draws=100
    )
    for rule, part in table.groupby("rule"):
        assert part.at_risk.nunique() == 1, rule
        assert set(part.policy) == {"clinicians", "clinicians (raw doses)", "none"}
    wide = safety.wide(table)
    assert list(wide.columns[:3]) == ["at risk", "clinicians", "none"] and wide.notna().all().all()
    flat = safety.flat(table)
    assert flat["none_vasopressor_weaning_violated"] == 0 and "clinicians_raw_doses_festor_b_rate" in flat


def test_bootstrap_keeps_a_patients_stays_together():
    subject = np.array([5, 5, 7, 9, 9, 9])
    counts = patient_counts(subject, draws=200, seed=0)
    np.testing.assert_array_equal(counts[:, 0], counts[:, 1])
    np.testing.assert_array_equal(counts[:, 3], counts[:, 5])
    np.testing.assert_array_equal(counts[:, [0, 2, 3]].sum(1), 3)
    assert len(np.unique(counts, axis=0)) > 5


def test_ratio_interval_covers_a_known_share():
    rng = np.random.default_rng(1)
    hits = 0
    for repeat in range(200):
        yes = (rng.random(80) < 0.3).astype(float)
        low, high = ratio_interval(yes, np.ones(80), patient_counts(np.arange(80), draws=300, seed=repeat))
        hits += low <= 0.3 <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_ratio_interval_without_anyone_at_risk():
    low, high = ratio_interval(np.zeros(3), np.zeros(3), patient_counts(np.arange(3), draws=100, seed=0))
    assert np.isnan(low) and np.isnan(high)


@pytest.mark.parametrize("name", ["safety_stays", "planner_samples", "draws"])
def test_settings_are_checked(name):
    from sepsis_jax.errors import InputError
    from sepsis_jax.evaluation.settings import EvaluationSettings

    with pytest.raises(InputError, match=f"evaluation: {name}: expected a whole number from"):
        EvaluationSettings(**{name: -1})
