import importlib.util
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from tests.datasets import make_dataset
from tfrec.data import Batches, Dataset, batches, prefetch, tf_dataset, write_cache
from tfrec.errors import UserError

pytestmark = pytest.mark.jax
needs_tensorflow = pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="reads TFRecords")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "shop"
    return Dataset.open(make_dataset(path, users=80, max_events=40, side_features=True, write_cache=True))


def made(tmp_path, **options):
    return Dataset.open(make_dataset(tmp_path / "shop", write_cache=True, **options))


def events_of(dataset, user):
    """A user's events as a list of dictionaries, the slow way."""
    histories = dataset.histories()
    start, stop = histories.offsets[user], histories.offsets[user + 1]
    return [{name: column[event] for name, column in histories.columns.items()} for event in range(start, stop)]


def all_rows(found):
    """Every row of some batches, without padding: (batch, row) -> its arrays."""
    for batch in found:
        for row in range(len(batch["item"])):
            valid = batch["item"][row] != 0
            yield batch, row, valid


# Reading.


@needs_tensorflow
def test_tfrecords_read_as_parsing_each_example_alone_does(tmp_path):
    import tensorflow as tf

    path = make_dataset(tmp_path / "shop", users=30, side_features=True, files=3)
    dataset = Dataset.open(path)
    histories = dataset.histories()
    assert not dataset.from_cache
    user = 0
    for name in sorted(path.glob("histories/*")):
        for record in tf.data.TFRecordDataset(str(name)):
            example = tf.train.Example.FromString(record.numpy()).features.feature
            assert histories.user_ids[user] == example["user_id"].bytes_list.value[0].decode()
            events = events_of(dataset, user)
            for key in ("item", "time", "event_type", "session", "split", "label_liked"):
                assert [event[key] for event in events] == list(example[key].int64_list.value)
            assert [event["event_device"][0] for event in events] == list(example["event_device"].int64_list.value)
            assert list(histories.user["tags"][user]) == list(example["user_tags"].int64_list.value)
            user += 1
    assert user == histories.num_users == 30


@needs_tensorflow
def test_catalogue_reads_as_parsing_each_example_alone_does(tmp_path):
    import tensorflow as tf

    path = make_dataset(tmp_path / "shop", items=25)
    catalogue = Dataset.open(path).catalogue()
    columns = Dataset.open(path).schema.item_columns()
    (name,) = path.glob("items/*")
    for item, record in enumerate(tf.data.TFRecordDataset(str(name)), start=2):
        example = tf.train.Example.FromString(record.numpy()).features.feature
        assert catalogue.item_ids[item] == example["item_id"].bytes_list.value[0].decode()
        assert catalogue.display["title"][item] == example["display_title"].bytes_list.value[0].decode()
        assert catalogue.train_count[item] == example["train_count"].int64_list.value[0]
        assert catalogue.codes[item, 0] == item
        for feature in ("brand", "categories", "price", "image"):
            assert list(catalogue.codes[item, columns[feature]]) == list(example[f"item_{feature}"].int64_list.value)
        np.testing.assert_allclose(
            catalogue.vectors["image"][item], example["vector_image"].float_list.value, atol=2e-3
        )
    assert item == 26
    assert catalogue.codes[0].tolist() == [0] * catalogue.codes.shape[1]
    assert catalogue.codes[1].tolist() == [1, 1, 1, 0, 0, 1, 1, 1]


@needs_tensorflow
@pytest.mark.parametrize("windows", ["last", "chunks", "random"])
def test_cache_gives_the_same_batches_as_the_tfrecords(dataset, windows):
    from_records = Dataset.open(dataset.directory, use_cache=False)
    assert dataset.from_cache
    assert not from_records.from_cache
    for split in ("train", "validation", "test"):
        options = {"history_length": 12, "batch_size": 8, "windows": windows, "seed": 3, "epoch": 2}
        for cached, read in zip(
            batches(dataset, split, **options), batches(from_records, split, **options), strict=True
        ):
            assert cached.keys() == read.keys()
            for key in cached:
                assert cached[key].dtype == read[key].dtype
                np.testing.assert_array_equal(cached[key], read[key], err_msg=key)


