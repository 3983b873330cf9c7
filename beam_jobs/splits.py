"""Sessions and splits of events that stand user by user in the order of time: NumPy on whole buckets."""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from tfrec.errors import UsageError
from tfrec.schema import Split

Integers: TypeAlias = NDArray[np.int64]

TRAIN, VALIDATION, TEST = 0, 1, 2
_FEWEST_TARGETS = 3


def check_split(split: Split, *, has_time: bool) -> None:
    """Raises a `UsageError` where the keys of `data.split` do not fit its kind."""
    if split.kind == "temporal":
        if not has_time:
            raise UsageError("`data.split.kind`: temporal needs times; the events have none (role `time`).")
        if split.test_from is None or (split.validation and split.validation_from is None):
            raise UsageError(
                "`data.split`: temporal needs `test_from` and, unless `validation: false`, `validation_from`."
            )
        if split.validation_from is not None and split.validation_from > split.test_from:
            raise UsageError("`data.split.validation_from` must not be later than `test_from`.")
    if split.kind == "last_fraction" and not 0 < (split.fraction or 0) < 0.5:
        raise UsageError(f"`data.split.fraction` must be between 0 and 0.5. Received: {split.fraction}.")


def row_starts(user: Integers, num_users: int) -> Integers:
    """Offsets `(num_users + 1,)` of users 0, 1, ... in the sorted column `user`."""
    starts: Integers = np.zeros(num_users + 1, np.int64)
    np.cumsum(np.bincount(user, minlength=num_users), out=starts[1:])
    return starts


def number_sessions(user: Integers, cuts: NDArray[np.bool_]) -> Integers:
    """1, 2, ... for each user; a session begins where `cuts` holds, and with each user."""
    if len(user) == 0:
        return np.zeros(0, np.int64)
    first = np.concatenate([[True], user[1:] != user[:-1]])
    session: Integers = np.cumsum(first | cuts)
    starts = np.flatnonzero(first)
    lengths = np.diff(np.append(starts, len(user)))
    return session - np.repeat(session[starts], lengths) + 1


def cut_by_gap(seconds: Integers, gap_seconds: int) -> NDArray[np.bool_]:
    """True where more than `gap_seconds` have passed since the row before."""
    return np.concatenate([[True], np.diff(seconds) > gap_seconds])[: len(seconds)]


def cut_by_id(session: Integers) -> NDArray[np.bool_]:
    """True where the log's own session id differs from the row before: ids that interleave are cut at every change."""
    return np.concatenate([[True], session[1:] != session[:-1]])[: len(session)]


def split_events(
    split: Split, starts: Integers, target: NDArray[np.bool_], seconds: Integers | None
) -> NDArray[np.int8]:
    """The split of each event: 0 training, 1 validation, 2 test.

    `leave_one_out`: the last target event is test and the one before it validation, for users with three or more.
    Events that are no targets belong to the split of their place: whatever comes at or after the validation event is
    not training, so that nothing fitted sees what lies behind it. Impressions belong to the split of the event that
    comes next, so that those which led to a held-out event are held out with it. `last_fraction`: of a user with n
    events the last floor(n * fraction) are test, as many before them validation.

    Args:
        split: the rule.
        starts: offsets `(U + 1,)` of users.
        target: which events are of a target type.
        seconds: Unix seconds, for `temporal`.
    """
    if split.kind == "temporal":
        assert seconds is not None, "check_split demands times."
        return split_by_time(split, seconds)
    if split.kind == "last_fraction":
        return split_last_fraction(split, starts)
    validation_from, test_from = leave_one_out_places(split, starts, target)
    lengths = np.diff(starts)
    place = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)
    return _split_of(place, np.repeat(validation_from, lengths), np.repeat(test_from, lengths))


def leave_one_out_places(split: Split, starts: Integers, target: NDArray[np.bool_]) -> tuple[Integers, Integers]:
    """Of each user the place in their history where validation and test begin; the length where they have none."""
    lengths = np.diff(starts)
    test_from, validation_from = lengths.copy(), lengths.copy()
    targets = np.flatnonzero(target)
    ends = np.searchsorted(targets, starts[1:])
    enough = np.flatnonzero(ends - np.searchsorted(targets, starts[:-1]) >= _FEWEST_TARGETS)
    test_from[enough] = targets[ends[enough] - 1] - starts[enough]
    validation_from[enough] = targets[ends[enough] - 2] - starts[enough]
    return (validation_from if split.validation else test_from), test_from


def split_by_time(split: Split, seconds: Integers) -> NDArray[np.int8]:
    """Split by two moments; without validation everything before `test_from` is training."""
    test_from = split.test_from if split.test_from is not None else np.iinfo(np.int64).max
    validation_from = split.validation_from if split.validation and split.validation_from is not None else test_from
    return _split_of(seconds, validation_from, test_from)


def split_last_fraction(split: Split, starts: Integers) -> NDArray[np.int8]:
    """Each user's last share of rows is test, the share before it validation."""
    lengths = np.diff(starts)
    share = np.floor(lengths * (split.fraction or 0.0) + 1e-9).astype(np.int64)
    test_from = lengths - share
    validation_from = test_from - share if split.validation else test_from
    place = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)
    return _split_of(place, np.repeat(validation_from, lengths), np.repeat(test_from, lengths))


def split_impressions_by_history(
    history: Integers, lengths: Integers, validation_from: Integers, test_from: Integers
) -> NDArray[np.int8]:
    """Leave-one-out for impressions: those between the last training event and the validation event are validation.

    What led to the validation event, and so tells which item it was, is shown before it: an impression belongs to the
    split of the event that comes next. Likewise for the test event. Behind the last event of a user impressions have
    its split.

    Args:
        history: of each impression the number of its user's events before it.
        lengths: of its user the number of events.
        validation_from: of its user the place where validation begins, `lengths` where nowhere.
        test_from: of its user the place where test begins, `lengths` where nowhere.
    """
    behind_validation = (history >= validation_from) & (validation_from < lengths)
    behind_test = (history >= test_from) & (test_from < lengths)
    return behind_validation.astype(np.int8) + behind_test.astype(np.int8)


def latest_rows(starts: Integers, most: int) -> NDArray[np.bool_]:
    """Which rows are among the last `most` of their user."""
    lengths = np.diff(starts)
    place = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)
    return place >= np.repeat(lengths - most, lengths)


def rows_before(
    user: Integers, time: Integers, starts: Integers, asked_user: Integers, asked_time: Integers
) -> Integers:
    """Of each asked (user, time) the number of that user's rows with an earlier time; rows stand by (user, time)."""
    moments = np.unique(time)
    keys = user * (len(moments) + 1) + np.searchsorted(moments, time)
    asked = asked_user * (len(moments) + 1) + np.searchsorted(moments, asked_time)
    return np.asarray(np.searchsorted(keys, asked) - starts[asked_user], np.int64)


def _split_of(place: Integers, validation_from: Integers | int, test_from: Integers | int) -> NDArray[np.int8]:
    return (place >= validation_from).astype(np.int8) + (place >= test_from).astype(np.int8)
