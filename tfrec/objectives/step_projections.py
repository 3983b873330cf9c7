"""One matrix a step: how a state is turned towards events further ahead."""

from typing import Any

import keras
from keras import ops

from tfrec.layers import Tensor
from tfrec.layers.normalization import l2_normalize


@keras.saving.register_keras_serializable(package="tfrec")
class StepProjections(keras.layers.Layer):
    """`state W_i`, one square matrix for each step i (and token type), each starting as the identity.

    Args:
        num_steps: int. Steps S.
        first: bool. Whether step 0 has a matrix too; without, it returns the state as it is, since what predicts the
            next event belongs to the encoder that is exported.
        normalize: bool. L2-normalise what is projected, so that its logits compare with those of normalised states.

    Input: state `(P, D)`, or `(P, K, D)` with a matrix for each of K token types; step, 0..S-1.
    Output: the shape of `state`.
    """

    def __init__(self, num_steps: int, *, first: bool, normalize: bool, dtype: Any = "float32", **kwargs: Any) -> None:
        super().__init__(dtype=dtype, **kwargs)
        self.num_steps = num_steps
        self.first = first
        self.normalize = normalize

    def build(self, state_shape: tuple[int | None, ...]) -> None:
        """Creates `kernel` `(steps, [K,] D, D)`."""
        *types, width = state_shape[1:]
        self.kernel = None
        if self._num_matrices:
            shape = (self._num_matrices, *types, width, width)
            self.kernel = self.add_weight(name="kernel", shape=shape, initializer=_identities)
        self.built = True

    @property
    def _num_matrices(self) -> int:
        return self.num_steps if self.first else self.num_steps - 1

    def call(self, state: Tensor, step: int = 0) -> Tensor:
        """See the class."""
        if step == 0 and not self.first:
            return state
        kernel = ops.take(self.kernel, step if self.first else step - 1, axis=0)
        equation = "pd,de->pe" if len(state.shape) == 2 else "pkd,kde->pke"
        projected = ops.einsum(equation, ops.cast(state, "float32"), kernel)
        return l2_normalize(projected) if self.normalize else projected

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        options = {"num_steps": self.num_steps, "first": self.first, "normalize": self.normalize}
        return {**super().get_config(), **options}


def _identities(shape: tuple[int, ...], dtype: Any = None) -> Tensor:
    return ops.broadcast_to(ops.eye(shape[-1], dtype=dtype), shape)


__all__ = ["StepProjections"]
