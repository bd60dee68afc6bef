"""What is kept of the samples of a cell: statistics by default, trajectories on request."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from sepsis_jax.clinical.features import INDEX, NAMES
from sepsis_jax.data.episodes import EXIT_DEATH, EXIT_DISCHARGE, EXIT_TRUNCATED
from sepsis_jax.errors import InputError
from sepsis_jax.simulation.course import Moment
from sepsis_jax.simulation.quantiles import quantiles
from sepsis_jax.simulation.rollout import Trajectory


class Samples(NamedTuple):
    """Which sample belongs to which cell; N slots of M members of W samples.

    Attributes:
      valid: bool[N,M,W] asked for. cell: i32[N] of each slot; at most N cells.
    """

    valid: Any
    cell: Any

    def total(self, values: jax.Array) -> jax.Array:
        """f32[N,M,W,...] -> f32[N cells,M,...]: sums over the valid samples of each cell."""
        weight = self.valid.reshape(*self.valid.shape, *(1,) * (values.ndim - 3))
        return self.by_cell(jnp.where(weight, values, 0).sum(axis=2))

    def by_cell(self, parts: jax.Array) -> jax.Array:
        """[N,...] -> [N cells,...]: sums over the slots of each cell."""
        return jax.ops.segment_sum(parts, self.cell, len(self.cell))


class Record(Protocol):
    """What to keep. Hashable and static."""

    def keep(self, moment: Moment, now: jax.Array) -> Any:
        """Of one step of one sample, with obs f32[F] (clinical units) at the decision: any pytree."""
        ...

    def step(self, samples: Samples, kept: Any) -> Any:
        """Of all samples of one step: what `keep` gave, with leading [N,M,W] -> any pytree with leading N (cells)."""
        ...

    def end(self, samples: Samples, death_90d: jax.Array, value: jax.Array) -> Any:
        """Of the ends: f32[N,M,W] each -> any pytree with leading N (cells)."""
        ...

    def collect(self, found: Any, place: np.ndarray, samples: int, horizon: int) -> Any:
        """From a block's steps (leading [rows,N]) and ends to NumPy arrays with leading [cells].

        Args:
          place: int[cells,J] of each cell's samples of a member, in their order: its slot x W + its place there.
        """
        ...


class Event(NamedTuple):
    """A yes or no, or a number, of one step of one sample, whose mean over the samples is kept."""

    name: str
    of: Callable[[Moment, jax.Array], jax.Array]
    """Moment (no leading axes) and obs f32[F] at the decision -> bool[] or f32[]."""


MAP, LACTATE = INDEX["meanbp"], INDEX["lactate"]
# Of what would be measured: whether a lactate is drawn, which actions change too, must not make it fall.
EVENTS: tuple[Event, ...] = (
    Event("map_below_65", lambda moment, now: moment.value[MAP] < 65),
    Event("lactate_above_2", lambda moment, now: moment.value[LACTATE] > 2),
    Event("lactate_falls", lambda moment, now: moment.value[LACTATE] < now[LACTATE]),
    Event("ventilated", lambda moment, now: moment.vent_prob),
    Event("sofa", lambda moment, now: moment.sofa),
)


@struct.dataclass
class Summary:
    """Statistics over the samples of each cell (leading [B,K] after `simulate`).

    Those of features and events are over the samples still in the ICU at the end of the step, NaN where there are
    none (SD: fewer than two); G features, Q quantiles. Who is still there differs between candidates. Features are as
    on record, carried forward where nothing is measured; events look at what would be measured.

    Attributes:
      mean, sd: f32[H,G] (clinical units), SD with all that is uncertain in it. sd_members: f32[H,G] of it what the
        members' means differ by (epistemic; 0 for one member, NaN if each has one sample, which chance explains
        as well); sd^2 - sd_members^2 is the rest (aleatoric).
      quantile: f32[H,G,Q].
      events: name -> f32[H] means.
      in_icu, died, discharged: f32[H] shares of all samples.
      value, value_sd, value_sd_members, value_se: f32[] of the return: mean, SD over samples and over members' means,
        Monte Carlo standard error of the mean.
      death_90d, death_90d_sd_members: f32[] expected 90-day mortality, SD over the members.
    """

    mean: Any
    sd: Any
    sd_members: Any
    quantile: Any
    events: dict[str, Any]
    in_icu: Any
    died: Any
    discharged: Any
    value: Any
    value_sd: Any
    value_sd_members: Any
    value_se: Any
    death_90d: Any
    death_90d_sd_members: Any


@dataclasses.dataclass(frozen=True)
class Summarize:
    """`Record` of statistics, a `Summary`.

    Attributes:
      features: names to describe over time. at: probabilities of their quantiles.
      events: whose frequencies are kept.
    """

    features: tuple[str, ...] = NAMES
    at: tuple[float, ...] = (0.1, 0.5, 0.9)
    events: tuple[Event, ...] = EVENTS

    def __post_init__(self) -> None:
        for name, given in (("features", self.features), ("at", self.at), ("events", self.events)):
            if not isinstance(given, tuple):
                raise InputError("record", field=name, expected="a tuple", found=type(given).__name__)
        unknown = [name for name in self.features if name not in INDEX]
        if unknown:
            raise InputError("record", field="features", expected=f"some of {', '.join(NAMES)}", found=unknown[0])
        beyond = [one for one in self.at if not 0 <= one <= 1]
        if beyond:
            raise InputError("record", field="at", expected="probabilities from 0 to 1", found=beyond[0])
        names = [event.name for event in self.events]
        if len(set(names)) < len(names):
            raise InputError("record", field="events", expected="different names", found=", ".join(names))

    def keep(self, moment: Moment, now: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """See `Record`."""
        events = [jnp.asarray(event.of(moment, now), jnp.float32) for event in self.events]
        obs = moment.obs[np.array([INDEX[name] for name in self.features], int)]
        return obs, jnp.array(events, jnp.float32), moment.exit

    def step(self, samples: Samples, kept: tuple[jax.Array, jax.Array, jax.Array]) -> dict[str, Any]:
        """See `Record`."""
        obs, events, exit = kept
        there = samples._replace(valid=samples.valid & (exit == EXIT_TRUNCATED))
        exits = jnp.stack([exit == EXIT_TRUNCATED, exit == EXIT_DEATH, exit == EXIT_DISCHARGE], axis=-1)
        share = _mean(samples, exits.astype(jnp.float32))
        mean, sd, sd_members = spread(there, obs)
        return {
            "mean": mean,
            "sd": sd,
            "sd_members": sd_members,
            "quantile": quantiles(there, obs, self.at),
            "events": _mean(there, events),
            "in_icu": share[:, 0],
            "died": share[:, 1],
            "discharged": share[:, 2],
        }

    def end(self, samples: Samples, death_90d: jax.Array, value: jax.Array) -> dict[str, Any]:
        """See `Record`."""
        count = samples.total(jnp.ones_like(value)).sum(axis=1)
        mean, sd, sd_members = spread(samples, value)
        death, _, death_members = spread(samples, death_90d)
        return {
            "value": mean,
            "value_sd": sd,
            "value_sd_members": sd_members,
            "value_se": sd / jnp.sqrt(count),
            "death_90d": death,
            "death_90d_sd_members": death_members,
        }

    def collect(self, found: Any, place: np.ndarray, samples: int, horizon: int) -> Summary:
        """See `Record`."""
        del samples
        steps, ends = jax.tree.map(np.asarray, found)
        steps = jax.tree.map(lambda leaf: np.moveaxis(leaf[:horizon, : len(place)], 0, 1), steps)
        ends = jax.tree.map(lambda leaf: leaf[: len(place)], ends)
        named = {event.name: steps["events"][..., i] for i, event in enumerate(self.events)}
        return Summary(**{**steps, "events": named}, **ends)


RETURNS = Summarize(features=(), events=())
"""What a planner compares: nothing of the steps but the exits."""


@dataclasses.dataclass(frozen=True)
class Trajectories:
    """`Record` that keeps everything but what was not measured (`Moment.value`): Trajectory with leading S."""

    def keep(self, moment: Moment, now: jax.Array) -> Moment:
        """See `Record`."""
        del now
        return dataclasses.replace(moment, value=None)

    def step(self, samples: Samples, kept: Moment) -> Moment:
        """See `Record`."""
        del samples
        return kept

    def end(self, samples: Samples, death_90d: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array]:
        """See `Record`."""
        del samples
        return death_90d, value

    def collect(self, found: Any, place: np.ndarray, samples: int, horizon: int) -> Trajectory:
        """See `Record`."""

        def by_cell(leaf: np.ndarray) -> np.ndarray:
            """[N,M,W,...] -> [cells,S,...]: sample s is the (s div M)-th of member s mod M."""
            apart = leaf.swapaxes(1, 2).reshape(-1, leaf.shape[1], *leaf.shape[3:])[place]  # [cells,J,M,...]
            return apart.reshape(len(place), -1, *apart.shape[3:])[:, :samples]

        steps, ends = jax.tree.map(np.asarray, found)
        over_time = jax.tree.map(lambda leaf: by_cell(np.moveaxis(leaf[:horizon], 0, 3)), steps)
        return Trajectory(over_time, *(by_cell(end) for end in ends))


def spread(samples: Samples, values: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """f32[N,M,W,...] -> f32[N cells,...] each: mean, SD over samples, SD of the members' means.

    In two passes, since a difference of large squares would be noise. A member without samples does not count. What
    the means of so many samples differ by chance is taken off their variance (one-way analysis of variance).
    """
    one = jnp.ones((*samples.valid.shape, *(1,) * (values.ndim - 3)))
    count, total = samples.total(one), samples.total(values)  # [N,M,...]
    count = jnp.broadcast_to(count, total.shape)
    number, some = count.sum(axis=1), count > 0
    mean, members = total.sum(axis=1) / number, total / count
    around = values - jnp.where(some, members, 0)[samples.cell][:, :, None]
    inside = samples.total(around**2).sum(axis=1)
    outside = jnp.where(some, count * (members - mean[:, None]) ** 2, 0).sum(axis=1)
    there = some.sum(axis=1)
    chance = inside / (number - there) * jnp.mean(1 / count, axis=1, where=some) * (there - 1) / there
    apart = jnp.sqrt(jnp.maximum(jnp.var(members, axis=1, where=some) - chance, 0))
    free = jnp.where(number > 1, number - 1, jnp.nan)
    return mean, jnp.sqrt((inside + outside) / free), jnp.where(there > 1, apart, 0 * mean)


def _mean(samples: Samples, values: jax.Array) -> jax.Array:
    """f32[N,M,W,E] -> f32[N cells,E]; NaN without samples."""
    count = samples.total(jnp.ones(samples.valid.shape)).sum(axis=1)
    return samples.total(values).sum(axis=1) / count[:, None]
