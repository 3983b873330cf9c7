"""HCT: a causal transformer over tokens, then one over items."""

from typing import Any

import keras
from keras import ops

from tfrec.layers import Tensor
from tfrec.layers.mlp import MLP
from tfrec.layers.transformer_block import TransformerBlock

NEAR_ZERO = 1e-3
"""Standard deviation of the last kernel of an MLP whose output is added to a sum that is good from the start."""


class HierarchicalCausalTransformer(keras.layers.Layer):
    """Token-level blocks, an MLP that fuses the tokens of an item, item-level blocks.

    H_1 = N1 blocks over L * K tokens; item_t = sum_k H_0[t, k] + MLP([H_1[t, 1], ..., H_1[t, K]]);
    states = N2 blocks over L items.

    Args:
        tokens_per_item: int. K.
        num_heads: int. Heads of every block.
        intermediate_dim: int. Width inside the feed-forward networks and the fusing MLP.
        num_token_blocks: int. N1. Defaults to 2.
        num_item_blocks: int. N2. Defaults to 2.
        fuse: str. `"mlp"`, or `"mean"` of the tokens of H_1 (a standard transformer where N2 is 0). Defaults to
            `"mlp"`.
        residual: bool. Whether the sum of H_0 is added to the MLP, whose last layer then starts near 0, so that an
            item starts as the sum of its tokens. Defaults to True.
        token_mask: str. Inside an item, see `TransformerBlock`. Defaults to `"causal"`.
        time_bias: bool. Whether attention is biased by time gaps. Defaults to False.
        norm_first: bool. Order of the norms, see `TransformerBlock`. Defaults to False.
        activation: str. Of feed-forward networks and the MLP. Defaults to `"relu"`.
        dropout: float. See `TransformerBlock`. Defaults to 0.

    Input: tokens `(B, L * K, D)`; valid_mask `(B, L * K)` bool, True = real; time_gap `(B, L, L)` int32 buckets.
    Output: dict with `state` `(B, L, D)` and `token` `(B, L, K, D)`, the tokens of H_1; zeros where not valid.

    Reference: Deng et al., 2025, arXiv:2503.01469, section 2.4.
    Differs from the paper: `residual`, and kernels of the blocks' outputs that start small.
    """

    def __init__(
        self,
        tokens_per_item: int,
        num_heads: int,
        intermediate_dim: int,
        *,
        num_token_blocks: int = 2,
        num_item_blocks: int = 2,
        fuse: str = "mlp",
        residual: bool = True,
        token_mask: str = "causal",
        time_bias: bool = False,
        norm_first: bool = False,
        activation: str = "relu",
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if fuse not in ("mlp", "mean"):
            raise ValueError(f'`fuse` must be "mlp" or "mean". Received: fuse={fuse!r}.')
        self.tokens_per_item = tokens_per_item
        self.num_heads = num_heads
        self.intermediate_dim = intermediate_dim
        self.num_token_blocks = num_token_blocks
        self.num_item_blocks = num_item_blocks
        self.fuse = fuse
        self.residual = residual
        self.token_mask = token_mask
        self.time_bias = time_bias
        self.norm_first = norm_first
        self.activation = activation
        self.dropout = dropout

    def build(self, tokens_shape: Any) -> None:
        width = tokens_shape[-1]
        self.token_blocks = [
            self._block(f"token_block_{index}", width, self.tokens_per_item) for index in range(self.num_token_blocks)
        ]
        self.item_blocks = [self._block(f"item_block_{index}", width, 1) for index in range(self.num_item_blocks)]
        if self.fuse == "mlp":
            self.fusion = MLP(
                [self.intermediate_dim],
                width,
                activation=self.activation,
                output_stddev=NEAR_ZERO if self.residual else None,
                dtype=self.dtype_policy,
                name="fusion",
            )
            self.fusion.build((None, self.tokens_per_item * width))
        self.built = True

    def call(
        self, tokens: Tensor, valid_mask: Tensor, time_gap: Tensor | None = None, training: bool | None = None
    ) -> dict[str, Tensor]:
        # Token level
        hidden = tokens
        for block in self.token_blocks:
            hidden = block(hidden, valid_mask, time_gap, training=training)

        # Fuse the tokens of each item
        num_items = ops.shape(tokens)[1] // self.tokens_per_item
        per_item = (-1, num_items, self.tokens_per_item, tokens.shape[-1])
        hidden = ops.reshape(hidden, per_item)  # (B, L, K, D)
        state = self._fuse(hidden, ops.reshape(tokens, per_item))  # (B, L, D)

        # Item level
        item_mask = ops.reshape(valid_mask, per_item[:3])[:, :, 0]
        state = state * ops.cast(item_mask, state.dtype)[..., None]
        for block in self.item_blocks:
            state = block(state, item_mask, time_gap, training=training)
        return {"state": state, "token": hidden}

    def _fuse(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        if self.fuse == "mean":
            return ops.mean(hidden, axis=2)
        shape = (-1, ops.shape(hidden)[1], self.tokens_per_item * hidden.shape[-1])
        fused = self.fusion(ops.reshape(hidden, shape))
        return fused + ops.sum(tokens, axis=2) if self.residual else fused

    def _block(self, name: str, width: int, tokens_per_item: int) -> TransformerBlock:
        block = TransformerBlock(
            self.num_heads,
            self.intermediate_dim,
            tokens_per_item=tokens_per_item,
            token_mask=self.token_mask,
            time_bias=self.time_bias,
            norm_first=self.norm_first,
            activation=self.activation,
            dropout=self.dropout,
            output_stddev=0.02,
            dtype=self.dtype_policy,
            name=name,
        )
        block.build((None, None, width))
        return block

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "tokens_per_item": self.tokens_per_item,
            "num_heads": self.num_heads,
            "intermediate_dim": self.intermediate_dim,
            "num_token_blocks": self.num_token_blocks,
            "num_item_blocks": self.num_item_blocks,
            "fuse": self.fuse,
            "residual": self.residual,
            "token_mask": self.token_mask,
            "time_bias": self.time_bias,
            "norm_first": self.norm_first,
            "activation": self.activation,
            "dropout": self.dropout,
        }
