"""A multilayer perceptron that may begin as nothing."""

from collections.abc import Sequence
from typing import Any

import keras

from tfrec.layers import Tensor
from tfrec.layers.adaptive_activation import KINDS, AdaptiveActivation


class MLP(keras.layers.Layer):
    """Dense layers with an activation between them, and none after the last unless it is asked for.

    Args:
        hidden_units: sequence of int. Widths of the hidden layers.
        output_dim: int. Width of the output.
        activation: str. Of the hidden layers, by Keras' name, or `"dice"`, `"prelu"`. Defaults to `"relu"`.
        dropout: float. After each hidden layer. Defaults to 0.
        output_stddev: float or None. Standard deviation that the last kernel starts from, near 0 where the output is
            added to something that is already good; None = Glorot uniform. Defaults to None.
        output_activation: str or None. Of the last layer, by Keras' name. Defaults to None.

    Input: x `(..., D)`; valid_mask `(...)` bool or None, the real places, which only `"dice"` reads.
    Output: `(..., output_dim)`.
    """

    def __init__(
        self,
        hidden_units: Sequence[int],
        output_dim: int,
        *,
        activation: str = "relu",
        dropout: float = 0.0,
        output_stddev: float | None = None,
        output_activation: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if min([*hidden_units, output_dim]) < 1:
            raise ValueError(
                "`hidden_units` and `output_dim` must be at least 1. "
                f"Received: hidden_units={hidden_units}, output_dim={output_dim}."
            )
        self.hidden_units = hidden_units
        self.output_dim = output_dim
        self.activation = activation
        self.dropout = dropout
        self.output_stddev = output_stddev
        self.output_activation = output_activation

    def build(self, x_shape: Any) -> None:
        small = keras.initializers.TruncatedNormal(stddev=self.output_stddev) if self.output_stddev else None
        adaptive = self.activation in KINDS
        self.hidden = [
            keras.layers.Dense(
                units,
                activation=None if adaptive else self.activation,
                dtype=self.dtype_policy,
                name=f"hidden_{index}",
            )
            for index, units in enumerate(self.hidden_units)
        ]
        self.adaptive = [
            AdaptiveActivation(self.activation, dtype=self.dtype_policy, name=f"activation_{index}")
            for index in range(len(self.hidden) if adaptive else 0)
        ]
        self.output_dense = keras.layers.Dense(
            self.output_dim,
            activation=self.output_activation,
            kernel_initializer=small or "glorot_uniform",
            dtype=self.dtype_policy,
            name="output",
        )
        self.hidden_dropout = keras.layers.Dropout(self.dropout, dtype=self.dtype_policy, name="dropout")
        width = x_shape[-1]
        for dense in [*self.hidden, self.output_dense]:
            dense.build((None, width))
            width = dense.units
        for dense, activation in zip(self.hidden, self.adaptive, strict=False):
            activation.build((*x_shape[:-1], dense.units))
        self.built = True

    def call(self, x: Tensor, valid_mask: Tensor | None = None, training: bool | None = None) -> Tensor:
        for index, dense in enumerate(self.hidden):
            x = dense(x)
            if self.adaptive:
                x = self.adaptive[index](x, valid_mask=valid_mask, training=training)
            x = self.hidden_dropout(x, training=training)
        return self.output_dense(x)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "hidden_units": self.hidden_units,
            "output_dim": self.output_dim,
            "activation": self.activation,
            "dropout": self.dropout,
            "output_stddev": self.output_stddev,
            "output_activation": self.output_activation,
        }
