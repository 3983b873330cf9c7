"""Impressions made of events: what is drawn, by which chances, and that nothing of it depends on workers."""

from collections import Counter

import numpy as np
import polars as pl
import pytest

from beam_jobs import preprocess
from tfrec.config import parse
from tfrec.data import Dataset
from tfrec.errors import UsageError

USERS, ITEMS = 300, 60


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """Users' events; item i is 1 + i // 6 times as frequent as the first six, two items are in no event at all."""
    rng = np.random.default_rng(0)
    chances = 1.0 + np.arange(ITEMS) // 6
    rows = {"user_id": [], "item_id": [], "time": [], "event_type": [], "rating": []}
    for user in range(USERS):
        count = int(rng.integers(5, 15))
        rows["user_id"] += [f"u{user}"] * count
        rows["item_id"] += [f"i{item}" for item in rng.choice(ITEMS, count, p=chances / chances.sum())]
        rows["time"] += np.sort(rng.integers(0, 50, count) + 1_600_000_000).tolist()
        rows["event_type"] += rng.choice(["view", "buy"], count).tolist()
        rows["rating"] += [None if rating == 0 else int(rating) for rating in rng.integers(0, 6, count)]
    folder = tmp_path_factory.mktemp("log")
    pl.DataFrame(rows).write_csv(folder / "events.csv")
    names = [f"i{item}" for item in range(ITEMS + 2)]
    pl.DataFrame({"item_id": names, "title": names}).write_csv(folder / "items.csv")
    return folder


def configure(log, out, rule, **data):
    document = {
        "out": str(out),
        "events": {"files": [str(log / "events.csv")]},
        "items": {"files": [str(log / "items.csv")]},
        "split": {"kind": "last_fraction", "fraction": 0.2},
        "impressions_from_events": rule,
        **data,
    }
    return parse({"data": document, "features": {"display": ["title"]}})


@pytest.fixture(scope="module")
def drawn(log, tmp_path_factory):
    rule = {"negatives": 4, "popular_share": 0.5, "label": "buy"}
    out = tmp_path_factory.mktemp("data") / "drawn"
    return Dataset.open(preprocess.run(configure(log, out, rule)))


def impressions(dataset):
    """User -> their impressions, each a dictionary."""
    shown = dataset.histories().impressions
    return [
        [
            {name: int(values[place]) for name, values in shown.columns.items()}
            for place in range(shown.offsets[user], shown.offsets[user + 1])
        ]
        for user in range(dataset.histories().num_users)
    ]


def events(dataset, user, name="item"):
    histories = dataset.histories()
    return histories.columns[name][histories.offsets[user] : histories.offsets[user + 1]].tolist()


def test_every_event_stands_before_four_items_that_its_user_never_had(drawn):
    assert drawn.schema.impressions.model_dump() == {
        "labels": ("buy",),
        "has_positions": False,
        "has_requests": True,
        "has_weights": False,
    }
    total = 0
    for user, shown in enumerate(impressions(drawn)):
        own = events(drawn, user)
        assert len(shown) == 5 * len(own)
        total += len(shown)
        for place, (item, time, split) in enumerate(
            zip(own, events(drawn, user, "time"), events(drawn, user, "split"), strict=True)
        ):
            request = shown[5 * place : 5 * place + 5]
            assert [one["label_buy"] for one in request] == [1, 0, 0, 0, 0]
            assert request[0]["item"] == item
            assert not {one["item"] for one in request[1:]} & set(own)
            assert len({one["item"] for one in request}) == 5
            for name, value in (("time", time), ("split", split), ("history", place), ("request", place + 1)):
                assert {one[name] for one in request} == {value}
    assert drawn.schema.counts["impressions"] == total


