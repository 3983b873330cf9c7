"""One feature's codes into one token."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from tfrec.layers import Tensor
from tfrec.transforms import PADDING


class FeatureEmbedding(keras.layers.Layer):
    """Embeds the codes of one feature as one vector, in one of three ways.

    One code: its row. Several codes of one table (a multi-valued feature): the mean of the rows of those that are not
    padding. Several tables (a quantised vector, one table a group): the rows of width D / groups, concatenated
    (HeterRec's multimodal tokens). The tables of the groups lie one below the other in one weight.

    Args:
        table_sizes: sequence of int. Rows of each table.
        embedding_dim: int. Width of the vector; a multiple of the number of tables.
        num_codes: int. Codes of the feature; with several tables, their number. Defaults to 1.
        embeddings_initializer: str or None. None is a truncated normal of standard deviation 0.02. Defaults to None.

    Input: codes `(..., num_codes)` int.
    Output: `(..., D)`; zeros where all codes are padding.

    Example:
        >>> FeatureEmbedding(table_sizes=(10,), embedding_dim=4)(np.array([[2], [0]])).shape
        (2, 4)

    Reference: Deng et al., 2025, arXiv:2503.01469, section 2.3.
    """

    def __init__(
        self,
        table_sizes: Sequence[int],
        embedding_dim: int,
        num_codes: int = 1,
        embeddings_initializer: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if len(table_sizes) not in (1, num_codes):
            raise ValueError(
                "`table_sizes` must name one table, or one for each code. "
                f"Received: {len(table_sizes)} tables, num_codes={num_codes}."
            )
        if embedding_dim % len(table_sizes):
            raise ValueError(
                f"`embedding_dim` must be a multiple of the number of tables ({len(table_sizes)}). "
                f"Received: embedding_dim={embedding_dim}."
            )
        self.table_sizes = table_sizes
        self.embedding_dim = embedding_dim
        self.num_codes = num_codes
        self.embeddings_initializer = embeddings_initializer

    def build(self, codes_shape: Any = None) -> None:
        initializer = self.embeddings_initializer
        if initializer is None:
            initializer = keras.initializers.TruncatedNormal(stddev=0.02)
        self.embeddings = self.add_weight(
            name="embeddings",
            shape=(sum(self.table_sizes), self.embedding_dim // len(self.table_sizes)),
            initializer=initializer,
        )
        self.built = True

    def call(self, codes: Tensor) -> Tensor:
        mask = ops.cast(codes != PADDING, self.compute_dtype)[..., None]  # (..., num_codes, 1)
        if len(self.table_sizes) > 1:
            offsets = np.cumsum([0, *self.table_sizes[:-1]], dtype="int32")
            rows = ops.take(self.embeddings, codes + offsets, axis=0) * mask  # (..., Z, D / Z)
            return ops.reshape(rows, (*ops.shape(codes)[:-1], self.embedding_dim))  # (..., D)
        if self.num_codes == 1:
            return ops.take(self.embeddings, codes[..., 0], axis=0) * mask[..., 0, :]
        rows = ops.take(self.embeddings, codes, axis=0)
        return ops.sum(rows * mask, axis=-2) / ops.maximum(ops.sum(mask, axis=-2), 1)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "table_sizes": self.table_sizes,
            "embedding_dim": self.embedding_dim,
            "num_codes": self.num_codes,
            "embeddings_initializer": self.embeddings_initializer,
        }
