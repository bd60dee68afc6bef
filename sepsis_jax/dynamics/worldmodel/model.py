"""`WorldModel`: one face for all learned networks, and an implementation of the `Dynamics` protocol.

At decision t the model has seen obs[0..t], the action before the first decision, and action[0..t-1]; `step` takes
action[t] and gives obs[t+1]. Clinical units outside, z-scores inside: the scaler travels with the weights.
"""

from __future__ import annotations

import dataclasses
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, struct, traverse_util

from sepsis_jax.clinical import actions
from sepsis_jax.clinical.features import URINE
from sepsis_jax.data.scaler import Scaler
from sepsis_jax.data.store import Manifest
from sepsis_jax.dynamics.protocol import History, Step, step_keys
from sepsis_jax.dynamics.worldmodel import carry, checkpoint
from sepsis_jax.dynamics.worldmodel.bounds import Support
from sepsis_jax.dynamics.worldmodel.carry import CarryNetwork
from sepsis_jax.dynamics.worldmodel.prediction import Noise, Prediction, draw, draw_noise
from sepsis_jax.dynamics.worldmodel.published import PublishedNetwork
from sepsis_jax.errors import InputError

Architecture = Literal["carry", "published"]
Precision = Literal["float32", "bfloat16"]


@struct.dataclass
class Params:
    """All numbers of a world model.

    Attributes:
      network: nested dict of the weights; leading M (members of the ensemble) but for what `WorldModel.member` gives.
      scaler: of the cohort that trained it, for statics and likelihoods. support: ranges and axes of its record.
    """

    network: Any
    scaler: Scaler
    support: Support


@struct.dataclass
class PatientState:
    """One patient at a decision.

    Attributes:
      memory: what the network keeps of the past: `carry.Memory` or `published.Window`.
      static: f32[3] (z-scores).
      obs: f32[F] (clinical units) last observation, carried forward.
      mask: bool[38] what of it was measured.
      action: int8[2] levels given before it.
    """

    memory: Any
    static: Any
    obs: Any
    mask: Any
    action: Any


