import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tfrec.coders import FeatureCoder, SideCoder, StandardCoder, VocabularyCoder, coder
from tfrec.schema import Feature
from tfrec.transforms import (
    Bins,
    Cross,
    GroupQuantiles,
    Hashed,
    ProductCodes,
    ResidualCodes,
    Standard,
    Vocabulary,
    write_arrays,
    write_values,
)

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


def test_codes_without_a_value_are_found_by_nothing(tmp_path):
    look_up = VocabularyCoder(vocabulary(tmp_path, ["", "b", "", "\\-2", "-2"]), tmp_path)
    asked = ["", "b", "\\-0", "\\-2", "-2", "\\\\-2"]
    assert look_up(tf.constant(asked)).numpy().tolist() == [1, 3, 1, 5, 6, 1]


@pytest.mark.parametrize("values", [["a", "at", "tb", "n"], ["a", "a\tb"]])
def test_values_are_escaped_where_the_vocabulary_has_escapes(tmp_path, values):
    look_up = VocabularyCoder(vocabulary(tmp_path, values), tmp_path)
    asked = [*values, "a\tb", "a\\tb", "a\n", "\n", "a\r", "a\\"]
    expected = [values.index(one) + 2 if one in values else 1 for one in asked]
    assert look_up(tf.constant(asked)).numpy().tolist() == expected
    graph = tf.function(look_up).get_concrete_function(tf.TensorSpec([None], tf.string)).graph
    rewrites = sum("Regex" in operation.type for operation in graph.get_operations())
    assert rewrites == (4 if any("\t" in one for one in values) else 0)


@SETTINGS
@given(asked=st.lists(TEXT, max_size=12), buckets=st.sampled_from([2, 7, 10_000_000]))
def test_hash_coder_equals_the_transform(asked, buckets):
    transform = Hashed(hash_buckets=buckets)
    values = asked + NASTY
    got = coder(_feature(transform), None)(tf.constant(values)).numpy()
    np.testing.assert_array_equal(got, transform.encode(values))
    assert [code == 1 for code in got] == [value == "" for value in values]
    assert got.max() < 2 + buckets


def test_multivalued_values_are_hashed_one_by_one():
    encode = FeatureCoder(_feature(Hashed(hash_buckets=50), multivalued=True, num_codes=2), None)
    a, b = Hashed(hash_buckets=50).encode(["a", "b"])
    assert encode(tf.constant([["", "b"], ["b", "a"], ["", ""]])).numpy().tolist() == [[b, 0], [b, a], [1, 0]]


def test_a_cross_has_a_code_for_each_pair_of_known_codes(tmp_path):
    brand = _feature(vocabulary(tmp_path, ["a", "b"])).model_copy(update={"name": "brand"})
    price = _feature(Bins(boundaries=(1.0,))).model_copy(update={"name": "price", "kind": "numerical"})
    transform = Cross(cross=("price", "brand"), hash_buckets=10_000)
    both = _feature(transform).model_copy(update={"name": "both"})
    encode = SideCoder((both, brand, price), tmp_path, "item_")
    assert set(encode.signature()) == {"item_brand", "item_price"}
    inputs = {
        "item_brand": tf.constant(["a", "b", "a", "b", "", "zz", "a"]),
        "item_price": tf.constant([0.0, 0.0, 1.0, 5.0, 5.0, 5.0, np.nan], tf.float64),
    }
    codes = encode(inputs)
    assert list(codes) == ["both", "brand", "price"]
    got = codes["both"].numpy()[:, 0]
    pairs = ["2,2", "2,3", "3,2", "3,3"]  # of the codes of price and brand
    expected = Hashed(hash_buckets=10_000).encode(pairs).tolist()
    assert got.tolist() == [*expected, 1, 1, 1]
    assert len(set(expected)) == 4
    np.testing.assert_array_equal(
        got, transform.encode_codes(codes["price"].numpy()[:, 0], codes["brand"].numpy()[:, 0])
    )


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


@SETTINGS
@given(asked=st.lists(FLOATS), mean=st.floats(-1e6, 1e6), deviation=st.floats(1e-6, 1e6))
def test_standard_coder_equals_the_transform(asked, mean, deviation):
    standard = Standard(mean=mean, deviation=deviation)
    values = np.array([*asked, mean, -0.0, np.nan, np.inf, -np.inf, 1e308])
    with np.errstate(over="ignore"):
        expected = standard.encode(values)
    got = StandardCoder(standard)(tf.constant(values, tf.float64)).numpy()[:, 0]
    np.testing.assert_allclose(got, expected, rtol=0, atol=np.finfo(np.float32).tiny)  # TensorFlow flushes subnormals
    assert abs(expected[~np.isnan(expected)]).max() <= 10


