"""When an event took place, as a vector."""

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from tfrec.layers import Tensor

PERIODS = (3600, 86_400, 604_800, 2_419_200, 31_536_000)
"""Seconds of an hour, a day, a week, four weeks and a year."""


class TimeEncoding(keras.layers.Layer):
    """A linear map of the phases of an event's time, and of the time since the event before.

    W [sin(2 pi t / p), cos(2 pi t / p) for each period p, log(1 + t - t of the event before)] + b.

    Args:
        embedding_dim: int. Width D.
        periods: sequence of int. Seconds. Defaults to `PERIODS`.

    Input: time `(B, L)` int, seconds in the order of events; valid_mask `(B, L)` bool, True = real.
    Output: `(B, L, D)`; zeros where not valid.

    Reference: the timestamp features of Pancha et al., 2022, arXiv:2205.04507 (PinnerFormer).
    """

    def __init__(self, embedding_dim: int, periods: Sequence[int] = PERIODS, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not periods or min(periods) < 1:
            raise ValueError(f"`periods` must be positive numbers of seconds. Received: periods={periods}.")
        self.embedding_dim = embedding_dim
        self.periods = tuple(periods)

    def build(self, time_shape: Any = None) -> None:
        self.projection = keras.layers.Dense(self.embedding_dim, dtype=self.dtype_policy, name="projection")
        self.projection.build((None, 2 * len(self.periods) + 1))
        self.built = True

    def call(self, time: Tensor, valid_mask: Tensor) -> Tensor:
        time = ops.cast(time, "int32")
        before = ops.concatenate([time[:, :1], time[:, :-1]], axis=1)
        waves = []
        for period in self.periods:
            phase = ops.cast(time % period, "float32") * (2 * math.pi / period)  # exact in integers before the cast
            waves += [ops.sin(phase), ops.cos(phase)]
        gap = ops.log1p(ops.cast(ops.maximum(time - before, 0), "float32"))
        features = ops.cast(ops.stack([*waves, gap], axis=-1), self.compute_dtype)  # (B, L, 2 P + 1)
        return self.projection(features) * ops.cast(valid_mask, self.compute_dtype)[..., None]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "embedding_dim": self.embedding_dim, "periods": self.periods}
