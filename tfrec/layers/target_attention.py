"""DIN's local activation unit: a history weighed anew for each candidate."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from tfrec.layers import Tensor
from tfrec.layers.adaptive_activation import KINDS, AdaptiveActivation
from tfrec.layers.mlp import MLP


class TargetAttention(keras.layers.Layer):
    """The sum of a history's events, each weighed by an MLP of the event and the candidate.

    u_c = sum_j a(e_j, v_c) e_j over the events that the candidate sees; a = MLP([e, v, e - v, e * v]), not normalised,
    so that the sum keeps how strong the interest is; with `softmax` a is passed through one over the events, after a
    division by sqrt(D).

    Args:
        hidden_units: sequence of int. Of the MLP, at least one layer. Defaults to `(80, 40)`.
        activation: str. Of the MLP: `"dice"`, `"prelu"`, or a name that Keras knows. Defaults to `"dice"`.
        softmax: bool. Whether the weights add up to 1. Defaults to False.

    Input: candidate `(B, C, D)`; history `(B, L, D)`; visible `(B, C, L)` bool, the events before each candidate.
    Output: `(B, C, D)`; zeros where a candidate sees nothing.

    Reference: Zhou et al., 2018, arXiv:1706.06978 (DIN), section 4.3, and its public code, whence the inputs of a
    (the paper's are e, v and their outer product) and `softmax`.
    """

    def __init__(
        self,
        hidden_units: Sequence[int] = (80, 40),
        *,
        activation: str = "dice",
        softmax: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not hidden_units:
            raise ValueError(f"`hidden_units` must not be empty. Received: hidden_units={hidden_units!r}.")
        self.hidden_units = hidden_units
        self.activation = activation
        self.softmax = softmax

    def build(self, candidate_shape: Any, history_shape: Any = None, visible_shape: Any = None) -> None:
        width = candidate_shape[-1]
        first, *others = self.hidden_units
        self.kernel = self.add_weight(name="kernel", shape=(4 * width, first), initializer="glorot_uniform")
        self.bias = self.add_weight(name="bias", shape=(first,), initializer="zeros")
        if self.activation in KINDS:
            self.adaptive = AdaptiveActivation(self.activation, dtype=self.dtype_policy, name="first_activation")
            self.adaptive.build((None, None, None, first))
        self.mlp = MLP(others, 1, activation=self.activation, dtype=self.dtype_policy, name="mlp")
        self.mlp.build((None, None, None, first))
        self.built = True

    def call(self, candidate: Tensor, history: Tensor, visible: Tensor, training: bool | None = None) -> Tensor:
        weight = self._weights(candidate, history, visible, training)  # (B, C, L)
        if self.softmax:
            weight = weight / candidate.shape[-1] ** 0.5
            weight = ops.softmax(ops.where(visible, weight, -1e9), axis=-1)
        return ops.matmul(weight * ops.cast(visible, weight.dtype), history)

    def _weights(self, candidate: Tensor, history: Tensor, visible: Tensor, training: bool | None) -> Tensor:
        # The first layer of the MLP, without an array of all pairs: [e, v, e - v, e * v] K is linear in e and in v but
        # for the last part, and there (e * v) K = e (v * K).
        kernel_e, kernel_v, kernel_d, kernel_p = ops.split(ops.convert_to_tensor(self.kernel), 4, axis=0)
        of_history = ops.matmul(history, kernel_e + kernel_d)[:, None]  # (B, 1, L, H)
        of_candidate = ops.matmul(candidate, kernel_v - kernel_d)[:, :, None]  # (B, C, 1, H)
        products = ops.matmul(history[:, None], candidate[..., None] * kernel_p)  # (B, C, L, H)
        x = of_history + of_candidate + products + self.bias
        if self.activation in KINDS:
            x = self.adaptive(x, valid_mask=visible, training=training)
        else:
            x = keras.activations.get(self.activation)(x)
        return self.mlp(x, valid_mask=visible, training=training)[..., 0]

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "hidden_units": self.hidden_units,
            "activation": self.activation,
            "softmax": self.softmax,
        }
