import gzip
import json

import numpy as np
import polars as pl
import pytest
import yaml

from beam_jobs import guess_roles, sources
from beam_jobs.guess import guess_config, guess_feature
from tfrec.config import load
from tfrec.errors import UsageError, UserError

NOON = 1_704_110_400  # 2024-01-01 12:00 UTC


@pytest.fixture
def random():
    return np.random.default_rng(5)


def make_events(random, rows=600, users=40, items=90):
    return pl.DataFrame(
        {
            "user_id": [f"u{n}" for n in random.integers(0, users, rows)],
            "item_id": [f"i{n}" for n in random.integers(0, items, rows)],
            "time": np.sort(NOON + random.integers(0, 10**6, rows)),
            "event_type": random.choice(["view", "cart", "purchase"], rows),
        }
    )


def make_items(random, items=90):
    return pl.DataFrame(
        {
            "item_id": [f"i{n}" for n in range(items)],
            "title": [f"The {n} very readable thing" for n in range(items)],
            "brand": random.choice(["Alm", "Bel", "Cas"], items),
            "price": random.lognormal(3, 1, items),
            "tags": [["a", "b"] if n % 2 else ["b"] for n in range(items)],
            "image": random.normal(size=(items, 16)).astype(np.float32).tolist(),
        }
    )


def guess(tmp_path, *paths, **roles):
    """The text, loaded by the same door as any configuration."""
    text = guess_config(paths, roles)
    (tmp_path / "guess.yaml").write_text(text, encoding="utf-8")
    return load(tmp_path / "guess.yaml"), text


def test_the_roles_are_those_of_the_pipeline():
    for kind, roles in guess_roles._ROLES.items():
        assert set(roles) <= set(sources.ROLES[kind])


def test_parquet_with_well_named_columns(tmp_path, random):
    make_events(random).write_parquet(tmp_path / "log.parquet")
    make_items(random).write_parquet(tmp_path / "catalogue.parquet")
    config, text = guess(tmp_path, tmp_path / "catalogue.parquet", tmp_path / "log.parquet")
    assert config.data.events.files == (str(tmp_path / "log.parquet"),)
    assert config.data.events.columns == {
        "user_id": "user_id",
        "item_id": "item_id",
        "time": "time",
        "event_type": "event_type",
    }
    assert config.data.events.time_unit == "seconds"
    assert config.data.items.files == (str(tmp_path / "catalogue.parquet"),)
    kinds = {feature.name: (feature.kind, feature.multivalued) for feature in config.features.items}
    assert kinds == {
        "title": ("text", False),
        "brand": ("categorical", False),
        "price": ("numerical", False),
        "tags": ("categorical", True),
        "image": ("multimodal", False),
    }
    assert next(feature.dim for feature in config.features.items if feature.name == "image") == 16
    assert config.features.display == ("title",)
    assert "# 3 different values in 90 rows" in text
    assert "# by its name" in text


def test_csv_with_ugly_names_is_read_by_its_values(tmp_path, random):
    events = make_events(random)
    days = events["time"].cast(pl.Int64).map_elements(lambda t: f"{t % 28 + 1:02}.06.2023 1{t % 9}:30", pl.String)
    ugly = pl.DataFrame({"F1": events["item_id"], "Beleg Datum": days, "F7": events["user_id"]})
    ugly.write_csv(tmp_path / "export.txt", separator=";")
    items = make_items(random).select(pl.col("item_id").alias("K"), pl.col("title").alias("Bezeichnung lang"))
    items.write_csv(tmp_path / "stamm.txt", separator=";")
    users = pl.DataFrame({"P": [f"u{n}" for n in range(40)], "Gruppe": ["a", "b"] * 20})
    users.write_csv(tmp_path / "partner.txt", separator=";")
    config, text = guess(tmp_path, *(tmp_path / f"{name}.txt" for name in ("export", "stamm", "partner")))
    assert config.data.events.columns == {"user_id": "F7", "item_id": "F1", "time": "Beleg Datum"}
    assert config.data.events.time_unit == "%d.%m.%Y %H:%M"
    assert (config.data.events.format, config.data.events.delimiter) == ("csv", ";")
    assert config.data.items.columns == {"item_id": "K"}
    assert config.data.users.columns == {"user_id": "P"}
    assert [(one.name, one.column, one.kind) for one in config.features.items] == [
        ("bezeichnung_lang", "Bezeichnung lang", "text")
    ]
    assert [(one.name, one.column) for one in config.features.users] == [("gruppe", "Gruppe")]
    assert "its values are the keys of stamm.txt" in text


