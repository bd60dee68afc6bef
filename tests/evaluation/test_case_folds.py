"""One stay, cross-validation, fresh patients, and what evaluate.py refuses."""

from __future__ import annotations

import importlib
import json
import pickle
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from factories import fit_scaler, make_episodes

from sepsis_jax import checkpoints, pipeline
from sepsis_jax.clinical.actions import AI_CLINICIAN_BINS, one_hot
from sepsis_jax.clinical.features import INDEX, NAMES, PUBLISHED_MEAN, PUBLISHED_SD, STATICS, URINE
from sepsis_jax.config import CohortSettings, Config
from sepsis_jax.data.store import Manifest
from sepsis_jax.dynamics.worldmodel.bounds import Support
from sepsis_jax.dynamics.worldmodel.model import WorldModel
from sepsis_jax.dynamics.worldmodel.training import Trained, TrainSettings
from sepsis_jax.errors import InputError
from sepsis_jax.evaluation import case_view, folds
from sepsis_jax.evaluation.scores import Labelled, Scores
from sepsis_jax.evaluation.settings import EvaluationSettings
from sepsis_jax.evaluation.world_model import Scored

ROOT = Path(__file__).parents[2]
EPISODES = make_episodes(20, 5, seed=7)
MODEL = WorldModel("carry", hidden=8, layers=1, members=2)


def params_of(model, episodes=EPISODES):
    scaler = fit_scaler(episodes)
    return model.init(scaler, jax.tree.map(jnp.asarray, Support.fit(episodes, scaler)), jax.random.key(0))


def test_one_stay_shows_the_record_beside_the_forecast():
    row = int(np.argmax(EPISODES.length))
    seen = case_view.view(MODEL, params_of(MODEL), EPISODES, row, steps=9, samples=30)
    steps = int(EPISODES.length[row]) - 1
    assert list(seen.table.columns) == [f"hour {4 * (step + 2)}" for step in range(steps)]
    feature = INDEX["meanbp"]
    for step in range(steps):
        hour, measured = 4 * (step + 2), EPISODES.mask[row, step + 1, feature]
        found = {key: seen.numbers[f"meanbp_{hour}h_{key}"] for key in ("recorded", "predicted_low", "predicted_high")}
        assert found["recorded"] == (pytest.approx(EPISODES.obs[row, step + 1, feature]) if measured else None)
        assert found["predicted_low"] < seen.numbers[f"meanbp_{hour}h_predicted"] < found["predicted_high"]
        assert seen.numbers[f"ventilation_{hour}h_recorded"] == EPISODES.ventilated[row, step + 1]
    label = "died" if EPISODES.mortality_90d[row] else "survived"
    assert seen.facts["Death within 90 days"].startswith(label) and 0 < seen.numbers["mortality"] < 1
    assert case_view.find(EPISODES, int(EPISODES.stay_id[3]), "here") == 3
    with pytest.raises(InputError, match="here: stay_id: expected one of 20, "):
        case_view.find(EPISODES, 5, "here")


def test_weighted_quantiles_follow_the_weights():
    value = np.arange(1, 101, dtype=float)[:, None, None]
    even, top = np.full((100, 1), 0.01), (np.arange(100) >= 90)[:, None] * 0.1
    np.testing.assert_allclose(case_view._weighted_quantiles(value, even)[:, 0, 0], [10, 50, 90], atol=1)
    np.testing.assert_allclose(case_view._weighted_quantiles(value, top)[:, 0, 0], [91, 95, 99], atol=1)


def test_folds_keep_patients_together_and_outcomes_even():
    rng = np.random.default_rng(0)
    subject = rng.integers(0, 40, 90)
    outcome = (subject % 3 == 0).astype(int)
    fold = folds.assign(subject, outcome, 5, 0)
    patients = {number: set(subject[fold == number]) for number in range(5)}
    assert sum(map(len, patients.values())) == len(set(subject)) == len(set().union(*patients.values()))
    died = [len({p for p in part if p % 3 == 0}) for part in patients.values()]
    assert max(died) - min(died) <= 1 and (folds.assign(subject, outcome, 5, 1) != fold).any()
    with pytest.raises(InputError, match="--folds: expected at most 20 folds"):
        folds.cross_validate(TrainSettings(), EPISODES, EvaluationSettings(), 21)


