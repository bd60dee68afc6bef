"""How the patients of a closed loop are treated: probabilities of the 25 actions at one decision of many patients.

Most see the record alone. Those that say so read the true state that stands beside it, in the true simulator.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sepsis_jax.clinical import actions
from sepsis_jax.dynamics.patient.behaviour import propensities
from sepsis_jax.dynamics.patient.cohort import MAX_STEPS
from sepsis_jax.dynamics.patient.dynamics import Params, PatientDynamics, PatientState
from sepsis_jax.dynamics.patient.parameters import Knobs
from sepsis_jax.dynamics.patient.truth import Truth
from sepsis_jax.dynamics.protocol import History
from sepsis_jax.evaluation.closed_loop import Chances, Decision
from sepsis_jax.policies.planner import PlannerSettings, recommend
from sepsis_jax.simulation.course import World
from sepsis_jax.simulation.policy import Policy, previous_action, probs_at


def follow(policy: Policy, params: Any) -> Chances:
    """A policy that sees the record."""
    return lambda decision: probs_at(policy, params, decision.history)


def mix(chances: Chances, others: Chances, share: float) -> Chances:
    """`chances`, but `others` with probability `share` at each decision."""
    if not share:
        return chances
    return lambda decision: (1 - share) * np.asarray(chances(decision)) + share * np.asarray(others(decision))


def clinicians(dynamics: PatientDynamics, knobs: Knobs) -> Chances:
    """The policy that made the cohort. Knows each patient's clinician's taste, and what the knobs hide."""

    def chances(decision: Decision) -> np.ndarray:
        return np.asarray(_propensities(dynamics, knobs, decision.history, decision.state))

    return chances


@partial(jax.jit, static_argnums=0)
def _propensities(dynamics: PatientDynamics, knobs: Knobs, histories: History, states: PatientState) -> jax.Array:
    def one(history: History, state: PatientState) -> jax.Array:
        patient, past = state.patient, jnp.arange(len(history.action)) < history.length - 1
        fluid = jax.vmap(lambda action: dynamics.doses(patient, action)[1])(history.action)
        given = jnp.where(past, fluid, 0.0).sum() / 1000.0
        hidden = knobs.unmeasured * patient.frailty
        return propensities(state.obs, previous_action(history), state.hours, given, patient.style, hidden)

    return jax.vmap(one)(histories, states)


def plan(world: World, params: Any, policy_params: Any, settings: PlannerSettings, seed: int) -> Chances:
    """Plan with a model that reads the record, see `policies.planner`."""

    def chances(decision: Decision) -> np.ndarray:
        return _recommended(world, params, policy_params, settings, seed, decision)

    return chances


def plan_with_truth(world: World, knobs: Knobs, policy_params: Any, settings: PlannerSettings, seed: int) -> Chances:
    """Plan with the simulator from the true state: what a planner with a perfect model would do.

    It knows the patient, not the luck: its futures are drawn with other random numbers than the one that comes.
    """

    def chances(decision: Decision) -> np.ndarray:
        params = Params(knobs, _truth_at(decision, knobs))
        return _recommended(world, params, policy_params, settings, seed, decision)

    return chances


def _recommended(
    world: World, params: Any, policy_params: Any, settings: PlannerSettings, seed: int, decision: Decision
) -> np.ndarray:
    histories = jax.tree.map(lambda leaf: leaf[decision.active], decision.history)
    action = np.zeros((len(decision.active), 2), np.int8)  # whatever, for who has left
    action[decision.active] = recommend(world, params, policy_params, histories, thoughts(seed), settings).action
    return np.eye(actions.NUM_ACTIONS, dtype=np.float32)[np.asarray(actions.encode(action))]


def thoughts(seed: int) -> jax.Array:
    """Key of a planner's futures: the luck of a simulator follows from its cohort's seed alone, and must be another."""
    return jax.random.fold_in(jax.random.key(seed), 2_000_000)


def _truth_at(decision: Decision, knobs: Knobs) -> Truth:
    """A truth from which `PatientDynamics.encode` restores the states of this decision, and no others."""
    states, history = jax.tree.map(np.asarray, decision.state), decision.history

    def at_every_step(leaf: np.ndarray) -> np.ndarray:
        return np.broadcast_to(leaf[:, None], (len(leaf), MAX_STEPS, *leaf.shape[1:]))

    nothing = np.zeros(0, np.float32)
    return Truth(
        seed=0,
        knobs=knobs,
        stay_id=history.stay_id,
        length=history.length,
        patient=states.patient,
        latent=jax.tree.map(at_every_step, states.latent),
        since=at_every_step(states.since),
        propensity=nothing,
        death_90d=nothing,
    )
