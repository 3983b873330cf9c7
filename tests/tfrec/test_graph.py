import numpy as np
import pytest
import tensorflow as tf

from tests.datasets import TIME_ORIGIN, make_dataset
from tfrec.coders import VocabularyCoder
from tfrec.graph import HistoryEncoder
from tfrec.hashing import siphash
from tfrec.schema import Schema


def encoder(directory, *, length=4, request_time=True):
    schema = Schema.read(directory)
    items = VocabularyCoder(schema.item_vocabulary, directory)
    codes = np.zeros((schema.num_items, 1 + max(part.stop for part in schema.item_columns().values())), np.int32)
    codes[1:, 1] = np.arange(1, schema.num_items) // 2 + 1  # brands: unknown, of items 2 and 3 two, of 4 and 5 three
    made = HistoryEncoder(schema, directory, items, length=length, request_time=request_time, item_codes=codes)
    return made, schema


def raw(schema, ids, length, times):
    count = np.shape(ids)[1]
    return {
        "history_item_ids": tf.constant(ids),
        "history_length": tf.constant(length, tf.int32),
        "history_times": tf.constant(times, tf.int64),
        "request_time": tf.constant([TIME_ORIGIN + 99] * len(ids), tf.int64),
        "history_event_types": tf.constant([["purchase", "view", "odd", ""][:count]] * len(ids)),
    }


def test_history_is_cut_sorted_and_the_latest_kept(tmp_path):
    encode, schema = encoder(make_dataset(tmp_path / "d", users=4, items=9), length=2)
    ids = schema.item_vocabulary.read(tmp_path / "d")
    first = [ids[5], "nothing-known", ids[0], ids[1]]
    times = [TIME_ORIGIN + 5000, TIME_ORIGIN - 5, TIME_ORIGIN + 30, TIME_ORIGIN + 10]
    batch, seen = encode(raw(schema, [first, first, ["", "", "", ""]], [4, 2, 4], [times] * 3))
    # Row 0 by time: unknown (before the origin: cut to it), ids[1], ids[0], ids[5]; row 1: unknown, ids[5].
    assert batch["item"].numpy().tolist() == [[2, 7], [1, 7], [0, 0]]
    assert batch["time"].numpy().tolist() == [[30, 5000], [0, 5000], [0, 0]]
    assert batch["event_type"].numpy().tolist() == [[1, 3], [2, 3], [0, 0]]
    assert batch["session"].numpy().tolist() == [[1, 2], [1, 2], [0, 0]]
    assert batch["request_time"].numpy().tolist() == [99, 99, 99]
    assert seen.numpy().tolist() == [[7, 1, 2, 3, 0], [7, 1, 0, 0, 0], [0] * 5]


def test_equal_times_keep_their_order_and_extreme_times_stay_in_range(tmp_path):
    encode, schema = encoder(make_dataset(tmp_path / "d", users=4, items=9))
    ids = schema.item_vocabulary.read(tmp_path / "d")
    low, high = np.iinfo(np.int64).min, np.iinfo(np.int64).max
    batch, _ = encode(raw(schema, [[ids[3], ids[1], ids[2], ids[0]]], [4], [[high, 7, 7, low]]))
    assert batch["item"].numpy().tolist() == [[2, 3, 4, 5]]
    assert batch["time"].numpy().tolist() == [[0, 0, 0, 2**31 - 1]]


@pytest.mark.parametrize("width", [0, 1, 3])
def test_short_and_empty_histories_are_padded_on_the_right(tmp_path, width):
    encode, schema = encoder(make_dataset(tmp_path / "d", users=4, items=9, has_time=False), request_time=False)
    assert set(encode.signature()) == {"history_item_ids", "history_length", "history_event_types", "history_sessions"}
    ids = schema.item_vocabulary.read(tmp_path / "d")[:width]
    inputs = {
        "history_item_ids": tf.constant([ids], tf.string, [1, width]),
        "history_length": tf.constant([width], tf.int32),
        "history_event_types": tf.constant([["view"] * width], tf.string, [1, width]),
        "history_sessions": tf.constant([["s1", "s2", "s2"][:width]], tf.string, [1, width]),
    }
    batch, seen = encode(inputs)
    assert batch["item"].numpy().tolist() == [[2, 3, 4][:width] + [0] * (4 - width)]
    assert batch["session"].numpy().tolist() == [[1, 2, 2][:width] + [0] * (4 - width)]
    assert seen.shape == (1, width + 1)
    assert "time" not in batch