def test_cross_validation_tests_every_stay_once(monkeypatch):
    """The pooling alone: untrained models, and the stays' own numbers for scores."""
    seen = []

    def train(settings, episodes, scaler):
        seen.append((settings.architecture, episodes))
        return Trained(MODEL, None, [])

    def score(model, params, test, settings, *, compared, train):
        learned = {int(stay) for stay in seen[-1][1].stay_id}
        assert not learned & {int(stay) for stay in test.stay_id} and train.num_stays > 0
        assert settings.decisions == 10 and len(learned) + test.num_stays == 20
        label = Labelled(np.arange(test.num_stays), test.mortality_90d == 1, test.stay_id / 2000)
        own = Scores({"nll": np.stack([test.stay_id, np.ones(test.num_stays)], axis=1)}, {}, {"mortality": label})
        return Scored(test.subject_id, {"model": own, "var": own}, {})

    monkeypatch.setattr(folds, "train", train)
    monkeypatch.setattr(folds, "score", score)
    settings = EvaluationSettings(decisions=20, draws=100)
    scored, tested = folds.cross_validate(TrainSettings(), EPISODES, settings, 2)
    assert [architecture for architecture, _ in seen] == ["carry", "published"] * 2
    assert sorted(tested.stay_id) == sorted(EPISODES.stay_id)
    np.testing.assert_array_equal(scored.scores["var"].means["nll"][:, 0], tested.stay_id)
    labelled = scored.scores["model"].labelled["mortality"]
    np.testing.assert_array_equal(labelled.stay, np.arange(20))
    np.testing.assert_array_equal(labelled.label, tested.mortality_90d == 1)
    np.testing.assert_array_equal(labelled.chance, tested.stay_id / 2000)


def test_fresh_patients_are_others_and_the_first_ones_do_not_depend_on_their_number():
    config = Config(cohort=CohortSettings(patients=5, seed=3))
    few, _, truth = pipeline.fresh_patients(config, 3)
    more, manifest, _ = pipeline.fresh_patients(config, 6)
    np.testing.assert_array_equal(few.obs, more.obs[:3])
    assert few.subset("test").num_stays == 3 and truth.stay_id.size == 3
    assert manifest.action_bins == AI_CLINICIAN_BINS
    trained = pipeline.simulated(config).subset("train")
    assert not np.isin(trained.static[:, 0], more.static[:, 0]).any()


