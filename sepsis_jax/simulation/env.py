"""The simulation as a reinforcement-learning environment: batched functions, and Gymnasium's `sepsis_jax/Sepsis-v0`.

    state = reset(world, params, histories, keys)
    state, seen = step(world, params, state, actions, max_steps=24)

Both are jitted and take a leading B, so that `jax.lax.scan` over `step` plays B episodes at once. Nothing is reset by
itself: an episode that has ended stays where it is and earns nothing.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from sepsis_jax import checkpoints
from sepsis_jax.clinical import actions
from sepsis_jax.clinical.features import HIGH, LOW, NUM_MASKED
from sepsis_jax.clinical.reward import PUBLISHED
from sepsis_jax.data.episodes import EXIT_TRUNCATED, Episodes
from sepsis_jax.dynamics.patient.cohort import simulate_cohort
from sepsis_jax.dynamics.protocol import History, history_at, step_noise
from sepsis_jax.dynamics.worldmodel.model import WorldModel
from sepsis_jax.errors import InputError
from sepsis_jax.simulation.arguments import whole
from sepsis_jax.simulation.course import Course, World, advance, finish, start

ID = "sepsis_jax/Sepsis-v0"


@struct.dataclass
class EnvState:
    """One episode under way (leading B after `reset`).

    Attributes:
      course: the patient. static: f32[3]. key: of the trajectory. member: i32[] of the dynamics. steps: i32[] so far.
      over: bool[] terminated or truncated.
    """

    course: Course
    static: Any
    key: Any
    member: Any
    steps: Any
    over: Any


@struct.dataclass
class Seen:
    """What one step shows (leading B).

    Attributes:
      obs: f32[80], see `observation`. reward: f32[].
      terminated: bool[] left the ICU, or paid by the outcome at the last step. truncated: bool[] still there, unpaid.
      exit: int8[] 0 in the ICU, 1 died, 2 discharged. death_90d: f32[] probability of death within 90 days.
    """

    obs: Any
    reward: Any
    terminated: Any
    truncated: Any
    exit: Any
    death_90d: Any


@partial(jax.jit, static_argnums=0)
def reset(world: World, params: Any, histories: History, keys: jax.Array) -> EnvState:
    """Episodes that begin at the decisions of `histories` (leading B), one key[] each; consumes the keys.

    The key also draws the ensemble's member that an episode lives in.
    """

    alone = _alone(world)

    def one(history: History, key: jax.Array) -> EnvState:
        member_key, key = jax.random.split(key)
        member = jax.random.randint(member_key, (), 0, world.dynamics.members)
        course = start(alone, world.dynamics.member(params, member), None, history)
        return EnvState(course, jnp.asarray(history.static), key, member, jnp.int32(0), jnp.asarray(False))

    return jax.vmap(one)(histories, keys)


@partial(jax.jit, static_argnames=("world", "max_steps"))
def step(world: World, params: Any, state: EnvState, action: jax.Array, *, max_steps: int) -> tuple[EnvState, Seen]:
    """One 4-h step of B episodes under action ids int[B] (`clinical.actions.encode`).

    A reward with an outcome term pays it at the ICU exit or, for those still there, after `max_steps`; both terminate
    the episode, since there is nothing left to bootstrap. Without one, `max_steps` truncates it.
    """

    alone = _alone(world)

    def one(state: EnvState, action: jax.Array) -> tuple[EnvState, Seen]:
        own = world.dynamics.member(params, state.member)
        noise = step_noise(world.dynamics, state.key, state.steps)
        course, moment = advance(alone, own, None, state.course, actions.decode(action), noise, state.steps)
        steps = state.steps + 1
        left, last = course.exit != EXIT_TRUNCATED, steps >= max_steps
        terminated = left | (last & world.reward.pays_outcome)
        new = EnvState(course, state.static, state.key, state.member, steps, terminated | last)
        new = jax.tree.map(lambda after, before: jnp.where(state.over, before, after), new, state)
        death_90d, _ = finish(world, own, new.course)
        reward = moment.reward + jnp.where(terminated, world.reward.terminal(death_90d), 0.0)
        seen = Seen(
            observation(new),
            jnp.where(state.over, 0.0, reward),
            terminated,
            last & ~terminated,
            new.course.exit,
            death_90d,
        )
        return new, seen

    return jax.vmap(one)(state, action)


def _alone(world: World) -> World:
    """Without a policy: who acts here is outside."""
    return dataclasses.replace(world, policy=None)


def observation(state: EnvState) -> jax.Array:
    """f32[...,80]: obs f32[39] (clinical units), mask of 38, static 3 (age, sex, Charlson index)."""
    parts = (state.course.obs, state.course.mask.astype(jnp.float32), state.static)
    return jnp.concatenate(parts, axis=-1).astype(jnp.float32)


class SepsisEnv(gymnasium.Env[np.ndarray, np.int64]):
    """Gymnasium's face of `reset` and `step` for one patient.

    What is observed is what is newly known. The reward and the end also depend on the levels given last and on the
    number of steps so far, which an agent knows by itself.

    Args:
      world, params: dynamics, bins and reward; default the packaged world model and the published reward.
      episodes: stays whose first decision an episode begins with, with levels of the world's bins; default a simulated
        cohort.
      max_steps: 4-h steps.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012, as the base class has it

    def __init__(
        self,
        world: World | None = None,
        params: Any = None,
        episodes: Episodes | None = None,
        max_steps: int = 24,
    ) -> None:
        if (world is None) != (params is None):
            raise InputError("SepsisEnv", expected="world and params, or neither", found="one of them")
        if world is None:
            model, params, manifest = WorldModel.from_checkpoint(checkpoints.CARRY)
            world = World(model, manifest.action_bins, PUBLISHED)
        self._world, self._params = world, params
        self._max_steps = whole("max_steps", max_steps, _MOST_STEPS)
        self._episodes = simulate_cohort(_PATIENTS, seed=_COHORT_SEED)[0] if episodes is None else episodes
        low = np.concatenate([LOW, np.zeros(NUM_MASKED), [0, 0, 0]])
        high = np.concatenate([HIGH, np.ones(NUM_MASKED), [130, 1, 50]])  # as `data.events` accepts them
        self._low, self._high = low.astype(np.float32), high.astype(np.float32)
        self.observation_space = gymnasium.spaces.Box(self._low, self._high)
        self.action_space = gymnasium.spaces.Discrete(actions.NUM_ACTIONS)
        self._state: EnvState | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin with a stay drawn at random, or with `options={"stay_id": ID}`."""
        super().reset(seed=seed)
        row = int(self.np_random.integers(self._episodes.num_stays))
        if unknown := set(options or {}) - {"stay_id"}:
            raise InputError("options", expected="stay_id", found=", ".join(map(str, sorted(unknown, key=str))))
        if options:
            one = np.ndim(options["stay_id"]) == 0
            known = np.flatnonzero(np.asarray(self._episodes.stay_id) == options["stay_id"]) if one else np.array([])
            if not known.size:
                raise InputError("options", field="stay_id", expected="a stay", found=options["stay_id"])
            row = int(known[0])
        key = jax.random.key(int(self.np_random.integers(2**31)))
        self._state = reset(self._world, self._params, history_at(self._episodes, [row], [0]), key[None])
        return self._seen(observation(self._state)), {"stay_id": int(self._episodes.stay_id[row])}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """See the function `step`."""
        if self._state is None:
            raise gymnasium.error.ResetNeeded("call reset() first")
        if not self.action_space.contains(action):
            raise InputError("action", expected="a whole number from 0 to 24", found=action)
        self._state, seen = step(
            self._world, self._params, self._state, np.array([action], np.int32), max_steps=self._max_steps
        )
        info = {"exit": int(seen.exit[0]), "death_90d": float(seen.death_90d[0])}
        done = bool(seen.terminated[0]), bool(seen.truncated[0])
        return self._seen(seen.obs), float(seen.reward[0]), *done, info

    def _seen(self, obs: Any) -> np.ndarray:
        """Within the space: a record of another system may hold values beyond it."""
        return np.clip(np.asarray(obs)[0], self._low, self._high)


_PATIENTS, _COHORT_SEED = 256, 0
_MOST_STEPS = 10_000


def register() -> None:
    """Make `gymnasium.make("sepsis_jax/Sepsis-v0")` known, as importing this module does.

    Gymnasium imports it for `gymnasium.make("sepsis_jax.simulation.env:sepsis_jax/Sepsis-v0")`.
    """
    if ID not in gymnasium.registry:
        gymnasium.register(id=ID, entry_point=f"{__name__}:SepsisEnv")


register()
