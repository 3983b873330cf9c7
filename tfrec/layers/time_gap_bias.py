"""How long ago: time gaps as buckets, and a learned attention bias for each bucket."""

from typing import Any

import keras
from keras import ops

from tfrec.layers import Tensor

NUM_BUCKETS = 129
"""Buckets 0..128, as in HSTU; seconds in an int32 reach bucket 71."""
LOG_STEP = 0.301
"""Width of a bucket in natural logarithms of seconds: each is 1.35 times as long as the one before."""


def time_gap_buckets(query_time: Tensor, key_time: Tensor) -> Tensor:
    """Buckets `(B, L, L)` int32 of the gaps between queries (rows) and keys (columns), times `(B, L)` in seconds.

    floor(log(max(query - key, 1)) / 0.301), clamped to 0..128. Keys later than the query fall into bucket 0.
    """
    gap = ops.expand_dims(query_time, 2) - ops.expand_dims(key_time, 1)  # (B, L, L)
    logarithm = ops.log(ops.cast(ops.maximum(gap, 1), "float32"))
    return ops.cast(ops.clip(ops.floor(logarithm / LOG_STEP), 0, NUM_BUCKETS - 1), "int32")


class TimeGapBias(keras.layers.Layer):
    """A learned scalar for each bucket of the time between query and key, for each head.

    P[h, i, j] = table[bucket(t_query_i - t_key_j), h].

    Args:
        num_heads: int. Heads with a table of their own.

    Input: time_gap `(B, L, L)` int32, made once for all layers by `time_gap_buckets`.
    Output: `(B, H, L, L)`.

    Reference: Zhai et al., 2024, arXiv:2402.17152; Deng et al., 2025, arXiv:2503.01469, section 2.4.
    """

    def __init__(self, num_heads: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_heads = num_heads

    def build(self, time_gap_shape: Any = None) -> None:
        self.table = self.add_weight(
            name="table", shape=(NUM_BUCKETS, self.num_heads), initializer=keras.initializers.RandomNormal(stddev=0.02)
        )
        self.built = True

    def call(self, time_gap: Tensor) -> Tensor:
        bias = ops.take(self.table, time_gap, axis=0)  # (B, L, L, H)
        return ops.transpose(bias, (0, 3, 1, 2))  # (B, H, L, L)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "num_heads": self.num_heads}
