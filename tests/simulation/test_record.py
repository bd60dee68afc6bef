"""Records against NumPy, cell by cell."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sepsis_jax.errors import InputError
from sepsis_jax.simulation.quantiles import quantiles
from sepsis_jax.simulation.record import EVENTS, Samples, Summarize, spread

AT = (0.0, 0.1, 0.5, 0.77, 1.0)
SLOTS, MEMBERS, WIDTH, FEATURES = 6, 2, 3, 2
SHAPE = (SLOTS, MEMBERS, WIDTH)
numbers = st.floats(-1e6, 1e6, width=32, allow_subnormal=False) | st.sampled_from([0.0, 1.0, -1.0, 1e30, -1e30])


@settings(max_examples=100, deadline=None)
@given(
    hnp.arrays(np.float32, (*SHAPE, FEATURES), elements=numbers),
    hnp.arrays(bool, SHAPE),
    hnp.arrays(np.int32, SLOTS, elements=st.integers(0, 2)),
)
def test_quantiles_equal_numpy(values, valid, cell):
    found = np.asarray(_quantiles(valid, cell, values))
    for c in range(3):
        own = values[cell == c][valid[cell == c]]
        if not len(own):
            assert np.isnan(found[c]).all()
            continue
        expected = np.quantile(own.astype(np.float64), AT, axis=0).T
        span = np.abs(own.astype(np.float64)).max(axis=0)[:, None]
        assert (np.abs(found[c] - expected) <= 1e-6 * span).all()
        np.testing.assert_array_equal(found[c][:, [0, -1]], np.stack([own.min(axis=0), own.max(axis=0)], axis=-1))


@jax.jit
def _quantiles(valid, cell, values):
    return quantiles(Samples(valid, cell), values, AT)


def test_order_statistics_come_out_bit_for_bit():
    values = np.random.default_rng(0).normal(size=(1, 1, 11, 1)).astype(np.float32)
    samples = Samples(np.ones((1, 1, 11), bool), np.zeros(1, np.int32))
    found = np.asarray(quantiles(samples, jnp.asarray(values), (0.0, 0.3, 0.5, 1.0)))[0, 0]
    np.testing.assert_array_equal(found, np.sort(values.ravel())[[0, 3, 5, 10]])


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_spread_equals_numpy(offset):
    rng = np.random.default_rng(1)
    values = (offset + rng.normal(size=(*SHAPE, FEATURES))).astype(np.float32)
    valid, cell = rng.random(SHAPE) < 0.7, np.array([2, 0, 0, 2, 2, 0], np.int32)
    valid[[1, 2, 5], 1] = False  # cell 0 has samples of one member only
    mean, sd, members = (np.asarray(part) for part in spread(Samples(valid, cell), jnp.asarray(values)))
    for c in (0, 2):
        own, there = values[cell == c].astype(np.float64), valid[cell == c]
        np.testing.assert_allclose(mean[c], own[there].mean(axis=0), rtol=1e-6)
        np.testing.assert_allclose(sd[c], own[there].std(axis=0, ddof=1), rtol=2e-3)
        parts = [own[:, m][there[:, m]] for m in range(MEMBERS) if there[:, m].any()]
        pooled = sum(((part - part.mean(axis=0)) ** 2).sum(axis=0) for part in parts) / (there.sum() - len(parts))
        chance = np.mean([pooled / len(part) for part in parts], axis=0) * (len(parts) - 1) / len(parts)
        apart = np.maximum(np.var([part.mean(axis=0) for part in parts], axis=0) - chance, 0)
        np.testing.assert_allclose(members[c] ** 2, apart, rtol=2e-2, atol=2e-2 * max(offset, 1) / 1e4)
    assert np.isnan(mean[1]).all() and np.isnan(sd[1]).all() and np.isnan(members[1]).all()
    assert (members[0] == 0).all()


def test_members_that_are_alike_are_told_from_chance():
    """10,000 cells of 5 members of 4 samples, SD 3: what members differ by comes out on average, or nothing."""
    rng = np.random.default_rng(2)
    noise = rng.normal(scale=3.0, size=(10_000, 5, 4)).astype(np.float32)
    samples = Samples(np.ones(noise.shape, bool), np.arange(10_000, dtype=np.int32))
    member = np.array([-2, -1, 0, 1, 2], np.float32)[:, None]
    for effect in (0.0, 4.0):
        _, sd, apart = (np.asarray(part, float) for part in spread(samples, jnp.asarray(noise + effect * member)))
        if effect:
            assert np.mean(apart**2) == pytest.approx(2 * effect**2, rel=0.02)
            assert np.mean(sd**2) == pytest.approx((20 * 2 * effect**2 + 19 * 9) / 19, rel=0.02)
        else:
            assert np.median(apart) < 0.5 and np.mean(apart == 0) > 0.4  # their bare SD: 1.3


def test_one_sample_has_no_spread():
    samples = Samples(np.ones((1, 1, 1), bool), np.zeros(1, np.int32))
    mean, sd, apart = spread(samples, jnp.full((1, 1, 1), 2.0))
    assert mean[0] == 2 and np.isnan(sd[0]) and apart[0] == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"features": ("meanbp", "mood")}, "features: expected some of .*, found mood"),
        ({"features": ["meanbp"]}, "features: expected a tuple, found list"),
        ({"at": (10, 50, 90)}, "at: expected probabilities from 0 to 1, found 10"),
        ({"events": (EVENTS[0], EVENTS[0])}, "events: expected different names"),
    ],
)
def test_what_cannot_be_kept_is_refused(settings, words):
    with pytest.raises(InputError, match=words):
        Summarize(**settings)
