"""Metrics of ranked targets under ties, their bootstrap intervals over users, and the effective rank of embeddings.

A target's place is known up to ties: `better` candidates have a higher score, `equal` others the same one. All orders
of equal scores are taken as equally likely, and each metric is its expected value.

>>> import numpy as np
>>> recall_at_k(np.array([0, 9, 10, 8]), np.array([0, 0, 0, 3]), 10)
array([1. , 1. , 0. , 0.5])
>>> mrr(np.array([0, 1]), np.array([0, 1])).round(4)  # 1/1, and (1/2 + 1/3) / 2
array([1.    , 0.4167])
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_SAMPLES_AT_ONCE = 32
_SMALLER_IS_BETTER = ("log_loss", "normalised_entropy", "calibration_error")


class Interval(NamedTuple):
    """A 95 % interval."""

    low: float
    high: float


class Difference(NamedTuple):
    """A paired difference with its 95 % interval and two-sided p-value."""

    difference: float
    low: float
    high: float
    p_value: float


def recall_at_k(better: Array, equal: Array, k: int) -> NDArray[np.float64]:
    """The probability that the target is among the first k.

    Args:
        better: `(Q,)` int. Candidates with a higher score than the target.
        equal: `(Q,)` int. Other candidates with the same score.
        k: int. Cut-off.
    """
    return np.clip((k - better) / (equal + 1), 0.0, 1.0)


def ndcg_at_k(better: Array, equal: Array, k: int) -> NDArray[np.float64]:
    """The expected `1 / log2(1 + rank)` of the target where its rank is at most k, else 0.

    Args:
        better: `(Q,)` int. Candidates with a higher score than the target.
        equal: `(Q,)` int. Other candidates with the same score.
        k: int. Cut-off.
    """
    return _expected_gain(1 / np.log2(np.arange(1, k + 1) + 1), better, equal)


def mrr(better: Array, equal: Array) -> NDArray[np.float64]:
    """The expected `1 / rank` of the target.

    Args:
        better: `(Q,)` int. Candidates with a higher score than the target.
        equal: `(Q,)` int. Other candidates with the same score.
    """
    longest = int(np.max(better + equal, initial=0)) + 1
    return _expected_gain(1 / np.arange(1, longest + 1), better, equal)


def larger_is_better(name: str) -> bool:
    """Whether more of a metric is better; a label may stand behind it, as in `log_loss_click`.

    Args:
        name: str. Of a metric.
    """
    return not name.startswith(_SMALLER_IS_BETTER)


def bootstrap_interval(values: Array, users: Array, *, samples: int, seed: int) -> list[Interval]:
    """95 % percentile intervals of means, users resampled with all their queries.

    Args:
        values: `(Q, M)` float. M metrics of each query.
        users: `(Q,)` int. The user of each query.
        samples: int. Resamples.
        seed: int. Of the resampling.
    """
    return interval_of(resampled_means(values, users, samples=samples, seed=seed))


def interval_of(resampled: Array) -> list[Interval]:
    """95 % percentile intervals of M metrics.

    Args:
        resampled: `(samples, M)` float. The metrics on each resample of the users; those that are NaN are left out.
    """
    low, high = np.nanpercentile(resampled, [2.5, 97.5], axis=0)
    return [Interval(float(first), float(last)) for first, last in zip(low, high, strict=True)]


def difference_of(difference: Array, resampled: Array) -> list[Difference]:
    """Paired differences of M metrics, with intervals and p-values.

    Args:
        difference: `(M,)` float. The differences found.
        resampled: `(samples, M)` float. The differences on each resample of the users; those that are NaN are left out.

    Returns:
        M differences. The p-value is twice the share of resamples on the less frequent side of 0, at least
        `2 / (samples + 1)`, so that no finite sample claims certainty; 1 where nothing differs.
    """
    tail = np.minimum((resampled <= 0).sum(axis=0), (resampled >= 0).sum(axis=0)) + 1
    p_values = np.minimum(2 * tail / (np.isfinite(resampled).sum(axis=0) + 1), 1.0)
    found = zip(difference, interval_of(resampled), p_values, strict=True)
    return [Difference(float(mean), low, high, float(p)) for mean, (low, high), p in found]


def user_weights(users: Array, *, samples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """How often each user is drawn in each resample, `(S, U)`, some samples at a time, users by rising number.

    Equal users and seeds draw alike, so that two models' resamples are paired.

    Args:
        users: `(Q,)` int. The user of each query.
        samples: int. Resamples.
        seed: int. Of the resampling.
    """
    count = len(np.unique(users))
    rng = np.random.default_rng(seed)
    for start in range(0, samples, _SAMPLES_AT_ONCE):
        drawn = rng.integers(0, count, (min(_SAMPLES_AT_ONCE, samples - start), count))
        yield np.stack([np.bincount(one, minlength=count) for one in drawn]).astype(np.float64)


def resampled_means(values: Array, users: Array, *, samples: int, seed: int) -> NDArray[np.float64]:
    """The means `(samples, M)` over queries, each of as many users as there are, drawn with replacement.

    Args:
        values: `(Q, M)` float. M metrics of each query.
        users: `(Q,)` int. The user of each query.
        samples: int. Resamples.
        seed: int. Of the resampling.
    """
    _, row = np.unique(users, return_inverse=True)
    count = np.bincount(row)
    sums = np.stack([np.bincount(row, weights=column) for column in np.asarray(values, np.float64).T], axis=1)
    weights = user_weights(users, samples=samples, seed=seed)
    return np.concatenate([weight @ sums / (weight @ count)[:, None] for weight in weights])


def effective_rank(matrix: Array) -> float:
    """Exponential of the entropy of the normalised singular values: how many directions a matrix uses.

    Between 1 (all rows on one line) and the number of columns (all directions alike); 0 for a matrix of zeros.

    Args:
        matrix: `(N, D)` float. Embeddings, one a row.

    Reference: Roy & Vetterli, 2007, "The effective rank".
    """
    singular = np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False)
    total = singular.sum()
    if total == 0:
        return 0.0
    share = singular[singular > 0] / total
    return float(np.exp(-(share * np.log(share)).sum()))


def _expected_gain(gain: Array, better: Array, equal: Array) -> NDArray[np.float64]:
    """The mean of `gain[rank - 1]` over the ranks better + 1 .. better + equal + 1; 0 past the end of `gain`."""
    total = np.concatenate([[0.0], np.cumsum(gain)])
    last = np.minimum(np.asarray(better) + equal + 1, len(gain))
    return (total[last] - total[np.minimum(better, len(gain))]) / (np.asarray(equal) + 1)


__all__ = [
    "Difference",
    "Interval",
    "bootstrap_interval",
    "difference_of",
    "effective_rank",
    "interval_of",
    "larger_is_better",
    "mrr",
    "ndcg_at_k",
    "recall_at_k",
    "resampled_means",
    "user_weights",
]
