import keras
import numpy as np
import pytest

from tests.checks import check_layer, run, to_numpy
from tfrec.layers.feature_embedding import FeatureEmbedding
from tfrec.layers.item_id_dropout import ItemIdDropout
from tfrec.layers.item_table import ItemTable
from tfrec.layers.item_tokens import ItemTokens
from tfrec.layers.mlp import MLP
from tfrec.layers.position_embedding import PositionEmbedding

pytestmark = pytest.mark.jax

CODES = np.array([[0, 0, 0], [1, 1, 1], [2, 5, 6], [3, 7, 8]], np.int32)


def filled_table(**kwargs):
    table = ItemTable(4, 3, **kwargs)
    table.build()
    vectors = {name: np.arange(4 * dim).reshape(4, dim) for name, dim in (kwargs.get("vector_dims") or {}).items()}
    table.fill(CODES, np.array([0, 0, 9, 4]), vectors)
    return table


def test_item_table_gives_codes_and_reads_ids_outside_as_unknown():
    items = np.array([[2, 0], [4, -1], [1000, 3]], np.int32)
    expected = [[[2, 5, 6], [0, 0, 0]], [[1, 1, 1], [1, 1, 1]], [[1, 1, 1], [3, 7, 8]]]
    np.testing.assert_array_equal(to_numpy(filled_table()(items)), expected)
    np.testing.assert_array_equal(to_numpy(filled_table().train_count(items)), [[9, 0], [0, 0], [0, 4]])


def test_item_table_stores_vectors_in_float16_and_zeros_for_missing_ones():
    table = ItemTable(4, 3, {"image": 2})
    table.build()
    vectors = np.array([[0, 0], [np.nan, np.nan], [1.5, -2], [3, 4]], np.float32)
    table.fill(CODES, np.zeros(4), {"image": vectors})
    np.testing.assert_array_equal(to_numpy(table.vectors(np.array([1, 2]), "image")), [[0, 0], [1.5, -2]])
    assert keras.backend.standardize_dtype(table.vector_tables["image"].dtype) == "float16"


def test_item_table_is_in_no_weight_file_and_not_trained(tmp_path):
    items = keras.Input((), dtype="int32")
    table = filled_table(vector_dims={"image": 2})
    model = keras.Model(items, table(items))
    assert model.trainable_weights == []
    model.save_weights(tmp_path / "with.weights.h5")
    import h5py

    names: list[str] = []
    with h5py.File(tmp_path / "with.weights.h5") as file:
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    assert names == []
    empty = ItemTable(4, 3, {"image": 2})
    empty.build()
    keras.Model(items, empty(items)).load_weights(tmp_path / "with.weights.h5")
    assert not to_numpy(empty(np.array([2]))).any()


@pytest.mark.parametrize(
    ("codes", "count", "message"),
    [
        (np.zeros((3, 3)), np.zeros(4), r"`codes` must have shape \(4, 3\)\. Received: codes.shape=\(3, 3\)"),
        (np.zeros((4, 3)), np.zeros(5), r"`train_count` must have shape \(4,\)\. Received: train_count.shape=\(5,\)"),
    ],
)
def test_item_table_refuses_a_catalogue_of_another_shape(codes, count, message):
    with pytest.raises(ValueError, match=message):
        filled_table().fill(codes, count)


def test_item_table_refuses_missing_vectors():
    table = ItemTable(4, 3, {"image": 2})
    table.build()
    with pytest.raises(ValueError, match=r"`vectors` must hold the vectors of `image`\. Received: \['text'\]"):
        table.fill(CODES, np.zeros(4), {"text": np.zeros((4, 2))})


@pytest.mark.parametrize("kwargs", [{"num_items": 1, "num_columns": 1}, {"num_items": 5, "num_columns": 0}])
def test_item_table_refuses_impossible_sizes(kwargs):
    with pytest.raises(ValueError, match=r"`num_(items|columns)` must be at least"):
        ItemTable(**kwargs)


