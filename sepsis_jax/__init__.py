"""sepsis_jax: a batched clinical world model for sepsis, an agent on top of it, and evaluation.

Research software, not for care.
"""

from sepsis_jax.clinical.reward import Reward
from sepsis_jax.data.episodes import Episodes
from sepsis_jax.data.scaler import Scaler
from sepsis_jax.data.store import Manifest, load, save
from sepsis_jax.dynamics.patient.cohort import simulate_cohort
from sepsis_jax.dynamics.patient.dynamics import PatientDynamics
from sepsis_jax.dynamics.protocol import Dynamics, History, Step, history_at
from sepsis_jax.dynamics.worldmodel.model import WorldModel
from sepsis_jax.errors import InputError
from sepsis_jax.policies.planner import PlannerSettings, recommend
from sepsis_jax.simulation.batch import simulate
from sepsis_jax.simulation.course import World
from sepsis_jax.simulation.policy import Policy
from sepsis_jax.simulation.record import Event, Summarize, Summary, Trajectories
from sepsis_jax.simulation.rollout import Trajectory, rollout

__all__ = [
    "Dynamics",
    "Episodes",
    "Event",
    "History",
    "InputError",
    "Manifest",
    "PatientDynamics",
    "PlannerSettings",
    "Policy",
    "Reward",
    "Scaler",
    "Step",
    "Summarize",
    "Summary",
    "Trajectories",
    "Trajectory",
    "World",
    "WorldModel",
    "history_at",
    "load",
    "recommend",
    "rollout",
    "save",
    "simulate",
    "simulate_cohort",
]
