"""What is dropped before the split: rows by their columns, users and items with too few events."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tfrec.config import Filters
from tfrec.errors import UsageError

COMPARE: dict[str, Callable[[pl.Series, Any], pl.Series]] = {
    ">=": lambda values, bound: values >= bound,
    ">": lambda values, bound: values > bound,
    "<=": lambda values, bound: values <= bound,
    "<": lambda values, bound: values < bound,
    "==": lambda values, bound: values == bound,
    "!=": lambda values, bound: values != bound,
}
_COMPARISON = re.compile(r"\s*(>=|<=|==|!=|>|<)\s*(\S.*?)\s*")

Items: TypeAlias = NDArray[np.int32]


@dataclass(frozen=True)
class Comparison:
    """What a row must pass: `Quantity: "> 0"`."""

    operator: str
    bound: float | str

    @classmethod
    def parse(cls, column: str, text: str) -> "Comparison":
        """Reads `> 0` or `== paid`; anything else is a `UsageError`."""
        match = _COMPARISON.fullmatch(text)
        if match is None:
            raise UsageError(f"`data.filters.require.{column}`: must look like `> 0` or `== paid`. Received: {text!r}.")
        operator, bound = match.groups()
        try:
            return cls(operator, float(bound))
        except ValueError:
            pass
        if operator not in ("==", "!="):
            raise UsageError(f"`data.filters.require.{column}`: {operator} needs a number. Received: {text!r}.")
        return cls(operator, bound.strip("'\""))

    @property
    def is_number(self) -> bool:
        """Compared as numbers, not as texts."""
        return not isinstance(self.bound, str)

    def holds(self, values: pl.Series) -> pl.Series:
        """Which values pass; an empty one does not."""
        return COMPARE[self.operator](values, self.bound).fill_null(False)


def check_patterns(filters: Filters) -> None:
    """Raises a `UsageError` where `exclude` holds something that is no regular expression."""
    for column, pattern in filters.exclude.items():
        try:
            pl.Series(["a"]).str.contains(pattern)
            re.compile(pattern)
        except (re.error, pl.exceptions.PolarsError) as error:
            raise UsageError(f"`data.filters.exclude.{column}`: no regular expression ({error}).") from None


def filter_reasons(texts: Mapping[str, pl.Series], required: Mapping[str, pl.Series], filters: Filters) -> pl.Series:
    """Of each row why it is filtered, or null: the first of `exclude`, then of `require`, that it falls under.

    Args:
        texts: the columns of `exclude` as texts.
        required: the columns of `require`, as numbers or texts.
        filters: the rules.
    """
    size = len(next(iter([*texts.values(), *required.values()])))
    reasons = pl.repeat(None, size, dtype=pl.String, eager=True)
    for column, values in texts.items():
        falls = values.str.contains(filters.exclude[column]).fill_null(False) & reasons.is_null()
        reasons = reasons.set(falls, f"exclude {column}: {filters.exclude[column]}")
    for column, values in required.items():
        text = filters.require[column]
        falls = ~Comparison.parse(column, text).holds(values) & reasons.is_null()
        reasons = reasons.set(falls, f"require {column}: {text}")
    return reasons


@dataclass(frozen=True)
class Kept:
    """Which items, and users of each bucket, survive `min_*_events` and `k_core`, and at which filter others fell.

    0 = kept, else 1 + the place in `REASONS`.
    """

    item_fate: NDArray[np.int8]
    user_fates: list[NDArray[np.int8]]


REASONS = ("min_item_events", "min_user_events", "k_core")


def keep_frequent(buckets: Sequence[tuple[Items, Items]], num_items: int, filters: Filters) -> Kept:
    """Drops items, then users, with too few events; with `k_core` again and again until nothing more falls.

    Users of different buckets are different users; only item counts are added up over the buckets.

    Args:
        buckets: of each bucket `(user, item)`, one entry an event, users counted from 0.
        num_items: items in all.
        filters: the numbers.
    """
    state = Kept(
        np.zeros(num_items, np.int8), [np.zeros(int(user.max(initial=-1)) + 1, np.int8) for user, _ in buckets]
    )
    _drop_items(buckets, state, filters.min_item_events, fate=1)
    _drop_users(buckets, state, filters.min_user_events, fate=2)
    if filters.k_core is not None:
        least_items = max(filters.k_core, filters.min_item_events)
        least_users = max(filters.k_core, filters.min_user_events)
        while _drop_items(buckets, state, least_items, fate=3) + _drop_users(buckets, state, least_users, fate=3):
            pass
    return state


def _drop_items(buckets: Sequence[tuple[Items, Items]], state: Kept, least: int, fate: int) -> int:
    counts = np.zeros(len(state.item_fate), np.int64)
    for (user, item), user_fate in zip(buckets, state.user_fates, strict=True):
        counts += np.bincount(item[user_fate[user] == 0], minlength=len(counts))
    fallen = (state.item_fate == 0) & (counts < least)
    state.item_fate[fallen] = fate
    return int(counts[fallen].sum())


def _drop_users(buckets: Sequence[tuple[Items, Items]], state: Kept, least: int, fate: int) -> int:
    dropped = 0
    for (user, item), user_fate in zip(buckets, state.user_fates, strict=True):
        counts = np.bincount(user[state.item_fate[item] == 0], minlength=len(user_fate))
        fallen = (user_fate == 0) & (counts < least)
        user_fate[fallen] = fate
        dropped += int(counts[fallen].sum())
    return dropped
