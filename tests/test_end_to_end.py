"""The scripts in a row, as `make demo` runs them, on a small cohort; the code of the README and of the notebooks."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from sepsis_jax.data import store

ROOT = Path(__file__).parent.parent
SMALL = ("--cohort.patients", "80", "--world_model.epochs", "2", "--clinician.updates", "40", "--planner.samples", "4")
FEW = ("--evaluation.safety_stays", "4", "--evaluation.planner_samples", "4", "--evaluation.decisions", "64",
       "--evaluation.samples", "8", "--evaluation.rollouts", "32", "--evaluation.rollout_samples", "4")  # fmt: skip


def script(name, *words):
    sys.path.insert(0, str(ROOT))
    try:
        importlib.import_module(name).main(["--config", str(ROOT / "configs" / "demo.yaml"), *SMALL, *words])
    finally:
        sys.path.remove(str(ROOT))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run in a folder of its own; the truth is deleted before anything is trained."""
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        script("prepare_data")
        shutil.rmtree(folder / "runs/demo/episodes/truth.zarr")
        script("train_wm")
        script("agent_loop", "--agent.stays", "2")
        script("sweep", "--split", "test", "--steps", "0,2", "--samples", "16", "--horizon", "2")
        script("evaluate", "--json", "out.json", *FEW)
        yield folder


@pytest.mark.slow
def test_all_scripts_run_without_the_truth(run):
    numbers = json.loads((run / "out.json").read_text())
    assert numbers["stays"] == 80 and 0 < numbers["mae_1step"] < 2
    assert numbers["planner_guideline_violated"] == 0 and numbers["no_treatment_hypoperfusion_rate"] == 1
    lines = (run / "runs/demo/agent/transcripts.jsonl").read_text().splitlines()
    assert len(lines) == 2 and "not for care" in (run / "runs/demo/agent/report.html").read_text()
    assert (run / "runs/demo/world_model/metrics.csv").read_text().startswith("epoch")
    assert not (run / "runs/demo/episodes/truth.zarr").exists()
    assert store.load(run / "runs/demo/episodes")[0].num_stays == 80


@pytest.mark.slow
def test_the_readme_examples_run(run):
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL):
        exec(compile(block, "README.md", "exec"), names)
    assert names["futures"].quantile.shape == (3, 25, 6, 2, 3) and names["futures"].death_90d.shape == (3, 25)
    assert names["sweep"].sizes["candidate"] == 25 and names["sweep"].sizes["time"] == 2


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.name)
def test_notebooks_run_and_are_stored_without_output(run, path):
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)
    names: dict = {}
    for cell in cells:
        exec(compile("".join(cell["source"]), path.name, "exec"), names)
    assert names["figure"].axes
