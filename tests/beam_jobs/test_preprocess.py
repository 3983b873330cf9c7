import itertools
import json
from collections import Counter

import numpy as np
import polars as pl
import pytest

from beam_jobs.preprocess import run
from tests.beam_jobs.logs import (
    config_of,
    histories_of,
    make_events,
    make_impressions,
    make_items,
    make_users,
    split_of,
    write_logs,
)
from tests.beam_jobs.records import read_examples
from tfrec import manifest
from tfrec.config import parse
from tfrec.schema import Schema
from tfrec.transforms import Hashed

ORIGIN = 1_600_000_000 // 86_400 * 86_400


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A dataset made of all four logs, and its folder of logs."""
    folder = tmp_path_factory.mktemp("logs")
    write_logs(folder)
    return run(parse(config_of(folder, folder / "dataset"))), folder


def bytes_of(directory):
    return {name: (directory / name).read_bytes() for name in [*manifest.list_files(directory), "manifest.json"]}


def raw_ids(directory):
    return ["", "", *Schema.read(directory).item_vocabulary.read(directory)]


def test_the_directory_is_whole_and_accounts_for_every_row(whole):
    directory, _ = whole
    account = manifest.verify(directory, whole=True)["account"]
    users = {row["user_id"] for row in make_events()}
    impressions = Counter(row["user_id"] in users for row in make_impressions())
    totals = {kind: [log[name] for name in ("input", "accepted", "stored")] for kind, log in account.items()}
    assert totals == {
        "events": [300, 300, 300],
        "items": [22, 22, 22],
        "users": [26, 26, len(users - {"u0"})],
        "impressions": [120, 120, impressions[True]],
    }
    reason = account["impressions"]["files"]["impressions.csv"]["filtered"]
    assert reason == {"user without stored events": impressions[False]}
    records = {
        name: entry["records"]
        for name, entry in manifest.read_manifest(directory)["files"].items()
        if "records" in entry
    }
    assert records["histories/histories-00000-of-00001.tfrecord"] == len(users)


def test_histories_hold_every_event_in_order(whole):
    directory, _ = whole
    schema, ids = Schema.read(directory), raw_ids(directory)
    expected = histories_of(make_events())
    found = read_examples(directory, "histories")
    assert [example["user_id"][0].decode() for example in found] == sorted(expected)
    for example in found:
        rows = expected[example["user_id"][0].decode()]
        assert [ids[item] for item in example["item"]] == [row["item_id"] for row in rows]
        assert [time + ORIGIN for time in example["time"]] == [row["time"] for row in rows]
        assert [schema.event_types[code - 2] for code in example["event_type"]] == [row["event_type"] for row in rows]
        assert example["label_liked"] == [int(row["stars"] >= 4) for row in rows]
        assert example["split"] == split_of(rows)
        gaps = [b["time"] - a["time"] > 1800 for a, b in itertools.pairwise(rows)]
        assert example["session"] == [1 + sum(gaps[:place]) for place in range(len(rows))]


def crossed(buckets, first, second):
    """The code of a pair of codes."""
    return Hashed(hash_buckets=buckets).encode([f"{first},{second}" if min(first, second) > 1 else ""]).tolist()


def test_codes_are_those_of_the_transforms(whole):
    directory, _ = whole
    schema = Schema.read(directory)
    items = {row["item_id"]: row for row in make_items()}
    found = read_examples(directory, "items")
    assert [example["item"][0] for example in found] == list(range(2, schema.num_items))
    for example in found:
        row = items.get(example["item_id"][0].decode(), dict.fromkeys(next(iter(items.values()))))
        standard = np.array([row["price"] for row in items.values() if row["price"] is not None])
        value = np.nan if row["price"] is None else (row["price"] - standard.mean()) / standard.std()
        np.testing.assert_allclose(example["vector_price"], [value], rtol=1e-6)
        tier = 1 if row["price"] is None else 2 + (row["price"] >= 5) + (row["price"] >= 10.5)
        assert example["item_tier"] == [tier]
        for name, column in (("brand", "brand"), ("price", "price"), ("cost", "price")):
            transform = schema.feature(name).transform
            assert example[f"item_{name}"] == transform.encode([row[column]], directory).tolist(), (name, row)
        tags = schema.feature("tags").transform.encode(row["tags"] or [None], directory).tolist()
        assert example["item_tags"] == ([*tags[:3], 0, 0, 0])[:3]
        assert example["display_title"] == [(row["title"] or "").encode()]
        codes = Hashed(hash_buckets=3).encode([row["brand"]]).tolist()
        assert example["item_maker"] == codes
        assert example["item_grade"] == [{"brand2": 2, "brand0": 4}.get(row["brand"], 1)]
        assert example["item_offer"] == crossed(1000, *example["item_brand"], *example["item_price"])
        for text in (schema.feature("text"), schema.feature("topic")):
            vector = text.encoder.encode([row["title"]], directory)
            assert example[f"item_{text.name}"] == text.transform.encode(vector, directory)[0].tolist()
        for name in ("image", "shape"):
            assert (example[f"item_{name}"] == [1, 1]) == (row["image"] is None)
        if row["image"]:
            assert example["vector_image"] == pytest.approx(row["image"], rel=1e-6)


def test_counters_count_what_stands_before_an_event(whole):
    directory, _ = whole
    brands = {row["item_id"]: row["brand"] for row in make_items()}
    expected = histories_of(make_events())
    for example in read_examples(directory, "histories"):
        rows = expected[example["user_id"][0].decode()]
        for place, row in enumerate(rows):
            earlier = rows[:place]
            recent = sum(row["time"] - one["time"] <= 9000 for one in earlier)
            assert example["event_visits"][place] == 2 + len(f"{recent:b}") - (recent == 0)
            same = sum(one["item_id"] == row["item_id"] for one in earlier)
            assert example["event_again"][place] == 2 + min(same, 3)
            brand = brands.get(row["item_id"])
            bought = sum(
                brands.get(one["item_id"]) == brand and one["event_type"] in ("buy", "cart") for one in earlier
            )
            code = 1 if brand is None else 2 + len(f"{bought:b}") - (bought == 0)
            assert example["event_bought"][place] == code


def test_event_and_user_features_are_coded(whole):
    directory, _ = whole
    schema = Schema.read(directory)
    expected = histories_of(make_events())
    for example in read_examples(directory, "histories"):
        user = example["user_id"][0].decode()
        for name, column in (("device", "device"), ("paid", "price")):
            values = [row[column] for row in expected[user]]
            assert example[f"event_{name}"] == schema.feature(name).transform.encode(values, directory).tolist()
        number = int(user[1:])
        country, age = (f"c{number % 3}", 20.0 + number) if number else (None, None)
        assert example["user_country"] == schema.feature("country").transform.encode([country], directory).tolist()
        assert example["user_group"] == crossed(50, *example["user_age"], *example["user_country"])
        pairs = zip(example["event_device"], example["event_paid"], strict=True)
        assert example["event_mood"] == [code for pair in pairs for code in crossed(50, *pair)]
        assert example["user_age"] == schema.feature("age").transform.encode([age], directory).tolist()


def weighted(schema, directory, name, cell):
    """Codes and weights of a cell such as `red:3|blue`, weights between values being to one another as written."""
    feature = schema.feature(name)
    values = [value.partition(":") for value in (cell or "").split("|") if value][: feature.num_codes]
    codes = feature.transform.encode([value for value, _, _ in values] or [None], directory).tolist()
    weights = [float(weight or 1) for _, _, weight in values] or [1.0]
    padding = [0] * (feature.num_codes - len(codes))
    return codes + padding, np.array(weights + padding) / max(weights)


def test_values_of_users_and_events_have_weights(whole):
    directory, _ = whole
    schema = Schema.read(directory)
    expected, profiles = histories_of(make_events()), {row["user_id"]: row["tastes"] for row in make_users()}
    for example in read_examples(directory, "histories"):
        user = example["user_id"][0].decode()
        codes, weights = weighted(schema, directory, "tastes", profiles.get(user))
        assert example["user_tastes"] == codes
        found = np.array(example["user_tastes_weights"])
        np.testing.assert_allclose(found / found.max(), weights, rtol=1e-6)
        assert 0.5 <= found.max() < 1
        shown = np.array(example["event_topics_weights"]).reshape(-1, 2)
        for place, row in enumerate(expected[user]):
            codes, weights = weighted(schema, directory, "topics", row["topics"])
            assert example["event_topics"][2 * place : 2 * place + 2] == codes
            np.testing.assert_allclose(shown[place] / shown[place].max(), weights, rtol=1e-6)


def test_statistics_say_which_values_have_codes(whole):
    directory, _ = whole
    found = json.loads((directory / "statistics.json").read_text())["features"]
    brands = Counter(row["brand"] for row in make_items() if row["brand"])
    assert (found["brand"]["values"], found["brand"]["unknown_values"]) == (4, 0)
    assert (found["grade"]["values"], found["grade"]["unknown_values"]) == (4, 2)
    others = brands["brand1"] + brands["brand3"]
    assert found["grade"]["unknown_share"] == pytest.approx(others / sum(brands.values()), abs=1e-6)
    buckets = Counter(Hashed(hash_buckets=3).encode(sorted(brands)).tolist())
    assert found["maker"]["values_in_shared_buckets"] == sum(count for count in buckets.values() if count > 1)
    assert found["maker"]["unknown_values"] == 0
    assert found["offer"] == {"kind": "categorical", "side": "item", "table_sizes": [1002]}
    assert set(found["topic"]["quantiser"]) == {"distortion", "perplexity", "dead_codes", "collisions", "coded"}


def test_impressions_stand_where_they_were_shown(whole):
    directory, _ = whole
    ids, histories = raw_ids(directory), histories_of(make_events())
    for example in read_examples(directory, "histories"):
        user = example["user_id"][0].decode()
        rows = [row for row in make_impressions() if row["user_id"] == user]
        before = [sum(event["time"] < row["time"] for event in histories[user]) for row in rows]
        split = split_of(histories[user])
        requests = list(dict.fromkeys(row["request"] for row in rows))
        assert [ids[item] for item in example["impression_item"]] == [row["item_id"] for row in rows]
        assert [time + ORIGIN for time in example["impression_time"]] == [row["time"] for row in rows]
        assert example["impression_history"] == before
        assert example["impression_split"] == [split[min(place, len(split) - 1)] for place in before]
        assert example["impression_position"] == [row["position"] for row in rows]
        assert example["impression_weight"] == [row["weight"] for row in rows]
        assert example["impression_request"] == [requests.index(row["request"]) + 1 for row in rows]
        assert example["impression_label_liked"] == [int(row["stars"] >= 4) for row in rows]


def test_ids_fall_by_training_count(whole):
    directory, _ = whole
    counts = Counter()
    for rows in histories_of(make_events()).values():
        counts.update(row["item_id"] for row, split in zip(rows, split_of(rows), strict=True) if split == 0)
    seen = {row["item_id"] for row in [*make_events(), *make_items()]}
    users = {row["user_id"] for row in make_events()}
    seen |= {row["item_id"] for row in make_impressions() if row["user_id"] in users}
    assert raw_ids(directory)[2:] == sorted(seen, key=lambda item: (-counts[item], item))
    stored = {
        example["item_id"][0].decode(): example["train_count"][0] for example in read_examples(directory, "items")
    }
    assert stored == {item: counts[item] for item in seen}


def test_nothing_fitted_sees_the_test_events(whole, tmp_path):
    directory, _folder = whole
    changed = make_events()
    for rows in histories_of(changed).values():
        for row, split in zip(rows, split_of(rows), strict=True):
            if split:
                kind = "scroll" if row["event_type"] == "view" else "buy"  # what is a target stays one
                row.update(item_id="i0", device="never seen", price=99.0, event_type=kind, stars=1)
    write_logs(tmp_path, changed)
    other = run(parse(config_of(tmp_path, tmp_path / "dataset")))
    fitted = [name for name in manifest.list_files(directory) if name.startswith(("vocabularies", "artifacts"))]
    assert len(fitted) == 17
    for name in fitted:
        assert (other / name).read_bytes() == (directory / name).read_bytes(), name
    ours, theirs = Schema.read(directory), Schema.read(other)
    assert ours.features == theirs.features
    assert ours.event_types == theirs.event_types
    counts = [[example["train_count"] for example in read_examples(path, "items")] for path in (directory, other)]
    assert counts[0] == counts[1]


def test_equal_rows_give_equal_bytes_whatever_the_listing_and_the_workers(tmp_path):
    events = pl.DataFrame(make_events(num_events=4000, num_users=300))
    parts = [events[start : start + 1000] for start in range(0, 4000, 1000)]
    for place, part in enumerate(parts):
        part.write_parquet(tmp_path / f"part-{place}.parquet", row_group_size=100 + 400 * place)
    files = [str(tmp_path / f"part-{place}.parquet") for place in range(4)]
    features = {"events": [{"name": "paid", "column": "price", "kind": "numerical"}], "fit_sample": 1000}
    datasets = []
    for names, options in (
        (files, []),
        (files[::-1], ["--direct_running_mode=multi_threading", "--direct_num_workers=3"]),
        ([str(tmp_path / "part-*.parquet")], ["--runner=FnApiRunner"]),
    ):
        data = {"out": str(tmp_path / f"dataset-{len(datasets)}"), "events": {"files": names}, "filters": {"k_core": 3}}
        datasets.append(bytes_of(run(parse({"data": data, "features": features}), options)))
    assert datasets[0] == datasets[1] == datasets[2]


def test_a_path_may_hold_what_would_be_a_pattern(whole, tmp_path):
    directory, _ = whole
    folder = tmp_path / "shop [1]*"
    write_logs(folder)
    assert bytes_of(run(parse(config_of(folder, folder / "data=[ab]?")))) == bytes_of(directory)


def test_a_category_of_numbers_has_one_text_whatever_its_batch(tmp_path):
    """Whole numbers and fractions meet in one row group, or never."""
    stars = [1.0, 2.5, 1.0, 3.0, 4.0, 2.5, 1.0, 0.5]
    events = pl.DataFrame(
        {
            "user_id": list("aabbccdd"),
            "item_id": list("wxyzwxyz"),
            "time": range(1_600_000_000, 1_600_000_008),
            "stars": stars,
        }
    )
    features = {"events": [{"name": "stars", "kind": "categorical"}]}
    datasets = []
    for size in (8, 1, 3):
        events.write_parquet(tmp_path / "events.parquet", row_group_size=size)
        data = {"out": str(tmp_path / f"dataset-{size}"), "events": {"files": [str(tmp_path / "events.parquet")]}}
        datasets.append(bytes_of(run(parse({"data": data, "features": features}))))
    assert datasets[0]["vocabularies/stars.txt"] == b"1\n2.5\n0.5\n3\n4\n"
    assert datasets[0] == datasets[1] == datasets[2]
    with (tmp_path / "events.jsonl").open("w") as file:
        file.write("".join(json.dumps(row) + "\n" for row in events.to_dicts()) + "{broken\n")
    data = {"out": str(tmp_path / "lines"), "events": {"files": [str(tmp_path / "events.jsonl")]}}
    lines = bytes_of(run(parse({"data": data, "features": features})))
    assert lines["vocabularies/stars.txt"] == datasets[0]["vocabularies/stars.txt"]
