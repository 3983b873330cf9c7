"""MTGR's block: gated attention over tokens of several kinds, and a feed-forward network."""

from typing import Any

import keras
from keras import ops

from tfrec.layers import Tensor
from tfrec.layers.group_layer_normalization import GroupLayerNormalization
from tfrec.layers.mlp import MLP
from tfrec.layers.pointwise_attention import own_attention, pointwise_attention


class MTGRBlock(keras.layers.Layer):
    """Context tokens under a given mask, and candidates that see context and themselves, with norms by group.

    U, V, Q, K = SiLU(GroupLN(x) W + b); A = SiLU(Q K^T / sqrt(d)) / N; y = x + MLP(GroupLN((A V) * U)).

    Args:
        num_heads: int. Heads; must divide the width.
        intermediate_dim: int. Width inside the MLP.
        max_length: int. N.
        num_groups: int. Kinds of tokens. Defaults to 4.
        dropout: float. Inside the MLP. Defaults to 0.

    Input: context `(B, T, D)`; candidate `(B, C, D)`; seen `(B, T, T)` bool, the context that context sees; visible
    `(B, C, T)` bool, the context that candidates see; context_group `(B, T)` int; the last group is the candidates'.
    Output: dict with `context` `(B, T, D)` and `candidate` `(B, C, D)`.

    Reference: Han et al., 2025, arXiv:2505.18654, section 3. The scale of the products is not given there.
    """

    def __init__(
        self,
        num_heads: int,
        intermediate_dim: int,
        max_length: int,
        *,
        num_groups: int = 4,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if max_length < 1:
            raise ValueError(f"`max_length` must be at least 1. Received: max_length={max_length}.")
        self.num_heads = num_heads
        self.intermediate_dim = intermediate_dim
        self.max_length = max_length
        self.num_groups = num_groups
        self.dropout = dropout

    def build(self, context_shape: Any, candidate_shape: Any = None) -> None:
        width = context_shape[-1]
        if width % self.num_heads:
            raise ValueError(
                f"`num_heads` must divide the input's width {width}. Received: num_heads={self.num_heads}."
            )
        self.uvqk_kernel = self.add_weight(name="uvqk_kernel", shape=(width, 4 * width), initializer="glorot_uniform")
        self.uvqk_bias = self.add_weight(name="uvqk_bias", shape=(4 * width,), initializer="zeros")
        self.input_norm = GroupLayerNormalization(self.num_groups, dtype=self.dtype_policy, name="input_norm")
        self.value_norm = GroupLayerNormalization(self.num_groups, dtype=self.dtype_policy, name="value_norm")
        for norm in (self.input_norm, self.value_norm):
            norm.build((None, None, width))
        self.mlp = MLP(
            [self.intermediate_dim], width, activation="silu", dropout=self.dropout, dtype=self.dtype_policy, name="mlp"
        )
        self.mlp.build((None, width))
        self.built = True

    def call(
        self,
        context: Tensor,
        candidate: Tensor,
        seen: Tensor,
        visible: Tensor,
        context_group: Tensor,
        training: bool | None = None,
    ) -> dict[str, Tensor]:
        own_group = ops.full((1, ops.shape(candidate)[1]), self.num_groups - 1, dtype="int32")
        options: dict[str, Any] = {
            "num_heads": self.num_heads,
            "length": self.max_length,
            "scale": (context.shape[-1] / self.num_heads) ** -0.5,
        }
        u, v, q, k = self._project(context, context_group)
        own_u, own_v, own_q, own_k = self._project(candidate, own_group)
        mixed = pointwise_attention(q, k, v, seen, **options)
        taken = pointwise_attention(own_q, k, v, visible, **options)
        taken = taken + own_attention(own_q, own_k, own_v, **options)
        return {
            "context": context + self.mlp(self.value_norm(mixed * u, context_group), training=training),
            "candidate": candidate + self.mlp(self.value_norm(taken * own_u, own_group), training=training),
        }

    def _project(self, x: Tensor, group: Tensor) -> list[Tensor]:
        projected = ops.silu(ops.matmul(self.input_norm(x, group), self.uvqk_kernel) + self.uvqk_bias)
        return ops.split(projected, 4, axis=-1)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "intermediate_dim": self.intermediate_dim,
            "max_length": self.max_length,
            "num_groups": self.num_groups,
            "dropout": self.dropout,
        }
