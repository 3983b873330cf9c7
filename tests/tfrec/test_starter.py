"""What `tfrec init` guesses from a look at files."""

import gzip
import json
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tfrec.config import load
from tfrec.errors import UsageError, UserError
from tfrec.starter import guess_feature, time_unit, write_config


@pytest.mark.parametrize(
    ("values", "unit"),
    [
        (["1700000000", "1700000100"], "seconds"),
        ([1_700_000_000_000], "milliseconds"),
        ([1_700_000_000_000_000], "microseconds"),
        ([1_700_000_000_000_000_000], "nanoseconds"),
        (["2024-02-29T10:00:00", "2024-03-01 11:00"], "iso"),
        ([datetime(2024, 1, 1)], "iso"),
        (["28/12/2010 08:26", "1/2/2011 9:00"], "%d/%m/%Y %H:%M"),
        (["12/28/2010 08:26"], "%m/%d/%Y %H:%M"),
        (["20240229"], "%Y%m%d"),
        (["5", "4", "3"], None),
        (["yesterday"], None),
        ([], None),
    ],
)
def test_time_unit_is_told_from_the_values(values: list[object], unit: str | None) -> None:
    assert time_unit(values) == unit


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([f"{n / 7:.2f}" for n in range(50)], {"kind": "numerical"}),
        (["red", "blue", "green"] * 10, {"kind": "categorical"}),
        ([f"a fine {n} wooden chair" for n in range(50)], {"kind": "text"}),
        (["Action|Drama", "Drama", "Comedy|Drama|Action"] * 5, {"kind": "categorical", "multivalued": True}),
        ([[0.5] * 16] * 5, {"kind": "multimodal", "dim": 16, "groups": 8}),
        ([["a", "b"], ["b"]] * 5, {"kind": "categorical", "multivalued": True}),
    ],
)
def test_kind_is_told_from_the_values(values: list[object], expected: dict[str, object]) -> None:
    guess = guess_feature("x", values, side="item")
    assert guess is not None
    assert {key: guess.settings[key] for key in expected} == expected


def test_identifier_is_no_feature() -> None:
    assert guess_feature("url", [f"https://x/{n}" for n in range(100)], side="item") is None
    assert guess_feature("empty", ["", None], side="item") is None


def test_files_are_told_apart_and_the_config_loads(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "log.csv.gz", "wt") as file:
        file.write("CustomerID;StockCode;InvoiceDate;event\n")
        file.writelines(f"u{n % 7};i{n % 5};{1 + n % 28}/12/2010 08:{n % 60:02d};view\n" for n in range(60))
    items = [{"item_id": f"i{n}", "title": f"red chair {n} of wood", "brand": "AB"[n % 2]} for n in range(40)]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    pq.write_table(pa.table({"user_id": ["u1", "u2"], "region": ["north", "south"]}), tmp_path / "users.parquet")
    out = tmp_path / "shop.yaml"
    write_config([tmp_path / "log.csv.gz", tmp_path / "items.jsonl", tmp_path / "users.parquet"], out)
    config = load(out)
    assert config.data.events is not None
    assert config.data.events.columns == {
        "user_id": "CustomerID",
        "item_id": "StockCode",
        "time": "InvoiceDate",
        "event_type": "event",
    }
    assert config.data.events.delimiter == ";"
    assert config.data.events.time_unit == "%d/%m/%Y %H:%M"
    assert config.data.items is not None
    assert config.data.users is not None
    assert {feature.name: feature.kind for feature in config.features.items} == {
        "title": "text",
        "brand": "categorical",
    }
    assert {feature.name: feature.kind for feature in config.features.users} == {"region": "categorical"}
    assert config.features.display == ("title",)


def test_named_columns_win(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("a,b,c\n1,2,3\n4,5,6\n")
    out = tmp_path / "c.yaml"
    write_config([tmp_path / "log.csv"], out, roles=["user_id=b", "item_id=a", "order=c"])
    columns = yaml.safe_load(out.read_text())["data"]["events"]["columns"]
    assert columns == {"user_id": "b", "item_id": "a", "order": "c"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n", "looks like a user"),
        ("user_id,item_id\n1,2\n", "looks like a time"),
        ("user_id,item_id\n", "holds no row"),
        ("", "holds no row"),
    ],
)
def test_what_cannot_be_guessed_is_said(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "log.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        write_config([tmp_path / "log.csv"], tmp_path / "c.yaml")
    assert not (tmp_path / "c.yaml").exists()


def test_existing_config_is_kept(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        write_config([tmp_path / "log.csv"], tmp_path / "c.yaml")
    assert (tmp_path / "c.yaml").read_text() == "mine"


def test_missing_file_and_unknown_role_are_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.csv: no such file"):
        write_config([tmp_path / "none.csv"], tmp_path / "c.yaml")
    with pytest.raises(UsageError, match="role=column"):
        write_config([tmp_path / "none.csv"], tmp_path / "c.yaml", roles=["item=a"])


def test_line_that_is_not_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"user_id": "a", "item_id": "b"}\n{broken\n')
    with pytest.raises(UserError, match="line 2 is not JSON"):
        write_config([tmp_path / "log.jsonl"], tmp_path / "c.yaml")
