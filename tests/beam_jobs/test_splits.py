import numpy as np
import pytest

from beam_jobs.splits import (
    check_split,
    cut_by_gap,
    cut_by_id,
    latest_rows,
    leave_one_out_places,
    number_sessions,
    row_starts,
    rows_before,
    split_events,
    split_impressions_by_history,
)
from tfrec.errors import UsageError
from tfrec.schema import Split


def make_users(seed=0, num_users=60, longest=14):
    """Sorted users (some without rows), rising seconds with ties, and which rows are targets."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, longest, num_users)
    user = np.repeat(np.arange(num_users), lengths)
    seconds = np.concatenate([np.sort(rng.integers(0, 40, n)) for n in lengths]).astype(np.int64)
    return user, seconds, rng.random(len(user)) < 0.7, np.concatenate([[0], np.cumsum(lengths)])


def by_user(user, *columns):
    for one in np.unique(user):
        yield [column[user == one].tolist() for column in columns]


def test_row_starts_count_users_without_rows():
    assert row_starts(np.array([1, 1, 3]), 5).tolist() == [0, 0, 2, 2, 3, 3]


def test_sessions_end_after_a_gap():
    user, seconds, _, _ = make_users()
    session = number_sessions(user, cut_by_gap(seconds, 5))
    for times, found in by_user(user, seconds, session):
        expected, last = [], None
        for time in times:
            expected.append(1 if last is None else expected[-1] + (time - last > 5))
            last = time
        assert found == expected


def test_sessions_by_id_end_where_the_id_changes():
    user = np.array([0, 0, 0, 0, 1, 1])
    session = number_sessions(user, cut_by_id(np.array([7, 7, 8, 7, 7, 9])))
    assert session.tolist() == [1, 1, 2, 3, 1, 2]


def test_no_rows_have_no_sessions_and_no_splits():
    none = np.zeros(0, np.int64)
    assert number_sessions(none, cut_by_gap(none, 5)).shape == (0,)
    starts = np.zeros(1, np.int64)
    assert split_events(Split(kind="leave_one_out"), starts, none.astype(bool), none).shape == (0,)


@pytest.mark.parametrize("validation", [True, False])
def test_leave_one_out_holds_out_the_last_targets(validation):
    user, seconds, target, starts = make_users()
    split = split_events(Split(kind="leave_one_out", validation=validation), starts, target, seconds)
    for targets, found in by_user(user, target, split):
        places = [place for place, is_target in enumerate(targets) if is_target]
        expected = [0] * len(targets)
        if len(places) >= 3:
            for place in range(len(targets)):
                if place >= places[-1]:
                    expected[place] = 2
                elif validation and place >= places[-2]:
                    expected[place] = 1
        assert found == expected


@pytest.mark.parametrize("validation", [True, False])
def test_last_fraction_holds_out_each_users_end(validation):
    user, seconds, target, starts = make_users()
    split = split_events(Split(kind="last_fraction", fraction=0.2, validation=validation), starts, target, seconds)
    for (found,) in by_user(user, split):
        share = len(found) // 5
        held_out = [1] * (share * validation) + [2] * share
        assert found == [0] * (len(found) - len(held_out)) + held_out


def test_temporal_splits_at_two_moments():
    _user, seconds, target, starts = make_users()
    rule = Split(kind="temporal", validation_from=20, test_from=30)
    split = split_events(rule, starts, target, seconds)
    assert split.tolist() == [2 if time >= 30 else 1 if time >= 20 else 0 for time in seconds.tolist()]
    without = split_events(rule.model_copy(update={"validation": False}), starts, target, seconds)
    assert without.tolist() == [2 * (time >= 30) for time in seconds.tolist()]


def test_latest_rows_are_the_last_of_each_user():
    user, _seconds, _, starts = make_users()
    kept = latest_rows(starts, 4)
    for (found,) in by_user(user, kept):
        assert found == [place >= len(found) - 4 for place in range(len(found))]


def test_impressions_stand_behind_earlier_events_alone():
    user, seconds, _, starts = make_users()
    rng = np.random.default_rng(1)
    asked_user = rng.integers(0, 60, 300)
    asked_time = rng.integers(-2, 45, 300)
    history = rows_before(user, seconds, starts, asked_user, asked_time)
    expected = [int(((user == u) & (seconds < t)).sum()) for u, t in zip(asked_user, asked_time, strict=True)]
    assert history.tolist() == expected


@pytest.mark.parametrize("validation", [True, False])
def test_impressions_belong_to_the_split_of_the_event_that_comes_next(validation):
    user, seconds, target, starts = make_users()
    rule = Split(kind="leave_one_out", validation=validation)
    asked_user = np.repeat(np.arange(60), 46)
    asked_time = np.tile(np.arange(-2, 44), 60)
    history = rows_before(user, seconds, starts, asked_user, asked_time)
    places = leave_one_out_places(rule, starts, target)
    lengths = np.diff(starts)[asked_user]
    split = split_impressions_by_history(history, lengths, places[0][asked_user], places[1][asked_user])
    events = split_events(rule, starts, target, seconds)
    for u, t, found in zip(asked_user, asked_time, split, strict=True):
        own = events[user == u]
        following = own[seconds[user == u] >= t]
        expected = following[0] if len(following) else own[-1] if len(own) else 0
        assert found == expected, (u, t)


@pytest.mark.parametrize(
    ("rule", "has_time", "message"),
    [
        ({"kind": "temporal", "test_from": 5}, True, "unless `validation: false`, `validation_from`"),
        ({"kind": "temporal", "validation_from": 9, "test_from": 5}, True, "must not be later than `test_from`"),
        ({"kind": "temporal", "validation_from": 1, "test_from": 5}, False, "temporal needs times"),
        ({"kind": "last_fraction"}, True, "must be between 0 and 0.5. Received: None"),
        ({"kind": "last_fraction", "fraction": 0.5}, True, "must be between 0 and 0.5. Received: 0.5"),
    ],
)
def test_rules_that_do_not_fit_are_refused(rule, has_time, message):
    with pytest.raises(UsageError, match=message):
        check_split(Split(**rule), has_time=has_time)
