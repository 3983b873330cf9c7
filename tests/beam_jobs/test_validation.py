from datetime import UTC, date, datetime

import numpy as np
import polars as pl
import pytest

from beam_jobs.sources import ROW
from beam_jobs.validation import Field, check_batch
from tfrec.manifest import write_json
from tfrec.schema import Schema


def make_schema(**changes):
    """A schema without features."""
    settings = {"features": [], "max_events": 5, "repeats": "keep", "split": {"kind": "leave_one_out"}, "counts": {}}
    return Schema.model_validate({**settings, **changes})


def check(values, kind, *, required=False, dtype=None, **options):
    """Checked values, and (row, value, rule) of the rejects, of one column."""
    raw = pl.Series("raw", values, dtype=dtype, strict=False)
    frame = pl.DataFrame([pl.Series(ROW, range(1, len(raw) + 1)), raw])
    checked, passes, rejects = check_batch(frame, [Field("value", "raw", kind, required, **options)], "log.csv")
    assert passes.to_list() == [row not in rejects["row"] for row in range(1, len(raw) + 1)]
    return checked["value"].to_list(), list(rejects.select("row", "value", "rule").iter_rows())


def micros(*arguments):
    return round(datetime(*arguments, tzinfo=UTC).timestamp() * 1e6)


def test_ids_are_texts_and_never_empty():
    values, rejects = check(["a", "", None, "ü"], "id", required=True)
    assert values == ["a", None, None, "ü"]
    assert rejects == [(2, "", "is missing"), (3, None, "is missing")]


def test_whole_floats_are_ids_without_a_point():
    values, rejects = check([17850.0, 1.5, float("nan"), float("inf")], "id", required=True)
    assert values == ["17850", None, None, None]
    rule = "must be a text or a whole number"
    assert rejects == [(2, "1.5", rule), (3, "nan", "is missing"), (4, "inf", rule)]


def test_columns_of_whole_numbers_stay_numbers():
    values, rejects = check([5, None, -7], "integer_id", required=True)
    assert values == [5, None, -7]
    assert rejects == [(2, None, "is missing")]


@pytest.mark.parametrize(
    ("values", "unit", "expected"),
    [
        ([978300760, 978300761], "seconds", [978300760 * 10**6, 978300761 * 10**6]),
        (["978300760", " 978300761 "], "seconds", [978300760 * 10**6, 978300761 * 10**6]),
        (["978300760.25", "978300761"], "seconds", [978300760_250000, 978300761 * 10**6]),
        ([978300760.25], "seconds", [978300760_250000]),
        ([978300760123], "milliseconds", [978300760_123000]),
        ([978300760123456], "microseconds", [978300760_123456]),
        ([978300760123456789], "nanoseconds", [978300760_123456]),
        ([datetime(2001, 1, 1, 5), datetime(2001, 1, 1)], "seconds", [micros(2001, 1, 1, 5), micros(2001, 1, 1)]),
        ([date(2001, 1, 2)], "iso", [micros(2001, 1, 2)]),
        (["2010-12-01 08:26:00", "2010-12-01"], "iso", [micros(2010, 12, 1, 8, 26), micros(2010, 12, 1)]),
        (
            ["2010-12-01T08:26:00.5Z", "2010-12-01T08:26:00+01:00"],
            "iso",
            [micros(2010, 12, 1, 8, 26, 0, 500000), micros(2010, 12, 1, 7, 26)],
        ),
        (
            ["12/1/2010 8:26", "2/11/2010 18:05"],
            "%m/%d/%Y %H:%M",
            [micros(2010, 12, 1, 8, 26), micros(2010, 2, 11, 18, 5)],
        ),
        (["31.12.2019"], "%d.%m.%Y", [micros(2019, 12, 31)]),
    ],
)
def test_times_become_microseconds(values, unit, expected):
    assert check(values, "time", required=True, time_unit=unit) == (expected, [])


