"""Cross network v2: explicit products of features, one order more a layer."""

from typing import Any

import keras
from keras import ops

from tfrec.layers import Tensor


class CrossNetwork(keras.layers.Layer):
    """Layers x_{l+1} = x_0 * (W x_l + b) + x_l, W whole, of low rank, or a mixture of low ranks.

    Of low rank r: x_{l+1} = x_l + sum_e g_e(x_l) x_0 * (U_e tanh(C_e tanh(V_e^T x_l)) + b), g = softmax of a linear map
    of x_l (1 where there is one expert).

    Args:
        num_layers: int. Layers; the output holds products of up to `num_layers` + 1 inputs.
        rank: int or None. r; None = W is a whole matrix. Defaults to None.
        num_experts: int. Of a mixture of low ranks. Defaults to 1.

    Input: x `(..., D)`. Output: the same shape.

    Reference: Wang et al., 2021, arXiv:2008.13535 (DCN V2), equations 1 to 5.
    """

    def __init__(self, num_layers: int, rank: int | None = None, num_experts: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for argument, value in (("num_layers", num_layers), ("rank", rank), ("num_experts", num_experts)):
            if value is not None and value < 1:
                raise ValueError(f"`{argument}` must be at least 1. Received: {argument}={value}.")
        if num_experts > 1 and rank is None:
            raise ValueError(f"`rank` must be given for a mixture. Received: rank=None, num_experts={num_experts}.")
        self.num_layers = num_layers
        self.rank = rank
        self.num_experts = num_experts

    def build(self, x_shape: Any) -> None:
        width, rank, experts = x_shape[-1], self.rank, self.num_experts
        self.biases = [self._weight(f"bias_{index}", (width,), "zeros") for index in range(self.num_layers)]
        if rank is None:
            self.kernels = [self._weight(f"kernel_{index}", (width, width)) for index in range(self.num_layers)]
        else:
            layers = range(self.num_layers)
            self.downs = [self._weight(f"down_{index}", (experts, width, rank)) for index in layers]
            self.middles = [self._weight(f"middle_{index}", (experts, rank, rank)) for index in layers]
            self.ups = [self._weight(f"up_{index}", (experts, rank, width)) for index in layers]
            self.gates = [self._weight(f"gate_{index}", (width, experts)) for index in layers if experts > 1]
        self.built = True

    def call(self, x: Tensor) -> Tensor:
        first = x
        for index in range(self.num_layers):
            mapped = ops.matmul(x, self.kernels[index]) if self.rank is None else self._mixture(x, index)
            x = first * (mapped + self.biases[index]) + x
        return x

    def _mixture(self, x: Tensor, index: int) -> Tensor:
        low = ops.tanh(ops.einsum("...d,edr->...er", x, self.downs[index]))
        low = ops.tanh(ops.einsum("...er,ers->...es", low, self.middles[index]))
        if self.num_experts > 1:  # the gates add up to 1, so one b for all is the sum of the experts'
            low = low * ops.softmax(ops.matmul(x, self.gates[index]), axis=-1)[..., None]
        return ops.einsum("...er,erd->...d", low, self.ups[index])

    def _weight(self, name: str, shape: tuple[int, ...], initializer: str = "glorot_uniform") -> keras.Variable:
        return self.add_weight(name=name, shape=shape, initializer=initializer)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_layers": self.num_layers,
            "rank": self.rank,
            "num_experts": self.num_experts,
        }