def test_half_of_the_draws_go_by_popularity_and_half_are_uniform(drawn):
    """Each drawn with its chance among the items that a user never had; z-scores of 62 items."""
    counts, users = drawn.catalogue().train_count[2:], drawn.histories().num_users
    expected, found = np.zeros((2, len(counts))), np.zeros((2, len(counts)))
    for user, shown in zip(range(users), impressions(drawn), strict=True):
        own = events(drawn, user)
        free = ~np.isin(np.arange(2, len(counts) + 2), own)
        for kind, weight in enumerate((counts, np.ones(len(counts)))):
            expected[kind] += 2 * len(own) * free * weight / (free * weight).sum()
        for place in range(len(own)):
            for number, one in enumerate(shown[5 * place + 1 : 5 * place + 5]):
                found[number // 2, one["item"] - 2] += 1
    z = (found - expected) / np.sqrt(np.maximum(expected, 1))
    assert np.abs(z).max() < 5
    assert np.corrcoef(found[0], counts)[0, 1] > 0.95
    assert (found[0][counts == 0] == 0).all()
    assert (found[1][counts == 0] > 20).all()


def test_draws_depend_on_the_seed_alone(drawn, log, tmp_path, monkeypatch):
    monkeypatch.setattr(preprocess, "EVENTS_A_BUCKET", 500)
    rule = {"negatives": 4, "popular_share": 0.5, "label": "buy"}
    same = Dataset.open(preprocess.run(configure(log, tmp_path / "same", rule)))
    other = Dataset.open(preprocess.run(configure(log, tmp_path / "other", {**rule, "seed": 1})))

    def by_user(dataset):
        return dict(zip(dataset.histories().user_ids, impressions(dataset), strict=True))

    assert len(list((tmp_path / "same/histories").iterdir())) > 1
    assert by_user(same) == by_user(drawn)
    assert by_user(other) != by_user(drawn)


def test_users_who_have_nearly_everything_get_fewer(tmp_path):
    rows = [
        (user, f"i{item}", 1_600_000_000 + item)
        for user, most in (("all", 6), ("most", 5), ("few", 2))
        for item in range(most)
    ]
    pl.DataFrame(rows, ["user_id", "item_id", "time"], orient="row").write_csv(tmp_path / "events.csv")
    document = {"out": str(tmp_path / "d"), "events": {"files": [str(tmp_path / "events.csv")]}}
    config = parse({"data": {**document, "impressions_from_events": {"negatives": 3, "popular_share": 0.0}}})
    dataset = Dataset.open(preprocess.run(config))
    found = dict(zip(dataset.histories().user_ids, impressions(dataset), strict=True))
    assert {user: len(shown) for user, shown in found.items()} == {"all": 6, "most": 10, "few": 8}


def test_events_are_impressions_with_the_labels_of_their_columns(log, tmp_path):
    labels = [{"name": "liked", "column": "rating", "operator": ">=", "value": 4}]
    config = configure(log, tmp_path / "d", {}, labels=labels, target_events=["buy"])
    dataset = Dataset.open(preprocess.run(config))
    assert dataset.schema.impressions.labels == ("liked",)
    types = dataset.schema.event_types
    rows = pl.read_csv(log / "events.csv")
    ratings = Counter()
    for user, shown in enumerate(impressions(dataset)):
        kinds = [types[code - 2] for code in events(dataset, user, "event_type")]
        bought = [place for place, kind in enumerate(kinds) if kind == "buy"]
        assert [one["history"] for one in shown] == bought
        for name in ("item", "time", "split", "label_liked"):
            values = events(dataset, user, name)
            assert [one[name] for one in shown] == [values[place] for place in bought]
        ratings.update(one["label_liked"] for one in shown)
    wanted = rows.filter(pl.col("event_type") == "buy")["rating"]
    assert ratings == {-1: wanted.null_count(), 1: int((wanted >= 4).sum()), 0: int((wanted < 4).sum())}


@pytest.mark.parametrize(
    ("rule", "data", "message"),
    [
        ({}, {}, "`data.impressions_from_events`: needs `data.labels` of events, or `negatives` above 0"),
        (
            {"seed": 3},
            {"labels": [{"name": "liked", "column": "rating", "operator": ">=", "value": 4}]},
            "`data.impressions_from_events.seed`: says nothing where `negatives` is 0; leave it out.",
        ),
        (
            {"negatives": 2},
            {"impressions": {"files": ["LOG/events.csv"]}},
            "`data.impressions_from_events`: must be left out, since `data.impressions` names what was shown.",
        ),
    ],
)
def test_rules_that_do_not_fit_are_one_line(log, tmp_path, rule, data, message):
    shown = {"files": [str(log / "events.csv")]}
    data = {key: shown if key == "impressions" else value for key, value in data.items()}
    with pytest.raises(UsageError) as error:
        preprocess.run(configure(log, tmp_path / "d", rule, **data))
    assert message in str(error.value)
