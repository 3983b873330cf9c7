"""HSTU's block: gated attention without a softmax."""

from typing import Any

import keras
from keras import ops

from tfrec.layers import Tensor
from tfrec.layers.pointwise_attention import pointwise_attention
from tfrec.layers.time_gap_bias import TimeGapBias
from tfrec.layers.transformer_block import causal_mask


class HSTUBlock(keras.layers.Layer):
    """The block of HSTU's public experiments: SiLU instead of softmax, a gate instead of a feed-forward network.

    U, V, Q, K = SiLU(LN(x) W); A = SiLU(Q K^T + P) / N, causal; y = x + Dropout(U * LN(A V)) W_o + b_o.
    Both LN are without parameters (epsilon 1e-6), W is without bias, the scores are not divided by sqrt(d), and N is a
    constant, not the sample's length. P = position bias, one scalar for each distance j - i, + time-gap bias, one
    scalar for each bucket; all heads share it.

    Args:
        num_heads: int. Heads.
        key_dim: int. Width of Q and K of a head.
        value_dim: int. Width of U and V of a head.
        max_length: int. N, at least the length of every input.
        position_bias: bool. Whether P has its first term. Defaults to True.
        time_bias: bool. Whether P has its second term; `call` then needs `time_gap`. Defaults to False.
        dropout: float. Of the gated output. Defaults to 0.
        concat_ua: bool. Whether W_o is given [U, LN(A V), U * LN(A V)]. Defaults to False.

    Input: x `(B, L, D)`; valid_mask `(B, L)` bool, True = real; time_gap `(B, L, L)` int32 buckets.
    Output: `(B, L, D)`; zeros where not valid.

    Reference: Zhai et al., 2024, arXiv:2402.17152, and its public code (research/modeling/sequential/hstu.py).
    """

    def __init__(
        self,
        num_heads: int,
        key_dim: int,
        value_dim: int,
        max_length: int,
        *,
        position_bias: bool = True,
        time_bias: bool = False,
        dropout: float = 0.0,
        concat_ua: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if max_length < 1:
            raise ValueError(f"`max_length` must be at least 1. Received: max_length={max_length}.")
        self.num_heads = num_heads
        self.key_dim = key_dim
        self.value_dim = value_dim
        self.max_length = max_length
        self.position_bias = position_bias
        self.time_bias = time_bias
        self.dropout = dropout
        self.concat_ua = concat_ua

    def build(self, x_shape: Any) -> None:
        width = x_shape[-1]
        normal = keras.initializers.RandomNormal(stddev=0.02)
        values, keys = self.num_heads * self.value_dim, self.num_heads * self.key_dim
        self.uvqk_kernel = self.add_weight(
            name="uvqk_kernel", shape=(width, 2 * values + 2 * keys), initializer=normal.clone()
        )
        self.input_norm = self._norm("input_norm", width)
        self.value_norm = self._norm("value_norm", values)
        self.output_dropout = keras.layers.Dropout(self.dropout, dtype=self.dtype_policy, name="output_dropout")
        self.output_dense = keras.layers.Dense(width, dtype=self.dtype_policy, name="output_dense")
        self.output_dense.build((None, 3 * values if self.concat_ua else values))
        if self.position_bias:
            self.position_table = self.add_weight(
                name="position_table", shape=(2 * self.max_length - 1,), initializer=normal.clone()
            )
        if self.time_bias:
            self.gap_bias = TimeGapBias(1, dtype=self.dtype_policy, name="gap_bias")
            self.gap_bias.build()
        self.built = True

    def call(
        self,
        x: Tensor,
        valid_mask: Tensor,
        time_gap: Tensor | None = None,
        training: bool | None = None,
    ) -> Tensor:
        # One projection, in the order of the public code: U, V, Q, K
        values, keys = self.num_heads * self.value_dim, self.num_heads * self.key_dim
        projected = ops.silu(ops.matmul(self.input_norm(x), self.uvqk_kernel))
        u, v, q, k = ops.split(projected, [values, 2 * values, 2 * values + keys], axis=-1)

        # Pointwise attention
        bias = self._position_bias(ops.shape(x)[1]) if self.position_bias else None
        if self.time_bias:
            bias = self.gap_bias(time_gap) if bias is None else bias + self.gap_bias(time_gap)
        visible = causal_mask(valid_mask)[:, 0]
        mixed = pointwise_attention(q, k, v, visible, num_heads=self.num_heads, length=self.max_length, bias=bias)

        # Gate and project
        normed = self.value_norm(mixed)
        gated = u * normed
        if self.concat_ua:
            gated = ops.concatenate([u, normed, gated], axis=-1)
        output = self.output_dense(self.output_dropout(gated, training=training)) + x
        return output * ops.cast(valid_mask, output.dtype)[..., None]

    def _position_bias(self, length: Tensor) -> Tensor:
        place = ops.arange(length, dtype="int32")
        index = self.max_length - 1 + place[None, :] - place[:, None]  # N - 1 + j - i
        return ops.take(self.position_table, index, axis=0)[None, None]  # (1, 1, L, L)

    def _norm(self, name: str, width: int) -> keras.layers.LayerNormalization:
        norm = keras.layers.LayerNormalization(
            epsilon=1e-6, center=False, scale=False, dtype=self.dtype_policy, name=name
        )
        norm.build((None, width))
        return norm

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "key_dim": self.key_dim,
            "value_dim": self.value_dim,
            "max_length": self.max_length,
            "position_bias": self.position_bias,
            "time_bias": self.time_bias,
            "dropout": self.dropout,
            "concat_ua": self.concat_ua,
        }
