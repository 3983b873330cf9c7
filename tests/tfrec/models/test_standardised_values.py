"""Numbers whose standardised values models read beside their bins."""

import numpy as np
import pytest

from tests.checks import randomise, seed_weights, to_numpy
from tests.tfrec.models.made import NUM_ITEMS, make_catalogue, make_query, make_schema
from tfrec.models import build
from tfrec.schema import Feature
from tfrec.transforms import Bins, Standard

pytestmark = pytest.mark.jax
OPTIONS = {"embedding_dim": 8, "history_length": 16, "dropout": 0.0}


def make_model(name, values, **options):
    """A model of a catalogue in which every item has the same bin of price, and `values` within it."""
    seed_weights(0)
    schema = make_schema()
    price = Feature(
        name="price",
        side="item",
        kind="numerical",
        column="price",
        transform=Bins(boundaries=(1.0,)),
        standard=Standard(mean=0.0, deviation=1.0),
    )
    items = [feature for feature in schema.features if feature.side == "item"]
    others = [feature for feature in schema.features if feature.side != "item"]
    schema = schema.model_copy(update={"features": (*items, price, *others)})
    model = build(schema, {"name": name, **OPTIONS, **options})
    codes, counts, vectors = make_catalogue()
    codes = np.concatenate([codes, np.where(np.arange(NUM_ITEMS)[:, None] == 0, 0, 3)], axis=1).astype(np.int32)
    model.set_catalogue(codes, counts, {**vectors, "price": values[:, None].astype(np.float16)})
    return schema, model


def values_of_items():
    values = np.random.default_rng(1).normal(size=NUM_ITEMS)
    values[:2] = 0
    return values.astype(np.float16).astype(np.float32)


def test_a_slope_times_the_value_is_added_to_the_token():
    values = values_of_items()
    _, with_values = make_model("heterrec", values)
    randomise(with_values, scale=0.2)
    embedder = with_values.user_encoder.embedder
    items = np.arange(NUM_ITEMS)
    tokens = to_numpy(embedder(items))
    place = embedder.feature_names.index("price")
    table = to_numpy(embedder.tokens.embeddings["price"].embeddings)
    slope = to_numpy(embedder.slopes["price"].kernel)[0]
    np.testing.assert_allclose(tokens[1:, place], table[3] + values[1:, None] * slope, atol=1e-6)
    np.testing.assert_array_equal(tokens[0], 0)


@pytest.mark.parametrize(("name", "options"), [("heterrec", {}), ("sasrec", {"item_features": "all"})])
def test_values_reach_histories_and_items(name, options):
    schema, model = make_model(name, values_of_items(), **options)
    randomise(model, scale=0.2)
    query, items = make_query(schema), np.arange(2, NUM_ITEMS)
    found = [to_numpy(model.encode_users(query)), to_numpy(model.encode_items(items))]
    codes, counts = to_numpy(model.item_table.codes_table), np.zeros(NUM_ITEMS)
    vectors = {key: to_numpy(table) for key, table in model.item_table.vector_tables.items()}
    model.set_catalogue(codes, counts, {**vectors, "price": np.zeros((NUM_ITEMS, 1), np.float16)})
    for before, after in zip(found, [model.encode_users(query), model.encode_items(items)], strict=True):
        assert abs(before - to_numpy(after)).max() > 1e-3
    slopes = [weight for weight in model.trainable_weights if "price_slope" in weight.path]
    assert [tuple(slope.shape) for slope in slopes] == [(1, 8)]  # histories and items share it


def test_tokens_that_hold_values_are_not_scored_against_a_table():
    _, model = make_model("heterrec", values_of_items())
    embedder = model.user_encoder.embedder
    tables = dict(zip(embedder.feature_names, embedder.token_tables(), strict=True))
    assert tables["price"] is None
    assert tables["brand"] is not None
