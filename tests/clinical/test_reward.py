"""The published reward, term by term and for whole stays."""

import dataclasses

import jax
import numpy as np
import pytest

from sepsis_jax.clinical.reward import OUTCOME_ONLY, PUBLISHED, Reward


@pytest.mark.parametrize(
    ("sofa", "sofa_next", "lactate", "lactate_next", "expected"),
    [
        (4, 4, 2, 2, -0.025),
        (0, 0, 2, 2, 0.0),
        (4, 6, 2, 2, -0.25),
        (6, 4, 2, 2, 0.25),
        (1, 0, 2, 2, 0.125),
        (0, 1, 2, 2, -0.125),
        (0, 0, 2, 3, -2 * np.tanh(1)),
        (0, 0, 3, 2, 2 * np.tanh(1)),
        (4, 4, 1, 1.5, -0.025 - 2 * np.tanh(0.5)),
        (5, 4, 1, 1.5, 0.125 - 2 * np.tanh(0.5)),
    ],
)
def test_step(sofa: float, sofa_next: float, lactate: float, lactate_next: float, expected: float):
    assert float(PUBLISHED.step(sofa, sofa_next, lactate, lactate_next)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("death", "expected"), [(0.0, 15), (1.0, -15), (0.5, 0), (0.1, 12)])
def test_terminal_is_the_expected_outcome(death: float, expected: float):
    assert float(PUBLISHED.terminal(death)) == pytest.approx(expected, abs=1e-5)


def test_declarations():
    assert PUBLISHED.pays_outcome and OUTCOME_ONLY.pays_outcome
    assert not dataclasses.replace(PUBLISHED, outcome=0.0).pays_outcome
    assert (PUBLISHED.sofa, OUTCOME_ONLY.sofa) == ("published", "proper")
    assert PUBLISHED.gamma == 1.0
    assert hash(Reward()) == hash(PUBLISHED)
    assert float(OUTCOME_ONLY.step(3.0, 3.0, 1.0, 9.0)) == 0


def stays() -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    sofa = rng.integers(0, 3, (7, 5)).astype(np.float32)
    lactate = rng.uniform(1, 5, (7, 5)).astype(np.float32)
    return sofa, lactate, np.array([1, 2, 3, 4, 5, 5, 1], np.int32), rng.random(7).astype(np.float32)


def episode_oracle(sofa: np.ndarray, lactate: np.ndarray, length: int, death: float) -> np.ndarray:
    rewards = np.zeros(len(sofa))
    for t in range(length - 1):
        rewards[t] = -0.125 * (sofa[t + 1] - sofa[t]) - 2 * np.tanh(lactate[t + 1] - lactate[t])
        if sofa[t + 1] == sofa[t] and sofa[t] > 0:
            rewards[t] -= 0.025
    rewards[length - 1] = 15 * (1 - death) - 15 * death
    return rewards


def test_episode_matches_the_oracle_eager_and_vmapped():
    arrays = stays()
    expected = [episode_oracle(*stay) for stay in zip(*arrays, strict=True)]
    np.testing.assert_allclose(PUBLISHED.episode(*arrays), expected, atol=1e-5)
    np.testing.assert_allclose(jax.jit(jax.vmap(PUBLISHED.episode))(*arrays), expected, atol=1e-5)


def test_padding_does_not_matter():
    sofa, lactate, length, death = stays()
    padding = np.arange(5) >= length[:, None]
    other = PUBLISHED.episode(np.where(padding, 24, sofa), np.where(padding, 40, lactate), length, death)
    np.testing.assert_array_equal(other, PUBLISHED.episode(sofa, lactate, length, death))


def test_step_terms_telescope():
    """Without the constant and the tanh the rewards of a stay sum to the change of SOFA over the stay."""
    sofa, lactate, length, death = stays()
    linear = Reward(unchanged_sofa=0.0, lactate_change=0.0, outcome=0.0)
    total = np.asarray(linear.episode(sofa, lactate, length, death)).sum(-1)
    np.testing.assert_allclose(total, -0.125 * (sofa[np.arange(7), length - 1] - sofa[:, 0]), atol=1e-6)
