"""Sweeps: what the store holds, and that a stopped one goes on to the same bytes."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import json
import shutil
import types
from pathlib import Path

import jax
import numpy as np
import pytest
import xarray as xr
from disks import full_disk
from factories import make_episodes
from toy import toy_params, toy_world

from sepsis_jax.clinical.features import UNITS
from sepsis_jax.dynamics.protocol import history_at
from sepsis_jax.errors import InputError
from sepsis_jax.files import digests
from sepsis_jax.policies.clinician import Clinician, ClinicianSettings
from sepsis_jax.policies.rules import Fixed, Guideline
from sepsis_jax.simulation import candidates
from sepsis_jax.simulation.batch import simulate
from sepsis_jax.simulation.policy import RARE
from sepsis_jax.simulation.record import Summarize
from sepsis_jax.simulation.sweep import Sweep, size_bytes
from sepsis_jax.simulation.sweep_store import Unfinished

EPISODES = make_episodes(5, 6, seed=3)
POLICIES = {"guideline": (Guideline(), None), "untreated": (Fixed(), None)}
RECORD = Summarize(("meanbp", "lactate"))
IDENTITY = {"seed": 0, "samples": 20}


def make_sweep(text="all", **changes):
    chosen = candidates.parse(text, 1, POLICIES, "guideline")
    settings = {"samples": 20, "horizon": 3, "seed": 0, "steps": (0, 1, 4), "block": 1024} | changes
    return Sweep(
        toy_world(), toy_params(), Guideline(), None, EPISODES, candidates=chosen, record=RECORD, **settings
    )  # fmt: skip


def write(out, sweep, *, identity=IDENTITY, resume=False, regions=None):
    store = Unfinished(out)
    store.check(resume=resume)
    store.create(sweep, identity)
    store.check_same(sweep, identity)
    for region in store.missing(sweep.regions())[:regions]:
        store.write(region, sweep.run(region))
    return store


def complete(out, sweep, **more):
    write(out, sweep, **more).finish(sweep.regions())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep") / "sweep.zarr"
    complete(out, make_sweep())
    return out


def test_the_store_holds_what_simulate_gives(whole):
    found = xr.open_zarr(whole, consolidated=False)
    sizes = {"episode": 5, "time": 3, "candidate": 25, "horizon": 3, "feature": 2, "statistic": 6, "event": 8}
    assert dict(found.sizes) == sizes
    row, step = 2, 1
    stay = int(EPISODES.stay_id[row])
    plans = np.broadcast_to(make_sweep().candidates[0].plans, (1, 25, 1, 2))
    direct = simulate(
        toy_world(), toy_params(), None, history_at(EPISODES, [row], [step]), plans, jax.random.key(0),
        record=RECORD, samples=20, horizon=3, block=1024,
    )  # fmt: skip
    here = found.sel(episode=stay, time=step)
    picked = here.obs.sel(feature="lactate", statistic="q90", candidate="(1, 2)").values
    np.testing.assert_array_equal(picked, direct.quantile[0, 7, :, 1, 2])
    np.testing.assert_array_equal(here.value.values, direct.value[0])
    np.testing.assert_array_equal(here.events.sel(event="died").values, direct.died[0])
    np.testing.assert_array_equal(here.events.sel(event="map_below_65").values, direct.events["map_below_65"][0])
    assert found.feature_units.values.tolist() == [UNITS[3], "mmol/L"]
    assert found.horizon.values.tolist() == [4, 8, 12]
    support = here.support.values
    assert support.sum() == pytest.approx(1.0) and (here.out_of_distribution.values == (support < RARE)).all()


def test_decisions_that_a_stay_does_not_have_are_nan(whole):
    found = xr.open_zarr(whole, consolidated=False)
    missing = np.isnan(found.value.values).all(axis=2)
    np.testing.assert_array_equal(missing, EPISODES.length[:, None] <= np.array([0, 1, 4]))
    assert missing.any() and not missing.all()


def test_a_region_of_stays_that_are_too_short_is_nan():
    found = make_sweep(steps=(5, 40)).run(slice(0, 5))
    assert np.isnan(found["obs"][:, 1]).all() and found["obs"].shape == (5, 2, 25, 3, 2, 6)
    assert all(np.isnan(values).all() for values in make_sweep(steps=(40,)).run(slice(0, 2)).values())


def test_a_stopped_sweep_goes_on_to_the_same_bytes(tmp_path, whole):
    out = tmp_path / "sweep.zarr"
    sweep = make_sweep()
    assert len(sweep.regions()) > 2
    store = write(out, sweep, regions=1)
    # A kill within the next region: half of it is there, and no mark.
    region = sweep.regions()[1]
    store.write(region, {"value": np.zeros((region.stop - region.start, 3, 25), np.float32)})
    (store.folder / ".done" / str(region.start)).unlink()
    with pytest.raises(InputError, match="found an unfinished sweep; add --resume"):
        write(out, sweep)
    complete(out, sweep, resume=True)
    assert digests(out) == digests(whole)


def test_the_block_changes_sums_by_rounding_alone(whole):
    found = xr.open_zarr(whole, consolidated=False)
    other = make_sweep(block=8192).run(slice(0, 5))
    for name, values in other.items():
        np.testing.assert_allclose(values, found[name].values, rtol=2e-5, atol=2e-5, err_msg=name)


def test_the_number_of_processes_changes_nothing(tmp_path, whole):
    out = tmp_path / "sweep.zarr"
    sweep = make_sweep()
    stores = [Unfinished(out) for _ in range(2)]
    stores[0].create(sweep, IDENTITY)
    for process, store in enumerate(stores):
        for region in store.missing(sweep.regions()[process::2]):
            store.write(region, sweep.run(region))
    stores[0].finish(sweep.regions())
    assert digests(out) == digests(whole)


def test_a_store_with_holes_is_not_finished(tmp_path):
    store = write(tmp_path / "sweep.zarr", make_sweep(), regions=1)
    with pytest.raises(InputError, match=r"expected every region, found \d missing; .* with --resume"):
        store.finish(make_sweep().regions())
    assert store.folder.exists() and not store.out.exists()


def test_hosts_that_disagree_or_see_another_disk_are_told(tmp_path):
    write(tmp_path / "sweep.zarr", make_sweep(), regions=0, identity=IDENTITY | {"block": 1024})
    with pytest.raises(InputError, match=r"block: .* 1024, found 512; block follows --memory and the number of"):
        Unfinished(tmp_path / "sweep.zarr").check_same(make_sweep(block=512), {"block": 512})
    with pytest.raises(InputError, match="name an --out that all hosts see"):
        Unfinished(tmp_path / "elsewhere.zarr").check_same(make_sweep(), IDENTITY)


def test_what_came_to_its_place_meanwhile_is_not_replaced(tmp_path):
    out, sweep = tmp_path / "sweep.zarr", make_sweep("untreated")
    store = write(out, sweep)
    out.mkdir()
    (out / "mine.txt").write_text("")
    with pytest.raises(InputError, match="expected a new folder or a sweep"):
        store.finish(sweep.regions())
    assert (out / "mine.txt").exists() and store.folder.exists()


def test_another_sweep_is_not_resumed(tmp_path):
    out = tmp_path / "sweep.zarr"
    write(out, make_sweep(), regions=1)
    with pytest.raises(InputError, match="samples: expected the unfinished sweep's 20, found 21"):
        write(out, make_sweep(), identity=IDENTITY | {"samples": 21}, resume=True)
    (tmp_path / "sweep.zarr.unfinished" / "zarr.json").write_text("{")
    with pytest.raises(InputError, match="expected an unfinished sweep"):
        write(out, make_sweep(), resume=True)


def test_what_is_not_unfinished_is_not_resumed(tmp_path, whole):
    out = tmp_path / "sweep.zarr"
    shutil.copytree(whole, out)
    with pytest.raises(InputError, match="expected an unfinished sweep, found a finished one; leave --resume out"):
        write(out, make_sweep(), resume=True)
    assert digests(out) == digests(whole)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: shutil.rmtree(folder / "value"), "value: expected an array"),
        (lambda folder: (folder / "value" / "zarr.json").write_text("{"), "value: expected an array"),
        (lambda folder: shutil.rmtree(folder / ".done"), "expected a folder of marks, found none; remove"),
    ],
)
def test_a_damaged_store_is_not_resumed(tmp_path, damage, message):
    out = tmp_path / "sweep.zarr"
    damage(write(out, make_sweep(), regions=1).folder)
    with pytest.raises(InputError, match=message) as caught:
        write(out, make_sweep(), resume=True)
    assert "\n" not in str(caught.value)


def test_a_link_stays_a_link(tmp_path, whole):
    (tmp_path / "real").mkdir()
    (tmp_path / "link.zarr").symlink_to(tmp_path / "real")
    complete(tmp_path / "link.zarr", make_sweep())
    assert (tmp_path / "link.zarr").is_symlink() and digests(tmp_path / "real") == digests(whole)
    with pytest.raises(InputError, match="the root of the file system"):
        Unfinished(Path("/"))


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"sweep.zarr: expected a place that can be written, found .*/file, which"):
        Unfinished(tmp_path / "file" / "sweep.zarr").check(resume=False)


def test_something_else_is_not_replaced(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="expected a new folder or a sweep"):
        write(tmp_path, make_sweep())


def test_a_finished_sweep_is_replaced(tmp_path, whole):
    out = tmp_path / "sweep.zarr"
    shutil.copytree(whole, out)
    left = tmp_path / ".sweep.zarr.old"  # by a kill during the last replacement
    shutil.copytree(whole, left)
    sweep = make_sweep("untreated")
    complete(out, sweep)
    assert xr.open_zarr(out, consolidated=False).sizes["candidate"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.zarr"]


def test_a_full_disk_is_one_line_and_can_be_resumed(tmp_path, whole):
    out = tmp_path / "sweep.zarr"
    sweep = make_sweep()
    store = write(out, sweep, regions=1)
    with full_disk(), pytest.raises(InputError, match="--resume"):
        write(out, sweep, resume=True)
    del store
    complete(out, sweep, resume=True)
    assert digests(out) == digests(whole)


def test_figures_of_any_candidates(tmp_path, whole, monkeypatch, capsys):
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    draw = importlib.import_module("sweep")._figures
    shutil.copytree(whole, tmp_path / "all.zarr")
    complete(tmp_path / "two.zarr", make_sweep("guideline,untreated", steps=(0,)))
    for name in ("all", "two"):
        draw(tmp_path / f"{name}.zarr")
    assert capsys.readouterr().out.count("Maps and effects are left out: they need all 25 actions.") == 1
    drawn = {
        name: sorted(path.name for path in (tmp_path / f"{name}.zarr.figures").iterdir()) for name in ("all", "two")
    }
    assert drawn == {"all": ["effects.png", "fans.png", "maps.png"], "two": ["fans.png"]}


def test_what_the_clinicians_are_makes_another_sweep(monkeypatch):
    """Also what no weight of theirs shows, and the version of the code."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    identity = importlib.import_module("sweep")._identity
    flags = types.SimpleNamespace(
        candidates="all", hold=1, samples=20, horizon=3, features="meanbp", steps=None, seed=0, precision="float32"
    )

    def of(policy):
        loaded = types.SimpleNamespace(
            manifest=types.SimpleNamespace(source="simulator", source_version="1", credentialed=False),
            model=toy_params(),
            params=toy_params(),
            policy=policy,
            policy_params=None,
        )
        return identity(flags, loaded, make_sweep())

    one, other = (of(Clinician(ClinicianSettings(smoothing=share))) for share in (0.02, 0.5))
    assert {name for name in one if one[name] != other[name]} == {"clinician"}
    assert one["code_version"] == importlib.metadata.version("sepsis_jax")


