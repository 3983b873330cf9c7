import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.datasets import TIME_ORIGIN, make_dataset
from tfrec.graph import FeatureCoder, HistoryEncoder, VocabularyCoder, coder
from tfrec.schema import Feature, Schema
from tfrec.transforms import Bins, GroupQuantiles, Vocabulary, write_arrays, write_values

NASTY = [
    "",
    "a",
    "A",
    "a ",
    "\\",
    "\\n",
    "\n",
    "\t",
    "\r",
    "\r\n",
    "a\tb\\",
    "\\\\t",
    "\0",
    "\u2028",
    "\x85",
    "é",
    "日本",
    "🎈",
    "x" * 5000,
]
TEXT = st.one_of(st.sampled_from(NASTY), st.text(st.characters(exclude_categories=["Cs"]), max_size=6))
SETTINGS = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def vocabulary(directory, values):
    write_values(directory / "vocabularies/v.txt", values)
    return Vocabulary(file="vocabularies/v.txt", size=len(values) + 2)


@SETTINGS
@given(values=st.lists(TEXT.filter(bool), unique=True, max_size=8), asked=st.lists(TEXT, max_size=12))
def test_vocabulary_coder_equals_a_dictionary(tmp_path_factory, values, asked):
    directory = tmp_path_factory.mktemp("vocabulary")
    look_up = VocabularyCoder(vocabulary(directory, values), directory)
    expected = [values.index(one) + 2 if one in values else 1 for one in asked + values]
    assert look_up(tf.constant(asked + values, tf.string, [len(expected)])).numpy().tolist() == expected


def test_vocabulary_coder_matches_the_transform_on_all_nasty_values(tmp_path):
    transform = vocabulary(tmp_path, [value for value in NASTY[::2] if value])
    got = VocabularyCoder(transform, tmp_path)(tf.constant(NASTY)).numpy()
    np.testing.assert_array_equal(got, transform.encode(NASTY, tmp_path))
    assert (got > 1).sum() == len([value for value in NASTY[::2] if value])


@pytest.mark.parametrize("values", [["a", "at", "tb", "n"], ["a", "a\tb"]])
def test_values_are_escaped_where_the_vocabulary_has_escapes(tmp_path, values):
    look_up = VocabularyCoder(vocabulary(tmp_path, values), tmp_path)
    asked = [*values, "a\tb", "a\\tb", "a\n", "\n", "a\r", "a\\"]
    expected = [values.index(one) + 2 if one in values else 1 for one in asked]
    assert look_up(tf.constant(asked)).numpy().tolist() == expected
    graph = tf.function(look_up).get_concrete_function(tf.TensorSpec([None], tf.string)).graph
    rewrites = sum("Regex" in operation.type for operation in graph.get_operations())
    assert rewrites == (4 if any("\t" in one for one in values) else 0)


# TensorFlow takes subnormal numbers (below 1e-307) for zero.
FLOATS = st.floats(allow_subnormal=False)


@SETTINGS
@given(
    boundaries=st.lists(FLOATS.filter(np.isfinite), unique=True, max_size=6),
    asked=st.lists(FLOATS),
)
def test_bins_coder_equals_counting_the_boundaries_below(boundaries, asked):
    boundaries = sorted({*boundaries, 0.0, 9.99})
    nasty = [-0.0, np.nan, np.inf, -np.inf, 1e308, np.nextafter(9.99, 0), np.nextafter(9.99, 99)]
    values = [*asked, *boundaries, *nasty]
    got = coder(_feature(Bins(boundaries=tuple(boundaries))), None)(tf.constant(values, tf.float64)).numpy()
    expected = [1 if np.isnan(value) else 2 + sum(value >= boundary for boundary in boundaries) for value in values]
    assert got.tolist() == expected
    np.testing.assert_array_equal(got, Bins(boundaries=tuple(boundaries)).encode(values))


def _feature(transform, **more):
    return Feature(name="f", side="item", kind="categorical", column="f", transform=transform, **more)


