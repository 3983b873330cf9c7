import numpy as np
import pytest

from beam_jobs import arranging
from beam_jobs.arranging import arrange
from beam_jobs.histories import history_columns, number_requests
from beam_jobs.plan import make_plan
from beam_jobs.reading import check_rows, split_by_bucket, stage_distinct, stage_events
from beam_jobs.sources import list_fragments, read_batches
from beam_jobs.staging import all_item_ids, read_texts, write_item_ids
from beam_jobs.validation import MICROSECONDS
from tests.beam_jobs.logs import config_of, histories_of, make_events, make_impressions, split_of, write_logs
from tfrec.config import parse
from tfrec.errors import UserError
from tfrec.schema import Feature, Schema
from tfrec.transforms import Vocabulary


def stage(folder, config):
    """Runs the first pipeline's functions one by one, into one bucket; returns the plan and the staging folder."""
    plan, staging = make_plan(config), folder / "staging"
    for log in plan.logs:
        id_column = "item_id" if log.kind == "items" else "user_id"
        chunks = []
        for fragment in list_fragments(log.log):
            for batch in read_batches(fragment, log.columns, log.log.source):
                chunks += split_by_bucket(check_rows(batch, log), id_column, 1, staging / log.kind).values()
        if log.kind in ("events", "impressions"):
            stage_events(staging / log.kind, 0, chunks, repeats=config.data.repeats if log.kind == "events" else "keep")
        else:
            stage_distinct(staging / log.kind, 0, chunks, id_column=id_column, names=log.file_names)
    folders = [staging / kind / "00000" for kind in ("events", "impressions") if (staging / kind).exists()]
    write_item_ids(staging / arranging.ITEM_IDS, [read_texts(one, "item_id") for one in folders])
    return plan, staging


def make_config(folder, **changes):
    """Events and impressions alone, with `data` and `histories` changed."""
    document = config_of(folder, folder / "dataset", **changes.get("data", {}))
    document["data"] = {key: value for key, value in document["data"].items() if key not in ("items", "users")}
    return parse({"data": document["data"], "histories": changes.get("histories", {})})


def read_histories(folder, config):
    """User -> feature -> list, and what became of the rows."""
    plan, staging = stage(folder, config)
    arranged, reasons = arrange(staging, "00000", plan)
    ids = all_item_ids(staging / arranging.ITEM_IDS)
    item_id = Feature(
        name="item_id", side="item", kind="categorical", column="item_id", transform=Vocabulary(file="", size=9)
    )
    schema = Schema(
        features=(item_id,),
        event_types=("view", "buy", "cart") if plan.events.has("event_type") else (),
        labels=config.data.labels,
        has_time=plan.has_time,
        has_sessions=plan.has_sessions,
        impressions=plan.stored_impressions,
        max_events=config.histories.max_events,
        repeats="keep",
        split=config.data.split,
        counts={},
    )
    codes = np.arange(len(ids), dtype=np.int32)  # so that an item's code is its place among the sorted ids
    columns = history_columns(arranged, codes, schema, folder)
    users = [user.decode() for user in columns["user_id"].values]
    found = {user: {} for user in users}
    for name, column in columns.items():
        for place, user in enumerate(users):
            found[user][name] = list(column.values[column.offsets[place] : column.offsets[place + 1]])
    for history in found.values():
        for name in ("item", "impression_item"):
            history[name] = [ids[int(item)] for item in history.get(name, [])]
    return found, reasons


@pytest.mark.parametrize("most", [10_000, 7])
def test_the_latest_events_are_kept_and_the_rest_counted(tmp_path, most):
    write_logs(tmp_path)
    found, reasons = read_histories(tmp_path, make_config(tmp_path, histories={"max_events": most}))
    whole, expected = histories_of(make_events()), histories_of(make_events(), most)
    for user, rows in expected.items():
        assert found[user]["item"] == [row["item_id"] for row in rows]
        assert found[user]["split"] == split_of(whole[user])[-most:]
        assert found[user]["session"][0] == 1
        assert found[user]["event_type"] == [("view", "buy", "cart").index(row["event_type"]) + 2 for row in rows]
    cut = 300 - sum(map(len, expected.values()))
    assert reasons["events", 0, "truncated", "histories.max_events"] == cut
    assert (cut > 0) == (most == 7)


