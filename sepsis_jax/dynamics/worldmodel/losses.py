"""What training minimises: negative log likelihoods of everything that the next 4 h of a record bring.

Each term is a sum and a count over one stay, so that any batch of stays, padded ones included, averages correctly.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from sepsis_jax.data.episodes import EXIT_DEATH, EXIT_DISCHARGE, EXIT_TRUNCATED, Episodes
from sepsis_jax.dynamics.protocol import History
from sepsis_jax.dynamics.worldmodel.model import Params, WorldModel
from sepsis_jax.dynamics.worldmodel.prediction import log_prob, with_urine

Terms = dict[str, jax.Array]
"""Name -> f32[2]: sum and count."""


def history_of(episode: Episodes) -> History:
    """The whole record of one stay (or of a batch) as a History."""
    return History(
        obs=episode.obs,
        mask=episode.mask,
        action=episode.action,
        prior_action=episode.prior_action,
        static=episode.static,
        weight_kg=episode.weight_kg,
        length=episode.length,
        stay_id=episode.stay_id,
    )


def loss_terms(model: WorldModel, params: Params, episode: Episodes, key: jax.Array | None = None) -> Terms:
    """Terms of one stay (fields without the leading B); a stay of length 0 counts nothing. Consumes `key` (dropout).

    nll: Gaussian, of measured next values and of urine (nats per value). mask, ventilation: Bernoulli, of the next
    step. death, discharge: Bernoulli, of the end of each step; a discharge is only asked of those who did not die,
    and the last step of a truncated record is not known. mortality: Bernoulli, at every decision; where the model
    knows exits, of stays that did not end in death, since `outcome` speaks of those who leave alive.
    """
    num_steps = len(episode.obs)
    read_key, decode_keys, outcome_keys = _dropout_keys(key, num_steps)
    states = model.encode_all(params, history_of(episode), read_key)
    decoded = jax.vmap(model.decode, (None, 0, 0, 0))(params, states, episode.action, decode_keys)
    mortality_logit = jax.vmap(model.outcome_logit, (None, 0, 0))(params, states, outcome_keys)

    step = jnp.arange(num_steps)
    has_next, last = step < episode.length - 1, step == episode.length - 1
    next_z = jnp.roll(params.scaler.normalize(episode.obs), -1, axis=0)
    next_mask, next_vent = jnp.roll(episode.mask, -1, axis=0), jnp.roll(episode.ventilated, -1)
    measured = with_urine(next_mask, True) & has_next[:, None]
    knows_mortality = (step < episode.length) & (episode.mortality_90d >= 0)
    terms = {
        "nll": _term(-log_prob(decoded, next_z), measured),
        "ventilation": _bernoulli(decoded.vent_logit, next_vent, has_next),
    }
    if decoded.mask_logit is not None:
        terms["mask"] = _bernoulli(decoded.mask_logit, next_mask, jnp.broadcast_to(has_next[:, None], next_mask.shape))
    if decoded.exit_logit is not None:
        knows_exit = has_next | (last & (episode.exit != EXIT_TRUNCATED))
        dies, leaves = last & (episode.exit == EXIT_DEATH), last & (episode.exit == EXIT_DISCHARGE)
        terms["death"] = _bernoulli(decoded.exit_logit[:, 0], dies, knows_exit)
        terms["discharge"] = _bernoulli(decoded.exit_logit[:, 1], leaves, knows_exit & ~dies)
        knows_mortality &= episode.exit != EXIT_DEATH
    died = jnp.broadcast_to(episode.mortality_90d == 1, (num_steps,))
    return terms | {"mortality": _bernoulli(mortality_logit, died, knows_mortality)}


def means(terms: Terms) -> dict[str, jax.Array]:
    """Average each term over its counts, and add their sum as 'loss'. Terms may have leading axes (stays)."""
    totals = {name: term.reshape(-1, 2).sum(axis=0) for name, term in terms.items()}
    averages = {name: total[0] / jnp.maximum(total[1], 1) for name, total in totals.items()}
    return {"loss": sum(averages.values(), jnp.float32(0))} | averages


def _dropout_keys(key: jax.Array | None, num_steps: int) -> tuple[jax.Array | None, ...]:
    if key is None:
        return None, None, None
    read_key, decode_key, outcome_key = jax.random.split(key, 3)
    return read_key, jax.random.split(decode_key, num_steps), jax.random.split(outcome_key, num_steps)


def _term(value: jax.Array, counts: jax.Array) -> jax.Array:
    return jnp.stack([jnp.where(counts, value, 0).sum(), counts.sum().astype(value.dtype)])


def _bernoulli(logit: jax.Array, label: jax.Array, counts: jax.Array) -> jax.Array:
    return _term(optax.sigmoid_binary_cross_entropy(logit, label.astype(logit.dtype)), counts)