def test_single_code_is_its_row_and_padding_zero(tmp_path):
    codes = {"codes": np.array([[2], [0], [4]], np.int32)}
    layer = check_layer(lambda **kw: FeatureEmbedding((5,), 4, **kw), codes, (3, 4), tmp_path)
    rows = np.asarray(layer.weights[0])
    np.testing.assert_allclose(run(layer, codes), [rows[2], np.zeros(4), rows[4]], atol=1e-7)


def test_multivalued_codes_are_averaged_without_padding(tmp_path):
    codes = {"codes": np.array([[2, 3, 0], [0, 0, 0], [4, 4, 1]], np.int32)}
    layer = check_layer(lambda **kw: FeatureEmbedding((5,), 4, 3, **kw), codes, (3, 4), tmp_path)
    rows = np.asarray(layer.weights[0])
    expected = [(rows[2] + rows[3]) / 2, np.zeros(4), (2 * rows[4] + rows[1]) / 3]
    np.testing.assert_allclose(run(layer, codes), expected, atol=1e-7)


def test_weighted_codes_are_averaged_by_weight():
    codes = np.array([[2, 3, 0], [0, 0, 0], [4, 4, 1], [2, 3, 0]], np.int32)
    weights = np.array([[0.75, 0.25, 9], [1, 1, 1], [0.5, 0.25, 1], [0, 0, 0]], np.float32)  # padding's do not count
    layer = FeatureEmbedding((5,), 4, 3)
    found = run(layer, {"codes": codes, "weights": weights})
    rows = np.asarray(layer.weights[0])
    expected = [(3 * rows[2] + rows[3]) / 4, np.zeros(4), (3 * rows[4] + 4 * rows[1]) / 7, (rows[2] + rows[3]) / 2]
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_quantised_codes_are_concatenated_from_a_table_each(tmp_path):
    codes = {"codes": np.array([[[2, 2]], [[3, 0]], [[1, 6]]], np.int32)}
    layer = check_layer(lambda **kw: FeatureEmbedding((5, 7), 6, 2, **kw), codes, (3, 1, 6), tmp_path)
    first, second = np.split(np.asarray(layer.weights[0]), [5])
    expected = [[[*first[2], *second[2]]], [[*first[3], 0, 0, 0]], [[*first[1], *second[6]]]]
    np.testing.assert_allclose(run(layer, codes), expected, atol=1e-7)


def test_residual_codes_are_summed_from_a_table_each(tmp_path):
    codes = {"codes": np.array([[[2, 2]], [[3, 0]], [[1, 6]]], np.int32)}
    layer = check_layer(lambda **kw: FeatureEmbedding((5, 7), 3, 2, "sum", **kw), codes, (3, 1, 3), tmp_path)
    first, second = np.split(np.asarray(layer.weights[0]), [5])
    expected = [[first[2] + second[2]], [first[3]], [first[1] + second[6]]]
    np.testing.assert_allclose(run(layer, codes), expected, atol=1e-7)


def test_feature_embedding_starts_from_a_truncated_normal():
    layer = FeatureEmbedding((2000,), 16)
    layer.build()
    values = np.asarray(layer.weights[0])
    assert abs(values).max() <= 0.04 + 1e-6
    assert values.std() == pytest.approx(0.0176, rel=0.03)  # a normal of 0.02, cut at two deviations, has 0.88 of it


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"table_sizes": (5, 5), "embedding_dim": 7, "num_codes": 2}, "`embedding_dim` must be a multiple"),
        ({"table_sizes": (5, 5), "embedding_dim": 8, "num_codes": 3}, "`table_sizes` must name one table"),
        ({"table_sizes": (5,), "embedding_dim": 8, "combiner": "max"}, "`combiner` must be .*Received: .*max"),
    ],
)
def test_feature_embedding_refuses(kwargs, message):
    with pytest.raises(ValueError, match=message):
        FeatureEmbedding(**kwargs)


def test_item_tokens_stand_in_schema_order(tmp_path):
    features = [
        {"name": "item_id", "table_sizes": [4], "num_codes": 1, "start": 0},
        {"name": "image", "table_sizes": [9, 9], "num_codes": 2, "start": 1},
    ]
    layer = check_layer(lambda **kw: ItemTokens(features, 4, **kw), {"codes": CODES}, (4, 2, 4), tmp_path)
    ids, image = (np.asarray(weight) for weight in layer.weights)
    output = run(layer, {"codes": CODES})
    np.testing.assert_allclose(output[2], [ids[2], [*image[5], *image[9 + 6]]], atol=1e-7)
    np.testing.assert_array_equal(output[0], np.zeros((2, 4)))