@dataclasses.dataclass(frozen=True)
class WorldModel:
    """A network's layout. Hashable and static; the numbers are `Params`.

    Functions describe one trajectory of one member of the ensemble, whose Params `member` gives.

    Attributes:
      architecture: 'carry' (default) or 'published'.
      hidden: H, GRU width. layers: L, GRU depth.
      dropout: rate between layers while training.
      members: M, networks of this layout that were trained apart.
      precision: to which the operands of matrix products are rounded; all else, sums too, is float32.
    """

    architecture: Architecture = "carry"
    hidden: int = 128
    layers: int = 2
    dropout: float = 0.2
    members: int = 1
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        positive, rate = "a positive whole number", "a rate from 0 to below 1"
        for field, fits, expected in (
            ("architecture", self.architecture in get_args(Architecture), " or ".join(get_args(Architecture))),
            ("precision", self.precision in get_args(Precision), " or ".join(get_args(Precision))),
            ("hidden", isinstance(self.hidden, int) and self.hidden > 0, positive),
            ("layers", isinstance(self.layers, int) and self.layers > 0, positive),
            ("members", isinstance(self.members, int) and self.members > 0, positive),
            ("dropout", isinstance(self.dropout, int | float) and 0 <= self.dropout < 1, rate),
        ):
            if not fits:
                raise InputError("world_model", field=field, expected=expected, found=getattr(self, field))

    @classmethod
    def from_checkpoint(cls, path: Path) -> tuple[WorldModel, Params, Manifest]:
        """The model, its numbers and the manifest of its cohort (action bins, source). InputError if unreadable."""
        loaded = checkpoint.load(path)
        file = Path(path) / checkpoint.DESCRIPTION
        try:
            model = cls(**loaded.model)
        except (TypeError, InputError) as error:
            raise InputError(file, field="model", expected="fields of WorldModel", found=error) from error
        expected = _flatten(jax.eval_shape(partial(_weights, model), jax.random.key(0)))
        for name in expected.keys() | loaded.arrays.keys():
            shapes = [getattr(arrays.get(name), "shape", "nothing") for arrays in (expected, loaded.arrays)]
            if shapes[0] != shapes[1]:
                where = Path(path) / checkpoint.ARRAYS
                raise InputError(where, field=name, expected=f"shape {shapes[0]}", found=shapes[1])
        weights = {name: jnp.asarray(array) for name, array in loaded.arrays.items()}
        scaler, support = jax.tree.map(jnp.asarray, (loaded.manifest.scaler, loaded.support))
        return model, Params(_unflatten(weights), scaler, support), loaded.manifest

    def save(
        self,
        out: Path,
        params: Params,
        manifest: Manifest,
        *,
        training: dict[str, Any] | None = None,
        metrics: list[dict[str, float]] | None = None,
    ) -> None:
        """Write a checkpoint that `from_checkpoint` reads back bit for bit; the manifest's scaler is `params`'."""
        arrays = {name: np.asarray(array) for name, array in _flatten(params.network).items()}
        manifest = dataclasses.replace(manifest, scaler=params.scaler)
        contents = checkpoint.Checkpoint(dataclasses.asdict(self), arrays, params.support, manifest, training or {})
        checkpoint.save(out, contents, metrics or [])

    def init(self, scaler: Scaler, support: Support, key: jax.Array) -> Params:
        """Fresh weights, different for each member. Consumes `key`."""
        support = support.in_z(scaler) if self.architecture == "published" else support
        return Params(_weights(self, key), *jax.tree.map(jnp.asarray, (scaler, support)))

    def member(self, params: Params, index: Any) -> Params:
        """Params of member `index` i32[], the only ones that the functions below take."""
        return dataclasses.replace(params, network=jax.tree.map(lambda leaf: leaf[index], params.network))

    def encode(self, params: Params, history: History) -> PatientState:
        """State at the decision about step `history.length - 1`; later rows are not read."""
        history = jax.tree.map(jnp.asarray, history)
        network, static = merge(self, params), params.scaler.normalize_static(history.static)
        z, before = params.support.normalize(history.obs), _before(history)
        mask = self.read_mask(params, history.obs, history.mask)

        def take_in(row: Any, memory: Any) -> Any:
            return network.observe(memory, static, z[row], mask[row], actions.one_hot(before[row]))

        memory = jax.lax.fori_loop(0, history.length, take_in, network.initial())
        last = history.length - 1
        memory = network.prepare(memory, static)
        return PatientState(memory, static, history.obs[last], history.mask[last], before[last])

    @partial(jax.jit, static_argnums=0)
    def encode_all(self, params: Params, history: History, key: jax.Array | None = None) -> PatientState:
        """States at the decisions about every step, with leading T. Consumes `key` (dropout)."""
        static, before = params.scaler.normalize_static(history.static), _before(history)
        z = params.support.normalize(jnp.asarray(history.obs))
        mask = self.read_mask(params, history.obs, history.mask)
        memory = merge(self, params).read(static, z, mask, actions.one_hot(before), key)
        statics = jnp.broadcast_to(static, (len(history.obs), *static.shape))
        return PatientState(memory, statics, history.obs, history.mask, before)

    def advance(
        self,
        params: Params,
        state: PatientState,
        action: jax.Array,
        obs: jax.Array,
        mask: jax.Array,
        key: jax.Array | None = None,
        shared: Any = None,
    ) -> PatientState:
        """State after `obs` f32[F] (clinical units) followed `action` int[2]. Consumes `key` (dropout).

        `shared` is what the method of that name gives for this state, where it is known.
        """
        z = params.support.normalize(obs)
        network = merge(self, params)
        read = self.read_mask(params, obs, mask)
        memory = network.observe(state.memory, state.static, z, read, actions.one_hot(action), key, shared)
        return PatientState(memory, state.static, obs, mask, action.astype(jnp.int8))

    @partial(jax.jit, static_argnums=0)
    def decode(
        self, params: Params, state: PatientState, action: jax.Array, key: jax.Array | None = None
    ) -> Prediction:
        """Distribution of the next step under `action` int[2], on the axes of `params.support`. Consumes `key`."""
        z = params.support.normalize(state.obs)
        return merge(self, params).predict(state.memory, state.static, z, actions.one_hot(action), key)

    def read_mask(self, params: Params, obs: jax.Array, mask: jax.Array) -> jax.Array:
        """bool[...,38] as published; bool[...,F] for carry, where urine counts as measured if there was any."""
        if self.architecture == "published":
            return mask
        any_urine = jnp.asarray(obs)[..., URINE] > params.support.low[URINE]
        return jnp.concatenate([mask, any_urine[..., None]], axis=-1)

    def noise(self, key: jax.Array) -> Noise:
        """Random numbers of one step. Consumes `key`."""
        carries = self.architecture == "carry"
        return draw_noise(key, carry.RANK if carries else 0, masks=carries)

    def shared(self, params: Params, state: PatientState) -> Any:
        """What `advance` takes from the state alone."""
        return merge(self, params).recur(state.memory)

    @partial(jax.jit, static_argnums=0)
    def step(
        self, params: Params, state: PatientState, action: jax.Array, noise: Noise, shared: Any = None
    ) -> tuple[PatientState, Step]:
        """The next 4 h under `action` int[2] with what `noise` drew; without an exit model the hazards are 0."""
        prediction = self.decode(params, state, action)
        value, obs, mask = draw(prediction, params.support, state.obs, state.mask, noise)
        hazard = jnp.zeros(2) if prediction.exit_logit is None else jax.nn.sigmoid(prediction.exit_logit)
        step = Step(obs, mask, jax.nn.sigmoid(prediction.vent_logit), hazard, value)
        return self.advance(params, state, action, obs, mask, shared=shared), step

    def unroll(self, params: Params, state: PatientState, plan: jax.Array, key: jax.Array) -> tuple[PatientState, Step]:
        """Follow `plan` int[H,2] without exits: last state, Step with leading H. Consumes `key` as `rollout` does."""

        def body(state: PatientState, inputs: tuple[jax.Array, jax.Array]) -> tuple[PatientState, Step]:
            index, action = inputs
            return self.step(params, state, action, self.noise(step_keys(key, index).noise))

        return jax.lax.scan(body, state, (jnp.arange(len(plan)), plan))

    def outcome(self, params: Params, state: PatientState) -> jax.Array:
        """f32[]: probability of death within 90 days of someone who leaves the ICU, alive, in this state."""
        return jax.nn.sigmoid(self.outcome_logits(params, state)[0])

    def outcome_logits(self, params: Params, state: PatientState, key: jax.Array | None = None) -> jax.Array:
        """f32[1 or 2]: log odds of `outcome`, and of death in hospital (carry only). Consumes `key` (dropout)."""
        return merge(self, params).mortality_logits(state.memory, state.static, key)


