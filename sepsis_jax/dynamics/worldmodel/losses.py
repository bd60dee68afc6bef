"""What training minimises: negative log likelihoods of everything that the next 4 h of a record bring.

Each term is a sum and a count over one stay, so that any batch of stays, padded ones included, averages correctly.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import optax

from sepsis_jax.data.episodes import EXIT_DEATH, EXIT_DISCHARGE, EXIT_TRUNCATED, Episodes
from sepsis_jax.dynamics.protocol import History
from sepsis_jax.dynamics.worldmodel.carry import OUTCOMES
from sepsis_jax.dynamics.worldmodel.model import Params, WorldModel
from sepsis_jax.dynamics.worldmodel.prediction import copula_log_density, mask_log_prob, value_log_prob, with_urine
from sepsis_jax.dynamics.worldmodel.published import DECISIONS

Terms = dict[str, jax.Array]
"""Name -> f32[2]: sum and count."""


def history_of(episode: Episodes) -> History:
    """The whole record of one stay (or of a batch) as a History."""
    return History(
        obs=episode.obs,
        mask=episode.mask,
        ventilated=episode.ventilated,
        action=episode.action,
        prior_action=episode.prior_action,
        static=episode.static,
        weight_kg=episode.weight_kg,
        length=episode.length,
        stay_id=episode.stay_id,
    )


@partial(jax.jit, static_argnames=("model", "train"))
def loss_terms(model: WorldModel, params: Params, episode: Episodes, key: jax.Array, *, train: bool) -> Terms:
    """Terms of one stay (fields without the leading B) for one member; a stay of length 0 counts nothing.

    values: of measured next values and of urine, each by itself (nats per value). copula: what they add together, at
    one step a stay. mask: which items are measured (nats per item). ventilation: Bernoulli, of the next step.
    death, discharge: Bernoulli, of the end of each step; a discharge is only asked of those who did not die, and the
    last step of a truncated record is not known. mortality_90d, mortality_hospital: Bernoulli, at every decision;
    where the model knows exits, of stays that did not end in death, since `outcome` speaks of those who leave alive.

    Training of `published` looks at a few random decisions of a stay, since each of them reads its own windows.
    Consumes `key` (places inside intervals; dropout where `train`).
    """
    place_key, read_key, decode_key, outcome_key, step_key = jax.random.split(key, 5)
    step = jnp.arange(len(episode.obs))
    if train and model.architecture == "published":
        step = jax.random.randint(step_key, (DECISIONS,), 0, jnp.maximum(episode.length, 1))
    decode_keys, outcome_keys = (jax.random.split(k, step.size) if train else None for k in (decode_key, outcome_key))
    every_state = model.encode_all(params, history_of(episode), read_key if train else None)
    states = jax.tree.map(lambda leaf: leaf[step], every_state)
    decoded = jax.vmap(model.decode, (None, 0, 0, 0))(params, states, episode.action[step], decode_keys)
    outcome_logits = jax.vmap(model.outcome_logits, (None, 0, 0))(params, states, outcome_keys)

    has_next, last = step < episode.length - 1, step == episode.length - 1
    after = jnp.minimum(step + 1, len(episode.obs) - 1)
    next_obs, next_mask, next_vent = (leaf[after] for leaf in (episode.obs, episode.mask, episode.ventilated))
    measured = with_urine(next_mask, True) & has_next[:, None]
    each = value_log_prob(decoded, params.support, params.scaler, next_obs, measured)
    terms = {"values": _term(-each, measured), "ventilation": _bernoulli(decoded.vent_logit, next_vent, has_next)}
    if decoded.loading is not None:
        one = jax.random.randint(place_key, (), 0, jnp.maximum(episode.length - 1, 1))  # dear, and few numbers to learn
        prediction, obs, which = jax.tree.map(lambda leaf: leaf[one], (decoded, next_obs, measured))
        together = copula_log_density(prediction, params.support, obs, which, place_key)
        terms["copula"] = jnp.stack([-together, measured[one].sum().astype(jnp.float32)])
    if decoded.mask is not None:
        mask_scores = jax.vmap(mask_log_prob)(decoded.mask, next_mask)
        items = has_next.sum().astype(jnp.float32) * next_mask.shape[-1]
        terms["mask"] = jnp.stack([jnp.where(has_next, -mask_scores, 0).sum(), items])
    knows_outcome = step < episode.length
    if decoded.exit_logit is not None:
        knows_exit = has_next | (last & (episode.exit != EXIT_TRUNCATED))
        dies, leaves = last & (episode.exit == EXIT_DEATH), last & (episode.exit == EXIT_DISCHARGE)
        terms["death"] = _bernoulli(decoded.exit_logit[:, 0], dies, knows_exit)
        terms["discharge"] = _bernoulli(decoded.exit_logit[:, 1], leaves, knows_exit & ~dies)
        knows_outcome &= episode.exit != EXIT_DEATH
    for i, name in enumerate(OUTCOMES[: outcome_logits.shape[-1]]):
        label = jnp.broadcast_to(getattr(episode, name), step.shape)
        terms[name] = _bernoulli(outcome_logits[:, i], label == 1, knows_outcome & (label >= 0))
    return terms


def means(terms: Terms) -> dict[str, jax.Array]:
    """Average each term over its counts, and add their sum as 'loss'. Terms may have leading axes (stays)."""
    totals = {name: term.reshape(-1, 2).sum(axis=0) for name, term in terms.items()}
    averages = {name: total[0] / jnp.maximum(total[1], 1) for name, total in totals.items()}
    return {"loss": sum(averages.values(), jnp.float32(0))} | averages


def _term(value: jax.Array, counts: jax.Array) -> jax.Array:
    return jnp.stack([jnp.where(counts, value, 0).sum(), counts.sum().astype(value.dtype)])


def _bernoulli(logit: jax.Array, label: jax.Array, counts: jax.Array) -> jax.Array:
    return _term(optax.sigmoid_binary_cross_entropy(logit, label.astype(logit.dtype)), counts)
