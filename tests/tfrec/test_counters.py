"""Counters of earlier events: what they count, and that it is neither the event itself nor anything behind it."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrec.coders import CounterCoder
from tfrec.config import parse
from tfrec.errors import UsageError
from tfrec.transforms import EventCounter

BOUNDARIES = (1.0, 2.0, 3.0, 5.0)
TYPES = [3, 4]

event = st.tuples(st.integers(0, 2), st.integers(-1, 3), st.integers(0, 9), st.integers(2, 4))
"""User, key (-1 = unknown), seconds since the event before, event type."""
histories = st.lists(event, max_size=25)
windows = st.sampled_from([None, 1, 7])


def columns(events):
    """Events by (user, time) as columns: user, key, time, type."""
    rows, clock = [], [0, 0, 0]
    for user, key, gap, kind in events:
        clock[user] += gap
        rows.append((user, key, clock[user], kind))
    rows.sort(key=lambda row: (row[0], row[2]))
    return np.array(rows, np.int64).reshape(-1, 4).T


def counter(window, types=None):
    return EventCounter(of="brand", window_seconds=window, event_types=types, boundaries=BOUNDARIES)


def codes_of(events, window, typed):
    user, key, time, kind = columns(events)
    keys = np.where(key < 0, -1, user * 10 + key)
    return counter(window).encode(keys, time, np.isin(kind, TYPES) if typed else None).tolist()


def code(count):
    return 2 + sum(count >= boundary for boundary in BOUNDARIES)


@settings(deadline=None)
@given(histories, windows, st.booleans())
def test_a_code_says_how_many_earlier_events_count(events, window, typed):
    user, key, time, kind = columns(events)
    expected = []
    for place in range(len(user)):
        counted = sum(
            (user[row], key[row]) == (user[place], key[place])
            and (window is None or time[place] - time[row] <= window)
            and (not typed or kind[row] in TYPES)
            for row in range(place)
        )
        expected.append(1 if key[place] < 0 else code(counted))
    assert codes_of(events, window, typed) == expected


@settings(deadline=None)
@given(histories, event, windows, st.booleans())
def test_nothing_behind_an_event_changes_its_count(events, extra, window, typed):
    later = [(0, extra[1], 1, extra[3])]  # of the first user, behind their last event
    before, after = codes_of(events, window, typed), codes_of(events + later, window, typed)
    place = sum(user == 0 for user, *_ in events)
    assert after[:place] + after[place + 1 :] == before


@settings(deadline=None)
@given(histories, st.integers(2, 4), windows)
def test_an_event_never_counts_itself(events, kind, window):
    events = [*events, (0, 1, 1, 2)]  # the first user's last event, of another type each time
    place = sum(user == 0 for user, *_ in events) - 1
    changed = [*events[:-1], (0, 1, 1, kind)]
    assert codes_of(events, window, True)[place] == codes_of(changed, window, True)[place]
    alone = [(2, 3, 0, 3)]
    assert codes_of(alone, window, False) == [code(0)]


@settings(max_examples=25, deadline=None)
@given(st.lists(histories, min_size=1, max_size=3), windows, st.booleans())
def test_the_graph_counts_as_the_job_does(rows, window, typed):
    table = np.array([0, 1, 2, 3, 2], np.int32)  # the code of each item's brand, items 2 and 4 having the same
    width = max(map(len, rows)) + 2
    items, times, kinds = (np.zeros((len(rows), width), np.int32) for _ in range(3))
    times[:, -1] = 99  # where there is no event anything may stand
    expected = []
    for row, events in enumerate(rows):
        _, key, time, kind = columns([(0, *rest) for _, *rest in events])
        item = np.where(key < 0, 1, key + 1)
        items[row, : len(key)], times[row, : len(key)], kinds[row, : len(key)] = item, time, kind
        brand = table[item].astype(np.int64)
        counted = np.isin(kind, TYPES) if typed else None
        expected.append(counter(window).encode(np.where(brand == 1, -1, brand), time, counted).tolist())
    coder = CounterCoder(counter(window), TYPES if typed else None, table)
    found = coder(tf.constant(items), tf.constant(times), tf.constant(kinds)).numpy()
    assert [found[row, : len(codes)].tolist() for row, codes in enumerate(expected)] == expected


def test_of_a_user_every_event_counts():
    coder = CounterCoder(counter(None), None)
    items = tf.constant([[5, 1, 7, 0], [1, 0, 0, 0]])
    assert coder(items, None, None).numpy()[:, :3].tolist()[0] == [code(0), code(1), code(2)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "counter"}, "a counter must say what it is `of`, and has no `column`"),
        ({"kind": "counter", "of": "user", "column": "x"}, "a counter must say what it is `of`, and has no `column`"),
        ({"kind": "categorical", "of": "user"}, "`of` is an option of features of kind counter alone"),
        ({"kind": "counter", "of": "user", "bins": 3}, "`bins` is an option of features of kind numerical"),
        ({"kind": "counter", "of": "user", "boundaries": [2, 1]}, "`boundaries` must increase"),
    ],
)
def test_options_that_do_not_fit_are_errors(options, message):
    with pytest.raises(UsageError, match=message):
        parse({"data": {"out": "x"}, "features": {"events": [{"name": "again", **options}]}})