def test_item_tokens_of_residual_codes_are_sums():
    features = [{"name": "text", "table_sizes": [9, 9], "num_codes": 2, "start": 1, "combiner": "sum"}]
    layer = ItemTokens(features, 4)
    output = run(layer, {"codes": CODES})
    table = np.asarray(layer.weights[0])
    np.testing.assert_allclose(output[2], [table[CODES[2, 1]] + table[9 + CODES[2, 2]]], atol=1e-7)


def test_item_tokens_need_a_feature():
    with pytest.raises(ValueError, match=r"`features` must not be empty"):
        ItemTokens([], 4)


def test_item_id_dropout_hides_ids_alone_and_only_in_training():
    codes = np.tile(np.array([[5, 6, 7], [0, 0, 0]], np.int32), (4000, 1))
    layer = ItemIdDropout(0.25, seed=1)
    np.testing.assert_array_equal(run(layer, {"codes": codes}, training=False), codes)
    dropped = run(layer, {"codes": codes}, training=True)
    np.testing.assert_array_equal(dropped[:, 1:], codes[:, 1:])
    np.testing.assert_array_equal(dropped[1::2], codes[1::2])
    assert set(dropped[::2, 0]) == {1, 5}
    assert (dropped[::2, 0] == 1).mean() == pytest.approx(0.25, abs=0.03)  # 4 standard errors
    assert (run(layer, {"codes": codes}, training=True) != dropped).any()


def test_item_id_dropout_of_everything_and_of_nothing():
    codes = np.array([[5, 6]], np.int32)
    assert run(ItemIdDropout(1.0), {"codes": codes}, training=True).tolist() == [[1, 6]]
    assert run(ItemIdDropout(0.0), {"codes": codes}, training=True).tolist() == [[5, 6]]
    with pytest.raises(ValueError, match=r"`rate` must be in 0..1\. Received: rate=1.5"):
        ItemIdDropout(1.5)


def test_position_embedding_gives_the_first_places(tmp_path):
    x = {"x": np.ones((2, 3, 4), np.float32)}
    layer = check_layer(lambda **kw: PositionEmbedding(3, stddev=0.5, **kw), x, (3, 4), tmp_path, batch_first=False)
    np.testing.assert_allclose(run(layer, {"x": x["x"][:, :2]}), np.asarray(layer.weights[0])[:2])
    assert np.asarray(layer.weights[0]).shape == (3, 4)
    with pytest.raises(ValueError, match=r"`max_length` must be at least 1"):
        PositionEmbedding(0)


def test_mlp_has_no_activation_at_its_end(tmp_path):
    x = {"x": np.random.default_rng(0).normal(size=(5, 3)).astype("float32")}
    layer = check_layer(lambda **kw: MLP([8, 4], 2, **kw), x, (5, 2), tmp_path)
    hidden = x["x"]
    *inner, last = [layer.get_weights()[i : i + 2] for i in (0, 2, 4)]
    for kernel, bias in inner:
        hidden = np.maximum(hidden @ kernel + bias, 0)
    np.testing.assert_allclose(run(layer, x), hidden @ last[0] + last[1], atol=1e-5)
    assert layer.count_params() == (3 * 8 + 8) + (8 * 4 + 4) + (4 * 2 + 2)


def test_mlp_that_is_added_starts_near_zero_and_drops_in_training():
    x = {"x": np.ones((4, 64), np.float32)}
    assert np.abs(run(MLP([64], 8, output_stddev=1e-3), x)).max() < 0.05
    dropping = MLP([64], 8, dropout=0.5)
    assert np.abs(run(dropping, x, training=True) - run(dropping, x)).max() > 1e-3
    assert np.abs(run(dropping, x) - run(dropping, x)).max() == 0
    with pytest.raises(ValueError, match="must be at least 1"):
        MLP([0], 3)
