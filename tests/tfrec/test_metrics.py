import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrec.metrics import (
    bootstrap_interval,
    difference_of,
    effective_rank,
    mrr,
    ndcg_at_k,
    recall_at_k,
    resampled_means,
)

pytestmark = pytest.mark.jax


def expected_over_orders(better, equal, gain):
    """The mean gain of the target over every order of the candidates that have its score."""
    tied = ["target", *range(equal)]
    gains = [gain(better + order.index("target") + 1) for order in itertools.permutations(tied)]
    return sum(gains) / len(gains)


@pytest.mark.parametrize("better", range(5))
@pytest.mark.parametrize("equal", range(5))
@pytest.mark.parametrize("k", [1, 3, 10])
def test_ties_count_by_expectation(better, equal, k):
    one, other = np.array([better]), np.array([equal])
    assert recall_at_k(one, other, k)[0] == pytest.approx(expected_over_orders(better, equal, lambda rank: rank <= k))
    assert ndcg_at_k(one, other, k)[0] == pytest.approx(
        expected_over_orders(better, equal, lambda rank: 1 / math.log2(rank + 1) if rank <= k else 0.0)
    )
    assert mrr(one, other)[0] == pytest.approx(expected_over_orders(better, equal, lambda rank: 1 / rank))


def test_published_values_without_ties():
    better = np.array([0, 1, 9, 10])
    none = np.zeros(4, int)
    assert recall_at_k(better, none, 10).tolist() == [1, 1, 1, 0]
    assert ndcg_at_k(better, none, 10) == pytest.approx([1, 0.63093, 0.28906, 0], abs=1e-5)
    assert mrr(better, none) == pytest.approx([1, 1 / 2, 1 / 10, 1 / 11])


def test_metrics_of_no_queries_are_empty():
    none = np.zeros(0, int)
    assert recall_at_k(none, none, 10).shape == ndcg_at_k(none, none, 10).shape == mrr(none, none).shape == (0,)


def test_resamples_without_the_metric_are_left_out():
    (found,) = difference_of(np.array([0.2]), np.array([[0.1], [0.2], [math.nan], [0.3]]))
    assert found == pytest.approx((0.2, 0.105, 0.295, 0.5))  # p = 2 (0 + 1) / (3 + 1)


def test_interval_equals_a_bootstrap_written_out():
    rng = np.random.default_rng(3)
    users = np.repeat(np.arange(30), rng.integers(1, 4, 30))
    values = rng.random((len(users), 2))
    found = bootstrap_interval(values, users, samples=4000, seed=0)
    means = []
    for _ in range(4000):
        drawn = np.concatenate([np.flatnonzero(users == user) for user in rng.integers(0, 30, 30)])
        means.append(values[drawn].mean(axis=0))
    expected = np.percentile(means, [2.5, 97.5], axis=0).T
    np.testing.assert_allclose(found, expected, atol=0.01)  # the width is about 0.15


def test_interval_covers_the_mean_as_often_as_it_says():
    covered = 0
    for seed in range(200):
        values = np.random.default_rng(seed).random((100, 1))
        ((low, high),) = bootstrap_interval(values, np.arange(100), samples=300, seed=seed)
        covered += low <= 0.5 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_users_are_resampled_whole():
    users = np.repeat(np.arange(20), 50)
    values = np.repeat(np.random.default_rng(0).random(20), 50)[:, None]  # all queries of a user agree
    ((low, high),) = bootstrap_interval(values, users, samples=1000, seed=0)
    ((alone_low, alone_high),) = bootstrap_interval(values, np.arange(1000), samples=1000, seed=0)
    assert high - low > 5 * (alone_high - alone_low)  # sqrt(50) times as wide


def test_equal_seeds_give_equal_intervals():
    values, users = np.random.default_rng(0).random((40, 1)), np.arange(40)
    first, again, other = (bootstrap_interval(values, users, samples=200, seed=seed) for seed in (0, 0, 1))
    assert first == again != other


def paired_bootstrap(first, second, users, samples):
    """Differences of means over the same queries."""
    values = first - second
    return difference_of(values.mean(axis=0), resampled_means(values, users, samples=samples, seed=0))


def test_a_clear_difference_is_significant_and_none_is_not():
    rng = np.random.default_rng(0)
    base = rng.random((500, 1))
    better = base + 0.1 + rng.normal(scale=0.1, size=base.shape)
    (found,) = paired_bootstrap(better, base, np.arange(500), samples=999)
    assert found.low < 0.1 < found.high
    assert found.low > 0.08
    assert found.p_value == pytest.approx(2 / 1000)
    (nothing,) = paired_bootstrap(base, base, np.arange(500), samples=999)
    assert nothing == (0.0, 0.0, 0.0, 1.0)


def test_p_value_is_twice_the_tail_of_a_normal_difference():
    rng = np.random.default_rng(1)
    values = rng.normal(size=(400, 1))
    values += 1.5 / math.sqrt(400) - values.mean()  # 1.5 standard errors above 0
    values = values / values.std()
    (found,) = paired_bootstrap(values, np.zeros_like(values), np.arange(400), samples=4000)
    standard_errors = float(values.mean()) * math.sqrt(400)
    assert found.p_value == pytest.approx(math.erfc(standard_errors / math.sqrt(2)), abs=0.03)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(0, 1000))
def test_effective_rank_of_orthonormal_columns_is_their_number(rank, seed):
    rng = np.random.default_rng(seed)
    columns = np.linalg.qr(rng.normal(size=(20, rank)))[0]
    embedded = columns @ np.linalg.qr(rng.normal(size=(8, 8)))[0][:rank]
    assert effective_rank(embedded) == pytest.approx(rank)


def test_effective_rank_by_hand():
    # Singular values 3 and 1: shares 3/4 and 1/4.
    matrix = np.array([[3.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    assert effective_rank(matrix) == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))))
    assert effective_rank(np.ones((5, 3))) == pytest.approx(1)
    assert effective_rank(np.zeros((5, 3))) == 0
