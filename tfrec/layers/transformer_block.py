"""Attention, over the past or both ways, and a feed-forward network, for items or for the tokens of items."""

import math
from typing import Any

import keras
from keras import ops

from tfrec.layers import Tensor
from tfrec.layers.time_gap_bias import TimeGapBias

MASKED = -1e9
"""Added to the score of what may not be seen."""


def causal_mask(valid_mask: Tensor, tokens_per_item: int = 1, token_mask: str = "causal") -> Tensor:
    """Which keys each query sees, `(B, 1, T, T)` bool: valid ones that are not later.

    With `token_mask="full"` the tokens of an item see each other whatever their order.
    """
    place = ops.arange(ops.shape(valid_mask)[1], dtype="int32")
    if token_mask == "full":
        place = place // tokens_per_item
    past = place[None, :] <= place[:, None]  # (T, T)
    return ops.logical_and(past[None, None], valid_mask[:, None, None, :])


class TransformerBlock(keras.layers.Layer):
    """A transformer block whose attention knows how much time lies between two events.

    attention = softmax((Q K^T + P) / sqrt(D / H) + M) V, with P the `TimeGapBias` and M = 0 or minus infinity.
    Post-LN, as in HeterRec: h = LN(x + attention(x)), y = LN(h + FFN(h)). With `norm_first` the order of SASRec:
    q = LN(x), h = LN(q + attention(q, x, x)), y = h + FFN(h), queries from q, keys and values from x itself.

    Used at token level (`tokens_per_item` K > 1), the input is item-major, T = L * K, and the tokens of an item share
    its time gaps.

    Args:
        num_heads: int. Heads; must divide the width.
        intermediate_dim: int. Width inside the feed-forward network.
        tokens_per_item: int. Tokens that share a place in the history. Defaults to 1.
        causal: bool. Whether a query sees the past alone, instead of all that is valid. Defaults to True.
        token_mask: str. `"causal"`: a token sees the earlier tokens of its own item and itself; `"full"`: all of its
            item. Defaults to `"causal"`.
        time_bias: bool. Whether there is a P; `call` then needs `time_gap`. Defaults to False.
        norm_first: bool. Whether in the order of SASRec. Defaults to False.
        activation: str. Of the feed-forward network. Defaults to `"relu"`.
        dropout: float. Of the outputs of both sublayers (with `norm_first` of the feed-forward network's alone), and
            inside the feed-forward network. Defaults to 0.
        attention_dropout: float. Of the attention probabilities. Defaults to 0.
        output_stddev: float or None. Standard deviation that the kernels of both outputs start from, small where the
            block shall begin near the identity; None = Glorot uniform, like the others. Defaults to None.

    Input: x `(B, T, D)`; valid_mask `(B, T)` bool, True = real; time_gap `(B, L, L)` int32 buckets; visible
    `(B, T, T)` bool or None, which keys each query sees, in place of `causal`.
    Output: `(B, T, D)`; zeros where not valid.

    Reference: Vaswani et al., 2017, arXiv:1706.03762; Kang and McAuley, 2018, arXiv:1808.09781; Deng et al., 2025,
    arXiv:2503.01469, section 2.4.
    """

    def __init__(
        self,
        num_heads: int,
        intermediate_dim: int,
        *,
        tokens_per_item: int = 1,
        causal: bool = True,
        token_mask: str = "causal",
        time_bias: bool = False,
        norm_first: bool = False,
        activation: str = "relu",
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        output_stddev: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if token_mask not in ("causal", "full"):
            raise ValueError(f'`token_mask` must be "causal" or "full". Received: token_mask={token_mask!r}.')
        self.num_heads = num_heads
        self.intermediate_dim = intermediate_dim
        self.tokens_per_item = tokens_per_item
        self.causal = causal
        self.token_mask = token_mask
        self.time_bias = time_bias
        self.norm_first = norm_first
        self.activation = activation
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.output_stddev = output_stddev

    def build(self, x_shape: Any) -> None:
        width = x_shape[-1]
        if width % self.num_heads:
            raise ValueError(
                f"`num_heads` must divide the input's width {width}. Received: num_heads={self.num_heads}."
            )
        small = keras.initializers.TruncatedNormal(stddev=self.output_stddev) if self.output_stddev else None
        self.qkv_kernel = self.add_weight(name="qkv_kernel", shape=(width, 3 * width), initializer="glorot_uniform")
        self.qkv_bias = self.add_weight(name="qkv_bias", shape=(3 * width,), initializer="zeros")
        self.attention_output = self._dense(width, "attention_output", width, kernel_initializer=small)
        self.ffn_inner = self._dense(self.intermediate_dim, "ffn_inner", width, activation=self.activation)
        self.ffn_output = self._dense(width, "ffn_output", self.intermediate_dim, kernel_initializer=small)
        self.attention_norm = self._norm("attention_norm", width)
        self.ffn_norm = self._norm("ffn_norm", width)
        self.output_dropout = keras.layers.Dropout(self.dropout, dtype=self.dtype_policy, name="output_dropout")
        self.probability_dropout = keras.layers.Dropout(
            self.attention_dropout, dtype=self.dtype_policy, name="probability_dropout"
        )
        if self.time_bias:
            self.gap_bias = TimeGapBias(self.num_heads, dtype=self.dtype_policy, name="gap_bias")
            self.gap_bias.build()
        self.built = True

    def call(
        self,
        x: Tensor,
        valid_mask: Tensor,
        time_gap: Tensor | None = None,
        visible: Tensor | None = None,
        training: bool | None = None,
    ) -> Tensor:
        if visible is not None:
            visible = ops.expand_dims(visible, 1)
        elif self.causal:
            visible = causal_mask(valid_mask, self.tokens_per_item, self.token_mask)
        else:
            visible = valid_mask[:, None, None, :]
        bias = self.gap_bias(time_gap) if self.time_bias else None
        if self.norm_first:
            query = self.attention_norm(x)
            hidden = self.ffn_norm(query + self._attend(query, x, visible, bias, training))
            output = hidden + self._feed_forward(hidden, training)
        else:
            hidden = self.attention_norm(x + self._attend(x, x, visible, bias, training))
            output = self.ffn_norm(hidden + self._feed_forward(hidden, training))
        return output * ops.cast(valid_mask, output.dtype)[..., None]

    def _attend(
        self, query: Tensor, source: Tensor, visible: Tensor, bias: Tensor | None, training: bool | None
    ) -> Tensor:
        width = source.shape[-1]
        scale = 1 / math.sqrt(width / self.num_heads)
        q, k, v = (self._heads(x) for x in self._project(query, source))  # (B, H, T, D / H)
        scores = ops.matmul(q * scale, ops.swapaxes(k, 2, 3))  # (B, H, T, T)
        if bias is not None:
            scores = self._add_per_item(scores, bias * scale)
        scores = ops.where(visible, ops.cast(scores, "float32"), MASKED)
        probability = ops.cast(ops.softmax(scores), self.compute_dtype)
        mixed = ops.matmul(self.probability_dropout(probability, training=training), v)
        mixed = ops.reshape(ops.swapaxes(mixed, 1, 2), (-1, ops.shape(source)[1], width))  # (B, T, D)
        output = self.attention_output(mixed)
        return output if self.norm_first else self.output_dropout(output, training=training)

    def _project(self, query: Tensor, source: Tensor) -> tuple[Tensor, ...]:
        width = source.shape[-1]
        kernel, bias = ops.convert_to_tensor(self.qkv_kernel), ops.convert_to_tensor(self.qkv_bias)
        if query is source:
            return tuple(ops.split(ops.matmul(source, kernel) + bias, 3, axis=-1))
        q = ops.matmul(query, kernel[:, :width]) + bias[:width]
        return (q, *ops.split(ops.matmul(source, kernel[:, width:]) + bias[width:], 2, axis=-1))

    def _heads(self, x: Tensor) -> Tensor:
        per_head = (-1, ops.shape(x)[1], self.num_heads, x.shape[-1] // self.num_heads)
        return ops.swapaxes(ops.reshape(x, per_head), 1, 2)

    def _add_per_item(self, scores: Tensor, bias: Tensor) -> Tensor:
        if self.tokens_per_item == 1:
            return scores + bias
        length, tokens = ops.shape(bias)[2], self.tokens_per_item
        split = ops.reshape(scores, (-1, self.num_heads, length, tokens, length, tokens))
        return ops.reshape(split + bias[:, :, :, None, :, None], ops.shape(scores))

    def _feed_forward(self, x: Tensor, training: bool | None) -> Tensor:
        inner = self.output_dropout(self.ffn_inner(x), training=training)
        return self.output_dropout(self.ffn_output(inner), training=training)

    def _dense(self, units: int, name: str, input_dim: int, **kwargs: Any) -> keras.layers.Dense:
        kwargs = {key: value for key, value in kwargs.items() if value is not None}
        dense = keras.layers.Dense(units, dtype=self.dtype_policy, name=name, **kwargs)
        dense.build((None, input_dim))
        return dense

    def _norm(self, name: str, width: int) -> keras.layers.LayerNormalization:
        norm = keras.layers.LayerNormalization(epsilon=1e-6, dtype=self.dtype_policy, name=name)
        norm.build((None, width))
        return norm

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "intermediate_dim": self.intermediate_dim,
            "tokens_per_item": self.tokens_per_item,
            "causal": self.causal,
            "token_mask": self.token_mask,
            "time_bias": self.time_bias,
            "norm_first": self.norm_first,
            "activation": self.activation,
            "dropout": self.dropout,
            "attention_dropout": self.attention_dropout,
            "output_stddev": self.output_stddev,
        }
