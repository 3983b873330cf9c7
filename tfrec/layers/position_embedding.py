"""Learned embeddings of the places of a history."""

from typing import Any

import keras
from keras import ops

from tfrec.layers import Tensor


class PositionEmbedding(keras.layers.Layer):
    """A learned vector for each place in the history; place 0 is the first event of the window.

    Args:
        max_length: int. Places.
        stddev: float. Standard deviation of the truncated normal that the vectors start from. Defaults to 0.02.

    Input: x `(B, L, D)`, L at most `max_length`.
    Output: `(L, D)`, to be added to x.
    """

    def __init__(self, max_length: int, stddev: float = 0.02, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if max_length < 1:
            raise ValueError(f"`max_length` must be at least 1. Received: max_length={max_length}.")
        self.max_length = max_length
        self.stddev = stddev

    def build(self, x_shape: Any) -> None:
        self.embeddings = self.add_weight(
            name="embeddings",
            shape=(self.max_length, x_shape[-1]),
            initializer=keras.initializers.TruncatedNormal(stddev=self.stddev),
        )
        self.built = True

    def call(self, x: Tensor) -> Tensor:
        return ops.convert_to_tensor(self.embeddings)[: ops.shape(x)[1]]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "max_length": self.max_length, "stddev": self.stddev}
