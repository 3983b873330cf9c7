import json

import polars as pl
import pytest
import yaml

from beam_jobs.preprocess import main, run
from tests.beam_jobs.logs import config_of, make_items, make_users, write_jsonl, write_logs
from tests.beam_jobs.records import read_examples
from tfrec import manifest
from tfrec.config import parse
from tfrec.errors import UsageError, UserError
from tfrec.transforms import read_values


def test_the_command_prints_path_and_account_or_one_line(tmp_path, capsys):
    (tmp_path / "events.csv").write_text("user_id,item_id,time\na,x,1600000000\n,y,1600000001\na,z,1600000002\n")
    config = {"data": {"out": str(tmp_path / "out"), "events": {"files": [str(tmp_path / "events.csv")]}}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["--config", str(tmp_path / "config.yaml")]) == 0
    out, told = capsys.readouterr()
    assert out == f"{tmp_path / 'out'}\n"
    assert told.splitlines()[-2].split() == ["input", "rejected", "filtered", "truncated", "stored"]
    assert told.splitlines()[-1].split() == ["events", "3", "1", "0", "0", "2"]
    rejects = (tmp_path / "out" / "rejected" / "events.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in rejects] == [
        {"file": "events.csv", "row": 2, "column": "user_id", "value": None, "rule": "is missing"}
    ]
    assert main(["--config", str(tmp_path / "config.yaml"), "--set", "data.events.files=[gone.csv]"]) == 1
    assert main(["--config", str(tmp_path / "config.yaml"), "--set", "data.evnts=1"]) == 2
    (tmp_path / "file").write_text("")
    assert main(["--config", str(tmp_path / "config.yaml"), "--set", f"data.out={tmp_path}/file/out"]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tfrec: ")]
    assert len(lines) == 3
    assert lines[-1] == f"tfrec: {tmp_path}/file: File exists."


@pytest.mark.parametrize("out", ["gs://bucket/dataset", "file:///tmp/dataset"])
def test_a_dataset_is_a_folder_of_this_machine(tmp_path, out):
    with pytest.raises(UsageError, match=r"`data\.out`: must be a folder of this machine"):
        run(parse({"data": {"out": out, "events": {"files": [str(tmp_path / "events.csv")]}}}))


@pytest.mark.parametrize(
    ("rows", "data", "message"),
    [
        (
            "a,x,1600000000000\nb,y,1600000000000",
            {},
            r"looks like milliseconds: set `time_unit: milliseconds` \(2 rows",
        ),
        ("a,x,today\nb,y,now", {}, r"rejected, .*column time: must be a time in `time_unit` seconds"),
        ("a,x,1600000000", {"filters": {"min_user_events": 2}}, "no event is left after validation and filters"),
        (
            "a,x,1600000000",
            {"filters": {"require": {"price": "> 0"}}},
            "no column `price`, which `data.filters.require`",
        ),
        ("", {}, "events.csv: holds no rows"),
        (
            "a,x,1600000000\na,y,1600000001",
            {"split": {"kind": "temporal", "validation": False, "test_from": 1_500_000_000}},
            "`data.split`: no event of a target type is left for training",
        ),
        ("a,x,1600000000", {"target_events": []}, "`data.target_events`: must be `all` or name at least one"),
    ],
)
def test_bad_input_leaves_one_line_and_nothing_under_the_name(tmp_path, rows, data, message):
    (tmp_path / "events.csv").write_text(f"user_id,item_id,time\n{rows}\n")
    events = {"files": [str(tmp_path / "events.csv")]}
    with pytest.raises(UserError, match=message):
        run(parse({"data": {"out": str(tmp_path / "out"), "events": events, **data}}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["events.csv"]


@pytest.mark.parametrize(
    ("num_events", "split", "empty"),
    [
        (2, {}, ["validation", "test"]),
        (2, {"validation": False}, ["test"]),
        (3, {}, []),
        (3, {"kind": "temporal", "validation_from": 1_600_000_001, "test_from": 1_600_000_001}, ["validation"]),
    ],
)
def test_splits_without_queries_are_told(tmp_path, caplog, num_events, split, empty):
    rows = "".join(f"a,x{n},{1_600_000_000 + n}\n" for n in range(num_events))
    (tmp_path / "events.csv").write_text(f"user_id,item_id,time\n{rows}")
    events = {"files": [str(tmp_path / "events.csv")]}
    run(parse({"data": {"out": str(tmp_path / "out"), "events": events, "split": {"kind": "leave_one_out", **split}}}))
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [line.split()[2] for line in told if line.startswith("`data.split`: no ")] == empty


def test_a_feature_none_of_whose_values_is_kept_is_told(tmp_path, caplog):
    (tmp_path / "events.csv").write_text("user_id,item_id,time\na,x,1600000000\na,y,1600000060\na,z,1600000120\n")
    (tmp_path / "items.csv").write_text("item_id,brand,shop\nx,b1,s\ny,b2,s\nz,b3,s\n")
    data = {"out": str(tmp_path / "out")}
    data |= {name: {"files": [str(tmp_path / f"{name}.csv")]} for name in ("events", "items")}
    features = [{"name": name, "kind": "categorical", "min_count": 2} for name in ("brand", "shop")]
    run(parse({"data": data, "features": {"items": features}}))
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [line for line in told if "no value" in line] == [
        "brand: no value of it was kept (see its min_count), so it tells nothing"
    ]


def test_something_else_is_never_replaced(tmp_path):
    (tmp_path / "events.csv").write_text("user_id,item_id,time\na,x,1600000000\n")
    config = parse({"data": {"out": str(tmp_path), "events": {"files": [str(tmp_path / "events.csv")]}}})
    with pytest.raises(UserError, match="exists and is no dataset"):
        run(config)


def test_bad_rows_of_items_and_users_are_rejected_and_the_items_kept_without_content(tmp_path):
    write_logs(tmp_path)
    items, users = make_items(), make_users()
    items[0]["image"] = [1.0, 2.0, None, 4.0]
    items[1]["image"] = [1.0, 2.0]
    items[2]["price"] = "cheap"
    items.append({**items[7], "brand": "again"})
    write_jsonl(tmp_path / "items.jsonl", items)
    pl.DataFrame([*users, {**users[0], "country": "again"}]).write_parquet(tmp_path / "users.parquet")
    directory = run(parse(config_of(tmp_path, tmp_path / "dataset")))
    account = manifest.read_manifest(directory)["account"]
    assert account["items"]["files"]["items.jsonl"]["rejected"] == {
        "image: holds a NaN, an infinity or an empty entry": 1,
        "image: must have width 4 (the feature's `dim`), has 2": 1,
        "price: must be a number": 1,
        "item_id: repeats an id; the first row with it counts": 1,
    }
    assert account["items"]["stored"] == 22 - 3
    rejected = account["users"]["files"]["users.parquet"]["rejected"]
    assert rejected == {"user_id: repeats an id; the first row with it counts": 1}
    found = {example["item_id"][0].decode(): example for example in read_examples(directory, "items")}
    for name in ("i0", "i1", "i2"):
        assert found[name]["item_brand"] == found[name]["item_price"] == [1]
        assert found[name]["item_image"] == [1, 1]
        assert found[name]["display_title"] == [b""]
    brands = read_values(directory / "vocabularies" / "brand.txt")
    assert found["i7"]["item_brand"] == [brands.index("brand3") + 2]


def test_a_rejected_row_of_an_item_does_not_shadow_a_later_good_one(tmp_path):
    write_logs(tmp_path)
    items = make_items()
    good, bad = items[7], {**items[7], "price": "cheap"}
    write_jsonl(tmp_path / "items.jsonl", [*items[:7], bad, *items[8:], good, bad, {**good, "brand": "again"}])
    directory = run(parse(config_of(tmp_path, tmp_path / "dataset")))
    assert manifest.read_manifest(directory)["account"]["items"]["files"]["items.jsonl"] == {
        "input": 25,
        "accepted": 22,
        "stored": 22,
        "rejected": {"price: must be a number": 2, "item_id: repeats an id; the first row with it counts": 1},
        "filtered": {},
        "truncated": {},
    }
    found = {example["item_id"][0].decode(): example for example in read_examples(directory, "items")}
    brands = read_values(directory / "vocabularies" / "brand.txt")
    assert found["i7"]["item_brand"] == [brands.index("brand3") + 2]
    assert found["i7"]["display_title"] == [good["title"].encode()]


def test_columns_may_change_their_type_between_files(tmp_path):
    """Numbers in one file, texts in the next, lists in the last: what can be read is, the rest is accounted for."""
    times, numbers = [1_600_000_000, 1_600_000_001], [7, 8]
    files = [
        {"user_id": numbers, "item_id": numbers, "time": times, "size": [1.5, 2.0]},
        {"user_id": ["7", "b"], "item_id": ["7", "y"], "time": [str(time) for time in times], "size": ["1.5", "L"]},
        {"user_id": [["7"], ["b"]], "item_id": ["7", "y"], "time": times, "size": [True, None]},
    ]
    for place, columns in enumerate(files):
        pl.DataFrame(columns).write_parquet(tmp_path / f"part-{place}.parquet")
    data = {"out": str(tmp_path / "dataset"), "events": {"files": [str(tmp_path / "part-*.parquet")]}}
    features = {"events": [{"name": "size", "kind": "categorical"}]}
    directory = run(parse({"data": data, "features": features}))
    account = manifest.read_manifest(directory)["account"]["events"]
    assert (account["input"], account["stored"]) == (6, 4)
    assert account["files"]["part-2.parquet"]["rejected"] == {"user_id: must be a text or a whole number": 2}
    found = {example["user_id"][0].decode(): example for example in read_examples(directory, "histories")}
    sizes = read_values(directory / "vocabularies" / "size.txt")
    assert {user: [sizes[code - 2] for code in example["event_size"]] for user, example in found.items()} == {
        "7": ["1.5", "1.5"],
        "8": ["2"],
        "b": ["L"],
    }


def test_texts_that_are_no_utf8_are_in_the_account(tmp_path):
    lines = [b"user_id,item_id,time", b"a,x,1600000000", b"b,\xff,1600000001", b"a,z,1600000002"]
    (tmp_path / "events.csv").write_bytes(b"\n".join(lines) + b"\n")
    data = {"out": str(tmp_path / "dataset"), "events": {"files": [str(tmp_path / "events.csv")]}}
    directory = run(parse({"data": data}))
    account = manifest.read_manifest(directory)["account"]["events"]
    rule = "column item_id: must be valid UTF-8 (or set `encoding` of the source)"
    assert account["files"]["events.csv"]["rejected"] == {rule: 1}
    assert (account["input"], account["stored"]) == (3, 2)
    rejects = (directory / "rejected" / "events.jsonl").read_text().splitlines()
    assert json.loads(rejects[0]) == {"file": "events.csv", "row": 2, "column": "", "value": "", "rule": rule}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_events": ["bye"]}, r"`data.target_events`: no training event of type `bye`; did you mean `buy`\?"),
        (
            {"items": {"files": ["wide.jsonl"]}},
            r"wide.jsonl: 22 of 22 rows .*column image: must have width 4 \(the feature's `dim`\), has 3 ",
        ),
    ],
)
def test_what_only_the_data_shows_is_told(tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    write_logs(tmp_path)
    write_jsonl(tmp_path / "wide.jsonl", [{**item, "image": [0.5, 1.5, 2.5]} for item in make_items()])
    with pytest.raises(UserError, match=message):
        run(parse(config_of(tmp_path, tmp_path / "dataset", **change)))
    assert not (tmp_path / "dataset").exists()
