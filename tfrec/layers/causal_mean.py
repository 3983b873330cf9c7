"""The simplest encoding of a history: its mean."""

from typing import Any

import keras
from keras import ops

from tfrec.layers import Tensor


class CausalMean(keras.layers.Layer):
    """The mean of all events so far: y_t = (x_1 + ... + x_t) / t. No weights.

    Input: x `(B, L, D)`; valid_mask `(B, L)` bool, True = real; time_gap is not read.
    Output: `(B, L, D)`; zeros where not valid.
    """

    def build(self, x_shape: Any) -> None:
        self.built = True

    def call(
        self, x: Tensor, valid_mask: Tensor, time_gap: Tensor | None = None, training: bool | None = None
    ) -> Tensor:
        valid = ops.cast(valid_mask, "float32")[..., None]
        total = ops.cumsum(ops.cast(x, "float32") * valid, axis=1)
        count = ops.maximum(ops.cumsum(valid, axis=1), 1)
        return ops.cast(total / count * valid, self.compute_dtype)
