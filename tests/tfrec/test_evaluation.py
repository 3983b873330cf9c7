"""Evaluation against loops over every query and every item."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.datasets import TIME_ORIGIN, make_dataset
from tfrec import ranks as ranking
from tfrec.columns import Catalogue
from tfrec.config import parse
from tfrec.data import Dataset, batches
from tfrec.errors import UserError
from tfrec.evaluation import (
    evaluate,
    read_evaluation,
    recommend,
)
from tfrec.ranks import Ranks, count_better, encode_catalogue, rank_queries

pytestmark = pytest.mark.jax


class StubModel:
    """Small whole-number vectors, so that scores are exact and many are equal; a user is the sum of his items."""

    history_length = 6

    def __init__(self, num_items, width=3, seed=0):
        self.vectors = np.random.default_rng(seed).integers(-2, 3, (num_items, width)).astype(np.float32)
        self.shapes = set()

    def encode_items(self, items):
        return self.vectors[items]

    def encode_users(self, batch):
        self.shapes.add(batch["item"].shape)
        return (self.vectors[batch["item"]] * (batch["item"] > 0)[..., None]).sum(axis=1)


def make_run(directory, *, seed=0, model=None, data=None, metric="ndcg@5", **options):
    dataset = Dataset.open(make_dataset(directory / "data", write_cache=True, **(data or {})))
    directory.joinpath("run").mkdir(exist_ok=True)
    config = parse(
        {
            "data": {"out": str(directory / "data")},
            "training": {"validation_metric": metric},
            "evaluation": {"ks": [1, 5], "bootstrap_samples": 200} | options,
        }
    )
    model = model or StubModel(dataset.schema.num_items, seed=seed)
    return SimpleNamespace(
        directory=directory / "run", config=config, schema=dataset.schema, dataset=dataset, model=model
    )


def expected_rank(scores, target, candidates):
    above = sum(scores[item] > scores[target] for item in candidates if item != target)
    beside = sum(scores[item] == scores[target] for item in candidates if item != target)
    return above, beside


def brute_force(run, split, filter_seen):
    """By (user, place): how many stand before the target and beside it; None for an unknown target."""
    histories, model = run.dataset.histories(), run.model
    count = run.dataset.catalogue().train_count
    found = {}
    for user in range(histories.num_users):
        events = slice(*histories.offsets[user : user + 2])
        items, splits = histories.columns["item"][events], histories.columns["split"][events]
        for place in np.flatnonzero(splits == {"validation": 1, "test": 2}[split]):
            target, history = int(items[place]), items[:place]
            state = sum((model.vectors[item] for item in history[-model.history_length :]), np.zeros(3))
            scores = model.vectors @ state if place else count
            candidates = set(range(2, len(count))) - (set(history.tolist()) if filter_seen else set())
            found[user, int(place)] = expected_rank(scores, target, candidates | {target}) if target > 1 else None
    return found


@pytest.mark.parametrize("filter_seen", [True, False])
@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("kind", ["leave_one_out", "temporal"])
def test_ranks_equal_the_loop(tmp_path, monkeypatch, kind, split, filter_seen):
    monkeypatch.setattr(ranking, "_ITEMS_AT_ONCE", 7)  # the catalogue of 40 ends inside a chunk
    monkeypatch.setattr(ranking, "_SCORES_AT_ONCE", 40 * 3)  # three queries a block, batches of eight
    run = make_run(tmp_path, data={"split": kind}, filter_seen=filter_seen, batch_size=8)
    ranks = evaluate(run, split).answers
    found = {
        (int(user), int(place)): (int(better), int(equal))
        for user, place, better, equal in zip(ranks.user, ranks.place, ranks.better, ranks.equal, strict=True)
    }
    assert found == brute_force(run, split, filter_seen)
    assert list(found) == sorted(found)
    assert any(equal for _, equal in found.values())


def test_metrics_are_the_means_over_the_loop(tmp_path):
    run = make_run(tmp_path)
    result = evaluate(run)
    ranks = list(brute_force(run, "test", True).values())
    recall = np.mean([np.mean([above + tie < 5 for tie in range(beside + 1)]) for above, beside in ranks])
    gains = [
        [1 / math.log2(above + tie + 2) * (above + tie < 5) for tie in range(beside + 1)] for above, beside in ranks
    ]
    assert result.metrics["recall@5"] == pytest.approx(recall)
    assert result.metrics["ndcg@5"] == pytest.approx(np.mean([np.mean(gain) for gain in gains]))
    low, high = result.confidence_intervals["recall@5"]
    assert low < recall < high
    assert list(result.metrics) == ["recall@1", "recall@5", "ndcg@1", "ndcg@5", "mrr"]
    assert result.protocol["queries"] == len(ranks)
    assert result.protocol["candidates"] == 40


def test_the_metric_that_decides_in_training_is_measured_too(tmp_path):
    result = evaluate(make_run(tmp_path, metric="recall@3"))
    assert list(result.metrics) == ["recall@1", "recall@3", "recall@5", "ndcg@1", "ndcg@3", "ndcg@5", "mrr"]
    assert result.protocol["ks"] == [1, 3, 5]


class Alike(StubModel):
    """Wide vectors of no round numbers; all items have the same one."""

    def __init__(self, num_items):
        self.vectors = np.tile(np.random.default_rng(0).normal(size=100).astype(np.float32), (num_items, 1))
        self.shapes = set()


@pytest.mark.parametrize("values", [3, 5, 41, 103])
@pytest.mark.parametrize("queries", [1, 2, 3])
def test_identical_items_tie_whatever_the_number_of_queries(values, queries):
    batch = {
        "item": np.full((queries, 2), 2, np.int32),
        "seen": np.full((queries, 2), 2, np.int32),
        "target": np.full(queries, 3, np.int32),
        "user": np.arange(queries, dtype=np.int32),
    }
    size = values + 2
    catalogue = Catalogue(np.zeros((size, 1), np.int32), np.arange(size), np.zeros(size, bool), {}, [""] * size, {})
    ranks = rank_queries(Alike(size), catalogue, [batch], filter_seen=False)
    assert ranks.better.tolist() == [0] * queries
    assert ranks.equal.tolist() == [values - 1] * queries


def test_identical_items_tie_in_a_recommendation(tmp_path):
    run = make_run(tmp_path)
    run.model = Alike(run.schema.num_items)
    found = recommend(run, ["item-003"], k=40)
    assert len({score for _, score in found}) == 1
    item_ids = run.dataset.catalogue().item_ids[2:]
    assert [name for name, _ in found] == [name for name in item_ids if name != "item-003"]  # by code where equal


def test_unknown_targets_are_misses_and_counted():
    model = StubModel(6)
    batch = {
        "item": np.array([[2, 3], [2, 0]], np.int32),
        "seen": np.array([[2, 3], [2, 0]], np.int32),
        "target": np.array([1, 4], np.int32),
        "user": np.array([0, 1], np.int32),
    }
    catalogue = Catalogue(np.zeros((6, 1), np.int32), np.arange(6), np.zeros(6, bool), {}, [""] * 6, {})
    ranks = rank_queries(model, catalogue, [batch], filter_seen=True)
    assert ranks.known.tolist() == [False, True]
    values = ranks.values([100])
    assert values["recall@100"].tolist() == [0, 1]
    assert values["mrr"][0] == values["ndcg@100"][0] == 0


def test_retired_items_stand_before_nobody():
    batch = {
        "item": np.array([[2], [2]], np.int32),
        "seen": np.array([[2], [2]], np.int32),
        "target": np.array([3, 4], np.int32),
        "user": np.array([0, 1], np.int32),
    }
    retired = np.array([False] * 5 + [True])
    for none, better in ((~retired & False, [2, 1]), (retired, [1, 0])):
        catalogue = Catalogue(np.zeros((6, 1), np.int32), np.arange(6), none, {}, [""] * 6, {})
        ranks = rank_queries(Rising(), catalogue, [batch], filter_seen=True)
        assert ranks.better.tolist() == better


class Rising:
    """Later items score higher."""

    def encode_users(self, batch):
        return np.ones((len(batch["item"]), 1), np.float32)

    def encode_items(self, items):
        return np.asarray(items, np.float32)[:, None]


def test_the_target_stays_a_candidate_where_it_was_seen():
    scores = np.array([[3.0, 2.0, 1.0, 2.0]], np.float32)
    better, equal = count_better(scores.copy(), np.array([3]), np.array([[2, 3, 0]]))
    assert (better[0], equal[0]) == (0, 1)  # item 2 stood before it and was seen; item 5 stands beside it
    better, equal = count_better(scores.copy(), np.array([3]), np.zeros((1, 0), np.int32))
    assert (better[0], equal[0]) == (1, 1)


def test_unknown_and_padding_are_no_candidates():
    model = StubModel(6)
    model.vectors[:2] = 1000
    assert np.abs(encode_catalogue(model, 6)).max() <= 2
    assert encode_catalogue(model, 6).shape == (4, 3)


def test_a_score_that_is_no_number_is_no_success():
    scores = np.array([[np.nan, 1.0, 2.0], [np.nan, 1.0, 2.0]], np.float32)
    better, _ = count_better(scores, np.array([2, 4]), np.zeros((2, 0), np.int32))
    assert better.tolist() == [3, 1]


def test_short_batches_are_padded_to_the_shape_of_the_first(tmp_path):
    run = make_run(tmp_path, batch_size=8)
    evaluate(run)
    assert {rows for rows, _ in run.model.shapes} == {8}


def test_longer_histories_give_the_same_queries_in_the_same_order(tmp_path):
    run = make_run(tmp_path)
    short = evaluate(run).answers
    run.model.history_length = 40
    long = evaluate(run).answers
    for name in ("user", "place", "target"):
        assert getattr(short, name).tolist() == getattr(long, name).tolist()
    assert short.better.tolist() != long.better.tolist()


def test_slices_by_popularity(tmp_path):
    run = make_run(tmp_path)
    result = evaluate(run)
    count = run.dataset.catalogue().train_count
    rare = result.answers.target[count[result.answers.target] < 5]
    assert result.slices["cold_items"]["train_count<5"]["queries"] == len(rare)
    assert result.slices["cold_items"]["train_count<1"]["queries"] == (count[result.answers.target] == 0).sum()
    deciles = result.slices["popularity_decile"]
    assert sum(part["queries"] for part in deciles.values()) == result.protocol["queries"]
    assert sum(part["items"] for part in deciles.values()) == 40
    total, before, expected = count.sum(), 0, dict.fromkeys(range(1, 11), 0)
    for item in sorted(range(2, 42), key=lambda item: -count[item]):  # ten equal parts of the events, items whole
        expected[min(int(before * 10 / total) + 1, 10)] += 1
        before += count[item]
    assert {int(number): part["items"] for number, part in deciles.items()} == expected
    weighted = sum(part["queries"] * part.get("mrr", 0) for part in deciles.values())
    assert weighted / result.protocol["queries"] == pytest.approx(result.metrics["mrr"])


def test_a_written_evaluation_has_equal_bytes_each_time(tmp_path):
    run = make_run(tmp_path)
    written = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        evaluate(run).write(tmp_path / name)
        written.append([path.read_bytes() for path in sorted((tmp_path / name).iterdir())])
    assert written[0] == written[1]
    document = json.loads((tmp_path / "one/evaluation.json").read_text())
    assert sorted(document) == ["confidence_intervals", "metrics", "protocol", "slices"]
    assert document["protocol"]["dataset"] == run.dataset.fingerprint
    assert str(tmp_path) not in (tmp_path / "one/evaluation.json").read_text()


def evaluated(tmp_path, name, run, split="test", **attributes):
    directory = tmp_path / name
    directory.mkdir(exist_ok=True)
    result = evaluate(run, split)
    result.protocol.update(attributes)
    result.write(directory)
    return directory


def test_each_split_has_an_evaluation_of_its_own(tmp_path):
    run = make_run(tmp_path)
    directory = evaluated(tmp_path, "first", run)
    test = (directory / "evaluation.json").read_bytes()
    evaluated(tmp_path, "first", run, "validation")
    assert (directory / "evaluation.json").read_bytes() == test
    assert read_evaluation(directory)["protocol"]["split"] == "test"
    assert read_evaluation(directory, "validation")["protocol"]["split"] == "validation"
    other = evaluated(tmp_path, "other", run, "validation")
    with pytest.raises(UserError, match=r"other/evaluation.json: not there; .*other --split test` first"):
        read_evaluation(other)
    (other / "evaluation_validation.json").rename(other / "evaluation.json")
    with pytest.raises(UserError, match=r"evaluation.json: is one of the validation queries"):
        read_evaluation(other)


def test_seen_items_cannot_be_filtered_where_users_repeat_them(tmp_path):
    run = make_run(tmp_path, data={"repeats": "keep", "items": 10, "min_events": 15})
    with pytest.raises(UserError, match=r"set `evaluation\.filter_seen: false`, or `data\.repeats: first`"):
        evaluate(run)
    run = make_run(tmp_path / "again", data={"repeats": "keep", "items": 10, "min_events": 15}, filter_seen=False)
    assert evaluate(run).protocol["filter_seen"] is False


def test_data_that_keeps_repeats_but_has_none_may_be_filtered(tmp_path):
    run = make_run(tmp_path, data={"repeats": "keep", "items": 40, "max_events": 8, "follow": 1.0})
    assert evaluate(run).protocol["filter_seen"] is True


def test_a_split_without_queries_is_an_error(tmp_path):
    run = make_run(tmp_path, data={"validation": False})
    with pytest.raises(UserError, match="no validation queries"):
        evaluate(run, "validation")


def loop_of_best(run, history, k, filter_seen=True):
    code_of = {item_id: code for code, item_id in enumerate(run.dataset.catalogue().item_ids)}
    items = [code_of.get(item_id, 1) for item_id in history]
    state = sum(run.model.vectors[item] for item in items[-run.model.history_length :])
    scores = run.model.vectors @ state
    left = [item for item in range(2, len(scores)) if not (filter_seen and item in items)]
    best = sorted(left, key=lambda item: (-scores[item], item))[:k]
    return [(run.dataset.catalogue().item_ids[item], scores[item]) for item in best]


def test_recommend_gives_the_best_items_that_were_not_seen(tmp_path):
    run = make_run(tmp_path)
    history = [f"item-{place:03d}" for place in (3, 4, 9, 1, 12, 30, 31, 32)]  # longer than the model's
    assert recommend(run, history, k=7) == loop_of_best(run, history, 7)
    assert recommend(run, ["item-003", "nowhere"], k=3) == loop_of_best(run, ["item-003", "nowhere"], 3)


def test_recommend_gives_seen_items_too_where_they_are_not_filtered(tmp_path):
    run = make_run(tmp_path, filter_seen=False)
    history = ["item-003", "item-004", "item-009"]
    found = recommend(run, history, k=40)
    assert found == loop_of_best(run, history, 40, filter_seen=False)
    assert {name for name, _ in found} > set(history)


def test_recommend_without_history_goes_by_popularity(tmp_path):
    run = make_run(tmp_path)
    count = run.dataset.catalogue().train_count
    item_ids = run.dataset.catalogue().item_ids  # codes go by falling count
    expected = [(item_ids[item], pytest.approx(count[item] / count.sum())) for item in (2, 3, 4)]
    assert recommend(run, [], k=3) == expected


def test_recommend_puts_events_in_the_order_of_their_times(tmp_path):
    run = make_run(tmp_path)
    run.model.history_length = 2
    history, times = ["item-001", "item-002", "item-003"], [TIME_ORIGIN + 30, TIME_ORIGIN + 10, TIME_ORIGIN + 20]
    assert [name for name, _ in recommend(run, history, times=times)] == [
        name for name, _ in recommend(run, ["item-002", "item-003", "item-001"])
    ]
    with pytest.raises(ValueError, match="`times` must be as long as `history`"):
        recommend(run, history, times=times[:2])


def test_requests_are_coded_as_the_dataset_codes_histories(tmp_path):
    """A request made of a user's raw events equals the evaluation batch of that user."""
    run = make_run(tmp_path, data={"side_features": False, "min_events": 12})
    catalogue, histories = run.dataset.catalogue(), run.dataset.histories()
    batch = next(batches(run.dataset, "test", history_length=16, batch_size=4))
    user, count = int(batch["user"][0]), int((batch["seen"][0] != 0).sum())
    events = slice(histories.offsets[user], histories.offsets[user] + count)
    captured = {}

    class Capturing(StubModel):
        history_length = 16

        def encode_users(self, batch):
            captured.update(batch)
            return super().encode_users(batch)

    run.model = Capturing(run.schema.num_items)
    recommend(
        run,
        [catalogue.item_ids[item] for item in histories.columns["item"][events]],
        times=(histories.columns["time"][events].astype(int) + TIME_ORIGIN).tolist(),
        event_types=[run.schema.event_types[code - 2] for code in histories.columns["event_type"][events]],
    )
    for name in ("item", "time", "event_type", "session"):
        assert captured[name].tolist() == batch[name][:1].tolist(), name
    assert captured["request_time"].tolist() == batch["request_time"][:1].tolist()


def test_ranks_survive_the_disk(tmp_path):
    ranks = Ranks(*(np.arange(3, dtype=np.int32) + n for n in range(5)))
    ranks.write(Path(tmp_path) / "ranks.npz")
    again = Ranks.read(tmp_path / "ranks.npz")
    assert {name: array.tolist() for name, array in vars(again).items()} == {
        name: array.tolist() for name, array in vars(ranks).items()
    }
