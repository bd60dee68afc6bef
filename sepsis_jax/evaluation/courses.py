"""Simulated courses from recorded decisions: what every sample-based score of any `Dynamics` starts from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from rich.progress import Progress

from sepsis_jax.data.episodes import Episodes
from sepsis_jax.dynamics.protocol import Dynamics, History, Step, step_keys, trajectory_key

Kernel = Callable[[Any, Episodes, jax.Array], Any]

_LARGEST_HAZARD = 1 - 1e-6  # a sure exit would leave no weight at all
_JUDGING = 3_000_000


def luck(seed: int) -> jax.Array:
    """Key of courses that are compared with a record: a simulated record's own luck follows from its cohort's seed."""
    return jax.random.fold_in(jax.random.key(seed), _JUDGING)


class Decisions(NamedTuple):
    """N recorded decisions: rows int[N] of the stays, steps int[N]."""

    rows: np.ndarray
    steps: np.ndarray


@struct.dataclass
class Courses:
    """S courses of H steps from one decision, exits ignored: a course goes on as if the patient had stayed.

    Attributes:
      steps: what `keep` returns of each Step, with leading [S,H].
      exit_hazard: f32[S,H,2] of death and of discharge at the end of each step.
      outcome: f32[S] probability of death within 90 days of someone who leaves the ICU, alive, after the last step.
    """

    steps: Any
    exit_hazard: Any
    outcome: Any


def everything(step: Step) -> Step:
    """Keeps whole steps."""
    return step


def draw_decisions(episodes: Episodes, number: int, *, ahead: int, seed: int) -> Decisions:
    """Up to `number` random decisions, each at most once, that `ahead` further recorded steps follow."""
    rows, steps = np.nonzero(np.arange(episodes.num_steps) < np.asarray(episodes.length)[:, None] - ahead)
    chosen = np.random.default_rng(seed).permutation(rows.size)[:number]
    chosen.sort()
    return Decisions(rows[chosen], steps[chosen])


def history_of(episode: Episodes, step: Any) -> History:
    """What is known of one stay (fields without the leading B) at the decision about `step` i32[]."""
    names = ("obs", "mask", "ventilated", "action", "prior_action", "static", "weight_kg", "stay_id")
    return History(**{name: getattr(episode, name) for name in names}, length=jnp.asarray(step + 1, jnp.int32))


def sample_courses(
    dynamics: Dynamics,
    params: Any,
    history: History,
    plan: jax.Array,
    seed: jax.Array,
    *,
    samples: int,
    keep: Callable[[Step], Any] = everything,
) -> Courses:
    """S courses of one patient under `plan` int[H,2], with the random numbers of `simulation.rollout.simulate`.

    Sample s belongs to member s mod M of an ensemble for its whole course. `seed` key[] is that of the run; the
    numbers do not depend on the plan.
    """
    members, horizon = dynamics.members, plan.shape[0]
    numbers = jnp.arange(math.ceil(samples / members) * members).reshape(-1, members)
    key_of = partial(trajectory_key, seed, history.stay_id, history.length - 1)

    def by_member(index: jax.Array) -> Courses:
        own = dynamics.member(params, index)
        state = dynamics.encode(own, history)

        def course(key: jax.Array) -> Courses:
            def advance(state: Any, inputs: tuple[Any, Any]) -> tuple[Any, tuple[Any, jax.Array]]:
                number, action = inputs
                state, step = dynamics.step(own, state, action, dynamics.noise(step_keys(key, number).noise))
                return state, (keep(step), step.exit_hazard)

            if horizon == 1:  # outside a loop, what does not depend on the sample is computed once
                last, kept = advance(state, (jnp.int32(0), plan[0]))
                steps, hazard = jax.tree.map(lambda leaf: leaf[None], kept)
            else:
                last, (steps, hazard) = jax.lax.scan(advance, state, (jnp.arange(horizon), plan))
            return Courses(steps, hazard, dynamics.outcome(own, last))

        return jax.vmap(course)(jax.vmap(key_of)(numbers[:, index]))

    every = jax.lax.map(by_member, jnp.arange(members))  # one at a time: weights are read once
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1).reshape(-1, *leaf.shape[2:])[:samples], every)


def weights_of_staying(exit_hazard: jax.Array) -> jax.Array:
    """f32[S,H]: weights of the courses among those still in the ICU after each step, summing to 1 over S.

    A record shows a step only of patients who have stayed until then, so that is the forecast to compare it with.
    """
    stays = jnp.log1p(-jnp.minimum(exit_hazard, _LARGEST_HAZARD)).sum(axis=-1)
    return jax.nn.softmax(jnp.cumsum(stays, axis=1), axis=0)


def mean_death(courses: Courses) -> jax.Array:
    """f32[]: probability of death within 90 days: in the ICU during the H steps, or later for those who live.

    Discharge is left out: everyone alive after the last step leaves then.
    """
    alive = jnp.prod(1 - courses.exit_hazard[..., 0], axis=-1)
    return (1 - alive + alive * courses.outcome).mean()


def over_decisions(
    kernel: Kernel,
    arguments: Any,
    episodes: Episodes,
    decisions: Decisions,
    *,
    batch_size: int,
    title: str,
) -> Any:
    """`kernel(arguments, episode, step)` of every decision: NumPy arrays with leading N.

    Args:
      kernel: hashable pure function; `episode` has no leading B, `step` is i32[].
      arguments: its arrays.
      episodes, decisions: where.
      batch_size: decisions computed at once; bounds the memory and changes no figure.
      title: of the progress bar.
    """
    return _over(kernel, arguments, episodes, decisions, batch_size=batch_size, title=title)


def over_stays(
    kernel: Kernel,
    arguments: Any,
    episodes: Episodes,
    *,
    batch_size: int,
    title: str,
) -> Any:
    """`kernel(arguments, episode, last)` of every stay, `last` i32[] its last step: NumPy arrays with leading B."""
    rows, last = np.arange(episodes.num_stays), np.asarray(episodes.length) - 1
    return _over(kernel, arguments, episodes, Decisions(rows, last), batch_size=batch_size, title=title)


_BATCHES = 16  # in one compiled call


def _over(kernel: Any, arguments: Any, episodes: Episodes, places: Decisions, *, batch_size: int, title: str) -> Any:
    total = places.rows.size
    batch_size = max(1, min(batch_size, total))
    chunk = batch_size * max(1, min(_BATCHES, math.ceil(total / batch_size)))
    rows, steps = (np.resize(np.asarray(place, np.int32), math.ceil(total / chunk) * chunk) for place in places)
    arguments, stays = jax.device_put((arguments, dataclasses.replace(episodes, propensity=None)))
    parts = []
    with Progress(transient=True) as progress:
        task = progress.add_task(title, total=total)
        for start in range(0, rows.size, chunk):
            here = slice(start, start + chunk)
            parts.append(jax.device_get(_chunk(kernel, arguments, stays, rows[here], steps[here], batch_size)))
            progress.update(task, advance=min(chunk, total - start))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:total], *parts)


@partial(jax.jit, static_argnames=("kernel", "batch_size"))
def _chunk(kernel: Any, arguments: Any, episodes: Episodes, rows: Any, steps: Any, batch_size: int) -> Any:
    def one(place: tuple[jax.Array, jax.Array]) -> Any:
        return kernel(arguments, jax.tree.map(lambda leaf: leaf[place[0]], episodes), place[1])

    return jax.lax.map(one, (rows, steps), batch_size=batch_size)