def test_parts_of_names_help(tmp_path, random):
    events = make_events(random).rename({"user_id": "ZUSR", "item_id": "MAT_X", "time": "ERD", "event_type": "VG"})
    events.write_csv(tmp_path / "log.csv")
    config, text = guess(tmp_path, tmp_path / "log.csv")
    assert config.data.events.columns == {"user_id": "ZUSR", "item_id": "MAT_X", "time": "ERD", "event_type": "VG"}
    assert "its values look like things that users do" in text


def test_tsv_without_header_gets_names(tmp_path, random):
    make_events(random).select("user_id", "item_id", pl.lit(4), "time").write_csv(
        tmp_path / "u.data", separator="\t", include_header=False
    )
    config, _ = guess(tmp_path, tmp_path / "u.data")
    assert config.data.events.header == ("column_1", "column_2", "column_3", "column_4")
    assert config.data.events.delimiter == "\t"
    assert config.data.events.columns == {"user_id": "column_1", "item_id": "column_2", "time": "column_4"}


def test_json_lines_with_milliseconds_compressed(tmp_path, random):
    rows = make_events(random).rename({"user_id": "visitorId", "item_id": "productId", "time": "ts"}).to_dicts()
    with gzip.open(tmp_path / "log.jsonl.gz", "wt") as file:
        for row in rows:
            file.write(json.dumps({**row, "ts": row["ts"] * 1000}) + "\n")
    config, _ = guess(tmp_path, tmp_path / "log.jsonl.gz")
    assert config.data.events.columns["user_id"] == "visitorId"
    assert config.data.events.columns["item_id"] == "productId"
    assert config.data.events.time_unit == "milliseconds"


def test_a_log_without_times_has_its_order(tmp_path):
    rows = [(user, f"i{(user * 7 + place) % 30}", place) for user in range(20) for place in range(8)]
    pl.DataFrame(rows, ["user", "asin", "nth"], orient="row").write_csv(tmp_path / "log.csv")
    config, text = guess(tmp_path, tmp_path / "log.csv")
    assert config.data.events.columns == {"user_id": "user", "item_id": "asin", "order": "nth"}
    assert "counts 0, 1, 2" in text


def test_the_key_of_the_items_is_the_one_that_events_hold(tmp_path):
    rows = [(user, (user * 7 + place) % 30, place) for user in range(20) for place in range(8)]
    pl.DataFrame(rows, ["user_id", "product", "position"], orient="row").write_csv(tmp_path / "log.csv")
    items = pl.DataFrame(
        {"asin": [f"B{n:09}" for n in range(30)], "nr": range(30), "name": ["a thing with words"] * 30}
    )
    items.write_csv(tmp_path / "items.csv")
    config, _ = guess(tmp_path, tmp_path / "log.csv", tmp_path / "items.csv")
    assert config.data.items.columns == {"item_id": "nr"}


def test_impressions_are_told_from_events(tmp_path, random):
    events = make_events(random)
    events.write_parquet(tmp_path / "events.parquet")
    shown = events.select("user_id", "item_id", "time").with_columns(
        request=pl.Series([f"r{n // 4}" for n in range(600)]),
        position=pl.Series([n % 4 + 1 for n in range(600)]),
        click=pl.Series([int(n % 4 == 1) for n in range(600)]),
    )
    shown.write_parquet(tmp_path / "shown.parquet")
    config, _ = guess(tmp_path, tmp_path / "shown.parquet", tmp_path / "events.parquet")
    assert config.data.events.files == (str(tmp_path / "events.parquet"),)
    assert config.data.impressions.columns == {
        name: name for name in ("user_id", "item_id", "time", "request", "position")
    }
    assert [(label.name, label.operator, label.value) for label in config.data.labels] == [("click", ">=", 1)]


