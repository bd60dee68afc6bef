"""Counterfactual sweep: `python sweep.py --config configs/demo.yaml [--candidates all] [--samples S] [--out FOLDER]`.

Simulates every candidate at every decision of every stay, and writes statistics to a labelled Zarr store. A sweep that
was stopped, by a kill too, goes on with --resume. On several hosts, start it on each; see docs/accelerators.md.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr
from orbax.checkpoint import multihost
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sepsis_jax import cli, config, files, pipeline, plotting
from sepsis_jax.clinical.features import NAMES
from sepsis_jax.data.episodes import Episodes
from sepsis_jax.dynamics.worldmodel import sharding
from sepsis_jax.dynamics.worldmodel.model import Precision
from sepsis_jax.dynamics.worldmodel.unfinished import digest
from sepsis_jax.errors import SEEDS, InputError, check_range
from sepsis_jax.policies.rules import Fixed, Guideline
from sepsis_jax.simulation import batch, candidates, sweep
from sepsis_jax.simulation.batch import MOST_STEPS
from sepsis_jax.simulation.layout import MOST_SAMPLES
from sepsis_jax.simulation.record import Summarize
from sepsis_jax.simulation.sweep import Sweep
from sepsis_jax.simulation.sweep_store import Unfinished


@dataclasses.dataclass(frozen=True)
class Flags:
    """Flags of sweep.py.

    Attributes:
      episodes: Episodes store; default RUN/episodes.
      checkpoint: world model; default RUN/world_model.
      out: the sweep; default RUN/sweep.zarr; a finished one there is replaced. While it grows it is OUT.unfinished.
      candidates: 'all' (25 actions), a .json file {"name": [[vasopressor, fluid], ...]} of plans, or policies:
        clinician, guideline, untreated.
      hold: 4-h steps that each of the 25 actions is given; then, as after a plan, the clinician estimate goes on.
      samples: simulated futures of a candidate.
      horizon: 4-h steps that are simulated.
      features: to describe, separated by commas, or 'all'.
      steps: decisions of each stay, e.g. 0,1,5; default all.
      stays: ids of stays; default all.
      split: only stays of this split.
      memory: GB that the process may use; default 4, or what the smallest blocks of many cores need.
      precision: of the factors in the world model's products, float32 or bfloat16 (faster; sums stay float32).
      seed: of the random numbers.
      dry_run: print sizes and times, and stop.
      resume: go on with an unfinished sweep.
      figures: draw the first decision, and effects over the stays, as PNGs in OUT.figures.
    """

    episodes: Path | None = None
    checkpoint: Path | None = None
    out: Path | None = None
    candidates: str = candidates.ALL
    hold: int = 1
    samples: int = 1000
    horizon: int = 12
    features: str = ",".join(sweep.KEY_FEATURES)
    steps: str | None = None
    stays: str | None = None
    split: Literal["train", "validation", "test"] | None = None
    memory: float | None = None
    precision: Precision = "float32"
    seed: int = 0
    dry_run: bool = False
    resume: bool = False
    figures: bool = False

    def __post_init__(self) -> None:
        for name, most in (("hold", MOST_STEPS), ("samples", MOST_SAMPLES), ("horizon", MOST_STEPS)):
            if not 1 <= getattr(self, name) <= most:
                raise InputError(f"--{name}", expected=f"a whole number from 1 to {most}", found=getattr(self, name))
        names = self.features.split(",")
        for name in names:
            if self.features != "all" and name not in NAMES:
                raise InputError("--features", expected="names of features, or all", found=name)
            if names.count(name) > 1:
                raise InputError("--features", expected="each name once", found=f"{name} twice")
        check_range(self, "command line", seed=SEEDS)
        if self.hold > 1 and self.candidates != candidates.ALL:
            raise InputError("--hold", expected=f"--candidates {candidates.ALL}", found=self.candidates)
        if self.hold > self.horizon:
            raise InputError("--hold", expected=f"at most --horizon, {self.horizon}", found=self.hold)


def main(argv: list[str]) -> None:
    settings, flags = config.load(argv, Flags, description="Simulate all candidates at all decisions.")
    sharding.one_device_a_core()
    sharding.join_processes()
    out = flags.out or settings.run / "sweep.zarr"
    store, episodes = Unfinished(out), flags.episodes or settings.episodes
    if sharding.is_first():
        _check_places(flags, store, episodes)
    loaded = pipeline.load(settings, episodes, flags.checkpoint or settings.checkpoint)
    plan = _plan(flags, loaded)
    if sharding.is_first() and (flags.dry_run or not store.folder.exists()):
        _announce(plan, store.out)
    if flags.dry_run:
        return
    identity = _identity(flags, loaded, plan)
    if sharding.is_first():
        store.create(plan, identity)
    _wait_for_all("created")
    store.check_same(plan, identity)  # every host: what one does otherwise would leave holes
    _run(plan, store)
    _wait_for_all("swept")
    if sharding.is_first():
        store.finish(plan.regions())
        _summary(out)
        if flags.figures:
            _figures(store.out)
        cli.console.print(f"Sweep: {out}")
    _wait_for_all("finished")


def _check_places(flags: Flags, store: Unfinished, episodes: Path) -> None:
    """InputError where something else would be overwritten, or could not be written after hours."""
    if flags.dry_run:
        return
    store.check(resume=flags.resume)
    if episodes.resolve() in store.out.parents:
        raise InputError(
            store.out, expected="a place outside the episodes", found=episodes, hint="choose another --out"
        )
    figures = _figures_of(store.out)
    if flags.figures and figures.exists() and not figures.is_dir():
        raise InputError(figures, expected="a folder for --figures", found="a file", hint="move it away")


def _wait_for_all(name: str) -> None:
    """Return when every process has come here, hours later perhaps: collectives of devices would give up after 30 s.

    JAX ends this process within two minutes where another one has died.
    """
    if sharding.place()[1] > 1:
        multihost.get_barrier_sync_fn()(key=name, timeout_ms=10**10)


def _plan(flags: Flags, loaded: pipeline.Loaded) -> Sweep:
    policies: dict[str, tuple[Any, Any]] = {
        "clinician": (loaded.policy, loaded.policy_params),
        "guideline": (Guideline(), None),
        "untreated": (Fixed(), None),
    }
    stays = _stays(flags, loaded.episodes)
    steps = range(stays.num_steps) if flags.steps is None else _numbers("--steps", flags.steps)
    names = NAMES if flags.features == "all" else tuple(flags.features.split(","))
    record, longest = Summarize(names), int(np.max(stays.length, initial=0))
    compared = candidates.parse(flags.candidates, flags.hold, policies, "clinician")
    cells = sum(step < longest for step in steps) * sum(len(group.names) for group in compared)  # of one stay
    futures = flags.samples, flags.horizon
    plan = Sweep(
        world=dataclasses.replace(loaded.world, dynamics=dataclasses.replace(loaded.model, precision=flags.precision)),
        params=batch.on_devices(loaded.params),
        clinician=loaded.policy,
        clinician_params=loaded.policy_params,
        episodes=stays,
        steps=tuple(steps),
        candidates=compared,
        record=record,
        samples=flags.samples,
        horizon=flags.horizon,
        seed=flags.seed,
        block=batch.block_for(flags.memory, record, loaded.model.members, *futures, cells),
    )
    if plan.steps[-1] >= longest and flags.steps is not None:
        raise InputError("--steps", expected=f"decisions of some stay, 0 to {longest - 1}", found=plan.steps[-1])
    for group in plan.candidates:
        if group.plans.shape[1] > flags.horizon:
            found = f"{group.plans.shape[1]} in {group.names[0]!r}"
            raise InputError(
                flags.candidates, expected=f"plans of at most --horizon, {flags.horizon} steps", found=found
            )
    return plan


def _stays(flags: Flags, episodes: Episodes) -> Episodes:
    chosen = episodes if flags.split is None else pipeline.part(episodes, flags.split, Path("--split"))
    if flags.stays is None:
        return chosen
    wanted = _numbers("--stays", flags.stays)
    known = set(np.asarray(chosen.stay_id).tolist())
    for stay in wanted:
        if stay not in known:
            where = "the store" if flags.split is None else f"its {flags.split} split"
            raise InputError("--stays", expected=f"ids of stays in {where}", found=stay)
    return chosen.take(np.isin(np.asarray(chosen.stay_id), wanted))


def _numbers(flag: str, text: str) -> list[int]:
    try:
        numbers = sorted({int(word) for word in text.split(",")})
    except ValueError as error:
        raise InputError(flag, expected="whole numbers separated by commas", found=text) from error
    if numbers[0] < 0 or numbers[-1] >= 2**31:
        wrong = numbers[0] if numbers[0] < 0 else numbers[-1]
        raise InputError(flag, expected=f"0 to {2**31 - 1}", found=wrong)
    return numbers


def _announce(plan: Sweep, out: Path) -> None:
    """Sizes and times before the work; InputError where the disk is too small."""
    size, free = sweep.size_bytes(plan), shutil.disk_usage(files.check_writable(out)).free
    cli.console.print("Compiling, and measuring the speed for five seconds")
    speed = sweep.steps_per_second(plan) * sharding.place()[1]
    rows = {
        "stays": f"{plan.episodes.num_stays:,}",
        "decisions": f"{plan.decisions():,}",
        "candidates": f"{len(plan.names):,}",
        "samples (computed)": f"{plan.samples:,} ({plan.simulated:,})",
        "sim-steps": f"{plan.sim_steps():,}",
        "sim-steps a second": f"{speed:,.0f}",
        "time": str(pd.Timedelta(seconds=math.ceil(plan.sim_steps() / speed))),
        "store before compression, GB": f"{size / 1e9:.3g}",
        "free disk, GB": f"{free / 1e9:.2f}",
    }
    cli.console.print(cli.table(pd.DataFrame({"value": rows}), title="Sweep"))
    if size > free:
        hint = "choose fewer --features, --steps or --stays, or another disk"
        expected = f"{size / 1e9:.2f} GB of free disk"
        raise InputError(out, expected=expected, found=f"{free / 1e9:.2f} GB", hint=hint)


def _identity(flags: Flags, loaded: pipeline.Loaded, plan: Sweep) -> dict[str, Any]:
    """What makes two sweeps the same one, in JSON types; it stays with the store."""
    numbers = ("hold", "samples", "horizon", "features", "steps", "seed")
    return {
        **{name: getattr(flags, name) for name in numbers},
        "names": list(plan.names),
        "plans": digest([group.plans for group in plan.candidates]),
        "stays": digest(dataclasses.replace(plan.episodes, propensity=None)),
        "block": plan.block,
        "source": loaded.manifest.source,
        "source_version": loaded.manifest.source_version,
        "credentialed": loaded.manifest.credentialed,
        "action_bins": plan.world.bins._asdict(),
        "reward": dataclasses.asdict(plan.world.reward),
        "world_model": dataclasses.asdict(loaded.model),
        "precision": flags.precision,
        "weights": digest(loaded.params),
        "clinician": [repr(loaded.policy), digest(loaded.policy_params)],
        "code_version": version("sepsis_jax"),
        "random_numbers": "threefry",
    }


def _run(plan: Sweep, store: Unfinished) -> None:
    """Compute and write what is missing, with its progress."""
    what, done, speed = (TextColumn("{task." + name + "}") for name in ("description", "completed", "fields[speed]"))
    columns = (what, BarColumn(), done, TextColumn("of {task.total}"), TimeElapsedColumn())
    process, processes = sharding.place()
    mine = plan.regions()[process::processes]
    todo = store.missing(mine)
    total = sum(region.stop - region.start for region in mine)
    left = sum(region.stop - region.start for region in todo)
    done_steps, start = 0, time.perf_counter()
    with Progress(*columns, TimeRemainingColumn(), speed, disable=not sharding.is_first()) as progress:
        label = "stays" if processes == 1 else "stays of this host"
        task = progress.add_task(label, total=total, completed=total - left, speed="")
        for region in todo:
            store.write(region, plan.run(region))
            done_steps += plan.sim_steps(region)
            rate = done_steps / (time.perf_counter() - start)
            progress.update(task, advance=region.stop - region.start, speed=f"{rate:,.0f} sim-steps/s")


def _summary(out: Path) -> None:
    """Means over all decisions, by candidate."""
    found = xr.open_zarr(out, consolidated=False)
    means = found[["value", "death_90d", "support"]].mean(("episode", "time")).to_dataframe()
    events = found["events"].isel(horizon=-1).mean(("episode", "time")).to_pandas()
    rows = pd.concat([means[["value", "death_90d", "support"]], events], axis=1)
    cli.console.print(
        cli.table(rows, title="Means over decisions; at the horizon, exits of all and events of those in the ICU")
    )
    cli.console.print("Research software, not for care.")


def _figures_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.figures")


def _figures(out: Path) -> None:
    """What needs all 25 actions is left out where the candidates are others."""
    found = xr.open_zarr(out, consolidated=False)
    row, column = np.argwhere(np.isfinite(found["value"].values).any(axis=2))[0]
    here = found.isel(episode=row, time=column)
    episode, step, labels = here.episode.item(), here.time.item(), found.candidate.values.tolist()
    figures = {}
    if plotting.has_all_actions(found):
        figures = {
            "maps": plotting.sweep_maps(found, episode, step),
            "effects": plotting.sweep_effects(found, step),
        }
        best, usual = (labels[int(np.nanargmax(here[name].values))] for name in ("value", "support"))
        labels = list(dict.fromkeys([best, usual, "(0, 0)"]))
    else:
        cli.console.print("Maps and effects are left out: they need all 25 actions.")
    figures["fans"] = plotting.sweep_fans(found, episode, step, labels[:3])
    folder = _figures_of(out)
    for name, figure in figures.items():
        files.write(folder / f"{name}.png", plotting.png(figure))
    cli.console.print(f"Figures: {folder}")


if __name__ == "__main__":
    cli.run(main)