def _feature(transform, **more):
    return Feature(name="f", side="item", kind="categorical", column="f", transform=transform, **more)


def random_quantizer(kind, rng):
    """A quantiser of 9 numbers, and arrays for it."""
    arrays = {"mean": rng.normal(size=9)}
    if kind == "residual":
        arrays["centroids"] = rng.normal(size=(3, 7, 9))
        arrays["centroids"][1, 4:] = np.nan
        return ResidualCodes(file="q.npz", input_dim=9, levels=3, codes=7), arrays
    arrays["rotation"] = rng.normal(size=(9, 6))
    if kind == "product":
        arrays["centroids"] = rng.normal(size=(3, 7, 2))
        arrays["centroids"][2, 1:] = np.nan
        return ProductCodes(file="q.npz", input_dim=9, groups=3, dims_per_group=2, codes=7), arrays
    arrays["edges"] = np.sort(rng.normal(size=(6, 3)), axis=1)
    return GroupQuantiles(file="q.npz", input_dim=9, groups=3, dims_per_group=2, quantiles=4), arrays


@SETTINGS
@given(
    kind=st.sampled_from(["quantile", "product", "residual"]),
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([1e-30, 1.0, 1e30]),
)
def test_vector_coder_equals_the_transform(tmp_path_factory, kind, seed, scale):
    directory = tmp_path_factory.mktemp("quantiser")
    rng = np.random.default_rng(seed)
    transform, arrays = random_quantizer(kind, rng)
    write_arrays(directory / "q.npz", {name: array.astype(np.float32) for name, array in arrays.items()})
    vectors = (rng.normal(size=(40, 9)) * scale).astype(np.float32)
    vectors[3, 4], vectors[5], vectors[6, 0], vectors[7], vectors[8] = np.nan, -0.0, np.inf, 3e38, arrays["mean"]
    expected = transform.encode(vectors, directory)
    got = coder(_feature(transform, num_codes=3), directory)(tf.constant(vectors)).numpy()
    np.testing.assert_array_equal(got, expected)
    assert got[[3, 6]].tolist() == [[1, 1, 1]] * 2
    assert (got[[5, 7, 8]] >= 2).all()


@pytest.mark.parametrize("kind", ["product", "residual"])
def test_a_vector_between_two_means_has_the_first(tmp_path, kind):
    arrays = {"mean": np.zeros(1), "centroids": np.array([[[-1.0], [1.0], [3.0]]])}
    if kind == "product":
        arrays["rotation"] = np.ones((1, 1))
        transform = ProductCodes(file="q.npz", input_dim=1, groups=1, dims_per_group=1, codes=3)
    else:
        transform = ResidualCodes(file="q.npz", input_dim=1, levels=1, codes=3)
    write_arrays(tmp_path / "q.npz", {name: array.astype(np.float32) for name, array in arrays.items()})
    vectors = np.array([[-5.0], [0.0], [np.nextafter(np.float32(0), 1)], [2.0], [2.1]], np.float32)
    assert transform.encode(vectors, tmp_path).ravel().tolist() == [2, 2, 2, 3, 4]
    assert coder(_feature(transform), tmp_path)(tf.constant(vectors)).numpy().ravel().tolist() == [2, 2, 2, 3, 4]


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


def test_weights_stand_where_their_values_codes_do(tmp_path):
    feature = _feature(vocabulary(tmp_path, ["a", "b"]), multivalued=True, num_codes=3, weight_separator=":")
    encode = FeatureCoder(feature, tmp_path)
    values = tf.constant([["", "b", "a"], ["a", "x", "b"], [""] * 3])
    found = encode.weights(values, tf.constant([[7.0, 3.0, 1.5], [1e-3, 8.0, 7.99], [1.0, 2.0, 3.0]])).numpy()
    np.testing.assert_array_equal(found[[0, 2]], [[0.75, 0.375, 0], [0.5, 0, 0]])
    np.testing.assert_allclose(found[1], np.array([1e-3, 8, 7.99]) / 16, rtol=1e-6)
    with pytest.raises(tf.errors.InvalidArgumentError, match="f: give 3 weights, one a value"):
        encode.weights(values, tf.ones([3, 2]))