@needs_tensorflow
def test_written_cache_equals_the_tfrecords_and_leaves_the_manifest_valid(tmp_path):
    path = make_dataset(tmp_path / "shop", side_features=True)
    read = Dataset.open(path)
    write_cache(read)
    cached = Dataset.open(path, whole=True)
    assert cached.from_cache
    assert cached.fingerprint == read.fingerprint
    assert cached.catalogue().item_ids == read.catalogue().item_ids
    assert cached.catalogue().display == read.catalogue().display
    assert cached.histories().user_ids == read.histories().user_ids
    np.testing.assert_array_equal(cached.catalogue().codes, read.catalogue().codes)
    np.testing.assert_array_equal(cached.catalogue().train_count, read.catalogue().train_count)
    np.testing.assert_array_equal(cached.catalogue().vectors["image"], read.catalogue().vectors["image"])


@needs_tensorflow
def test_cache_of_another_dataset_is_not_used(tmp_path):
    old = make_dataset(tmp_path / "old", seed=1, write_cache=True)
    new = make_dataset(tmp_path / "new", seed=2)
    shutil.copytree(old / "cache", new / "cache")
    assert not Dataset.open(new).from_cache


# Damage.


@needs_tensorflow
def test_flipped_byte_is_one_line_that_names_the_file(tmp_path):
    path = make_dataset(tmp_path / "shop")
    name = next(iter(sorted(path.glob("histories/*"))))
    content = bytearray(name.read_bytes())
    content[len(content) // 2] ^= 1
    name.write_bytes(content)
    message = r"histories-00000-of-00002\.tfrecord: corrupt TFRecord \([\w ]+\); run `tfrec preprocess"
    with pytest.raises(UserError, match=message):
        Dataset.open(path).histories()
    with pytest.raises(UserError, match=r"histories-00000-of-00002\.tfrecord.*SHA-256.*tfrec preprocess"):
        Dataset.open(path, whole=True)


@needs_tensorflow
def test_file_cut_between_records_is_found_by_size_and_by_count(tmp_path):
    import tensorflow as tf

    path = make_dataset(tmp_path / "shop")
    name = sorted(path.glob("histories/*"))[1]
    records = [record.numpy() for record in tf.data.TFRecordDataset(str(name))]
    opened = Dataset.open(path)
    with tf.io.TFRecordWriter(str(name)) as writer:
        for record in records[:-1]:
            writer.write(record)
    with pytest.raises(UserError, match=r"00001-of-00002\.tfrecord: 29 records, manifest\.json says 30.*preprocess"):
        opened.histories()
    with pytest.raises(UserError, match=r"00001-of-00002\.tfrecord: \d+ bytes.*tfrec preprocess"):
        Dataset.open(path)


def test_no_dataset_says_how_to_make_one(tmp_path):
    with pytest.raises(UserError, match="tfrec preprocess"):
        Dataset.open(tmp_path)


def test_damaged_cache_is_refused(tmp_path):
    dataset = made(tmp_path)
    Path(dataset.directory / "cache/column_item.npy").write_bytes(b"short")
    with pytest.raises(UserError, match=r"column_item\.npy"):
        Dataset.open(dataset.directory)


# Training windows.


def expected_windows(dataset, history_length, windows):
    """The (user, items) of every window, by a loop over users; for `random` the whole training history."""
    found = []
    for user in range(dataset.histories().num_users):
        events = []
        for event in events_of(dataset, user):
            if event["split"] != 0:
                break
            events.append(int(event["item"]))
        if len(events) < 2:
            continue
        if windows == "chunks":
            while len(events) >= 2:
                found.append(events[-(history_length + 1) :])
                events = events[:-history_length]
        else:
            found.append(events[-(history_length + 1) :] if windows == "last" else events)
    return found


@pytest.mark.parametrize("windows", ["last", "chunks"])
def test_training_windows_are_those_of_a_loop(dataset, windows):
    found = batches(dataset, "train", history_length=7, batch_size=8, windows=windows)
    items = [tuple(batch["item"][row][valid]) for batch, row, valid in all_rows(found)]
    assert sorted(items) == sorted(map(tuple, expected_windows(dataset, 7, windows)))


def test_chunks_make_every_event_but_the_first_a_target_once(dataset):
    targets = 0
    for batch in batches(dataset, "train", history_length=7, batch_size=8, windows="chunks"):
        targets += int(batch["target_mask"][:, 1:].sum())
    assert targets == sum(len(events) - 1 for events in expected_windows(dataset, 10_000, "last"))


def test_random_windows_are_consecutive_and_move_with_the_epoch(dataset):
    histories = ["," + ",".join(map(str, events)) + "," for events in expected_windows(dataset, 5, "random")]
    seen = set()
    for epoch in range(3):
        found = batches(dataset, "train", history_length=5, batch_size=8, windows="random", epoch=epoch)
        windows = ["," + ",".join(map(str, batch["item"][row][valid])) + "," for batch, row, valid in all_rows(found)]
        assert len(windows) == len(histories)
        assert all(any(window in history for history in histories) for window in windows)
        seen.add(tuple(sorted(windows)))
    assert len(seen) == 3


def test_training_never_holds_an_event_of_another_split(tmp_path):
    dataset = made(tmp_path, target_event_types=("purchase",), repeats="keep", users=100)
    held_out = {
        (user, int(event["time"])) for user in range(100) for event in events_of(dataset, user) if event["split"] != 0
    }
    by_time = {
        tuple(event["time"] for event in events_of(dataset, user) if event["split"] == 0): user for user in range(100)
    }
    rows = 0
    for batch, row, valid in all_rows(batches(dataset, "train", history_length=50, batch_size=16)):
        times = tuple(batch["time"][row][valid])
        user = by_time[times]
        assert not held_out & {(user, int(time)) for time in times}
        rows += 1
    assert rows > 20


def test_target_mask_is_false_for_other_event_types_and_padding(tmp_path):
    dataset = made(tmp_path, target_event_types=("purchase",))
    for batch in batches(dataset, "train", history_length=20, batch_size=16):
        np.testing.assert_array_equal(batch["target_mask"], batch["event_type"] == 3)
        assert batch["target_mask"][:, 1:].any(axis=1).all()


def test_sessions_are_renumbered_from_one_in_the_window(dataset):
    for batch, row, valid in all_rows(batches(dataset, "train", history_length=6, batch_size=8)):
        session = batch["session"][row]
        assert session[0] == 1
        assert (session[~valid] == 0).all()
        gaps = np.diff(batch["time"][row][valid]) > 1800
        np.testing.assert_array_equal(np.diff(session[valid]), gaps)


def test_rows_come_in_buckets_of_as_many_positions(tmp_path):
    dataset = made(tmp_path, users=300, items=90, max_events=80)
    found = list(batches(dataset, "train", history_length=50, batch_size=16))
    rows_at = {batch["item"].shape[1] - 1: [] for batch in found}
    for batch in found:
        rows_at[batch["item"].shape[1] - 1].append(len(batch["item"]))
        assert (batch["item"] != 0).any(axis=1).all()
    assert {16, 32, 50} <= set(rows_at) <= {8, 16, 32, 50}
    usual = {width: max(set(rows), key=rows.count) for width, rows in rows_at.items()}
    assert sum(rows != usual[width] for width, each in rows_at.items() for rows in each) <= 1, rows_at
    positions = [width * rows for width, rows in usual.items()]
    assert max(positions) <= 1.2 * min(positions)
    total = sum(sum(each) for each in rows_at.values())
    assert 14 <= total / len(found) <= 18


def test_without_buckets_any_rows_make_a_batch_of_the_full_width(tmp_path):
    dataset = made(tmp_path, users=150, items=90, max_events=80)
    found = list(batches(dataset, "train", history_length=50, batch_size=16, length_buckets=False))
    assert {batch["item"].shape[1] for batch in found} == {51}
    assert sorted(len(batch["item"]) for batch in found)[1:] == [16] * (len(found) - 1)
    lengths = [(batch["item"] > 0).sum(axis=1) for batch in found]
    assert np.mean([each.max() - each.min() for each in lengths]) > 30

    def rows(batches):
        return sorted(tuple(row[row > 0]) for batch in batches for row in batch["item"])

    assert rows(found) == rows(batches(dataset, "train", history_length=50, batch_size=16))
    narrow = batches(dataset, "test", history_length=50, batch_size=16, length_buckets=False)
    assert min(batch["item"].shape[1] for batch in narrow) < 50  # queries are always bucketed


def test_queries_come_in_batches_of_the_size_asked_for(tmp_path):
    dataset = made(tmp_path, users=150, items=90, max_events=80)
    found = list(batches(dataset, "test", history_length=50, batch_size=8))
    assert sum(len(batch["item"]) != 8 for batch in found) <= 1


def test_shuffle_depends_on_seed_and_epoch_alone(dataset):
    def order(**options):
        found = batches(dataset, "train", history_length=10, batch_size=8, **options)
        return [tuple(row[row != 0]) for batch in found for row in batch["item"]]

    assert order(seed=1, epoch=2) == order(seed=1, epoch=2)
    assert order(seed=1, epoch=2) != order(seed=1, epoch=3)
    assert order(seed=1, epoch=2) != order(seed=2, epoch=2)
    assert sorted(order(seed=1)) == sorted(order(seed=2))


def test_side_features_have_their_shapes(dataset):
    batch = next(batches(dataset, "train", history_length=10, batch_size=8))
    assert batch["event_device"].shape == batch["label_liked"].shape == batch["item"].shape
    assert batch["user_segment"].shape == (8,)
    assert batch["user_tags"].shape == (8, 3)
    assert batch["event_topics"].shape == batch["event_topics_weights"].shape == (*batch["item"].shape, 2)
    floats = {"event_topics_weights": np.float32, "user_tags_weights": np.float32, "target_mask": np.bool_}
    assert {name: array.dtype for name, array in batch.items()} == dict.fromkeys(batch, np.int32) | floats
    assert ((batch["event_topics_weights"] > 0).all(axis=2) == (batch["item"] != 0)).all()


def test_batches_by_index_are_those_in_order(dataset):
    options = {"history_length": 10, "batch_size": 8, "epoch": 1}
    by_index = Batches(dataset.schema, dataset.histories(), "train", **options)
    in_order = list(batches(dataset, "train", **options))
    assert len(by_index) == len(in_order)
    np.testing.assert_array_equal(by_index[3]["item"], in_order[3]["item"])


# Queries.


def expected_queries(dataset, split):
    found = {}
    for user in range(dataset.histories().num_users):
        events = events_of(dataset, user)
        for place, event in enumerate(events):
            if event["split"] == {"validation": 1, "test": 2}[split]:
                found[user, int(event["time"]), int(event["item"])] = [int(e["item"]) for e in events[:place]]
    return found


@pytest.mark.parametrize("kind", ["leave_one_out", "temporal", "last_fraction"])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_queries_hold_every_earlier_event_and_no_later_one(tmp_path, kind, split):
    dataset = made(tmp_path, split=kind, repeats="keep")
    expected = expected_queries(dataset, split)
    queries = 0
    for batch, row, valid in all_rows(batches(dataset, split, history_length=10, batch_size=8)):
        history = expected[batch["user"][row], batch["target_time"][row], batch["target"][row]]
        assert list(batch["item"][row][valid]) == history[-10:]
        assert list(batch["seen"][row][batch["seen"][row] != 0]) == history
        assert (batch["time"][row][valid] <= batch["target_time"][row]).all()
        last = batch["time"][row][valid][-1] if history else 0
        assert batch["request_time"][row] == last
        queries += 1
    assert queries == len(expected) > 20


def test_request_time_is_the_time_of_the_target_where_asked(dataset):
    for batch in batches(dataset, "test", history_length=10, batch_size=8, request_time=True):
        np.testing.assert_array_equal(batch["request_time"], batch["target_time"])


def test_without_a_validation_event_it_belongs_to_training(tmp_path):
    dataset = made(tmp_path, validation=False, min_events=3)
    assert not list(batches(dataset, "validation", history_length=10, batch_size=8))
    rows = {
        tuple(batch["item"][row][valid])
        for batch, row, valid in all_rows(batches(dataset, "train", history_length=100, batch_size=8))
    }
    for user in range(dataset.histories().num_users):
        items = tuple(int(event["item"]) for event in events_of(dataset, user))
        assert items[:-1] in rows


def test_keys_that_the_schema_lacks_are_absent(tmp_path):
    dataset = made(tmp_path, has_time=False, has_sessions=False, has_event_types=False)
    training = next(batches(dataset, "train", history_length=10, batch_size=8))
    assert set(training) == {"item", "target_mask"}
    query = next(batches(dataset, "test", history_length=10, batch_size=8))
    assert set(query) == {"item", "user", "target", "seen"}


def test_sample_of_queries_is_fixed(dataset):
    def users(epoch):
        found = batches(dataset, "validation", history_length=5, batch_size=8, max_queries=11, epoch=epoch)
        return np.concatenate([batch["user"] for batch in found]).tolist()

    assert len(users(0)) == 11
    assert users(0) == users(5)


def test_wrong_arguments_are_named(dataset):
    with pytest.raises(ValueError, match=r"`split` must be one of .* Received: split='dev'"):
        batches(dataset, "dev", history_length=5, batch_size=8)
    with pytest.raises(ValueError, match=r"`windows` must be one of .* Received: windows='all'"):
        batches(dataset, "train", history_length=5, batch_size=8, windows="all")
    with pytest.raises(ValueError, match="must be positive"):
        batches(dataset, "train", history_length=0, batch_size=8)


@needs_tensorflow
def test_tf_dataset_has_one_signature_for_all_shapes(tmp_path):
    dataset = made(tmp_path, users=150, items=90, max_events=80)
    found = Batches(dataset.schema, dataset.histories(), "train", history_length=50, batch_size=8)
    examples = [found[index] for index in found.one_of_each_shape()]
    assert {example["item"].shape for example in examples} == {batch["item"].shape for batch in found}
    data = tf_dataset(lambda: iter(found), examples, len(found))
    assert {name: tuple(spec.shape) for name, spec in data.element_spec.items()}["item"] == (None, None)
    assert int(data.cardinality()) == len(found)
    for given, made_here in zip(data.as_numpy_iterator(), found, strict=True):
        for name in made_here:
            np.testing.assert_array_equal(given[name], made_here[name])


def test_prefetched_batches_keep_their_order_and_their_errors():
    def make(index):
        if index == 30:
            raise OSError("disk gone")
        time.sleep(0.002 * (index % 3))
        return {"item": np.array([index])}

    assert [int(batch["item"][0]) for batch in prefetch(make, range(5, 30))] == list(range(5, 30))
    found = prefetch(make, range(29, 31))
    assert int(next(found)["item"][0]) == 29
    with pytest.raises(OSError, match="disk gone"):
        next(found)
