"""Items to tokens: what an embedder reads of the item table beside codes."""

import numpy as np
import pytest

from tests.tfrec.models.made import NUM_ITEMS, make_catalogue, make_schema, with_weights
from tfrec.models.encoders import ItemEmbedder, item_table

pytestmark = pytest.mark.jax


def test_values_with_weights_are_averaged_by_those_of_the_item_table():
    codes, train_count, _ = make_catalogue()
    codes[5, 2:4], codes[6, 2:4] = [3, 4], [7, 0]
    weights = np.random.default_rng(1).random((NUM_ITEMS, 2))
    weights[5] = [1, 0.25]
    schema = with_weights(make_schema())
    table = item_table(schema)
    table.build()
    assert table.vector_dims == {"tags": 2}
    table.fill(codes, train_count, {"tags": weights})
    embedder = ItemEmbedder(schema, table, 4, item_features=("item_id", "tags"))
    embedder.build()
    tokens = np.asarray(embedder(np.array([5, 6])))
    rows = np.asarray(embedder.tokens.embeddings["tags"].embeddings)
    np.testing.assert_allclose(tokens[:, 1], [(4 * rows[3] + rows[4]) / 5, rows[7]], atol=1e-6)
