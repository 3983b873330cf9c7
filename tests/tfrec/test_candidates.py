"""Rows of impressions against the slow way: each impression alone."""

import importlib.util
from collections import Counter, defaultdict

import numpy as np
import pytest

from tests.datasets import make_dataset
from tfrec.candidates import CandidateBatches
from tfrec.columns import SPLITS
from tfrec.data import Dataset, write_cache

pytestmark = pytest.mark.jax
needs_tensorflow = pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="reads TFRecords")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "shop"
    options = {"users": 50, "max_events": 40, "side_features": True, "impressions": True, "split": "last_fraction"}
    return Dataset.open(make_dataset(path, **options, write_cache=True))


def batches(dataset, split="test", **options):
    settings = {"history_length": 12, "batch_size": 7, **options}
    return CandidateBatches(dataset.schema, dataset.histories(), split, **settings)


def candidates(found):
    """Every real candidate of some batches: its row's arrays and its own."""
    for batch in found:
        for row, place in zip(*np.nonzero(batch["candidate_weight"]), strict=True):
            own = {key: value[row, place] for key, value in batch.items() if key.startswith("candidate")}
            rest = {key: value[row] for key, value in batch.items() if not key.startswith("candidate")}
            yield rest, own


@needs_tensorflow
@pytest.mark.parametrize("group", ["request", "user"])
def test_cache_gives_the_same_batches_as_the_tfrecords(dataset, tmp_path, group):
    records = Dataset.open(dataset.directory, use_cache=False)
    for split in SPLITS:
        read, cached = (batches(one, split, group=group, seed=3, epoch=1) for one in (records, dataset))
        assert len(read) == len(cached) > 0
        for one, other in zip(read, cached, strict=True):
            assert one.keys() == other.keys()
            for key, value in one.items():
                np.testing.assert_array_equal(value, other[key], err_msg=key)
                assert value.dtype == other[key].dtype


@needs_tensorflow
def test_a_written_cache_has_the_impressions(tmp_path):
    path = make_dataset(tmp_path / "shop", users=20, impressions=True)
    shown = Dataset.open(path).histories().impressions
    write_cache(Dataset.open(path))
    cached = Dataset.open(path).histories().impressions
    assert cached.columns.keys() == shown.columns.keys()
    np.testing.assert_array_equal(cached.offsets, shown.offsets)
    for name, values in shown.columns.items():
        np.testing.assert_array_equal(cached.columns[name], values, err_msg=name)


@pytest.mark.parametrize("group", ["request", "user"])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_every_impression_stands_once_behind_its_latest_events(dataset, group, split):
    histories, columns = dataset.histories(), dataset.histories().impressions.columns
    asked = []
    for batch in batches(dataset, split, group=group):
        for row, place in zip(*np.nonzero(batch["candidate_weight"]), strict=True):
            number = batch["impression"][row, place]
            asked.append(number)
            assert columns["split"][number] == SPLITS[split]
            user = int(np.searchsorted(histories.impressions.offsets, number, side="right")) - 1
            assert batch["user"][row] == user
            stop = histories.offsets[user] + columns["history"][number]
            start = max(stop - 12, histories.offsets[user])
            before = batch["candidate_history"][row, place]
            for name in ("item", "time", "event_type", "event_device", "event_mood"):
                expected = histories.columns[name][start:stop]
                expected = expected[:, 0] if expected.ndim == 2 else expected
                np.testing.assert_array_equal(batch[name][row, :before], expected, err_msg=name)
            session = histories.columns["session"][start:stop]
            np.testing.assert_array_equal(batch["session"][row, :before], session - (session[:1] - 1))
            np.testing.assert_array_equal(batch["user_tags"][row], histories.user["tags"][user])
            for name, key in (("item", ""), ("time", "_time"), ("label_click", "_label_click")):
                assert batch[f"candidate{key}"][row, place] == columns[name][number]
            assert batch["candidate_weight"][row, place] == 0.5 + columns["item"][number] % 3
            assert batch["candidate_label_cart"][row, place] == columns["label_cart"][number]
            assert batch["candidate_position"][row, place] == max(columns["position"][number], 0)
    assert sorted(asked) == np.flatnonzero(columns["split"] == SPLITS[split]).tolist()


