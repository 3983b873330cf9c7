"""How far apart and how long ago: one attention bias for events and candidates, wherever they stand."""

from typing import Any

import keras
from keras import ops

from tfrec.layers import Tensor
from tfrec.layers.time_gap_bias import TimeGapBias, time_gap_buckets


class RelativeBias(keras.layers.Layer):
    """A learned scalar for each distance between two places, and for each bucket of the time between them.

    P[i, j] = w[min(max(place_i - place_j, 0), max_distance)] + w_t[bucket(t_i - t_j)]; a key that is later than its
    query has the biases of distance and gap 0.

    Args:
        max_distance: int. Places further apart share a scalar.
        time_bias: bool. Whether P has its second term; `call` then needs times. Defaults to True.

    Input: query_place `(B or 1, I)`, key_place `(B or 1, J)` int; query_time `(B, I)`, key_time `(B, J)` int, seconds.
    Output: `(B or 1, 1, I, J)`.

    Reference: Zhai et al., 2024, arXiv:2402.17152; one table for all blocks instead of one each.
    """

    def __init__(self, max_distance: int, *, time_bias: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if max_distance < 1:
            raise ValueError(f"`max_distance` must be at least 1. Received: max_distance={max_distance}.")
        self.max_distance = max_distance
        self.time_bias = time_bias

    def build(self, query_place_shape: Any = None) -> None:
        self.distance_table = self.add_weight(
            name="distance_table",
            shape=(self.max_distance + 1,),
            initializer=keras.initializers.RandomNormal(stddev=0.02),
        )
        if self.time_bias:
            self.gap_bias = TimeGapBias(1, dtype=self.dtype_policy, name="gap_bias")
            self.gap_bias.build()
        self.built = True

    def call(
        self,
        query_place: Tensor,
        key_place: Tensor,
        query_time: Tensor | None = None,
        key_time: Tensor | None = None,
    ) -> Tensor:
        distance = ops.expand_dims(query_place, 2) - ops.expand_dims(key_place, 1)  # (B, I, J)
        index = ops.clip(ops.cast(distance, "int32"), 0, self.max_distance)
        bias = ops.expand_dims(ops.take(self.distance_table, index, axis=0), 1)
        return bias + self.gap_bias(time_gap_buckets(query_time, key_time)) if self.time_bias else bias

    def own(self) -> Tensor:
        """P of a place to itself, a scalar."""
        bias = ops.convert_to_tensor(self.distance_table)[0]
        return bias + ops.convert_to_tensor(self.gap_bias.table)[0, 0] if self.time_bias else bias

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "max_distance": self.max_distance, "time_bias": self.time_bias}
