"""Wukong's block: factorisation machines beside a linear compression, both over a set of embeddings."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from tfrec.layers import Tensor
from tfrec.layers.mlp import MLP


class WukongBlock(keras.layers.Layer):
    """F embeddings to `num_interactions` + `num_compressed` others, with interactions of twice the order.

    X' = LN([FMB(X); LCB(X)] + R X). LCB(X) = W X, linear combinations of the rows. FMB(X) = MLP(LN(vec(X X^T Y))),
    as `num_interactions` rows: all dot products, compressed by Y to `rank` columns. R is a linear map of the rows
    where their number changes, else nothing.

    Args:
        num_interactions: int. Rows of FMB.
        num_compressed: int. Rows of LCB.
        rank: int. Columns of Y.
        hidden_units: sequence of int. Of the MLP.
        activation: str. Of the MLP. Defaults to `"relu"`.
        dropout: float. After each hidden layer of the MLP. Defaults to 0.

    Input: x `(..., F, D)`. Output: `(..., num_interactions + num_compressed, D)`.

    Reference: Zhang et al., 2024, arXiv:2403.02545, sections 3.3 to 3.6.
    Differs from the paper: Y is a matrix, not a function of X, as in the public code that there is.
    """

    def __init__(
        self,
        num_interactions: int,
        num_compressed: int,
        rank: int,
        hidden_units: Sequence[int],
        *,
        activation: str = "relu",
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for argument, value in (
            ("num_interactions", num_interactions),
            ("num_compressed", num_compressed),
            ("rank", rank),
        ):
            if value < 1:
                raise ValueError(f"`{argument}` must be at least 1. Received: {argument}={value}.")
        self.num_interactions = num_interactions
        self.num_compressed = num_compressed
        self.rank = rank
        self.hidden_units = hidden_units
        self.activation = activation
        self.dropout = dropout

    def build(self, x_shape: Any) -> None:
        *_, fields, width = x_shape
        rows = self.num_interactions + self.num_compressed
        self.compression = self._weight("compression", (fields, self.num_compressed))
        self.projection = self._weight("projection", (fields, self.rank))  # Y
        self.residual = None if rows == fields else self._weight("residual", (fields, rows))
        self.product_norm = keras.layers.LayerNormalization(epsilon=1e-6, dtype=self.dtype_policy, name="product_norm")
        self.product_norm.build((None, fields * self.rank))
        self.mlp = MLP(
            self.hidden_units,
            self.num_interactions * width,
            activation=self.activation,
            dropout=self.dropout,
            dtype=self.dtype_policy,
            name="mlp",
        )
        self.mlp.build((None, fields * self.rank))
        self.output_norm = keras.layers.LayerNormalization(epsilon=1e-6, dtype=self.dtype_policy, name="output_norm")
        self.output_norm.build((None, width))
        self.built = True

    def call(self, x: Tensor, training: bool | None = None) -> Tensor:
        fields, width = x.shape[-2:]
        before = ops.shape(x)[:-2]
        products = ops.matmul(x, self._combined(x, self.projection, transpose=True))  # X (X^T Y), (..., F, rank)
        flat = self.product_norm(ops.reshape(products, (*before, fields * self.rank)))
        interactions = ops.reshape(self.mlp(flat, training=training), (*before, self.num_interactions, width))
        compressed = self._combined(x, self.compression)
        kept = x if self.residual is None else self._combined(x, self.residual)
        return self.output_norm(ops.concatenate([interactions, compressed], axis=-2) + kept)

    def _combined(self, x: Tensor, kernel: Tensor, *, transpose: bool = False) -> Tensor:
        """Linear combinations of the rows, `(..., k, D)`; as columns `(..., D, k)` where transpose."""
        return ops.einsum("...fd,fk->...dk" if transpose else "...fd,fk->...kd", x, kernel)

    def _weight(self, name: str, shape: tuple[int, int]) -> keras.Variable:
        return self.add_weight(name=name, shape=shape, initializer="glorot_uniform")

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_interactions": self.num_interactions,
            "num_compressed": self.num_compressed,
            "rank": self.rank,
            "hidden_units": self.hidden_units,
            "activation": self.activation,
            "dropout": self.dropout,
        }
