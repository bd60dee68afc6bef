"""Configs and the command line: what is accepted, and one line with exit code 2 for what is not."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import subprocess
import sys
import typing
from pathlib import Path

import pandas as pd
import pytest

from sepsis_jax import cli, config
from sepsis_jax.errors import InputError

ROOT = Path(__file__).parent.parent


@dataclasses.dataclass(frozen=True)
class Flags:
    """Flags of a script.

    Attributes:
      out: a folder.
    """

    out: Path | None = None


def load(*words):
    return config.load(words, Flags, description="test")


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_configs_load(path):
    settings, flags = load("--config", str(path))
    assert settings.cohort.source in ("simulator", "mimic") and flags.out is None
    assert settings.episodes == settings.run / "episodes"


def test_the_command_line_overrides_the_file(tmp_path):
    (tmp_path / "c.yaml").write_text(
        "world_model: {epochs: 3, hidden: 32}\nbuild: {split_fractions: [0.5, 0.25, 0.25]}\n"
    )
    settings, flags = load("--config", str(tmp_path / "c.yaml"), "--world_model.epochs", "5", "--out", "x")
    assert (settings.world_model.epochs, settings.world_model.hidden) == (5, 32)
    assert settings.build.split_fractions == (0.5, 0.25, 0.25) and flags.out == Path("x")
    assert load()[0] == config.Config()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("world_model: {epochz: 3}", "world_model.epochz: expected a known key"),
        ("wordl_model: {epochs: 3}", "wordl_model.epochs: expected a known key"),
        ("world_model: {epochs: many}", "world_model.epochs: expected"),
        ("world_model: {epochs: 1.5}", "world_model.epochs: expected"),
        ("cohort: {source: mars}", "cohort.source: expected"),
        ("cohort: {knobs: {severity: high}}", "severity"),
        ("planner: {shield: 3}", "planner.shield: expected"),
        ("build: {split_fractions: [0.5, 0.5]}", "build.split_fractions: expected"),
        ("build: {split_fractions: [0.9, 0.9, 0.1]}", "split_fractions: expected shares that sum to 1"),
        ("world_model: {epochs: -1}", "epochs: expected a positive number"),
        ("world_model: 3", "expected fields in every section"),
        ("world_model: {learning_rate: .inf}", "learning_rate: expected a positive number"),
        ("world_model: [1", "expected a valid configuration"),
        ("just text", "expected"),
    ],
)
def test_bad_files_get_one_line_that_names_them(tmp_path, text, words):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        load("--config", str(path))
    assert words in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 400


def test_switches_need_no_value_and_hyphens_are_underscores():
    @dataclasses.dataclass(frozen=True)
    class Flags:
        dry_run: bool = False
        what: str = "a-b"

    for words, expected in (((), False), (("--dry-run",), True), (("--dry_run=false",), False)):
        _, flags = config.load([*words, "--world-model.epochs", "3"], Flags, description="")
        assert flags.dry_run is expected and flags.what == "a-b"


def test_the_bad_file_is_named_and_so_is_the_command_line(tmp_path):
    (tmp_path / "bad.yaml").write_text("nope: 1")
    with pytest.raises(InputError, match=r"bad\.yaml: nope: expected a known key"):
        load("--config", str(tmp_path / "bad.yaml"))
    with pytest.raises(InputError, match=r"none\.yaml: expected a file, found no such file"):
        load("--config", str(tmp_path / "none.yaml"))
    with pytest.raises(InputError, match=r"command line: world_model\.epochs: expected"):
        load("--world_model.epochs", "many")
    with pytest.raises(InputError, match=r"command line: .*--nope"):
        load("--nope", "1")


def test_write_json_makes_numbers_finite_and_leaves_nothing_half_written(tmp_path):
    cli.write_json(tmp_path / "new" / "f.json", {"a": 1.5, "b": float("nan"), "c": None, "d": float("inf")})
    assert json.loads((tmp_path / "new" / "f.json").read_text()) == {"a": 1.5, "b": None, "c": None, "d": None}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["f.json"]
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="expected a place that can be written"):
        cli.write_json(tmp_path / "file" / "f.json", {})


@pytest.mark.parametrize(
    ("script", "words", "said"),
    [
        ("prepare_data.py", ("--config", "configs/mimic_iv.yaml", "--source", "nowhere"), "nowhere: expected a folder"),
        ("prepare_data.py", ("--config", "configs/mimic_iv.yaml"), "name its folder with --source"),
        ("prepare_data.py", ("--source", "."), "--source: expected none, as cohort.source is 'simulator'"),
        ("train_wm.py", ("--episodes", "nowhere"), "nowhere/manifest.json: expected an Episodes store"),
        ("evaluate.py", ("--what", "cohort", "--episodes", "nowhere"), "nowhere/manifest.json: expected an Episodes"),
        ("agent_loop.py", ("--agent.follow", "me"), "agent.follow: expected"),
    ],
)
def test_scripts_say_one_line_and_leave_with_2(tmp_path, monkeypatch, capsys, script, words, said):
    words = [str(ROOT / word) if word.startswith("configs/") else word for word in words]
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setattr(sys, "argv", [script, *words])
    with pytest.raises(SystemExit) as left:
        cli.run(importlib.import_module(script.removesuffix(".py")).main)
    out, err = capsys.readouterr()
    assert left.value.code == 2 and out == ""
    assert said in err and err.startswith("error: ") and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_script_in_a_process_of_its_own(tmp_path):
    words = [sys.executable, str(ROOT / "prepare_data.py"), "--cohort.patients", "many"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith("error: command line: cohort.patients")


@pytest.mark.parametrize(
    "words",
    [
        ("--cohort.patients", "0"),
        ("--cohort.seed", "-1"),
        ("--cohort.knobs.severity", ".nan"),
        ("--world_model.seed", str(2**70)),
        ("--build.seed", "-1"),
        ("--build.max_steps", "0"),
        ("--build.start_hours", ".inf"),
        ("--agent.stays", "-1"),
        ("--agent.concurrency", "0"),
        ("--planner.samples", "0"),
        ("--planner.horizon", "0"),
        ("--planner.block", "0"),
        ("--clinician.hidden", "0"),
        ("--clinician.updates", "0"),
        ("--clinician.batch_size", "0"),
        ("--clinician.smoothing", "2"),
        ("--clinician.learning_rate", ".nan"),
        ("--evaluation.seed", "-1"),
        ("--evaluation.draws", "1"),
    ],
)
def test_numbers_out_of_range_are_refused_before_any_work(words):
    with pytest.raises(InputError) as error:
        load(*words)
    field = words[0].split(".")[-1]
    assert re.search(rf"{field}: expected a (whole )?number from", str(error.value))


def test_names_are_shown_as_they_are():
    shown = cli.table(pd.DataFrame({"[/x]": ["[early] fluids"]}, index=["[/]"]), title="[red]")
    with cli.console.capture() as said:
        cli.console.print(shown)
    assert all(text in said.get() for text in ("[/x]", "[early] fluids", "[/]", "[red]"))


def _settings(kind, found):
    """The dataclass `kind` and those in its fields."""
    found.append(kind)
    for inner in typing.get_type_hints(kind).values():
        for one in (inner, *typing.get_args(inner)):
            if dataclasses.is_dataclass(one) and one not in found:
                _settings(one, found)
    return found


def test_every_setting_and_flag_has_a_line_of_help():
    scripts = [path.stem for path in ROOT.glob("*.py") if "class Flags" in path.read_text()]
    assert {"sweep", "evaluate", "agent_loop"} < set(scripts)
    flags = [importlib.import_module(name).Flags for name in scripts]
    for kind in _settings(config.Config, flags):
        without = [
            field.name for field in dataclasses.fields(kind) if not re.search(rf"(?m)^ +{field.name}: ", kind.__doc__)
        ]
        assert not without, f"{kind.__name__}: the parser of --help reads one name a line"
