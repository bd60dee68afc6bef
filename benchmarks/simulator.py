"""Speed of the patient simulator: compile time, cohort throughput, and the physiology against plain NumPy.

    python benchmarks/simulator.py [--patients N] [--repeats R] [--json FILE]

The peer is the float64 NumPy oracle of the tests, vectorised over the same patients in the same run.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import report
from jsonargparse import auto_cli

from sepsis_jax.dynamics.patient import physiology
from sepsis_jax.dynamics.patient.cohort import MAX_STEPS, simulate_cohort
from sepsis_jax.dynamics.patient.dynamics import Params, PatientDynamics
from sepsis_jax.dynamics.patient.parameters import Knobs

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "dynamics"))
import patient_oracle


def main(patients: int = 4096, repeats: int = 5, json: Path | None = None) -> None:
    """Run the benchmark.

    Args:
      patients: in the cohort and in the physiology comparison.
      repeats: timed runs; the median counts.
      json: where to write the figures as one flat object.
    """
    figures = _cohort(patients, repeats) | _physiology(patients, repeats)
    report.show(f"patient simulator, {patients} patients", figures, json)


def _median_seconds(run: Callable[[], Any], repeats: int) -> float:
    def once() -> float:
        start = time.perf_counter()
        jax.block_until_ready(run())
        return time.perf_counter() - start

    return float(np.median([once() for _ in range(repeats)]))


def _cohort(patients: int, repeats: int) -> dict[str, float]:
    """Whole cohorts: simulation, behaviour, observation, SOFA and the copies to the host."""
    first = _median_seconds(lambda: simulate_cohort(patients, seed=0), 1)
    again = _median_seconds(lambda: simulate_cohort(patients, seed=1), repeats)
    return {
        "compile_s": first - again,
        "cohort_s": again,
        "patient_steps_per_s": patients * MAX_STEPS / again,
    }


def _physiology(patients: int, repeats: int) -> dict[str, float]:
    """One 4-h physiology step of all patients, compiled and in NumPy."""
    keys = jax.random.split(jax.random.key(0), patients)
    admit = partial(PatientDynamics().admit, Params(Knobs()))
    state = jax.jit(jax.vmap(admit))(keys)
    rng = np.random.default_rng(0)
    dose, fluid, hours = rng.uniform(0, 0.5, patients), rng.uniform(0, 1, patients), rng.uniform(0, 90, patients)
    noise = rng.standard_normal((patients, physiology.NUM_NOISE))
    args = [jnp.asarray(a, jnp.float32) for a in (dose, fluid, hours, noise)]
    advance = jax.jit(jax.vmap(physiology.advance)).lower(state.latent, state.patient, *args).compile()
    ours = _median_seconds(lambda: advance(state.latent, state.patient, *args), repeats * 4)
    x, p = (
        {f.name: np.asarray(getattr(tree, f.name), np.float64) for f in dataclasses.fields(tree)}
        for tree in (state.latent, state.patient)
    )
    numpy_s = _median_seconds(lambda: patient_oracle.advance(x, p, dose, fluid, hours, noise), repeats)
    return {
        "physiology_steps_per_s": patients / ours,
        "numpy_physiology_steps_per_s": patients / numpy_s,
        "ratio_to_numpy": numpy_s / ours,
    }


if __name__ == "__main__":
    auto_cli(main)