def merge(model: WorldModel, params: Params) -> CarryNetwork | PublishedNetwork:
    """The network of one member as a flax module."""
    return nnx.merge(_graph(model), params.network)


def _before(history: History) -> jax.Array:
    """int8[T,2]: the action before each observation."""
    return jnp.concatenate([history.prior_action[None], history.action[:-1]]).astype(jnp.int8)


def _network(model: WorldModel, key: jax.Array) -> CarryNetwork | PublishedNetwork:
    kind = CarryNetwork if model.architecture == "carry" else PublishedNetwork
    return kind(model.hidden, model.layers, model.dropout, dtype=jnp.dtype(model.precision), rngs=nnx.Rngs(key))


@partial(jax.jit, static_argnums=0)
def _weights(model: WorldModel, key: jax.Array) -> Any:
    keys = jax.random.split(key, model.members)
    return jax.vmap(lambda key: nnx.to_pure_dict(nnx.state(_network(model, key))))(keys)


@lru_cache(maxsize=64)
def _graph(model: WorldModel) -> Any:
    return nnx.split(nnx.eval_shape(lambda: _network(model, jax.random.key(0))))[0]


def _flatten(tree: Any) -> dict[str, Any]:
    return {"/".join(map(str, path)): leaf for path, leaf in traverse_util.flatten_dict(tree).items()}


def _unflatten(flat: dict[str, Any]) -> Any:
    paths = {tuple(int(k) if k.isdigit() else k for k in name.split("/")): leaf for name, leaf in flat.items()}
    return traverse_util.unflatten_dict(paths)
