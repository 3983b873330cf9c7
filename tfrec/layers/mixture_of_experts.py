"""Experts that several tasks share, each by weights of its own."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from tfrec.layers import Tensor
from tfrec.layers.mlp import MLP


class MixtureOfExperts(keras.layers.Layer):
    """The experts' outputs, mixed once for each task by a softmax gate.

    y_t = sum_e softmax(W_t x)_e f_e(x); an expert f_e is an MLP whose last layer has the activation too.

    Args:
        num_experts: int. E.
        num_tasks: int. Gates.
        hidden_units: sequence of int. Widths of an expert's layers, the last one the output's.
        activation: str. Of the experts' layers. Defaults to `"relu"`.
        dropout: float. Between the experts' layers. Defaults to 0.

    Input: x `(..., D)`. Output: `(..., num_tasks, hidden_units[-1])`.

    Reference: Ma et al., 2018, "Modeling Task Relationships in Multi-task Learning with Multi-gate
    Mixture-of-Experts" (MMoE), equations 6 and 7.
    """

    def __init__(
        self,
        num_experts: int,
        num_tasks: int,
        hidden_units: Sequence[int],
        *,
        activation: str = "relu",
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for argument, value in (("num_experts", num_experts), ("num_tasks", num_tasks)):
            if value < 1:
                raise ValueError(f"`{argument}` must be at least 1. Received: {argument}={value}.")
        if not hidden_units:
            raise ValueError(f"`hidden_units` must not be empty. Received: hidden_units={hidden_units!r}.")
        self.num_experts = num_experts
        self.num_tasks = num_tasks
        self.hidden_units = hidden_units
        self.activation = activation
        self.dropout = dropout

    def build(self, x_shape: Any) -> None:
        width = x_shape[-1]
        *hidden, output = self.hidden_units
        self.experts = [
            MLP(
                hidden,
                output,
                activation=self.activation,
                dropout=self.dropout,
                output_activation=self.activation,
                dtype=self.dtype_policy,
                name=f"expert_{index}",
            )
            for index in range(self.num_experts)
        ]
        for expert in self.experts:
            expert.build((None, width))
        self.gate_kernel = self.add_weight(
            name="gate_kernel", shape=(width, self.num_tasks * self.num_experts), initializer="glorot_uniform"
        )
        self.built = True

    def call(self, x: Tensor, training: bool | None = None) -> Tensor:
        outputs = [expert(x, training=training) for expert in self.experts]
        gates = ops.reshape(
            ops.matmul(x, self.gate_kernel), (*ops.shape(x)[:-1], self.num_tasks, self.num_experts)
        )  # (..., T, E)
        return ops.matmul(ops.softmax(gates, axis=-1), ops.stack(outputs, axis=-2))  # (..., T, W)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_experts": self.num_experts,
            "num_tasks": self.num_tasks,
            "hidden_units": self.hidden_units,
            "activation": self.activation,
            "dropout": self.dropout,
        }
