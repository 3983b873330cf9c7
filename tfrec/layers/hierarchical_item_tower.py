"""The item side of HeterRec: tokens first, then the item."""

from typing import Any

import keras
from keras import ops

from tfrec.layers import Tensor
from tfrec.layers.hierarchical_causal_transformer import NEAR_ZERO
from tfrec.layers.mlp import MLP


class HierarchicalItemTower(keras.layers.Layer):
    """An MLP for each token type, then one over all tokens of an item.

    z_k = e_k + MLP_k(e_k); v = sum_k z_k + MLP([z_1, ..., z_K]).

    Args:
        intermediate_dim: int. Width of the hidden layer of the item's MLP; the tokens' have D.
        residual: bool. Whether e_k and the sum are added, and the last layers start near 0, so that an item starts as
            the sum of its tokens. Defaults to True.
        activation: str. Of the hidden layers. Defaults to `"relu"`.

    Input: tokens `(N, K, D)`.
    Output: dict with `vector` `(N, D)` and `token` `(N, K, D)`, the z.

    Reference: Deng et al., 2025, arXiv:2503.01469, section 2.2.
    Differs from the paper: `residual`.
    """

    def __init__(
        self, intermediate_dim: int, *, residual: bool = True, activation: str = "relu", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.intermediate_dim = intermediate_dim
        self.residual = residual
        self.activation = activation

    def build(self, tokens_shape: Any) -> None:
        *_, num_tokens, width = tokens_shape
        stddev = NEAR_ZERO if self.residual else None
        self.token_mlps = [
            MLP(
                [width],
                width,
                activation=self.activation,
                output_stddev=stddev,
                dtype=self.dtype_policy,
                name=f"token_mlp_{index}",
            )
            for index in range(num_tokens)
        ]
        self.item_mlp = MLP(
            [self.intermediate_dim],
            width,
            activation=self.activation,
            output_stddev=stddev,
            dtype=self.dtype_policy,
            name="item_mlp",
        )
        for mlp in self.token_mlps:
            mlp.build((None, width))
        self.item_mlp.build((None, num_tokens * width))
        self.built = True

    def call(self, tokens: Tensor) -> dict[str, Tensor]:
        num_tokens, width = tokens.shape[-2:]
        token = self.encode_tokens(tokens)
        vector = self.item_mlp(ops.reshape(token, (-1, num_tokens * width)))
        if self.residual:
            vector = vector + ops.sum(token, axis=1)
        return {"vector": vector, "token": token}

    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """The z `(N, K, D)` of tokens `(N, K, D)`."""
        return ops.stack([self.encode_token(tokens[:, k], k) for k in range(tokens.shape[1])], axis=1)

    def encode_token(self, token: Tensor, index: int) -> Tensor:
        """The z `(N, D)` of tokens `(N, D)` of one type."""
        encoded = self.token_mlps[index](token)
        return encoded + token if self.residual else encoded

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "intermediate_dim": self.intermediate_dim,
            "residual": self.residual,
            "activation": self.activation,
        }
