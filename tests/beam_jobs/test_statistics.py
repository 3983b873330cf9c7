import polars as pl
import pytest

from beam_jobs.statistics import account_table, add_up, check_rejected, make_account, weighted_quantiles
from tfrec.errors import UserError

READ = {
    ("events", "a.csv", "input", ""): 10,
    ("events", "b.csv", "input", ""): 5,
    ("events", "a.csv", "rejected", "time: is missing"): 2,
    ("events", "a.csv", "filtered", "repeats: first"): 1,
}
ARRANGED = {
    ("events", "a.csv", "stored", ""): 6,
    ("events", "a.csv", "truncated", "histories.max_events"): 1,
    ("events", "b.csv", "stored", ""): 5,
}


def test_every_row_is_accounted_for_by_file_and_reason():
    log = make_account(add_up(READ, ARRANGED))["events"]
    assert {name: log[name] for name in ("input", "accepted", "rejected", "filtered", "truncated", "stored")} == {
        "input": 15,
        "accepted": 13,
        "rejected": 2,
        "filtered": 1,
        "truncated": 1,
        "stored": 11,
    }
    assert log["files"]["a.csv"] == {
        "input": 10,
        "accepted": 8,
        "stored": 6,
        "rejected": {"time: is missing": 2},
        "filtered": {"repeats: first": 1},
        "truncated": {"histories.max_events": 1},
    }


def test_an_account_that_does_not_add_up_is_an_error():
    with pytest.raises(AssertionError, match=r"events, a.csv: 1 accepted rows are unaccounted for"):
        make_account(add_up(READ, ARRANGED, {("events", "a.csv", "input", ""): 1}))


def test_counts_under_one_key_add_up():
    assert add_up(READ, READ)["events", "b.csv", "input", ""] == 10


def test_too_many_rejects_stop_the_job_with_the_commonest_rule():
    first = {"events/a.csv/time: is missing": {"row": 3, "column": "time", "value": None}}
    check_rejected(READ, first, most=0.2)
    with pytest.raises(
        UserError,
        match=r"a.csv: 2 of 15 rows of the events rejected, more than `data.max_rejected` 0.1 allows; "
        r"most often column time: is missing \(2 rows; first row 3, value None\)",
    ):
        check_rejected(READ, first, most=0.1)


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("has 2 columns, must have 3", "a line that has 2 columns"),
        ("must be a JSON object", "a line that must be a JSON"),
    ],
)
def test_lines_that_are_no_rows_are_told_as_lines(reason, told):
    counts = {("events", "a.csv", "input", ""): 2, ("events", "a.csv", "rejected", reason): 2}
    first = {f"events/a.csv/{reason}": {"row": 1, "column": "", "value": "x"}}
    with pytest.raises(UserError, match=rf"; most often {told}.* \(2 rows; first row 1, value 'x'\)"):
        check_rejected(counts, first, most=0.5)


def test_rejecting_everything_stops_the_job_even_where_all_rejects_are_allowed():
    counts = {("users", "u.csv", "input", ""): 2, ("users", "u.csv", "rejected", "age: must be a number"): 2}
    with pytest.raises(UserError, match=r"u.csv: 2 of 2 rows of the users rejected"):
        check_rejected(counts, {}, most=1.0)


def test_the_table_shows_the_totals():
    lines = account_table(make_account(add_up(READ, ARRANGED))).splitlines()
    assert lines[0].split() == ["input", "rejected", "filtered", "truncated", "stored"]
    assert lines[1].split() == ["events", "15", "2", "1", "1", "11"]


def test_quantiles_count_each_length_as_often_as_users_have_it():
    parts = pl.DataFrame({"length": [4, 1, 4, 2], "users": [1, 2, 1, 1]})  # lengths 1, 1, 2, 4, 4
    assert weighted_quantiles(parts) == {"mean": 2.4, "min": 1, "p25": 1, "median": 2, "p75": 4, "p95": 4, "max": 4}
