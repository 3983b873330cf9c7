"""Where events and candidates stand, and when, as vectors."""

import math
from typing import Any

import keras
from keras import ops

from tfrec.layers import Tensor

KINDS = ("backward", "shared", "time_aware")


class CandidatePositions(keras.layers.Layer):
    """Learned embeddings of the places, and of the times, of a history and its candidates.

    An event j = 0, 1, ... of which a candidate c sees the first n_c has the place
    `backward`: max(n) - j, and every candidate 0 (HSTU's: the history counted from its end);
    `shared`: j + 1, and every candidate 0;
    `time_aware`: j + 1, and candidate c 1 + n_c (HPGR's equation 4: c takes its place in the order of time; the events
    after it would move on by one, but are not seen by it, so that one history serves all candidates).

    Times are floor(sqrt(minutes)): with `backward` from an event to the latest candidate, else from the event before,
    for candidates from the last event that they see; the first event has 0. Places and times beyond the tables have
    the last row. With `backward` an event knows how many events and how much time come after it.

    Args:
        kind: str. `"backward"`, `"shared"` or `"time_aware"`.
        num_positions: int. Rows of the table of places.
        num_time_buckets: int. Rows of the table of times; 0 = times are not embedded. Defaults to 0.

    Input: x `(B, L, D)`; candidate `(B, C, D)`; candidate_history `(B, C)` int, n; time `(B, L)`, candidate_time
    `(B, C)` int, seconds, where there are time buckets. Candidates that are padding have 0 of both.
    Output: dict with `history` `(B or 1, L, D)` and `candidate` `(B, C, D)`, to be added.

    Reference: HPGR, equation 4; the public code of Zhai et al., 2024, arXiv:2402.17152.
    """

    def __init__(self, kind: str, num_positions: int, num_time_buckets: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if kind not in KINDS:
            raise ValueError(f"`kind` must be one of {', '.join(KINDS)}. Received: kind={kind!r}.")
        if num_positions < 2:
            raise ValueError(f"`num_positions` must be at least 2. Received: num_positions={num_positions}.")
        if num_time_buckets < 0:
            raise ValueError(f"`num_time_buckets` must not be negative. Received: num_time_buckets={num_time_buckets}.")
        self.kind = kind
        self.num_positions = num_positions
        self.num_time_buckets = num_time_buckets

    def build(self, x_shape: Any, candidate_shape: Any = None) -> None:
        def table(name: str, rows: int) -> Any:
            bound = math.sqrt(1 / rows)
            initializer = keras.initializers.RandomUniform(-bound, bound)
            return self.add_weight(name=name, shape=(rows, x_shape[-1]), initializer=initializer)

        self.position_table = table("position_table", self.num_positions)
        self.time_table = table("time_table", self.num_time_buckets) if self.num_time_buckets else None
        self.from_the_end = self.kind == "backward"
        self.in_order_of_time = self.kind == "time_aware"
        self.built = True

    def call(
        self,
        x: Tensor,
        candidate: Tensor,
        candidate_history: Tensor,
        time: Tensor | None = None,
        candidate_time: Tensor | None = None,
    ) -> dict[str, Tensor]:
        place = ops.arange(ops.shape(x)[1], dtype="int32")[None]
        before = ops.cast(candidate_history, "int32")
        place = ops.max(before, axis=1, keepdims=True) - place if self.from_the_end else place + 1
        own = before + 1 if self.in_order_of_time else ops.zeros_like(before)
        outputs = {"history": self._places(place), "candidate": self._places(own)}
        if self.time_table is None:
            return outputs
        ages = self._ages(before, ops.cast(time, "int32"), ops.cast(candidate_time, "int32"))
        return {key: value + self._times(ages[key]) for key, value in outputs.items()}

    def _ages(self, before: Tensor, time: Tensor, candidate_time: Tensor) -> dict[str, Tensor]:
        """Seconds, `(B, L)` and `(B, C)`."""
        if self.from_the_end:
            latest = ops.max(candidate_time, axis=1, keepdims=True)
            return {"history": latest - time, "candidate": latest - candidate_time}
        previous = ops.concatenate([time[:, :1], time[:, :-1]], axis=1)
        last = ops.take_along_axis(time, ops.maximum(before - 1, 0), axis=1)
        last = ops.where(before > 0, last, candidate_time)
        return {"history": time - previous, "candidate": candidate_time - last}

    def _places(self, place: Tensor) -> Tensor:
        return ops.take(self.position_table, ops.clip(place, 0, self.num_positions - 1), axis=0)

    def _times(self, seconds: Tensor) -> Tensor:
        root = ops.sqrt(ops.cast(ops.maximum(seconds, 0), "float32") / 60)
        index = ops.cast(ops.minimum(ops.floor(root), self.num_time_buckets - 1), "int32")
        return ops.take(self.time_table, index, axis=0)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "kind": self.kind,
            "num_positions": self.num_positions,
            "num_time_buckets": self.num_time_buckets,
        }