def test_a_row_is_a_request(dataset):
    columns = dataset.histories().impressions.columns
    for batch in batches(dataset, max_candidates=3):
        for number in batch["impression"]:
            number = number[number >= 0]
            assert 1 <= len(number) <= 3
            assert len(np.unique(columns["request"][number])) == 1
            assert len(np.unique(columns["time"][number])) == 1  # those without number are told apart by it


@pytest.mark.parametrize("length", [1, 6, 12])
def test_training_rows_of_users_leave_every_candidate_half_of_the_history(dataset, length):
    histories = dataset.histories()
    columns = histories.impressions.columns
    found = batches(dataset, "train", group="user", history_length=length, max_candidates=8)
    shown = Counter()
    rows = 0
    for batch in found:
        rows += len(batch["item"])
        for row in range(len(batch["item"])):
            real = batch["candidate_weight"][row] > 0
            shown.update(batch["candidate"][row, real].tolist())
            assert (batch["candidate_history"][row] <= (batch["item"][row] > 0).sum()).all()
    chosen = columns["split"] == 0
    assert shown == Counter(columns["item"][chosen].tolist())
    assert rows < chosen.sum() / 3 or length == 1
    by_time = {}
    for rest, own in candidates(found):
        before = own["candidate_history"]
        if length > 1:
            by_time[own["candidate_time"], own["candidate"]] = before
        assert (rest["time"][:before] <= own["candidate_time"]).all()
        assert (rest["time"][before:][rest["item"][before:] > 0] >= own["candidate_time"]).all()
    stored = {(columns["time"][n], columns["item"][n]): columns["history"][n] for n in np.flatnonzero(chosen)}
    for key, before in by_time.items():
        assert before >= min(stored[key], length // 2)


def test_widths_are_few_and_padding_is_empty(dataset):
    found = batches(dataset, "train", batch_size=5)
    assert {batch["item"].shape[1] for batch in found} <= {8, 12}
    assert {batch["candidate"].shape[1] for batch in found} <= {1, 2, 4, 8}
    for batch in found:
        padding = batch["candidate_weight"] == 0
        assert "impression" not in batch
        assert "label_liked" not in batch
        for key, value in batch.items():
            if key.startswith("candidate"):
                assert not value[padding].any(), key


def test_what_may_be_predicted_next_is_told_in_training_alone(tmp_path):
    options = {"users": 30, "impressions": True, "split": "last_fraction", "target_event_types": ("purchase",)}
    dataset = Dataset.open(make_dataset(tmp_path / "shop", **options, write_cache=True))
    columns = dataset.histories().columns
    purchase = 2 + dataset.schema.event_types.index("purchase")
    expected = defaultdict(set)
    for item, time, kind, split in zip(
        *(columns[name] for name in ("item", "time", "event_type", "split")), strict=True
    ):
        expected[item, time].add(kind == purchase and split == 0)
    assert sum(len(found) == 1 for found in expected.values()) > 0.9 * len(expected)  # few users share item and moment
    expected[0, 0] = {False}
    told = 0
    for batch in batches(dataset, "train", group="user"):
        for item, time, may in zip(*(batch[name].ravel() for name in ("item", "time", "target_mask")), strict=True):
            assert may in expected[item, time]
            told += may
    assert told > 0
    assert all("target_mask" not in batch for batch in batches(dataset, "test"))


def test_order_depends_on_seed_and_epoch_and_a_sample_is_fixed(dataset):
    def order(**options):
        return [batch["candidate"].tolist() for batch in batches(dataset, "train", **options)]

    assert order(seed=1) == order(seed=1)
    assert order(seed=1) != order(seed=2)
    assert order(seed=1) != order(seed=1, epoch=1)
    few, again = ([batch["impression"].tolist() for batch in batches(dataset, max_rows=9)] for _ in range(2))
    assert few == again
    assert sum(len(batch) for batch in few) == 9


def test_one_of_each_shape_is_one_of_each(dataset):
    found = batches(dataset, "train")
    shapes = {(batch["item"].shape, batch["candidate"].shape) for batch in found}
    chosen = [found[index] for index in found.one_of_each_shape()]
    assert len(chosen) == len(shapes)
    assert {(batch["item"].shape, batch["candidate"].shape) for batch in chosen} == shapes
