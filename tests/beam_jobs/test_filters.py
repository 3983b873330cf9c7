from collections import Counter

import numpy as np
import polars as pl
import pytest

from beam_jobs.filters import Comparison, check_patterns, filter_reasons, keep_frequent
from tfrec.config import Filters
from tfrec.errors import UsageError


def make_buckets(seed=0, num_events=400, num_users=40, num_items=30):
    """Two buckets of (user, item) events, a few users and items with very few."""
    rng = np.random.default_rng(seed)
    user = np.sort((num_users * rng.random(num_events) ** 2).astype(np.int32))
    item = (num_items * rng.random(num_events) ** 2).astype(np.int32)
    half = num_users // 2
    first, second = user < half, user >= half
    return [(user[first], item[first]), (user[second] - half, item[second])], num_items


def events_of(buckets):
    return [(f"{b}/{u}", int(i)) for b, (user, item) in enumerate(buckets) for u, i in zip(user, item, strict=True)]


def kept_by_loops(events, min_items, min_users, core):
    def drop(events, place, least):
        counts = Counter(event[place] for event in events)
        return [event for event in events if counts[event[place]] >= least]

    events = drop(drop(events, 1, min_items), 0, min_users)
    while core:
        left = drop(drop(events, 1, max(core, min_items)), 0, max(core, min_users))
        if len(left) == len(events):
            break
        events = left
    return events


@pytest.mark.parametrize(
    ("min_items", "min_users", "core"), [(1, 1, None), (4, 5, None), (1, 1, 5), (8, 1, 4), (1, 1, 99)]
)
def test_frequent_events_are_those_that_plain_loops_keep(min_items, min_users, core):
    buckets, num_items = make_buckets()
    filters = Filters(min_item_events=min_items, min_user_events=min_users, k_core=core)
    state = keep_frequent(buckets, num_items, filters)
    kept = [
        (f"{b}/{u}", int(i))
        for b, (user, item) in enumerate(buckets)
        for u, i in zip(user, item, strict=True)
        if state.user_fates[b][u] == 0 and state.item_fate[i] == 0
    ]
    assert kept == kept_by_loops(events_of(buckets), min_items, min_users, core)


def test_rows_fall_by_the_first_rule_that_they_break():
    filters = Filters(exclude={"invoice": "^C"}, require={"quantity": "> 0", "state": "!= 'void'"})
    reasons = filter_reasons(
        {"invoice": pl.Series(["C1", "2", None, "4", "5"])},
        {"quantity": pl.Series([-1.0, 0.0, 3.0, None, 2.0]), "state": pl.Series(["ok", "ok", "ok", "ok", "void"])},
        filters,
    )
    assert reasons.to_list() == [
        "exclude invoice: ^C",
        "require quantity: > 0",
        None,
        "require quantity: > 0",
        "require state: != 'void'",
    ]


@pytest.mark.parametrize("text", ["0", "=> 1", "> many", "between 1 and 2", ""])
def test_comparisons_that_cannot_be_read_are_refused(text):
    with pytest.raises(UsageError, match=r"`data.filters.require.price`: "):
        Comparison.parse("price", text)


@pytest.mark.parametrize(
    ("text", "passing"),
    [(">= 2", [2, 3]), ("> 2", [3]), ("<= 2", [1, 2]), ("< 2", [1]), ("== 2", [2]), ("!=2", [1, 3])],
)
def test_comparisons_compare(text, passing):
    values = pl.Series([1.0, 2.0, 3.0, None])
    assert values.filter(Comparison.parse("price", text).holds(values)).to_list() == passing


def test_a_pattern_that_is_none_is_refused():
    with pytest.raises(UsageError, match=r"`data.filters.exclude.invoice`: no regular expression"):
        check_patterns(Filters(exclude={"invoice": "("}))