def test_absurd_times_are_told_with_the_unit_that_would_fit():
    good = 978300760
    values, rejects = check([good, good * 1000, good * 10**9, 5, 5 * 10**9, None], "time", required=True)
    assert values == [good * 10**6, None, None, None, None, None]
    assert [(row, rule) for row, _, rule in rejects] == [
        (2, "is after 2100 in seconds; it looks like milliseconds: set `time_unit: milliseconds`"),
        (3, "is after 2100 in seconds; it looks like nanoseconds: set `time_unit: nanoseconds`"),
        (4, "is before 1990"),
        (5, "is after 2100"),
        (6, "is missing"),
    ]
    _, rejects = check([good], "time", time_unit="milliseconds")
    assert rejects[0][2] == "is before 1990 in milliseconds; it looks like seconds: set `time_unit: seconds`"


def test_texts_that_are_no_times_are_told():
    _, rejects = check(["2010-12-01", "yesterday", "1989-12-31"], "time", required=True, time_unit="iso")
    assert rejects == [(2, "yesterday", "must be a time in `time_unit` iso"), (3, "1989-12-31", "is before 1990")]
    _, rejects = check(["978300760", "soon"], "time", required=True)
    assert rejects == [(2, "soon", "must be a time in `time_unit` seconds")]
    _, rejects = check([978300760], "time", time_unit="iso")
    assert rejects == [(1, "978300760", "must be a time in `time_unit` iso")]


def test_numbers_may_be_texts_and_may_be_missing():
    values, rejects = check(["1.5", " 2 ", "", None, "n/a"], "number")
    assert values == [1.5, 2.0, None, None, None]
    assert rejects == [(5, "n/a", "must be a number")]
    assert check([1, None], "number") == ([1.0, None], [])
    assert check([1.0, float("nan")], "number") == ([1.0, None], [])


def test_numbers_are_finite():
    rule = "must be a finite number"
    values, rejects = check([1.0, float("inf"), float("-inf"), None], "number")
    assert values == [1.0, None, None, None]
    assert rejects == [(2, "inf", rule), (3, "-inf", rule)]
    values, rejects = check(["2", "Infinity", "1e999", "-inf", "nan"], "number")
    assert values == [2.0, None, None, None, None]
    assert [(row, found) for row, _, found in rejects] == [(2, rule), (3, rule), (4, rule)]


