"""One feature's codes into one token."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from tfrec.layers import Tensor
from tfrec.transforms import PADDING


class FeatureEmbedding(keras.layers.Layer):
    """Embeds the codes of one feature as one vector, in one of four ways.

    One code: its row. Several codes of one table (a multi-valued feature): the mean of the rows of those that are not
    padding, by weight where there are weights. Several tables (a quantised vector): one a group, the rows of width D /
    groups concatenated (HeterRec's multimodal tokens), or one a level, the rows summed (residual codes). The tables lie
    one below the other in one weight.

    Args:
        table_sizes: sequence of int. Rows of each table.
        embedding_dim: int. Width of the vector; where tables are concatenated a multiple of their number.
        num_codes: int. Codes of the feature; with several tables, their number. Defaults to 1.
        combiner: str. `"concatenate"` or `"sum"`, of several tables. Defaults to `"concatenate"`.
        embeddings_initializer: str or None. None is a truncated normal of standard deviation 0.02. Defaults to None.

    Input: codes `(..., num_codes)` int; of a multi-valued feature also weights `(..., num_codes)`, not negative, which
        count alike where all are 0. Defaults to none.
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
        combiner: str = "concatenate",
        embeddings_initializer: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if len(table_sizes) not in (1, num_codes):
            raise ValueError(
                "`table_sizes` must name one table, or one for each code. "
                f"Received: {len(table_sizes)} tables, num_codes={num_codes}."
            )
        if combiner not in ("concatenate", "sum"):
            raise ValueError(f'`combiner` must be "concatenate" or "sum". Received: combiner={combiner!r}.')
        if combiner == "concatenate" and embedding_dim % len(table_sizes):
            raise ValueError(
                f"`embedding_dim` must be a multiple of the number of tables ({len(table_sizes)}). "
                f"Received: embedding_dim={embedding_dim}."
            )
        self.table_sizes = table_sizes
        self.embedding_dim = embedding_dim
        self.num_codes = num_codes
        self.combiner = combiner
        self.embeddings_initializer = embeddings_initializer

    def build(self, codes_shape: Any = None) -> None:
        initializer = self.embeddings_initializer
        if initializer is None:
            initializer = keras.initializers.TruncatedNormal(stddev=0.02)
        parts = len(self.table_sizes) if self.combiner == "concatenate" else 1
        self.embeddings = self.add_weight(
            name="embeddings",
            shape=(sum(self.table_sizes), self.embedding_dim // parts),
            initializer=initializer,
        )
        self.built = True

    def call(self, codes: Tensor, weights: Tensor | None = None) -> Tensor:
        mask = ops.cast(codes != PADDING, self.compute_dtype)[..., None]  # (..., num_codes, 1)
        if len(self.table_sizes) > 1:
            offsets = np.cumsum([0, *self.table_sizes[:-1]], dtype="int32")
            rows = ops.take(self.embeddings, codes + offsets, axis=0) * mask  # (..., Z, D / Z), summed (..., Z, D)
            if self.combiner == "sum":
                return ops.sum(rows, axis=-2)
            return ops.reshape(rows, (*ops.shape(codes)[:-1], self.embedding_dim))  # (..., D)
        if self.num_codes == 1:
            return ops.take(self.embeddings, codes[..., 0], axis=0) * mask[..., 0, :]
        rows = ops.take(self.embeddings, codes, axis=0)
        if weights is not None:
            given = ops.cast(weights, self.compute_dtype)[..., None] * mask
            mask = ops.where(ops.sum(given, axis=-2, keepdims=True) > 0, given, mask)
            return ops.sum(rows * mask, axis=-2) / ops.maximum(ops.sum(mask, axis=-2), keras.config.epsilon())
        return ops.sum(rows * mask, axis=-2) / ops.maximum(ops.sum(mask, axis=-2), 1)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "table_sizes": self.table_sizes,
            "embedding_dim": self.embedding_dim,
            "num_codes": self.num_codes,
            "combiner": self.combiner,
            "embeddings_initializer": self.embeddings_initializer,
        }
