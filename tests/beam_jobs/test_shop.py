import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from beam_jobs.recipes import prepare, shop, shop_words
from tfrec.config import parse
from tfrec.errors import UsageError

OPTIONS = {"users": 800, "items": 600, "seed": 3, "impressions": 0.3}


def write(directory, **changes):
    directory.mkdir(parents=True, exist_ok=True)
    sections = frozenset(("events", "items", "users", "impressions"))
    shop.write(directory, [], shop.Options(**{**OPTIONS, **changes}), sections)
    return {path.stem: pl.read_parquet(path) for path in sorted(directory.glob("*.parquet"))}


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    return write(tmp_path_factory.mktemp("shop"))


def test_ids_of_the_tables_belong_together(tables):
    assert tables["items"].height == tables["items"]["item_id"].n_unique() == 600
    assert tables["users"].height == tables["users"]["user_id"].n_unique() == 800
    for name in ("events", "impressions"):
        assert set(tables[name]["item_id"]) <= set(tables["items"]["item_id"])
        assert set(tables[name]["user_id"]) <= set(tables["users"]["user_id"])


def test_items_are_readable_and_whole(tables):
    known = shop_words.categories()
    nouns = {name: (department, noun) for department, name, noun, _ in known}
    for row in tables["items"].iter_rows(named=True):
        department, name = row["category"]
        assert nouns[name][0] == department
        assert re.fullmatch(f"{row['brand']} \\w+ \\w+ {nouns[name][1]}, \\w+", row["title"])
        assert len(row["image"]) == 32
        assert row["price"] > 0


def test_events_are_sorted_in_time_and_inside_the_days(tables):
    time = tables["events"]["time"]
    assert time.is_sorted()
    assert time[0] >= shop.START
    assert time[-1] < shop.START + 121 * 86_400
    counts = dict(tables["events"]["event_type"].value_counts().rows())
    assert counts["view"] > counts["cart"] > counts["purchase"] > 0


def test_sessions_are_short_and_far_apart(tables):
    gaps = (
        tables["events"].sort("user_id", "time").select(gap=pl.col("time").diff().over("user_id"))["gap"].drop_nulls()
    )
    assert ((gaps > 1800) & (gaps < 1900)).mean() < 0.001  # pauses inside sessions end far below half an hour
    assert 4 < len(gaps) / (gaps > 1800).sum() < 8  # events a session


def test_part_of_the_catalogue_arrives_late(tables):
    first = tables["events"].group_by("item_id").agg(pl.col("time").min())["time"]
    late = (first > shop.START + 30 * 86_400).mean()
    assert 0.15 < late < 0.4


def test_popularity_is_skewed(tables):
    counts = tables["events"].group_by("item_id").len()["len"].sort(descending=True)
    assert counts.head(60).sum() > 0.3 * counts.sum()


def test_impressions_hold_the_clicks_of_their_lists(tables):
    lists = (
        tables["impressions"]
        .group_by("request")
        .agg(
            pl.col("click").sum(),
            pl.col("cart").sum(),
            pl.len(),
            pl.col("position").max(),
            pl.col("item_id").n_unique().alias("different"),
            pl.col("user_id").n_unique().alias("users"),
        )
    )
    assert (lists["click"] <= 1).all()
    assert (lists["cart"] <= lists["click"]).all()
    assert (lists["len"] == lists["position"]).all()
    assert (lists["len"] == lists["different"]).all()
    assert (lists["users"] == 1).all()
    assert 0.5 < lists["click"].mean() < 0.95
    by_position = dict(tables["impressions"].group_by("position").agg(pl.col("click").mean()).rows())
    assert by_position[1] > 1.5 * by_position[10]


def test_clicks_are_events(tables):
    clicks = tables["impressions"].filter(pl.col("click") == 1)
    events = tables["events"].unique(["user_id", "item_id"])
    assert clicks.join(events, on=["user_id", "item_id"], how="anti").height == 0


