"""An item's codes into its tokens, one a feature."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from tfrec.layers import Tensor
from tfrec.layers.feature_embedding import FeatureEmbedding


class ItemTokens(keras.layers.Layer):
    """One token a feature: the embeddings of an item's features side by side, in schema order.

    Args:
        features: sequence of dict. Of each feature `name`, `table_sizes`, `num_codes`, `start`, the first of its
            columns among an item's codes, and where it has several tables `combiner`.
        embedding_dim: int. Width of a token.

    Input: codes `(..., C)` int; weights, of multi-valued features by name `(..., num_codes)`. Defaults to none.
    Output: `(..., K, D)`.

    Reference: Deng et al., 2025, arXiv:2503.01469, section 2.3.
    """

    def __init__(self, features: Sequence[Mapping[str, Any]], embedding_dim: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not features:
            raise ValueError(f"`features` must not be empty. Received: features={features!r}.")
        self.features = features
        self.embedding_dim = embedding_dim

    def build(self, codes_shape: Any = None) -> None:
        self.embeddings = {
            feature["name"]: FeatureEmbedding(
                table_sizes=feature["table_sizes"],
                embedding_dim=self.embedding_dim,
                num_codes=feature["num_codes"],
                combiner=feature.get("combiner", "concatenate"),
                dtype=self.dtype_policy,
                name=f"{feature['name']}_table",
            )
            for feature in self.features
        }
        for embedding in self.embeddings.values():
            embedding.build()
        self.built = True

    def call(self, codes: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        tokens = []
        for feature in self.features:
            columns = codes[..., feature["start"] : feature["start"] + feature["num_codes"]]
            tokens.append(self.embeddings[feature["name"]](columns, (weights or {}).get(feature["name"])))
        return ops.stack(tokens, axis=-2)  # (..., K, D)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "features": self.features, "embedding_dim": self.embedding_dim}
