"""Weighted figures of probabilities against scikit-learn and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from sepsis_jax.evaluation.discrimination import auprc, auroc, brier, calibration, ece, in_the_large, rank


@pytest.mark.parametrize("decimals", [1, 8])
def test_figures_equal_scikit_learn_with_weights_and_ties(decimals):
    rng = np.random.default_rng(0)
    chance = rng.random(300).round(decimals)
    label = rng.random(300) < chance
    for weight in (np.ones(300), rng.integers(0, 3, 300).astype(float)):
        ranked = rank(label, chance)
        own = weight[ranked.order]
        assert auroc(ranked, own) == pytest.approx(roc_auc_score(label, chance, sample_weight=weight))
        assert auprc(ranked, own) == pytest.approx(average_precision_score(label, chance, sample_weight=weight))
        assert brier(ranked, own) == pytest.approx(brier_score_loss(label, chance, sample_weight=weight))


def test_calibration_error_by_hand():
    chance = np.arange(20) / 20
    label = np.zeros(20, bool)
    label[[3, 12, 13, 19]] = True
    gaps = [abs(chance[2 * b : 2 * b + 2].mean() - label[2 * b : 2 * b + 2].mean()) for b in range(10)]
    ranked = rank(label, chance)
    assert ece(ranked, np.ones(20)) == pytest.approx(np.mean(gaps))
    assert in_the_large(ranked, np.ones(20)) == pytest.approx(chance.mean() - 0.2)
    table = calibration(label, chance)
    assert list(table["n"]) == [2] * 10
    np.testing.assert_allclose(np.abs(table["predicted"] - table["observed"]), gaps)


def test_the_order_of_equal_probabilities_does_not_matter():
    rng = np.random.default_rng(0)
    chance = rng.choice([0.1, 0.2, 0.5, 0.9], 200)
    label = rng.random(200) < 0.5
    orders = [np.argsort(label), np.argsort(~label), rng.permutation(200)]
    found = [ece(rank(label[order], chance[order]), np.ones(200)) for order in orders]
    by_hand = sum(abs((chance[chance == c] - label[chance == c]).sum()) for c in np.unique(chance)) / 200
    assert found == [pytest.approx(by_hand)] * 3
    constant = rank(np.arange(100) < 50, np.full(100, 0.5))
    assert ece(constant, np.ones(100)) == 0


def test_without_a_class_there_is_no_figure():
    ranked = rank(np.zeros(4, bool), np.linspace(0, 1, 4))
    assert np.isnan(auroc(ranked, np.ones(4))) and np.isnan(auprc(ranked, np.ones(4)))
    assert np.isnan(ece(ranked, np.zeros(4)))
