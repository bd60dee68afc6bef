"""The simulator as the best possible model of its own cohort: what no model of the record can beat."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sepsis_jax.clinical.actions import ActionBins
from sepsis_jax.data.episodes import Episodes
from sepsis_jax.dynamics.patient import truth as patient_truth
from sepsis_jax.dynamics.patient.dynamics import Params, PatientDynamics
from sepsis_jax.dynamics.patient.truth import Truth
from sepsis_jax.dynamics.protocol import step_keys, trajectory_key
from sepsis_jax.evaluation.courses import history_of, luck, over_stays
from sepsis_jax.evaluation.one_step import at_exit
from sepsis_jax.evaluation.scores import Labelled, Scores

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(9)


def oracle(truth: Truth, episodes: Episodes, bins: ActionBins) -> tuple[PatientDynamics, Params]:
    """The simulator at the true latent states of `episodes`. InputError if `truth` is that of another cohort."""
    patient_truth.check(truth, episodes)
    # Neither is needed to restore a state, and both are large.
    slim = dataclasses.replace(truth, propensity=np.zeros(0, np.float32), death_90d=np.zeros(0, np.float32))
    return PatientDynamics(bins), Params(truth.knobs, slim)


def propensity(truth: Truth, episodes: Episodes) -> np.ndarray:
    """f32[B,T,25] with which the actions of `episodes` were drawn."""
    return np.asarray(truth.propensity)[np.searchsorted(truth.stay_id, np.asarray(episodes.stay_id))]


def mortality(
    dynamics: PatientDynamics, params: Params, episodes: Episodes, *, samples: int = 32, seed: int = 0
) -> Scores:
    """Death within 90 days from the true state at the last decision, but for the frailty that shows in no feature.

    The last recorded action is followed for one step over S samples, and the frailty is integrated out over its
    distribution at birth, N(0, 1).
    """
    arguments = (params, luck(seed))
    found = over_stays(_Mortality(dynamics, samples), arguments, episodes, batch_size=32, title="observable oracle")
    label = np.asarray(episodes.mortality_90d)
    known = np.flatnonzero(label >= 0)
    running = Labelled(known, label[known] == 1, np.asarray(found[known, 0], np.float64))
    return Scores(labelled={"mortality": at_exit(running, found[:, 1:], episodes), "mortality_running": running})


@dataclasses.dataclass(frozen=True)
class _Mortality:
    """Kernel of `mortality` for one stay: f32[3] death within 90 days, leaving now and dying, leaving now."""

    dynamics: PatientDynamics
    samples: int

    def __call__(self, arguments: tuple[Params, jax.Array], episode: Episodes, last: jax.Array) -> jax.Array:
        params, seed = arguments
        state = self.dynamics.encode(params, history_of(episode, last))
        action = episode.action[last]

        def death(frailty: jax.Array, noise: Any) -> jax.Array:
            typical = dataclasses.replace(state, patient=dataclasses.replace(state.patient, frailty=frailty))
            after, step = self.dynamics.step(params, typical, action, noise)
            hazard, leaves = step.exit_hazard[0], (1 - step.exit_hazard[0]) * step.exit_hazard[1]
            later = self.dynamics.outcome(params, after)
            return jnp.stack([hazard + (1 - hazard) * later, hazard + leaves * later, hazard + leaves])

        def sample(number: Any) -> jax.Array:
            key = step_keys(trajectory_key(seed, episode.stay_id, last, number), 0).noise
            each = jax.vmap(death, (0, None))(jnp.asarray(_NODES, jnp.float32), self.dynamics.noise(key))
            return jnp.asarray(_WEIGHTS / _WEIGHTS.sum(), jnp.float32) @ each

        return jax.vmap(sample)(jnp.arange(self.samples)).mean(axis=0)
