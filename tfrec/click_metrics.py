"""Metrics of predicted probabilities against 0/1 outcomes, on all impressions or on resamples of the users.

>>> import numpy as np
>>> click = ClickMetrics(np.array([0.9, 0.8, 0.8, 0.1]), np.array([1, 1, 0, 0]), np.array([0, 0, 1, 1]))
>>> click.values().round(4).tolist()[0][:1]  # of four pairs three are in order and one is tied
[0.875]
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

NAMES = ("auc", "grouped_auc", "log_loss", "normalised_entropy", "calibration_error")
_BINS = 10
_LEAST = 1e-7  # probabilities in float32 end there


class ClickMetrics:
    """What one label's probabilities are worth: their order, and their size.

    - `auc`: the share of pairs of a positive and a negative that are in order; ties count half.
    - `grouped_auc`: the mean of each user's own, weighted by impressions, over users that have both outcomes.
    - `log_loss`: the mean of -log of the probability of what came to pass.
    - `normalised_entropy`: `log_loss` over the entropy of the share of positives; 1 = as good as that share.
    - `calibration_error`: the mean over ten bins of equal size, by probability, of |predicted - observed|.

    Args:
        probability: `(Q,)` float. What candidates are put in order by.
        outcome: `(Q,)` int. 0 or 1; others are not known and left out.
        user: `(Q,)` int. Numbers of users, 0 to U - 1.
        num_users: int or None. U; None = as many as there are.
        shown: `(Q,)` float or None. The probability where the candidate was shown, whose size is judged by what became
            of it there; None = `probability`.
    """

    def __init__(
        self,
        probability: Array,
        outcome: Array,
        user: Array,
        num_users: int | None = None,
        shown: Array | None = None,
    ) -> None:
        self.num_users = num_users if num_users is not None else int(user[outcome >= 0].max(initial=-1)) + 1
        self._order = _Order(probability, outcome, user, self.num_users)
        self._size = _Size(probability if shown is None else shown, outcome, user, self.num_users)

    def values(self, weights: Array | None = None) -> NDArray[np.float64]:
        """`(S, M)`: the metrics of `NAMES` on S resamples; NaN where one outcome is missing.

        Args:
            weights: `(S, U)` float. How often each user was drawn; None = each once.
        """
        weights = self._weights(weights)
        return np.concatenate([self._order.values(weights), self._size.values(weights)], axis=1)

    def ratio(self, weights: Array | None = None) -> NDArray[np.float64]:
        """`(S,)`: predicted over observed positives; weights as for `values`."""
        return self._size.ratio(self._weights(weights))

    def curve(self) -> list[dict[str, float]]:
        """Of each of the ten bins the mean probability, the share of positives and the number of impressions."""
        return self._size.curve()

    def _weights(self, weights: Array | None) -> Array:
        return np.ones((1, self.num_users)) if weights is None else weights


class _Known:
    """The impressions whose outcome is known, by rising probability."""

    def __init__(self, probability: Array, outcome: Array, user: Array, num_users: int) -> None:
        known = np.flatnonzero(outcome >= 0)
        known = known[np.argsort(probability[known], kind="stable")]
        self.probability = np.asarray(probability, np.float64)[known]
        self.positive = np.asarray(outcome)[known].astype(np.float64)
        self.user = np.asarray(user)[known]
        self.num_users = num_users


class _Order(_Known):
    """Whether positives stand above negatives."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._ties = _starts(self.probability)
        self._user_auc, self._user_count = self._by_user()

    def values(self, weights: Array) -> NDArray[np.float64]:
        """`(S, 2)`: `auc` and `grouped_auc`."""
        if not len(self.user):
            return np.full((len(weights), 2), np.nan)
        each = weights[:, self.user]  # (S, Q)
        positive = each * self.positive
        with np.errstate(invalid="ignore", divide="ignore"):
            grouped = weights @ (self._user_auc * self._user_count) / (weights @ self._user_count)
            return np.stack([self._auc(positive, each - positive), grouped], axis=1)

    def _auc(self, positive: Array, negative: Array) -> NDArray[np.float64]:
        """Weighted pairs in order, `(S,)`, of weights `(S, Q)`."""
        above = np.add.reduceat(positive, self._ties, axis=1)  # (S, distinct probabilities)
        here = np.add.reduceat(negative, self._ties, axis=1)
        below = np.cumsum(here, axis=1) - here
        pairs = positive.sum(axis=1) * negative.sum(axis=1)
        return np.asarray((above * (below + here / 2)).sum(axis=1) / pairs)

    def _by_user(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Each user's own AUC and number of impressions, both 0 where an outcome is missing, `(U,)`."""
        order = np.argsort(self.user, kind="stable")  # by user, then by probability
        user, positive = self.user[order], self.positive[order]
        ties = np.union1d(_starts(self.probability[order]), _starts(user))
        sizes = np.diff(np.append(ties, len(user)))
        begin = np.searchsorted(user, np.arange(self.num_users))
        rank = np.repeat(ties + (sizes + 1) / 2, sizes) - begin[user]  # the mean of tied ranks, from 1
        count = np.bincount(user, minlength=self.num_users).astype(np.float64)
        ones = np.bincount(user, positive, self.num_users)
        pairs = ones * (count - ones)
        above = np.bincount(user, rank * positive, self.num_users) - ones * (ones + 1) / 2
        both = pairs > 0
        return np.where(both, above / np.where(both, pairs, 1), 0.0), count * both


class _Size(_Known):
    """Whether as many are positive as was said."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._bins = np.unique(np.arange(_BINS) * len(self.user) // _BINS)
        likelihood = np.where(self.positive > 0, self.probability, 1 - self.probability)
        self._loss = -np.log(np.maximum(likelihood, _LEAST))

    def values(self, weights: Array) -> NDArray[np.float64]:
        """`(S, 3)`: `log_loss`, `normalised_entropy` and `calibration_error`."""
        if not len(self.user):
            return np.full((len(weights), 3), np.nan)
        each = weights[:, self.user]  # (S, Q)
        positive, total = each * self.positive, each.sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            loss = each @ self._loss / total
            share = positive.sum(axis=1) / total
            entropy = -share * np.log(share) - (1 - share) * np.log(1 - share)
            error = np.abs(np.add.reduceat(each * self.probability - positive, self._bins, axis=1)).sum(axis=1) / total
            return np.stack([loss, loss / entropy, error], axis=1)

    def ratio(self, weights: Array) -> NDArray[np.float64]:
        """`(S,)`: predicted over observed positives."""
        predicted = np.bincount(self.user, self.probability, self.num_users)
        observed = np.bincount(self.user, self.positive, self.num_users)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(weights @ predicted / (weights @ observed))

    def curve(self) -> list[dict[str, float]]:
        """Of each of the ten bins the mean probability, the share of positives and the number of impressions."""
        if not len(self.user):
            return []
        count = np.diff(np.append(self._bins, len(self.user)))
        sums = [np.add.reduceat(values, self._bins) for values in (self.probability, self.positive)]
        return [
            {"predicted": float(predicted / n), "observed": float(observed / n), "count": int(n)}
            for predicted, observed, n in zip(*sums, count, strict=True)
        ]


def _starts(values: Array) -> NDArray[np.int64]:
    """Where runs of equal values begin."""
    return np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]])[: len(values)])


__all__ = ["NAMES", "ClickMetrics"]