def test_weights_are_there_and_from_0_on():
    values, rejects = check([2.5, 0.0, -1.0, None, float("inf")], "weight", required=True)
    assert values == [2.5, 0.0, None, None, None]
    rules = ["must be a number from 0 on", "is missing", "must be a finite number"]
    assert [(row, rule) for row, _, rule in rejects] == list(zip((3, 4, 5), rules, strict=True))


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_no_file_of_a_dataset_holds_what_json_does_not_know(tmp_path, number):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "statistics.json", {"mean": number})
    schema = make_schema(labels=[{"name": "liked", "column": "stars", "operator": ">=", "value": number}])
    with pytest.raises(ValueError, match="not JSON compliant"):
        schema.write(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_orders_are_whole_numbers_of_any_size():
    values, rejects = check(["9007199254740993", "1.5", "x", None], "integer", required=True)
    assert values == [9007199254740993, None, None, None]
    assert [rule for _, _, rule in rejects] == ["must be a whole number"] * 2 + ["is missing"]
    assert check([3, 4], "integer") == ([3, 4], [])


def test_texts_are_what_categories_are_made_of():
    assert check([1.0, 2.0], "text") == (["1", "2"], [])
    assert check([1.5, float("nan")], "text") == (["1.5", None], [])
    assert check([1.0, 2.5, -0.0, 1e15, 2.0**63, 0.1], "text")[0] == [
        "1",
        "2.5",
        "0",
        "1" + "0" * 15,
        "9.223372036854776e+18",
        "0.1",
    ]
    assert check([1.0, float("inf")], "text") == (["1", None], [(2, "inf", "must be a finite number")])
    assert check([0.1, 3.0], "text", dtype=pl.Float32)[0] == ["0.1", "3"]
    assert check([True, None], "text") == (["true", None], [])
    assert check(["", "x"], "text") == ([None, "x"], [])
    assert check([["x"]], "text")[1] == [(1, "['x']", "must be a text, not a list")]


def test_cells_of_several_values():
    assert check(["a|b||c", "", None], "texts", separator="|", max_values=2) == ([["a", "b"], None, None], [])
    spaced = ["Drama, Comedy , ,Film Noir", " "]
    assert check(spaced, "texts", separator=",", max_values=8)[0] == [["Drama", "Comedy", "Film Noir"], None]
    assert check([[1, 2, 3], [], None], "texts", max_values=2) == ([["1", "2"], None, None], [])
    assert check([[1.0, 2.5], [float("nan")], None], "texts", max_values=2)[0] == [["1", "2.5"], None, None]
    assert check(["a|b"], "texts")[1] == [(1, "a|b", "must be a list of values, or set the feature's `separator`")]


def test_vectors_have_one_width_and_hold_numbers():
    values, rejects = check(
        [[1, 2], [1], [1, float("nan")], None, [3, None]], "vector", dim=2, dtype=pl.List(pl.Float64)
    )
    assert values == [[1, 2], None, None, None, None]
    assert [(row, rule) for row, _, rule in rejects] == [
        (2, "must have width 2 (the feature's `dim`), has 1"),
        (3, "holds a NaN, an infinity or an empty entry"),
        (5, "holds a NaN, an infinity or an empty entry"),
    ]
    assert check(["[1, 2]"], "vector", dim=2)[1] == [
        (1, "[1, 2]", "must be a list of numbers (JSON lines, Parquet), or set the feature's `vectors`")
    ]


def test_a_row_is_rejected_once_by_the_first_rule():
    frame = pl.DataFrame({ROW: [1, 2, 3], "u": [None, "a", "b"], "n": ["x", "y", "1"]})
    fields = [Field("user_id", "u", "id", required=True), Field("price", "n", "number")]
    checked, passes, rejects = check_batch(frame, fields, "log.csv")
    assert passes.to_list() == [False, False, True]
    assert rejects.rows() == [("log.csv", 1, "u", None, "is missing"), ("log.csv", 2, "n", "y", "must be a number")]
    assert checked.columns == [ROW, "user_id", "price"]


def test_rows_of_a_file_of_vectors_become_vectors(tmp_path):
    vectors = np.arange(12, dtype=np.float64).reshape(4, 3)
    vectors[2, 1] = np.nan
    np.save(tmp_path / "v.npy", vectors)
    frame = pl.DataFrame({ROW: [1, 2, 3, 4, 5, 6], "row": ["1", None, "4", "2", "x", "0"]})
    field = Field("item_v", "row", "vector", dim=3, file=str(tmp_path / "v.npy"))
    checked, passes, rejects = check_batch(frame, [field], "f")
    assert checked["item_v"].to_list() == [[3, 4, 5], None, None, None, None, [0, 1, 2]]
    assert passes.to_list() == [True, True, False, False, False, True]
    assert rejects["rule"].to_list() == [
        "must be a row of v.npy, 0 to 3",
        "is a row of v.npy with a NaN or an infinity",
        "must be a whole number",
    ]


def test_values_with_weights_become_values_and_weights():
    frame = pl.DataFrame({ROW: [1, 2, 3, 4, 5, 6], "tags": ["a:b:2|c", "", "a:x", "a:0", ":1", "c:1e-3| |d:5|e:6"]})
    options = {"separator": "|", "max_values": 2, "weight_separator": ":"}
    fields = [Field("item_t", "tags", "texts", **options), Field("item_t_weights", "tags", "weights", **options)]
    checked, passes, rejects = check_batch(frame, fields, "f")
    rows = [0, 1, 5]
    assert checked["item_t"][rows].to_list() == [["a:b", "c"], None, ["c", "d"]]
    assert checked["item_t_weights"][rows].to_list() == [[2, 1], None, [np.float32(1e-3), 5]]
    assert passes.to_list() == [True, True, False, False, False, True]
    number, alone = "a weight must be a finite number above 0", "a weight must stand behind a value"
    assert rejects["rule"].to_list() == [number, number, alone]