def test_event_and_user_features_are_coded(tmp_path):
    encode, schema = encoder(make_dataset(tmp_path / "d", users=4, items=9, side_features=True), length=3)
    names = {"event_device", "event_network", "user_segment", "user_tags"}
    assert names <= set(encode.signature())
    ids = schema.item_vocabulary.read(tmp_path / "d")
    inputs = raw(schema, [[ids[1], ids[0]]], [2], [[20 + TIME_ORIGIN, 10 + TIME_ORIGIN]]) | {
        "event_device": tf.constant([["desktop", "fax"]]),
        "event_network": tf.constant([["wifi", "wifi"]]),
        "user_segment": tf.constant(["lapsed"]),
        "user_tags": tf.constant([["d", "a", ""]]),
        "user_tags_weights": tf.constant([[0.5, 3.0, 9.0]]),
        "event_topics": tf.constant([[["y", "x"], ["", "y"]]]),
        "event_topics_weights": tf.constant([[[1.0, 0.5], [7.0, 3.0]]]),
    }
    batch, _ = encode(inputs)
    assert batch["event_device"].numpy().tolist() == [[1, 3, 0]]
    network = 2 + int(siphash([b"wifi"])[0]) % 4
    mood = 2 + int(siphash([b"3,%d" % network])[0]) % 30
    assert batch["event_network"].numpy().tolist() == [[network, network, 0]]
    assert batch["event_mood"].numpy().tolist() == [[1, mood, 0]]
    assert batch["user_segment"].numpy().tolist() == [4]
    assert batch["user_tags"].numpy().tolist() == [[5, 2, 0]]
    assert batch["user_tags_weights"].numpy().tolist() == [[0.125, 0.75, 0]]  # those of values, over 4
    assert batch["event_topics"].numpy().tolist() == [[[3, 0], [3, 2], [0, 0]]]
    assert batch["event_topics_weights"].numpy().tolist() == [[[0.75, 0], [0.5, 0.25], [0, 0]]]


def test_counters_see_the_whole_history_and_nothing_behind_the_event(tmp_path):
    encode, schema = encoder(make_dataset(tmp_path / "d", users=4, items=9, side_features=True), length=3)
    ids = schema.item_vocabulary.read(tmp_path / "d")
    # By time: item 2, item 4, item 3 (all bought), then item 2 (viewed), item 3 (viewed), item 3 long after.
    story = [(0, 0, "purchase"), (2, 0, "purchase"), (1, 50, "purchase"), (0, 60, "view"), (1, 70, "view")]
    story.append((1, 100_051, "view"))
    shuffled = [story[place] for place in (5, 4, 0, 1, 3, 2)]
    width = len(story)
    inputs = {
        "history_item_ids": tf.constant([[ids[item] for item, _, _ in shuffled]]),
        "history_length": tf.constant([width], tf.int32),
        "history_times": tf.constant([[TIME_ORIGIN + time for _, time, _ in shuffled]], tf.int64),
        "history_event_types": tf.constant([[kind for _, _, kind in shuffled]]),
        "request_time": tf.constant([TIME_ORIGIN + 100_099], tf.int64),
        "event_device": tf.constant([[""] * width]),
        "event_network": tf.constant([[""] * width]),
        "user_segment": tf.constant([""]),
        "user_tags": tf.constant([[""] * 3]),
        "user_tags_weights": tf.constant([[0.0] * 3]),
        "event_topics": tf.constant([[["", ""]] * width]),
        "event_topics_weights": tf.constant([[[0.0, 0.0]] * width]),
    }
    batch, _ = encode(inputs)
    # Two earlier purchases of items 2 and 3's brand, two, and none within 100,000 seconds of the last event.
    assert batch["item"].numpy().tolist() == [[2, 3, 3]]
    assert batch["event_again"].numpy().tolist() == [[4, 4, 2]]


@pytest.mark.conformance("L5")
def test_tables_travel_with_a_moved_saved_model(tmp_path):
    directory = make_dataset(tmp_path / "d", users=4, items=9)
    module = tf.Module()
    module.encode, schema = encoder(directory, length=2)
    answer = tf.function(lambda **inputs: {"item": module.encode(inputs)[0]["item"]})
    signature = answer.get_concrete_function(**module.encode.signature())
    tf.saved_model.save(module, str(tmp_path / "m"), signatures=signature)
    ids = schema.item_vocabulary.read(directory)
    (directory / "vocabularies/item_id.txt").unlink()
    (tmp_path / "m").rename(tmp_path / "moved")
    loaded = tf.saved_model.load(str(tmp_path / "moved"))
    got = loaded.signatures["serving_default"](**raw(schema, [[ids[2], ids[3]]], [2], [[5, 6]]))
    assert got["item"].numpy().tolist() == [[4, 5]]


@pytest.mark.parametrize("name", ["history_times", "history_event_types", "history_length", "request_time"])
def test_inputs_of_other_shapes_than_the_items_are_named(tmp_path, name):
    encode, schema = encoder(make_dataset(tmp_path / "d", users=4, items=9))
    inputs = raw(schema, [["a", "b", "c"]], [3], [[TIME_ORIGIN] * 3])
    inputs[name] = inputs[name][:, :2] if inputs[name].shape.rank == 2 else tf.repeat(inputs[name], 2)
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"{name}: must have as many rows"):
        encode(inputs)
