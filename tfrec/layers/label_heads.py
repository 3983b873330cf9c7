"""The last layers of a ranking model: one logit a label."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from tfrec.layers import Tensor
from tfrec.layers.mlp import MLP

_FIRST = 1  # the place at the top of a list


class LabelHeads(keras.layers.Layer):
    """Logits from an MLP that the labels share, or from one of their own; and what an impression's place adds.

    logit_t = MLP(x)_t + b_t[place]. What a candidate gains by standing high up is in b, so that the MLP need not learn
    it; serving asks for one place for all, so that b changes no order.

    Args:
        labels: sequence of str. Names, each with a logit.
        hidden_units: sequence of int. Widths of the hidden layers. Defaults to none.
        activation: str. Of the hidden layers. Defaults to `"relu"`.
        dropout: float. After each hidden layer. Defaults to 0.
        separate: bool. Whether each label has an x and an MLP of its own. Defaults to False.
        num_positions: int. Places that have a b, later ones share the last, unknown ones have one too; 0 = no b.
            Defaults to 0.

    Input: x `(B, C, D)`, or `(B, C, labels, D)` where separate; position `(B, C)` int from 1, 0 = unknown, None = 1
    everywhere, or `(B, C, P)`, several places of each candidate; valid_mask `(B, C)` bool, True = real, which only the
    activation `"dice"` reads.
    Output: dict of `(B, C)` float32 by label; `(B, C, P)` for several places.
    """

    def __init__(
        self,
        labels: Sequence[str],
        hidden_units: Sequence[int] = (),
        *,
        activation: str = "relu",
        dropout: float = 0.0,
        separate: bool = False,
        num_positions: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not labels or len(set(labels)) < len(labels):
            raise ValueError(f"`labels` must be different names, at least one. Received: labels={labels!r}.")
        if num_positions < 0:
            raise ValueError(f"`num_positions` must be at least 0. Received: num_positions={num_positions}.")
        self.labels = labels
        self.hidden_units = hidden_units
        self.activation = activation
        self.dropout = dropout
        self.separate = separate
        self.num_positions = num_positions

    def build(self, x_shape: Any, position_shape: Any = None) -> None:
        names = [f"{label}_mlp" for label in self.labels] if self.separate else ["mlp"]
        self.mlps = [
            MLP(
                self.hidden_units,
                1 if self.separate else len(self.labels),
                activation=self.activation,
                dropout=self.dropout,
                dtype=self.dtype_policy,
                name=name,
            )
            for name in names
        ]
        for mlp in self.mlps:
            mlp.build((*x_shape[:2], x_shape[-1]))
        if self.num_positions:
            self.position_bias = self.add_weight(
                name="position_bias", shape=(self.num_positions + 1, len(self.labels)), initializer="zeros"
            )
        self.built = True

    def call(
        self,
        x: Tensor,
        position: Tensor | None = None,
        valid_mask: Tensor | None = None,
        training: bool | None = None,
    ) -> dict[str, Tensor]:
        inputs = ops.unstack(x, num=len(self.labels), axis=2) if self.separate else [x]
        parts = [mlp(own, valid_mask=valid_mask, training=training) for mlp, own in zip(self.mlps, inputs, strict=True)]
        logits = ops.cast(ops.concatenate(parts, axis=-1), "float32")  # (B, C, labels)
        if position is not None and len(position.shape) == len(logits.shape):
            several = ops.zeros_like(position[..., None], dtype="float32")
            logits = logits[:, :, None] + several  # (B, C, P, labels)
        if self.num_positions:
            place = _FIRST if position is None else ops.clip(position, 0, self.num_positions)
            logits = logits + ops.cast(ops.take(self.position_bias, place, axis=0), "float32")
        return dict(zip(self.labels, ops.unstack(logits, num=len(self.labels), axis=-1), strict=True))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "labels": self.labels,
            "hidden_units": self.hidden_units,
            "activation": self.activation,
            "dropout": self.dropout,
            "separate": self.separate,
            "num_positions": self.num_positions,
        }
