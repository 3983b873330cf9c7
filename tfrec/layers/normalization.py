"""Vectors of length one, for cosine similarities."""

from keras import ops

from tfrec.layers import Tensor


def l2_normalize(x: Tensor) -> Tensor:
    """Vectors of length 1 along the last axis, x / max(|x|, 1e-6), in float32; gradients are finite at 0."""
    x = ops.cast(x, "float32")
    return x * ops.rsqrt(ops.maximum(ops.sum(ops.square(x), axis=-1, keepdims=True), 1e-12))


__all__ = ["l2_normalize"]