def evaluate(*words):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        importlib.import_module("evaluate").main([*words])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--by", "sex,colour"), "--by: expected some of sex, age_band"),
        (("--steps", "0"), "--steps: expected a positive number"),
        (("--folds", "1"), "--folds: expected 0, or 2 and more"),
        (("--case", "7", "--compare", "x"), "--case: expected no flags but --episodes, .* found --compare"),
        (("--steps", "3"), "--what all: .* found --steps"),
        (("--what", "ranking", "--checkpoint", "x"), "no flags but --json, found --checkpoint"),
        (("--what", "safety", "--by", "sex"), "--what safety: .* found --by"),
        (("--what", "cohort", "--compare", "x"), "--what cohort: .* found --compare"),
        (("--what", "planner", "--out", "x"), "--what planner: .* found --out"),
        (("--what", "ranking", "--policies.behaviour", "knn"), "behaviour: expected auto or known, found knn"),
        (("--json", "."), "expected a file, found a folder"),
        (("--json", "/dev/null/x.json"), "/dev/null/x.json: expected a place that can be written"),
        (("--what", "world-model", "--folds", "5", "--checkpoint", "x"), "--folds: .* found --checkpoint"),
        (("--folds", "5"), "--what all: .* found --folds"),
        (("--checkpoint", "nowhere"), "nowhere/worldmodel.json: "),
        (("--evaluation.samples", "1"), "samples: expected a whole number from 2"),
        (("--evaluation.rollouts", "0"), "rollouts: expected a whole number from 1"),
        (("--what", "world-model", "--episodes", "nowhere"), "nowhere/manifest.json: expected an Episodes store"),
        (("--case", "0", "--evaluation.fresh_patients", "10"), "--case: expected a stay from 1 to 10"),
    ],
)
def test_bad_flags_are_refused_in_one_line(words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        evaluate(*words)
    assert re.search(said, str(error.value)) and "\n" not in str(error.value)


@pytest.mark.slow
def test_one_stay_of_the_released_layout(tmp_path, monkeypatch, capsys):
    params = params_of(MODEL)
    manifest = Manifest("released", "1", {}, AI_CLINICIAN_BINS, params.scaler, ())
    MODEL.save(tmp_path / "model", params, manifest)
    rng, stays = np.random.default_rng(0), []
    for number in range(2):
        levels = rng.integers(0, 5, (4, 2))
        stay = {"stay_id": 7 + number, "obs": rng.uniform(-1, 1, (4, 39)), "mask": rng.integers(0, 2, (4, 38))}
        stay |= {"static": np.zeros(3), "actions": np.asarray(one_hot(levels)), "sofa": np.zeros(4)}
        stays.append(stay | {"vaso_actions": levels[:, 0], "fluid_actions": levels[:, 1], "mortality_90d": number})
    scale = {"dyn_cols": list(NAMES), "urine_log_transform": True, "urine_idx": URINE}
    scale |= {"dyn_mean": PUBLISHED_MEAN.tolist(), "dyn_std": PUBLISHED_SD.tolist()}
    static = {"dynamic_cols": list(NAMES), "static_cols": list(STATICS)}
    static |= {"static_scaler_mean": [60.0, 5.0], "static_scaler_std": [16.0, 3.0]}
    contents = (pickle.dumps(stays), json.dumps(scale).encode(), json.dumps(static).encode())
    for name, content in zip(pipeline.RELEASED_FILES, contents, strict=True):
        (tmp_path / name).write_bytes(content)
    evaluate("--case", "8", "--episodes", str(tmp_path), "--checkpoint", str(tmp_path / "model"))
    shown = capsys.readouterr().out
    assert "8, woman of 60, Charlson index 5, 16 h recorded" in shown and "Death within 90 days: died |" in shown


@pytest.mark.slow
@pytest.mark.long
def test_packaged_models_are_scored_on_fresh_patients(tmp_path, monkeypatch):
    """The way of configs/embedded.yaml, with untrained models in the place of the packaged ones."""
    for architecture, members in (("carry", 2), ("published", 1)):
        model = WorldModel(architecture, hidden=8, layers=1, members=members)
        params = params_of(model)
        manifest = Manifest("simulator", "seed 0", {}, AI_CLINICIAN_BINS, params.scaler, ())
        model.save(tmp_path / architecture, params, manifest)
        monkeypatch.setattr(checkpoints, architecture.upper(), tmp_path / architecture)
    monkeypatch.chdir(tmp_path)
    small = {"fresh_patients": 30, "decisions": 20, "samples": 4, "rollouts": 10, "rollout_samples": 4, "draws": 100}
    small |= {"effects": 4, "effect_samples": 4}
    words = [word for name, value in small.items() for word in (f"--evaluation.{name}", str(value))]
    words = ["--config", str(ROOT / "configs/embedded.yaml"), "--cohort.patients", "60", *words]
    evaluate(*words, "--what", "world-model", "--by", "sex", "--json", "out.json")
    numbers = json.loads(Path("out.json").read_text())
    shared = {"mae_1step", "mae_1step_all", "nll", "crps", "mae_24h", "mae_48h", "coverage80_min", "coverage80_max"}
    shared |= {"ventilation_auroc", "mortality_auroc", "mortality_ece", "effect_corr_map_4h", "effect_slope_map_4h"}
    shared |= {"effect_corr_within_map_4h", "effect_corr_constants"}
    assert shared <= numbers.keys() and {f"published_{name}" for name in shared} <= numbers.keys()
    assert {"mae_1step_oracle", "crps_oracle", "mae_24h_oracle", "mortality_auroc_oracle"} <= numbers.keys()
    assert {"gap_closed_1step", "diff_crps_low", "diff_mae_48h_high", "var_nll", "stays_sex_male"} <= numbers.keys()
    assert "effect_corr_lactate_24h_likely" in numbers and "mortality_ece_sex_female" in numbers
    assert numbers["mae_1step_oracle"] < numbers["persistence_mae_1step"]
    assert numbers["implausible_share"] == numbers["implausible_share_oracle"] == 0
    evaluate(*words, "--case", "7", "--steps", "2", "--json", "case.json")
    case = json.loads(Path("case.json").read_text())
    assert case["meanbp_8h_predicted_low"] < case["meanbp_8h_predicted"] and "mortality" in case
