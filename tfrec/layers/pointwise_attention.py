"""HSTU's attention: SiLU in place of a softmax, of histories to themselves and of candidates to histories."""

from keras import ops

from tfrec.layers import Tensor


def pointwise_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    weight: Tensor,
    *,
    num_heads: int,
    length: int,
    scale: float = 1.0,
    bias: Tensor | None = None,
) -> Tensor:
    """A V with A = SiLU(scale Q K^T + bias) / length * weight, head by head.

    Args:
        q: `(B, I, H * d)`.
        k: `(B, J, H * d)`.
        v: `(B, J, H * e)`.
        weight: `(B or 1, I, J)` bool or float. What each query sees of each key, the same for all heads.
        num_heads: int. H.
        length: int. The constant that replaces the softmax's denominator.
        scale: float. Of the products. Defaults to 1.
        bias: `(B or 1, 1 or H, I, J)` or None. Added to the products.

    Returns:
        `(B, I, H * e)`.
    """
    scores = ops.matmul(_heads(q * scale, num_heads), ops.swapaxes(_heads(k, num_heads), 2, 3))  # (B, H, I, J)
    if bias is not None:
        scores = scores + ops.cast(bias, scores.dtype)
    attention = ops.silu(scores) * ops.expand_dims(ops.cast(weight, scores.dtype), 1)
    mixed = ops.matmul(attention, _heads(v / length, num_heads))  # (B, H, I, e)
    return ops.reshape(ops.swapaxes(mixed, 1, 2), (-1, ops.shape(q)[1], v.shape[-1]))


def own_attention(
    q: Tensor, k: Tensor, v: Tensor, *, num_heads: int, length: int, scale: float = 1.0, bias: Tensor | float = 0.0
) -> Tensor:
    """What each token takes from itself, SiLU(scale q . k + bias) / length v; as above with J = I and a scalar bias."""
    per_head = (-1, ops.shape(q)[1], num_heads, q.shape[-1] // num_heads)
    score = ops.sum(ops.reshape(q * k * scale, per_head), axis=-1, keepdims=True) + bias  # (B, I, H, 1)
    values = ops.reshape(v / length, (*per_head[:3], v.shape[-1] // num_heads))
    return ops.reshape(ops.silu(score) * values, ops.shape(v))


def gather_places(x: Tensor, place: Tensor) -> Tensor:
    """Rows of `(B, L, D)` at places `(B, C, P)`, `(B * C, P, D)`."""
    length, width = ops.shape(x)[1], x.shape[-1]
    start = ops.arange(ops.shape(place)[0], dtype="int32")[:, None, None] * length
    flat = ops.reshape(x, (-1, width))
    return ops.take(flat, ops.reshape(place + start, (-1, ops.shape(place)[2])), axis=0)


def _heads(x: Tensor, num_heads: int) -> Tensor:
    per_head = (-1, ops.shape(x)[1], num_heads, x.shape[-1] // num_heads)
    return ops.swapaxes(ops.reshape(x, per_head), 1, 2)  # (B, H, L, d)


__all__ = ["gather_places", "own_attention", "pointwise_attention"]
