"""Layer norm whose parameters depend on what kind of token it is given."""

from typing import Any

import keras
from keras import ops

from tfrec.layers import Tensor


class GroupLayerNormalization(keras.layers.Layer):
    """LN(x) * gamma[group] + beta[group]: tokens of different meaning keep scales of their own.

    Args:
        num_groups: int. Kinds of tokens.
        epsilon: float. Added to the variance. Defaults to 1e-6.

    Input: x `(B, T, D)`; group `(B or 1, T)` int, the kind of each token.
    Output: `(B, T, D)`.

    Reference: Han et al., 2025, arXiv:2505.18654 (MTGR).
    """

    def __init__(self, num_groups: int, *, epsilon: float = 1e-6, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if num_groups < 1:
            raise ValueError(f"`num_groups` must be at least 1. Received: num_groups={num_groups}.")
        self.num_groups = num_groups
        self.epsilon = epsilon

    def build(self, x_shape: Any, group_shape: Any = None) -> None:
        width = x_shape[-1]
        self.norm = keras.layers.LayerNormalization(
            epsilon=self.epsilon, center=False, scale=False, dtype=self.dtype_policy, name="norm"
        )
        self.norm.build((None, width))
        self.gamma = self.add_weight(name="gamma", shape=(self.num_groups, width), initializer="ones")
        self.beta = self.add_weight(name="beta", shape=(self.num_groups, width), initializer="zeros")
        self.built = True

    def call(self, x: Tensor, group: Tensor) -> Tensor:
        return self.norm(x) * ops.take(self.gamma, group, axis=0) + ops.take(self.beta, group, axis=0)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "num_groups": self.num_groups, "epsilon": self.epsilon}