def test_invoices_are_sessions_and_latin_1_is_noticed(tmp_path, random):
    events = make_events(random).sort("user_id", "time")
    lines = ["InvoiceNo,StockCode,CustomerID,InvoiceDate,Note"]
    numbers = (events["user_id"] + "-" + (events["time"] // 10**5).cast(pl.String)).to_list()
    for number, row in zip(numbers, events.iter_rows(named=True), strict=True):
        lines.append(f"{number},{row['item_id']},{row['user_id']},2023-05-{row['time'] % 28 + 1:02} 10:00:00,caf\u00e9")
    (tmp_path / "lines.csv").write_bytes("\n".join(lines).encode("latin-1"))
    config, text = guess(tmp_path, tmp_path / "lines.csv")
    assert config.data.events.encoding == "latin-1"
    assert config.data.events.time_unit == "iso"
    assert config.data.events.columns["session"] == "InvoiceNo"
    assert "Columns of the events that are not used: Note" in text


def test_separated_cells_are_multivalued_and_sentences_are_not():
    genres = pl.Series("genres", ["Comedy|Drama", "Drama", "Comedy|War", "War|Drama"] * 10)
    settings, _ = guess_feature(genres, side="items")
    assert settings == {"kind": "categorical", "multivalued": True, "separator": "|"}
    text = pl.Series("text", [f"red dress number {n}, for every summer day" for n in range(40)])
    assert guess_feature(text, side="items")[0] == {"kind": "text"}
    assert guess_feature(pl.Series("key", [f"x{n}" for n in range(100)]), side="items") is None
    assert guess_feature(pl.Series("same", ["a"] * 100), side="items") is None
    assert guess_feature(pl.Series("age", list(range(18, 80))), side="users")[0] == {"kind": "numerical"}


def test_named_roles_win(tmp_path, random):
    events = make_events(random).rename({"user_id": "a", "item_id": "b"})
    events.write_csv(tmp_path / "log.csv")
    config, text = guess(tmp_path, tmp_path / "log.csv", user_id="a", item_id="b")
    assert config.data.events.columns["user_id"] == "a"
    assert "# as you said" in text


def test_named_roles_and_columns_must_be_there(tmp_path, random):
    make_events(random).write_csv(tmp_path / "log.csv")
    with pytest.raises(UsageError, match="--column user=a: no such role; did you mean `user_id`"):
        guess_config([tmp_path / "log.csv"], {"user": "a"})
    with pytest.raises(UsageError, match="--column user_id=user_ids: no file has that column; did you mean `user_id`"):
        guess_config([tmp_path / "log.csv"], {"user_id": "user_ids"})


def test_names_of_features_are_plain_words_and_few_values_are_told(tmp_path, random):
    make_events(random).write_csv(tmp_path / "log.csv")
    items = make_items(random).select("item_id", Größe="brand", **{"2nd price": "price", "品牌": "brand"})
    for rows, told in ((90, "guessed from 90 values alone"), (200, None)):
        pl.concat([items, items, items]).head(rows).write_csv(tmp_path / "items.csv")
        text = guess_config([tmp_path / "log.csv", tmp_path / "items.csv"])
        features = yaml.safe_load(text)["features"]["items"]
        names = {feature.get("column"): feature["name"] for feature in features}
        assert names == {"Größe": "grosse", "2nd price": "item_feature_2", "品牌": "item_feature_3"}
        assert text.count("alone, look again") == (3 if told else 0)
        assert told is None or told in text


def test_every_guess_is_a_yaml_document_with_reasons(tmp_path, random):
    make_events(random).write_csv(tmp_path / "log: odd #name.csv")
    text = guess_config([tmp_path / "log: odd #name.csv"], name="odd: name")
    document = yaml.safe_load(text)
    assert document["data"]["out"] == "datasets/odd: name"
    assert document["data"]["events"]["files"] == [str(tmp_path / "log: odd #name.csv")]
    columns = [line for line in text.splitlines() if line.startswith("      ")]
    assert len(columns) == 4
    assert all("# " in line for line in columns)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": [1.5, 2.5, 1.5], "b": [0.1, 0.2, 0.3]}, "log.csv: no column looks like a user or an item .a, b."),
        ({"item_id": ["x", "y", "x"], "c": ["r", "g", "r"]}, "no column looks like a user beside one .* item"),
        ({"user_id": ["x", "y", "x"], "item_id": ["r", "g", "r"]}, "no column looks like a time or an order"),
    ],
)
def test_what_is_not_found_is_one_line_with_the_mend(tmp_path, columns, message):
    pl.DataFrame(columns).write_csv(tmp_path / "log.csv")
    with pytest.raises(UsageError, match=message + ".*--column "):
        guess_config([tmp_path / "log.csv"])


def test_unreadable_files_are_one_line(tmp_path):
    for name, content, message in (
        ("empty.csv", b"", "empty.csv: holds no row"),
        ("header.csv", b"user_id,item_id\n", "header.csv: holds no row"),
        ("broken.parquet", b"PAR1 and then nothing", "broken.parquet: cannot be read"),
        ("broken.jsonl", b"{not json\n", "broken.jsonl: cannot be read"),
        ("ratings.dat", b"1::2::3::4\n", "a delimiter must be one character"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message):
            guess_config([tmp_path / name])
    with pytest.raises(UserError, match=r"nowhere.csv: no such file"):
        guess_config([tmp_path / "nowhere.csv"])
