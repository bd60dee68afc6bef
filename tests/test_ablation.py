"""`evaluate.py --what curriculum` on a small cohort: courses in the simulator, and what worlds expect on record."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from sepsis_jax import checkpoints
from sepsis_jax.agent import probabilities
from sepsis_jax.data import store
from sepsis_jax.policies.rules import Fixed
from sepsis_jax.simulation.policy import probs_on_record

ROOT = Path(__file__).parent.parent
SMALL = (
    *("--cohort.patients", "100", "--clinician.updates", "20", "--planner.samples", "4", "--planner.horizon", "1"),
    *("--policies.fit_stays", "20", "--fqe.updates", "20", "--offline_rl.updates", "4", "--offline_rl.reports", "1"),
    *("--offline_rl.hidden", "8", "--offline_rl.seeds", "2", "--evaluation.draws", "100"),
)


def script(name, run, *words):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        importlib.import_module(name).main(["--run", str(run), *SMALL, *words])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two planners with courses in the simulator, of which the second has probabilities too: those of one action."""
    run, world = tmp_path_factory.mktemp("run"), ("--checkpoint", str(checkpoints.CARRY))
    script("prepare_data", run)
    for name, caution in (("bold", "0"), ("careful", "3")):
        words = ("--agent.follow", "truth", "--agent.stays", "0", "--planner.caution", caution)
        script("agent_loop", run, *world, *words, "--out", str(run / name))
    tested = store.load(run / "episodes")[0].subset("test")
    probs = probs_on_record(Fixed(1, 1), None, tested)
    stays = [
        {
            "stay_id": int(stay),
            "probs": probs[row, :length].tolist(),
            "se": np.zeros((length, 25)).tolist(),
            "dialogues": [4] * int(length),
            "failed": None,
        }
        for row, (stay, length) in enumerate(zip(tested.stay_id, tested.length, strict=True))
    ]
    folder = probabilities.folder_of(run / "careful")
    folder.mkdir()
    probabilities.write(folder / probabilities.FILE, stays, tested.obs.shape[1])
    return run


@pytest.mark.slow
@pytest.mark.long
def test_courses_estimates_and_worlds_stand_side_by_side(run, capsys):
    words = ("--checkpoint", str(checkpoints.CARRY), "--policies.held_out", str(checkpoints.PUBLISHED))
    words += ("--policies.agents", json.dumps([str(run / "bold"), str(run / "careful")]))
    script("evaluate", run, "--what", "curriculum", *words, "--json", str(run / "out.json"))
    numbers, said = json.loads((run / "out.json").read_text()), capsys.readouterr().out
    assert numbers["bold_patients"] == numbers["careful_patients"] == 20 and numbers["careful_adherence"] == 1
    assert numbers["careful_gained"] == pytest.approx(numbers["careful_value"] - numbers["bold_value"], abs=1e-4)
    assert numbers["careful_wis_stays"] == 20
    gains = [numbers[f"careful_{world}_gain"] for world in ("world model", "held-out model", "truth")]
    assert np.isfinite(gains).all() and len(set(gains)) == 3
    assert "Off-policy estimates" in said and "held-out model" in said and "not for care" in said


@pytest.mark.slow
@pytest.mark.long
def test_without_probabilities_there_are_courses_alone(run, capsys):
    script("evaluate", run, "--what", "curriculum", "--policies.agents", json.dumps([str(run / "bold")]))
    said = capsys.readouterr().out
    assert "true value" in said and "Off-policy" not in said