def test_plans_from_a_file_and_policies_by_name(tmp_path):
    file = tmp_path / "plans.json"
    plans = {"a": [[0, 1]], "b": [[4, 4], [3, 3]], "c": [[2, 2]]}
    file.write_text(json.dumps(plans))
    sweep = make_sweep(str(file))
    assert sweep.names == ("a", "c", "b")
    found = sweep.at(history_at(EPISODES, [0, 1], [0, 0]))
    every = make_sweep().at(history_at(EPISODES, [0, 1], [0, 0]))
    np.testing.assert_array_equal(found["value"][:, :2], every["value"][:, [1, 12]])
    np.testing.assert_array_equal(found["support"][:, :2], every["support"][:, [1, 12]])
    policies = make_sweep("guideline,untreated").at(history_at(EPISODES, [0, 1], [0, 0]))
    assert policies["value"].shape == (2, 2)
    np.testing.assert_allclose(policies["support"][:, 0], 1.0)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("[", "a JSON file of plans"),
        ("[]", "with levels 0 to 4, found list"),
        ("{}", "with levels 0 to 4, found no plans"),
        ('{"a": [[0, 0]], "a": [[4, 4]]}', "a JSON file of plans, found 'a' twice"),
        ('{"": [[0, 0]]}', "names that can be printed, found ''"),
        ('{"\\ud800": [[0, 0]]}', "names that can be printed"),
        ("[" * 100_000, "a JSON file of plans"),
        ('{"a": [[0, 5]]}', "a: expected"),
        ('{"a": [[0, 1], [2]]}', "a: expected"),
        ('{"a": []}', "a: expected"),
        ('{"a": [[0.5, 1]]}', "a: expected"),
        ('{"a": "x"}', "a: expected"),
    ],
)
def test_bad_plans_are_named(tmp_path, content, expected):
    file = tmp_path / "plans.json"
    file.write_text(content)
    with pytest.raises(InputError, match=expected):
        make_sweep(str(file))


def test_unknown_policies_are_named():
    with pytest.raises(InputError, match=r"--candidates: expected all, .*found 'magic'"):
        make_sweep("untreated,magic")


def test_the_size_is_that_of_the_numbers():
    sweep = make_sweep()
    one = sweep.run(slice(0, 5))
    numbers = sum(int(np.isfinite(values).any(axis=-1).sum()) for values in [one["value"]])
    assert numbers == sweep.decisions()
    per_cell = sum(values[0, 0, 0].size for values in one.values())
    assert size_bytes(sweep) == 4 * per_cell * sweep.decisions() * 25
    assert dataclasses.replace(sweep, steps=(0,)).decisions() == 5
