"""HTFL: a history of items as a sequence of their tokens."""

from typing import Any

import keras
from keras import ops

from tfrec.layers import Tensor
from tfrec.layers.position_embedding import PositionEmbedding


class HeterogeneousTokenFlatten(keras.layers.Layer):
    """Lays the tokens of a history's items one after the other, item-major, in the order of time.

    h[t * K + k] = sqrt(D) * (token_k(item_t) + event_t) + position_t. A prefix (the user) becomes an item before the
    first whose tokens but the first are zeros; `token_mask` says which tokens are real.

    Args:
        position_length: int. Places that have a learned embedding, added to all tokens of the item there; 0 = none.

    Input: tokens `(B, L, K, D)`; event `(B, L, D)` or None; prefix `(B, 1, D)` or None.
    Output: `(B, L * K, D)`; with a prefix `(B, (1 + L) * K, D)`.

    Reference: Deng et al., 2025, arXiv:2503.01469, section 2.3.
    Differs from the paper: the factor sqrt(D), positions, events and the prefix, of which it says nothing.
    """

    def __init__(self, position_length: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if position_length < 0:
            raise ValueError(f"`position_length` must be at least 0. Received: position_length={position_length}.")
        self.position_length = position_length

    def build(self, tokens_shape: Any, event_shape: Any = None, prefix_shape: Any = None) -> None:
        *_, num_tokens, width = tokens_shape
        if self.position_length:
            # K tokens carry the position and are later summed: as strong as in SASRec after a sum of K
            self.position = PositionEmbedding(
                self.position_length, stddev=(num_tokens * width) ** -0.5, dtype=self.dtype_policy, name="position"
            )
            self.position.build((None, None, width))
        self.built = True

    def call(self, tokens: Tensor, event: Tensor | None = None, prefix: Tensor | None = None) -> Tensor:
        num_tokens, width = tokens.shape[-2:]
        x = tokens if event is None else tokens + event[:, :, None]
        x = x * width**0.5
        if self.position_length:
            x = x + self.position(x[:, :, 0])[None, :, None]
        x = ops.reshape(x, (-1, ops.shape(x)[1] * num_tokens, width))  # (B, L * K, D)
        if prefix is None:
            return x
        first = ops.pad(prefix * width**0.5, ((0, 0), (0, num_tokens - 1), (0, 0)))  # (B, K, D)
        return ops.concatenate([first, x], axis=1)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "position_length": self.position_length}


def token_mask(valid_mask: Tensor, num_tokens: int, *, has_prefix: bool = False) -> Tensor:
    """Which of the flattened tokens are real, `(B, T)` bool, from valid events `(B, L)`; of a prefix the first is."""
    mask = ops.repeat(valid_mask, num_tokens, axis=1)
    if not has_prefix:
        return mask
    first = ops.arange(num_tokens) == 0
    return ops.concatenate([ops.broadcast_to(first[None], (ops.shape(mask)[0], num_tokens)), mask], axis=1)
