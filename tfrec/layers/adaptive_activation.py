"""Activations that learn what becomes of small values."""

from typing import Any

import keras
from keras import ops

from tfrec.layers import Tensor

KINDS = ("dice", "prelu")


class AdaptiveActivation(keras.layers.Layer):
    """PReLU, or Dice, which puts its bend where the inputs are.

    f(s) = p(s) s + (1 - p(s)) alpha s, with a learned alpha for each unit. PReLU: p(s) = 1 where s > 0. Dice: p(s) =
    sigmoid((s - E[s]) / sqrt(Var[s] + 1e-9)), mean and variance of the batch in training, of all batches afterwards.

    Args:
        kind: str. `"dice"` or `"prelu"`.
        momentum: float. Of the running mean and variance of Dice. Defaults to 0.99.

    Input: x `(..., D)`; valid_mask `(...)` bool or None: only True places count in the mean and variance.
    Output: the same shape.

    Reference: Zhou et al., 2018, arXiv:1706.06978 (DIN), equations 2 and 3.
    """

    def __init__(self, kind: str, momentum: float = 0.99, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if kind not in KINDS:
            raise ValueError(f"`kind` must be one of {', '.join(KINDS)}. Received: kind={kind!r}.")
        self.kind = kind
        self.momentum = momentum

    def build(self, x_shape: Any) -> None:
        self.alpha = self.add_weight(name="alpha", shape=(x_shape[-1],), initializer=keras.initializers.Constant(0.25))
        if self.kind == "dice":
            self.standardise = keras.layers.BatchNormalization(
                momentum=self.momentum,
                epsilon=1e-9,
                center=False,
                scale=False,
                dtype=self.dtype_policy,
                name="standardise",
            )
            self.standardise.build(x_shape)
        self.built = True

    def call(self, x: Tensor, valid_mask: Tensor | None = None, training: bool | None = None) -> Tensor:
        if self.kind == "prelu":
            return ops.where(x > 0, x, self.alpha * x)
        share = ops.sigmoid(self.standardise(x, training=training, mask=valid_mask))
        return share * x + (1 - share) * self.alpha * x

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "kind": self.kind, "momentum": self.momentum}
