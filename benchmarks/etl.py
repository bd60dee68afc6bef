"""Time, memory and disk of raw MIMIC-IV tables -> Episodes, as the data grow.

    python benchmarks/etl.py [--source FOLDER] [--json FILE]

The open demo is copied k times with new patients, admissions and stays (csv.gz, every column of the tables that are
read), and a fresh process goes the whole way: `mimic.extract`, then `builder.build`. From 10 to 40 copies, the time
may grow at most 5 times and the peak memory (resident) at most 1.3 times, to no more than 4 GB; else the exit code is
1. Linux only (/proc).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

import duckdb
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

from sepsis_jax import cli
from sepsis_jax.data.mimic import tables

MIMIC_STAYS, MIMIC_CHART_ROWS = 94_458, 432_000_000  # MIMIC-IV 3.1
SPACING = {  # more than the span of the ids, so that copies do not meet; the ids stay 32-bit
    "subject_id": 1_000_000,
    "hadm_id": 10_000_000,
    "stay_id": 10_000_000,
    "micro_specimen_id": 10_000_000,
}
DEMO = Path(os.environ.get("SEPSIS_JAX_MIMIC_DEMO", "../shared/data/mimic-iv-demo-2.2"))
MAX_TIMES, MAX_GROWTH, MAX_PEAK_GB = 5.0, 1.3, 4.0

# The child tells its own high-water mark: what the parent's rusage says of it begins at the parent's size.
PREPARE = """
import re
import sys
from pathlib import Path
from sepsis_jax.data import builder, mimic

source, folder = Path(sys.argv[1]), Path(sys.argv[2])
machine = {"threads": int(sys.argv[3]), "memory_limit": sys.argv[4], "temp_dir": folder}
extraction = mimic.extract(source, folder / "events", mimic.MimicSettings(**machine))
episodes, _ = builder.build(folder / "events", builder.BuildSettings(**machine), attrition=extraction.attrition)
print(episodes.num_stays, re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


class Cost(NamedTuple):
    """What one run took: seconds, peak memory (GB), peak of temporary files (GB), stays that it made."""

    seconds: float
    peak_gb: float
    disk_gb: float
    stays: int


def main(
    source: Path = DEMO,
    json: Path | None = None,
    copies: list[int] = [1, 10, 40],  # noqa: B006
    threads: int = 2,
    memory_limit: str = "256MB",
) -> int:
    """Measure and print; returns the exit code.

    Args:
      source: MIMIC-IV demo folder; default SEPSIS_JAX_MIMIC_DEMO.
      json: file for the figures.
      copies: how many times the demo.
      threads: of DuckDB.
      memory_limit: of DuckDB; the peak is this and what Python, JAX and the Episodes take.
    """
    console = Console()
    costs: dict[int, Cost] = {}
    for k in copies:
        with tempfile.TemporaryDirectory(prefix="etl-") as folder:
            with console.status(f"copying the demo {k} times"):
                replicate(source, Path(folder) / "mimic", k)
            with console.status(f"preparing {k} times the demo"):
                costs[k] = measure(Path(folder) / "mimic", Path(folder) / "work", threads, memory_limit)
    table = Table("copies", "ICU stays", "episodes", "seconds", "peak GB", "temporary GB")
    for k, cost in costs.items():
        row = (k, 140 * k, cost.stays, f"{cost.seconds:.1f}", f"{cost.peak_gb:.2f}", f"{cost.disk_gb:.2f}")
        table.add_row(*map(str, row))
    console.print(table)
    figures = {
        f"{name}_k{k}": round(getattr(cost, name), 3)
        for name in ("seconds", "peak_gb", "disk_gb")
        for k, cost in costs.items()
    }
    if json is not None:
        cli.write_json(json, figures)
    return report(console, costs)


def replicate(source: Path, target: Path, copies: int) -> None:
    """Write the tables that the extraction reads, `copies` times over, with new ids."""
    con = duckdb.connect()
    con.execute("SET enable_progress_bar = false")
    con.execute("SET preserve_insertion_order = false")
    for table in tables.RAW:
        path = target / f"{table}.csv.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = f"read_csv('{tables.find(source, table)}', all_varchar = true)"
        columns = {row[0] for row in con.execute(f"DESCRIBE FROM {raw}").fetchall()}
        ids = ", ".join(f"{c}::BIGINT + copy * {n} AS {c}" for c, n in SPACING.items() if c in columns)
        con.execute(
            f"COPY (SELECT t.* REPLACE ({ids}) FROM range({copies}) AS copies(copy), {raw} AS t) TO '{path}'"
            " (FORMAT csv, HEADER, COMPRESSION gzip)"
        )


def measure(source: Path, work: Path, threads: int, memory_limit: str) -> Cost:
    """Run the preparation in a process of its own."""
    work.mkdir()
    start = time.perf_counter()
    command = [sys.executable, "-c", PREPARE, str(source), str(work), str(threads), memory_limit]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    largest, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            largest[0] = max(largest[0], disk_usage(work))

    watcher = threading.Thread(target=watch)
    watcher.start()
    output, _ = process.communicate()
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"the preparation failed with exit code {process.returncode}")
    stays, peak_kib = map(int, output.split()[-2:])
    return Cost(seconds, peak_kib * 1024 / 1e9, largest[0] / 1e9, stays)


def disk_usage(folder: Path) -> int:
    """Bytes in the files of a folder that may change meanwhile."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(path, name)).st_size
            except OSError:
                continue
    return total


def report(console: Console, costs: dict[int, Cost]) -> int:
    """Say what full MIMIC-IV will take, and whether the growth is as it should be."""
    if not {10, 40} <= costs.keys():
        return 0
    ten, forty = costs[10], costs[40]
    full = max(MIMIC_STAYS / 140, MIMIC_CHART_ROWS / 668_862)
    seconds, peak, disk = (b + (b - a) / 30 * (full - 40) for a, b in zip(ten[:3], forty[:3], strict=True))
    console.print(
        f"Full MIMIC-IV ({MIMIC_STAYS:,} stays, {full:.0f} times the demo) by straight line: {seconds / 60:.0f} min,"
        f" {disk:.1f} GB of temporary files, {max(peak, forty.peak_gb):.1f} GB of memory"
    )
    checks = {
        f"time 10 -> 40: {forty.seconds / ten.seconds:.2f} times, at most {MAX_TIMES}": forty.seconds
        <= MAX_TIMES * ten.seconds,
        f"memory 10 -> 40: {forty.peak_gb / ten.peak_gb:.2f} times, at most {MAX_GROWTH}": forty.peak_gb
        <= MAX_GROWTH * ten.peak_gb,
        f"memory: {forty.peak_gb:.2f} GB, at most {MAX_PEAK_GB}": forty.peak_gb <= MAX_PEAK_GB,
    }
    for text, good in checks.items():
        console.print(f"{'ok  ' if good else 'FAIL'} {text}")
    return int(not all(checks.values()))


if __name__ == "__main__":
    sys.exit(auto_cli(main))
