"""A recurrent network over events."""

from typing import Any

import keras
from keras import ops

from tfrec.layers import Tensor


class GatedRecurrence(keras.layers.Layer):
    """Gated recurrent units over the history, projected back to its width: y_t = W GRU(x_1, ..., x_t) + b.

    Args:
        units: int. Width of the recurrent state.
        dropout: float. Of the output. Defaults to 0.

    Input: x `(B, L, D)`; valid_mask `(B, L)` bool, True = real, padding on the right; time_gap is not read.
    Output: `(B, L, D)`; zeros where not valid.

    Reference: Hidasi et al., 2016, arXiv:1511.06939 (GRU4Rec).
    """

    def __init__(self, units: int, *, dropout: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if units < 1:
            raise ValueError(f"`units` must be at least 1. Received: units={units}.")
        self.units = units
        self.dropout = dropout

    def build(self, x_shape: Any) -> None:
        width = x_shape[-1]
        self.recurrence = keras.layers.GRU(
            self.units, return_sequences=True, dtype=self.dtype_policy, name="recurrence"
        )
        self.recurrence.build((None, None, width))
        self.output_dense = keras.layers.Dense(width, dtype=self.dtype_policy, name="output_dense")
        self.output_dense.build((None, self.units))
        self.output_dropout = keras.layers.Dropout(self.dropout, dtype=self.dtype_policy, name="output_dropout")
        self.built = True

    def call(
        self, x: Tensor, valid_mask: Tensor, time_gap: Tensor | None = None, training: bool | None = None
    ) -> Tensor:
        hidden = self.recurrence(x, training=training)  # padding comes last: no real state has seen it
        output = self.output_dense(self.output_dropout(hidden, training=training))
        return output * ops.cast(valid_mask, output.dtype)[..., None]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units, "dropout": self.dropout}
