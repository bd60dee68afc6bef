"""The test inputs themselves keep the `Episodes` contract."""

import numpy as np
import pytest
from factories import make_episodes

from sepsis_jax.clinical import features
from sepsis_jax.data.episodes import DTYPES


@pytest.mark.parametrize("known_propensity", [False, True])
def test_made_episodes_keep_the_contract(known_propensity):
    episodes = make_episodes(30, 7, seed=0, known_propensity=known_propensity)
    for name, (dtype, shape) in DTYPES.items():
        value = getattr(episodes, name)
        if name == "propensity" and not known_propensity:
            assert value is None
            continue
        assert value.dtype == dtype, name
        assert value.shape == tuple({"B": 30, "T": 7}.get(size, size) for size in shape), name
    valid = episodes.valid
    assert not episodes.obs[~valid].any() and not episodes.mask[~valid].any()
    seen = episodes.obs[valid]
    assert np.isfinite(seen).all() and (seen >= features.LOW).all() and (seen <= features.HIGH).all()
    held = np.concatenate([~episodes.mask, np.zeros((30, 7, 1), bool)], -1)[:, 1:] & valid[:, 1:, None]
    np.testing.assert_array_equal(episodes.obs[:, 1:][held], episodes.obs[:, :-1][held])
    assert set(np.unique(episodes.split)) == {0, 1, 2}
    assert set(np.unique(episodes.mortality_90d)) == {0, 1}