@pytest.mark.parametrize("most", [10_000, 7])
@pytest.mark.parametrize(
    "split",
    [
        {"kind": "leave_one_out"},
        {"kind": "temporal", "validation_from": 1_600_020_000, "test_from": 1_600_030_000},
        {"kind": "last_fraction", "fraction": 0.25},
    ],
)
def test_impressions_follow_the_split(tmp_path, split, most):
    write_logs(tmp_path)
    config = make_config(tmp_path, data={"split": split}, histories={"max_events": most})
    found, _ = read_histories(tmp_path, config)
    for user, rows in histories_of(make_events()).items():
        shown = [row for row in make_impressions() if row["user_id"] == user]
        before = [sum(event["time"] < row["time"] for event in rows) for row in shown]
        if split["kind"] == "temporal":
            expected = [(row["time"] >= 1_600_020_000) + (row["time"] >= 1_600_030_000) for row in shown]
        elif split["kind"] == "last_fraction":
            share = len(shown) // 4
            expected = [0] * (len(shown) - 2 * share) + [1] * share + [2] * share
        else:
            expected = [split_of(rows)[min(place, len(rows) - 1)] for place in before]
        dropped = max(len(rows) - most, 0)
        assert found[user]["impression_history"] == [max(place - dropped, 0) for place in before][-most:]
        assert found[user]["impression_split"] == expected[-most:]


def test_repeats_are_dropped_before_everything_else(tmp_path):
    write_logs(tmp_path)
    found, _ = read_histories(tmp_path, make_config(tmp_path, data={"repeats": "first"}))
    for user, rows in histories_of(make_events()).items():
        first = list({row["item_id"]: row for row in rows[::-1]}.values())
        first = [row for row in rows if row in first]
        assert found[user]["item"] == list(dict.fromkeys(row["item_id"] for row in rows))
        assert found[user]["split"] == split_of(first)


def test_rows_that_filters_name_are_dropped_first(tmp_path):
    write_logs(tmp_path)
    filters = {"exclude": {"device": "^d"}, "require": {"stars": "> 1"}}
    found, _ = read_histories(tmp_path, make_config(tmp_path, data={"repeats": "first", "filters": filters}))
    kept = [row for row in make_events() if not row["device"].startswith("d") and row["stars"] > 1]
    assert {user: history["item"] for user, history in found.items()} == {
        user: list(dict.fromkeys(row["item_id"] for row in rows)) for user, rows in histories_of(kept).items()
    }


def test_a_log_with_an_order_and_no_times(tmp_path):
    rows = ["b,x,2,s1", "a,y,10,s1", "a,x,9,s1", "b,z,1,s1", "a,z,11,s2"]
    (tmp_path / "events.csv").write_text("user_id,item_id,place,session\n" + "\n".join(rows) + "\n")
    events = {"files": [str(tmp_path / "events.csv")], "columns": {"order": "place"}}
    found, _ = read_histories(tmp_path, parse({"data": {"out": "unused", "events": events}}))
    assert {user: history["item"] for user, history in found.items()} == {"a": ["x", "y", "z"], "b": ["z", "x"]}
    assert found["a"]["session"] == [1, 1, 2]
    assert found["a"]["split"] == [0, 1, 2]
    assert found["b"]["split"] == [0, 0]
    assert "time" not in found["a"]


def test_times_order_before_order_and_order_before_the_place_in_the_log(tmp_path):
    rows = ["a,x,5.5,1", "a,y,5.25,9", "a,z,5.5,0", "a,w,5.5,1"]
    text = "\n".join(row.replace("5.", "1600000005.") for row in rows)
    (tmp_path / "events.csv").write_text(f"user_id,item_id,time,order\n{text}\n")
    events = {"files": [str(tmp_path / "events.csv")]}
    found, _ = read_histories(tmp_path, parse({"data": {"out": "unused", "events": events}}))
    assert found["a"]["item"] == ["y", "z", "x", "w"]
    assert found["a"]["time"] == [1_600_000_005] * 4


def test_a_log_without_time_and_order_is_refused(tmp_path):
    (tmp_path / "events.csv").write_text("user_id,item_id\na,x\n")
    events = {"files": [str(tmp_path / "events.csv")]}
    with pytest.raises(UserError, match=r"the events need a time or an order; .*Columns: user_id, item_id"):
        make_plan(parse({"data": {"out": "unused", "events": events}}))


def test_requests_are_numbered_by_first_appearance():
    user = np.array([0, 0, 0, 0, 2, 2])
    request = np.array([5, 3, 5, -1, 3, 4])
    assert number_requests(user, request).tolist() == [1, 2, 1, 0, 1, 2]


def test_the_first_time_is_that_of_the_log_whatever_repeats_drop(tmp_path):
    write_logs(tmp_path)
    stage(tmp_path, make_config(tmp_path, data={"repeats": "first"}))
    first = min(row["time"] for row in make_events())
    assert (tmp_path / "staging" / "events" / "00000" / "first_time").read_text() == str(first * MICROSECONDS)