@SETTINGS
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([1e-30, 1.0, 1e30]))
def test_group_quantiles_coder_equals_the_transform(tmp_path_factory, seed, scale):
    directory = tmp_path_factory.mktemp("quantiser")
    rng = np.random.default_rng(seed)
    transform = GroupQuantiles(file="q.npz", groups=3, dims_per_group=2, quantiles=4, input_dim=9)
    arrays = {
        "mean": rng.normal(size=9),
        "rotation": rng.normal(size=(9, 6)),
        "edges": np.sort(rng.normal(size=(6, 3)), axis=1),
    }
    write_arrays(directory / "q.npz", {name: array.astype(np.float32) for name, array in arrays.items()})
    vectors = (rng.normal(size=(40, 9)) * scale).astype(np.float32)
    vectors[3, 4], vectors[5], vectors[6, 0], vectors[7] = np.nan, 0.0, np.inf, 3e38
    with np.errstate(invalid="ignore"):
        expected = transform.encode(vectors, directory)
    got = coder(_feature(transform, num_codes=3), directory)(tf.constant(vectors)).numpy()
    np.testing.assert_array_equal(got, expected)
    assert got[3].tolist() == [1, 1, 1]


def test_group_quantiles_coder_on_figures_by_hand(tmp_path):
    transform = GroupQuantiles(file="q.npz", groups=1, dims_per_group=2, quantiles=3, input_dim=2)
    edges = np.array([[-1, 1], [0, 2]], np.float32)
    write_arrays(
        tmp_path / "q.npz", {"mean": np.ones(2, np.float32), "rotation": np.eye(2, dtype=np.float32), "edges": edges}
    )
    vectors = tf.constant([[0.0, 0.0], [1.0, 1.0], [2.0, 3.0], [9.0, 9.0]])
    # centred: (-1, -1), (0, 0), (1, 2), (8, 8); bins (an edge belongs to the bin above): (1, 0), (1, 1), (2, 2), (2, 2)
    assert coder(_feature(transform), tmp_path)(vectors).numpy().ravel().tolist() == [3, 6, 10, 10]


def test_multivalued_coder_skips_blanks_and_pads(tmp_path):
    feature = _feature(vocabulary(tmp_path, ["a", "b", "c"]), multivalued=True, num_codes=3)
    encode = FeatureCoder(feature, tmp_path)
    rows = tf.constant([["", "b", "a"], ["zz", "a", ""], [""] * 3, ["c", "b", "a"], ["", "", "c"]])
    assert encode(rows).numpy().tolist() == [[3, 2, 0], [1, 2, 0], [1, 0, 0], [4, 3, 2], [4, 0, 0]]
    assert encode(tf.zeros([0, 3], tf.string)).numpy().tolist() == []
    assert encode(tf.constant([[["b", "", ""], [""] * 3]])).numpy().tolist() == [[[3, 0, 0], [1, 0, 0]]]


@pytest.mark.parametrize("width", [0, 2, 4])
def test_multivalued_input_has_a_fixed_width(tmp_path, width):
    feature = _feature(vocabulary(tmp_path, ["a", "b", "c"]), multivalued=True, num_codes=3)
    encode = FeatureCoder(feature, tmp_path)
    assert encode.signature("f").shape.as_list() == [None, 3]
    assert encode.signature("f", events=True).shape.as_list() == [None, None, 3]
    with pytest.raises(tf.errors.InvalidArgumentError, match="f: give 3 values, padded with empty strings"):
        encode(tf.fill([2, width], "a"))


def encoder(directory, *, length=4, request_time=True):
    schema = Schema.read(directory)
    items = VocabularyCoder(schema.item_vocabulary, directory)
    return HistoryEncoder(schema, directory, items, length=length, request_time=request_time), schema


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
    names = {"event_device", "user_segment", "user_tags"}
    assert names <= set(encode.signature())
    ids = schema.item_vocabulary.read(tmp_path / "d")
    inputs = raw(schema, [[ids[1], ids[0]]], [2], [[20 + TIME_ORIGIN, 10 + TIME_ORIGIN]]) | {
        "event_device": tf.constant([["desktop", "fax"]]),
        "user_segment": tf.constant(["lapsed"]),
        "user_tags": tf.constant([["d", "a", ""]]),
    }
    batch, _ = encode(inputs)
    assert batch["event_device"].numpy().tolist() == [[1, 3, 0]]
    assert batch["user_segment"].numpy().tolist() == [4]
    assert batch["user_tags"].numpy().tolist() == [[5, 2, 0]]


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
