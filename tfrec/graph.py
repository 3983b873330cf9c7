"""Raw histories to a model's batch, as TensorFlow ops: what an exported model does first.

Importing this module imports TensorFlow.
"""

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tfrec.coders import CounterCoder, SideCoder, VocabularyCoder
from tfrec.schema import WEIGHTS, Schema
from tfrec.transforms import FIRST_VALUE, PADDING, UNKNOWN

Tensor = Any
_LATEST = np.iinfo(np.int32).max  # seconds after time_origin that a batch can hold


class HistoryEncoder(tf.Module):
    """Raw histories to the batch that a model's `encode_users` takes, and to the items that were seen.

    Positions at or past `history_length` and empty ids are ignored; events are put in the order of their times
    (equal times keep their order); the last `length` of them make the batch, right-padded with 0. Times are cut to
    the range from `time_origin` to 68 years later, all that a batch can hold.

    Args:
        schema: of the dataset.
        directory: of the dataset.
        items: the coder of item ids.
        length: of the model's histories (L).
        request_time: whether a request says when it is made.
        until_request: whether events after that time are ignored like positions past the length.
        item_codes: `(num_items, columns)`, by `Schema.item_columns`; what counters tell items apart by. Where there is
            none they are not needed.
    """

    def __init__(
        self,
        schema: Schema,
        directory: Path,
        items: VocabularyCoder,
        *,
        length: int,
        request_time: bool,
        until_request: bool = False,
        item_codes: NDArray[np.int32] | None = None,
    ) -> None:
        super().__init__()
        self.schema = schema
        self.length = length
        self.request_time = request_time
        self.until_request = until_request
        self.items = items
        self.events = SideCoder(schema.side("event"), directory, "event_")
        self.users = SideCoder(schema.side("user"), directory, "user_")
        self.counters = _counter_coders(schema, item_codes)
        self.event_types = None
        if schema.event_types:
            codes = np.arange(len(schema.event_types), dtype=np.int32) + FIRST_VALUE
            known = tf.lookup.KeyValueTensorInitializer(list(schema.event_types), codes, tf.string, tf.int32)
            self.event_types = tf.lookup.StaticHashTable(known, UNKNOWN)

    def signature(self) -> dict[str, tf.TensorSpec]:
        """The raw inputs by name: those that the schema has."""
        specs = {
            "history_item_ids": tf.TensorSpec([None, None], tf.string, "history_item_ids"),
            "history_length": tf.TensorSpec([None], tf.int32, "history_length"),
        }
        if self.schema.has_time:
            specs["history_times"] = tf.TensorSpec([None, None], tf.int64, "history_times")
            if self.request_time:
                specs["request_time"] = tf.TensorSpec([None], tf.int64, "request_time")
        if self.event_types is not None:
            specs["history_event_types"] = tf.TensorSpec([None, None], tf.string, "history_event_types")
        if self.sessions_are_given:
            specs["history_sessions"] = tf.TensorSpec([None, None], tf.string, "history_sessions")
        return specs | self.events.signature(events=True) | self.users.signature()

    @property
    def sessions_are_given(self) -> bool:
        """Whether requests carry session ids, because the log had its own (no gap of inactivity made them)."""
        return self.schema.has_sessions and self.schema.session_gap_seconds is None

    def __call__(self, inputs: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """The batch `(B, L)`, and the codes of every real event's item `(B, T + 1)`, 0 elsewhere."""
        # One column of padding, so that a request without any history has something to gather.
        with tf.control_dependencies(_like_the_items(inputs)):
            ids = tf.pad(inputs["history_item_ids"], [[0, 0], [0, 1]], constant_values="")
        width = tf.shape(ids)[1]
        valid = (tf.range(width) < inputs["history_length"][:, None]) & (ids != "")
        if self.until_request:
            times = tf.pad(inputs["history_times"], [[0, 0], [0, 1]])
            valid &= times <= inputs["request_time"][:, None]
        seen = tf.where(valid, self.items(ids), PADDING)
        order = self._order(inputs, valid)
        chosen, real = self._window(order, valid)

        def pick(values: Tensor) -> Tensor:
            padding = [[0, 0], [0, 1]] + [[0, 0]] * (values.shape.rank - 2)
            return tf.gather(tf.pad(values, padding), chosen, batch_dims=1)

        batch = {"item": tf.where(real, tf.gather(seen, chosen, batch_dims=1), PADDING)}
        if self.schema.has_time:
            batch["time"] = tf.where(real, self._since_origin(pick(inputs["history_times"])), 0)
            last = tf.reduce_max(batch["time"], axis=1)
            batch["request_time"] = self._since_origin(inputs["request_time"]) if self.request_time else last
        if self.event_types is not None:
            types = self.event_types.lookup(pick(inputs["history_event_types"]))
            batch["event_type"] = tf.where(real, types, PADDING)
        if self.schema.has_sessions:
            batch["session"] = tf.where(real, self._sessions(batch, inputs, pick), PADDING)
        batch |= self._event_features(inputs, pick, real)
        for name, codes in self._counts(inputs, seen, order).items():
            batch[f"event_{name}"] = tf.where(real, tf.gather(codes, chosen, batch_dims=1), PADDING)
        for name, values in batch.items():
            per_event = name != "request_time"
            batch[name] = tf.ensure_shape(values, [None, self.length, *values.shape[2:]]) if per_event else values
        return batch | self._user_features(inputs), seen

    def _event_features(self, inputs: dict[str, Tensor], pick: Any, real: Tensor) -> dict[str, Tensor]:
        """Codes and weights `(B, L)` or `(B, L, M)` of what the request says of events."""
        events = {name: pick(inputs[name]) for name in self.events.signature()}
        found = {name: tf.where(real[..., None], codes, PADDING) for name, codes in self.events(events).items()}
        for name in self.events.weighted:
            found[name + WEIGHTS] = tf.where(real[..., None], self.events.weights(events, name), 0.0)
        return {f"event_{name}": _one_column(values) for name, values in found.items()}

    def _user_features(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Codes and weights `(B,)` or `(B, M)` of what the request says of users."""
        found = self.users(inputs)
        found |= {name + WEIGHTS: self.users.weights(inputs, name) for name in self.users.weighted}
        return {f"user_{name}": _one_column(values) for name, values in found.items()}

    def _order(self, inputs: dict[str, Tensor], valid: Tensor) -> Tensor:
        """Positions `(B, T + 1)` in the order of time, those without an event last."""
        if not self.schema.has_time:
            return tf.argsort(tf.cast(~valid, tf.int32), axis=1, stable=True)
        times = tf.pad(tf.minimum(inputs["history_times"], tf.int64.max - 1), [[0, 0], [0, 1]])
        return tf.argsort(tf.where(valid, times, tf.int64.max), axis=1, stable=True)

    def _window(self, order: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Positions `(B, L)` of the last L real events in the order of time, and which of them are real."""
        count = tf.reduce_sum(tf.cast(valid, tf.int32), axis=1, keepdims=True)
        place = tf.maximum(count - self.length, 0) + tf.range(self.length)  # (B, L)
        chosen = tf.gather(order, tf.minimum(place, tf.shape(valid)[1] - 1), batch_dims=1)
        return chosen, place < count

    def _counts(self, inputs: dict[str, Tensor], seen: Tensor, order: Tensor) -> dict[str, Tensor]:
        """Codes `(B, T + 1)` of each counter, counted over the whole history, by position."""
        if not self.counters:
            return {}

        def in_order(values: Tensor) -> Tensor:
            return tf.gather(values, order, batch_dims=1)

        seconds, types = None, None
        if self.schema.has_time:
            seconds = in_order(self._since_origin(tf.pad(inputs["history_times"], [[0, 0], [0, 1]])))
        if self.event_types is not None:
            types = in_order(self.event_types.lookup(tf.pad(inputs["history_event_types"], [[0, 0], [0, 1]])))
        places = tf.argsort(order, axis=1)
        items = in_order(seen)
        return {
            name: tf.gather(coder(items, seconds, types), places, batch_dims=1) for name, coder in self.counters.items()
        }

    def _since_origin(self, times: Tensor) -> Tensor:
        origin = self.schema.time_origin
        return tf.cast(tf.clip_by_value(times, origin, origin + _LATEST) - origin, tf.int32)

    def _sessions(self, batch: dict[str, Tensor], inputs: dict[str, Tensor], pick: Any) -> Tensor:
        """Sessions `(B, L)` numbered from 1 in the window."""
        if self.sessions_are_given:
            ids = pick(inputs["history_sessions"])
            begins = ids[:, 1:] != ids[:, :-1]
        else:
            begins = batch["time"][:, 1:] - batch["time"][:, :-1] > self.schema.session_gap_seconds
        return tf.pad(tf.cumsum(tf.cast(begins, tf.int32), axis=1), [[0, 0], [1, 0]]) + 1


def _counter_coders(schema: Schema, item_codes: NDArray[np.int32] | None) -> dict[str, CounterCoder]:
    coders = {}
    for name, counter in schema.counters().items():
        codes = None
        if counter.of != "user":
            assert item_codes is not None, "Whoever exports a model with counters gives the codes of its items."
            codes = item_codes[:, schema.item_columns()[counter.of].start]
        coders[name] = CounterCoder(counter, schema.counted_types(counter), codes)
    return coders


def _like_the_items(inputs: dict[str, Tensor]) -> list[Any]:
    """Refuses a request whose other inputs have not the rows, or the events, of its items; names the input."""
    shape = tf.shape(inputs["history_item_ids"])
    checks = []
    for name, values in inputs.items():
        axes = 2 if name != "history_length" and name.startswith(("history_", "event_")) else 1
        rule = f"{name}: must have as many {'rows and events' if axes == 2 else 'rows'} as history_item_ids."
        checks.append(tf.debugging.assert_equal(tf.shape(values)[:axes], shape[:axes], rule))
    return checks


def _one_column(codes: Tensor) -> Tensor:
    """Codes without their last axis where they have one column, as batches hold them."""
    return codes[..., 0] if codes.shape[-1] == 1 else codes
