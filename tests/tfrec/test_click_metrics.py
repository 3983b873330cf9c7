"""Metrics of probabilities against scikit-learn and loops."""

import math

import numpy as np
import pytest

from tfrec.click_metrics import NAMES, ClickMetrics
from tfrec.metrics import user_weights


@pytest.fixture(scope="module")
def made():
    rng = np.random.default_rng(0)
    probability = rng.random(600).round(2)
    outcome = (rng.random(600) < probability**2).astype(int)
    outcome[rng.random(600) < 0.1] = -1
    return probability, outcome, np.sort(rng.integers(0, 40, 600))


def slow(probability, outcome, user):
    """Every metric the slow way."""
    from sklearn.metrics import log_loss, roc_auc_score

    known = outcome >= 0
    probability, outcome, user = probability[known], outcome[known], user[known]
    grouped = [
        (roc_auc_score(outcome[user == one], probability[user == one]), (user == one).sum())
        for one in np.unique(user)
        if 0 < outcome[user == one].sum() < (user == one).sum()
    ]
    share = outcome.mean()
    loss = log_loss(outcome, np.clip(probability, 1e-7, 1 - 1e-7))
    order = np.argsort(probability, kind="stable")
    bins = [order[len(order) * n // 10 : len(order) * (n + 1) // 10] for n in range(10)]
    return {
        "auc": roc_auc_score(outcome, probability),
        "grouped_auc": sum(auc * n for auc, n in grouped) / sum(n for _, n in grouped),
        "log_loss": loss,
        "normalised_entropy": loss / -(share * math.log(share) + (1 - share) * math.log(1 - share)),
        "calibration_error": sum(len(b) * abs(probability[b].mean() - outcome[b].mean()) for b in bins) / len(order),
    }


def test_metrics_are_those_of_scikit_learn(made):
    found = ClickMetrics(*made).values()
    assert dict(zip(NAMES, found[0], strict=True)) == pytest.approx(slow(*made), rel=1e-6)


def test_a_resample_is_the_users_that_were_drawn(made):
    probability, outcome, user = made
    metrics = ClickMetrics(*made)
    weights = next(user_weights(user, samples=3, seed=5))
    found = metrics.values(weights)
    for row, drawn in zip(found, weights.astype(int), strict=True):
        chosen = np.concatenate([np.flatnonzero(user == one) for one in range(40) for _ in range(drawn[one])])
        again = np.concatenate(
            [np.full((user == one).sum(), 100 * one + n) for one in range(40) for n in range(drawn[one])]
        )
        expected = slow(probability[chosen], outcome[chosen], again)
        del expected["calibration_error"]  # bins are those of the whole
        assert dict(zip(NAMES[:4], row[:4], strict=True)) == pytest.approx(expected, rel=1e-6)


def test_curve_and_ratio_are_those_of_a_loop(made):
    probability, outcome, _ = made
    known = np.flatnonzero(outcome >= 0)
    order = known[np.argsort(probability[known], kind="stable")]
    curve = ClickMetrics(*made).curve()
    for place, found in enumerate(curve):
        part = order[len(order) * place // 10 : len(order) * (place + 1) // 10]
        assert found["count"] == len(part)
        assert found["predicted"] == pytest.approx(sum(probability[part]) / len(part))
        assert found["observed"] == pytest.approx(sum(outcome[part]) / len(part))
    assert len(curve) == 10
    assert ClickMetrics(*made).ratio()[0] == pytest.approx(sum(probability[known]) / sum(outcome[known]))


def test_what_needs_both_outcomes_is_not_a_number_without():
    only = ClickMetrics(np.array([0.2, 0.7]), np.array([1, 1]), np.array([0, 1])).values()[0]
    named = dict(zip(NAMES, only, strict=True))
    assert np.isnan([named["auc"], named["grouped_auc"], named["normalised_entropy"]]).all()
    assert named["log_loss"] == pytest.approx(-(math.log(0.2) + math.log(0.7)) / 2)
    assert np.isnan(ClickMetrics(np.array([0.2]), np.array([-1]), np.array([0])).values()).all()


def test_probabilities_of_0_and_1_have_a_finite_loss():
    found = ClickMetrics(np.array([0.0, 1.0]), np.array([1, 0]), np.array([0, 0])).values()[0]
    assert found[NAMES.index("log_loss")] == pytest.approx(-math.log(1e-7))


def test_order_and_size_of_probabilities_may_be_of_different_places():
    at_first, shown = np.array([0.9, 0.8, 0.4, 0.3]), np.array([0.9, 0.4, 0.05, 0.1])
    metrics = ClickMetrics(at_first, np.array([1, 0, 1, 0]), np.zeros(4, int), shown=shown)
    loss = -(math.log(0.9) + math.log(0.6) + math.log(0.05) + math.log(0.9)) / 4
    error = (0.1 + 0.4 + 0.95 + 0.1) / 4  # as many bins as impressions
    assert metrics.values()[0] == pytest.approx([3 / 4, 3 / 4, loss, loss / math.log(2), error])
    assert metrics.ratio()[0] == pytest.approx(1.45 / 2)
    assert [one["predicted"] for one in metrics.curve()] == pytest.approx([0.05, 0.1, 0.4, 0.9])