def test_after_a_cart_comes_another_category(tables):
    items = tables["items"].select("item_id", category=pl.col("category").list.get(1))
    events = tables["events"].join(items, on="item_id").sort("user_id", "time")
    following = events.with_columns(
        next_category=pl.col("category").shift(-1).over("user_id"),
        gap=(pl.col("time").shift(-1) - pl.col("time")).over("user_id"),
        same_item=pl.col("item_id").shift(-1).over("user_id") == pl.col("item_id"),
    ).filter(pl.col("gap") < 1800, ~pl.col("same_item"))
    same = dict(following.group_by("event_type").agg((pl.col("category") == pl.col("next_category")).mean()).rows())
    assert same["view"] > 0.5
    assert same["cart"] < 0.35


def test_equal_options_give_equal_bytes_and_seeds_matter(tmp_path):
    small = {"users": 60, "items": 100}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write(tmp_path / name, **small, seed=seed)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    assert (tmp_path / "a/events.parquet").read_bytes() != (tmp_path / "c/events.parquet").read_bytes()


def test_users_come_in_chunks_of_one_file(tmp_path, monkeypatch):
    monkeypatch.setattr(shop, "_USERS_A_CHUNK", 40)
    tables = write(tmp_path / "chunks", users=100, items=100)
    assert tables["users"]["user_id"].to_list() == [f"u{number:03}" for number in range(100)]
    assert tables["events"]["user_id"].n_unique() > 90
    requests = tables["impressions"].group_by("request").agg(pl.col("user_id").n_unique())
    assert (requests["user_id"] == 1).all()


def test_dirty_rows_are_broken_in_three_ways(tmp_path):
    events = write(tmp_path / "dirty", users=400, dirty=0.03)["events"]
    users, items = events["user_id"].null_count(), events["item_id"].null_count()
    times = (events["time"] > 10 * shop.START).sum()
    for count in (users, items, times):
        assert 0.005 < count / events.height < 0.015


def test_without_impressions_none_are_written(tmp_path):
    config = parse(
        {
            "data": {
                "out": str(tmp_path / "out"),
                "recipe": {"name": "shop", "options": {"users": 50, "items": 100, "impressions": 0}},
            }
        }
    )
    data = prepare(config).data
    assert data.impressions is None
    assert Path(data.events.files[0]).name == "events.parquet"
    assert pl.read_parquet(data.users.files[0]).columns == ["user_id", "age_band", "region"]


def test_a_path_is_refused(tmp_path):
    config = parse({"data": {"out": str(tmp_path / "out"), "recipe": {"name": "shop", "path": "here"}}})
    with pytest.raises(UsageError, match="must be left out for `shop`"):
        prepare(config)


def leave_one_out(tables):
    """Each user's last item, the items before it, and how often each item is among those."""
    items = {item: row for row, item in enumerate(tables["items"]["item_id"])}
    first = tables["events"].unique(["user_id", "item_id"], keep="first", maintain_order=True)
    histories = [
        [items[item] for item in history]
        for history in first.group_by("user_id", maintain_order=True).agg("item_id")["item_id"].to_list()
        if len(history) >= 3
    ]
    return [(history[:-1], history[-1]) for history in histories], len(items)


def hits(queries, score):
    found = 0
    for history, target in queries:
        scores = score(history).astype(np.float64)
        scores[history] = -np.inf
        found += (scores >= scores[target]).sum() <= 10
    return found / len(queries)


def test_order_and_content_both_beat_popularity(tmp_path):
    tables = write(tmp_path / "signal", users=2000, items=1000, impressions=0)
    queries, size = leave_one_out(tables)
    popularity = np.bincount([item for history, _ in queries for item in history], minlength=size)
    following = np.zeros((size, size))
    for history, _ in queries:
        for before, after in pairwise(history):
            following[before, after] += 1
    image = np.stack(tables["items"]["image"].to_list())
    image -= image.mean(0)
    image /= np.linalg.norm(image, axis=1, keepdims=True)
    category = tables["items"]["category"].list.get(1).to_dummies().to_numpy()
    content = np.concatenate([image, 2.0 * category], axis=1)
    by_popularity = hits(queries, lambda history: popularity)
    assert hits(queries, lambda history: following[history[-1]] + 1e-6 * popularity) > 3 * by_popularity
    assert hits(queries, lambda history: content @ content[history[-1]]) > 3 * by_popularity
