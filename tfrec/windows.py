"""Windows of histories as batches of arrays: NumPy alone, vectorised, and a pure function of seed, epoch and position.

Batches can be taken by index, so that a run that was interrupted goes on where it stopped without reading what came
before. What a batch holds:

- Training: L + 1 consecutive events of a user's training events. Those end before the first event of another split,
  so no window reaches validation or test events, whatever the split.
- Evaluation: one row a query, which is an event of that split and of a target type; the row holds the latest L of the
  events before it, whatever their split.

Rows are bucketed by length (8, 16, 32, ..., history_length), what is left of a bucket joins the next wider one, so an
epoch has one smaller batch at most. Training batches have as many positions each: more rows of short windows, fewer of
long ones, `batch_size` on average. So steps take equally long, and a position weighs the same in the loss whatever the
length of its window.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tfrec.columns import SPLITS, Histories
from tfrec.schema import Schema
from tfrec.transforms import FIRST_VALUE

Batch: TypeAlias = dict[str, NDArray[np.generic]]
SplitName = Literal["train", "validation", "test"]
WindowKind = Literal["last", "chunks", "random"]
Integers: TypeAlias = NDArray[np.int64]

_SHORTEST_BUCKET = 8
# Streams of random numbers that must not repeat each other: [seed, stream, epoch].
_SHUFFLE, _PLACE, _SAMPLE = 1, 2, 3


@dataclass(frozen=True)
class Rows:
    """Which events each row holds: `start` to `stop` (exclusive) of `user`; a query's target is the event `stop`."""

    user: Integers
    start: Integers
    stop: Integers

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: Integers) -> "Rows":
        """The rows at those positions."""
        return Rows(self.user[rows], self.start[rows], self.stop[rows])


def bucket_lengths(longest: int, *, shortest: int = _SHORTEST_BUCKET) -> list[int]:
    """The widths that batches come in: 8, 16, 32, ... (from `shortest` on) and the longest itself."""
    lengths = []
    while shortest < longest:
        lengths.append(shortest)
        shortest *= 2
    return [*lengths, longest]


class PlannedBatches:
    """Batches by index: each holds rows of like length.

    Args:
        lengths: `(R,)` int. Events of each row.
        widths: ascending. Events of batches; a row belongs to the narrowest that holds it.
        batch_size: rows a batch.
        even: batches of all widths have about as many positions, and `batch_size` rows on average.
        shuffle: mixes rows and batches; None = rows keep their order within a width.
    """

    def __init__(
        self,
        lengths: Integers,
        widths: Sequence[int],
        batch_size: int,
        *,
        even: bool,
        shuffle: np.random.Generator | None = None,
    ) -> None:
        order = np.arange(len(lengths))
        if shuffle is not None:
            shuffle.shuffle(order)
        sizes = _even_sizes(lengths, widths, batch_size) if even else [batch_size] * len(widths)
        self._plan = _plan(lengths, widths, sizes, order)
        if shuffle is not None:
            shuffle.shuffle(self._plan)

    def __len__(self) -> int:
        return len(self._plan)

    def __iter__(self) -> Iterator[Batch]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Batch:
        """The batch at that place of the epoch."""
        raise NotImplementedError

    def one_of_each_shape(self) -> list[int]:
        """Places of batches that differ in rows or width, one of each kind."""
        shapes = {self._shape(*planned): index for index, planned in reversed(list(enumerate(self._plan)))}
        return sorted(shapes.values())

    def _shape(self, rows: Integers, width: int) -> tuple[int, ...]:
        return len(rows), width


def _even_sizes(lengths: Integers, widths: Sequence[int], batch_size: int) -> list[int]:
    """Rows a batch of each width, so that all batches have about as many positions and `batch_size` rows on average."""
    if not len(lengths):
        return [batch_size] * len(widths)
    mean = float(np.array(widths)[np.searchsorted(widths, lengths)].mean())
    return [max(1, round(batch_size * mean / width)) for width in widths]


def _plan(
    lengths: Integers, widths: Sequence[int], sizes: Sequence[int], order: Integers
) -> list[tuple[Integers, int]]:
    """Cuts rows, taken in `order`, into batches of one width each; returns the rows and width of each."""
    bucket = np.searchsorted(widths, lengths)[order]
    plan: list[tuple[Integers, int]] = []
    left = order[:0]
    for number, width in enumerate(widths):
        rows = np.concatenate([left, order[bucket == number]])
        whole = len(rows) // sizes[number] * sizes[number]
        plan += [(chunk, width) for chunk in rows[:whole].reshape(-1, sizes[number])]
        left = rows[whole:]
    if len(left):
        plan.append((left, widths[int(np.searchsorted(widths, lengths[left].max()))]))
    return plan


class Batches(PlannedBatches):
    """The batches of one split, by index; the same seed and epoch give the same batches from either reader.

    Args:
        schema: the dataset's schema.
        histories: the dataset's histories.
        split: train, validation or test.
        history_length: events L that a model sees at most.
        batch_size: rows a batch; in training on average.
        windows: of a user with more than L + 1 training events: the last ones, all in consecutive chunks (every event
            but the first is a target once), or one window at a random place an epoch.
        seed: of the order and the random places.
        length_buckets: rows of like length make a training batch; else any `batch_size` rows, `history_length` wide.
        epoch: number of the pass.
        shuffle: mix the rows (training only; queries keep their order within a bucket).
        request_time: the history ends at the time of the query, not at that of its last event.
        max_queries: queries at most, a fixed sample by seed; None = all.
    """

    def __init__(
        self,
        schema: Schema,
        histories: Histories,
        split: SplitName,
        *,
        history_length: int,
        batch_size: int,
        windows: WindowKind = "last",
        seed: int = 0,
        epoch: int = 0,
        length_buckets: bool = True,
        shuffle: bool = True,
        request_time: bool = False,
        max_queries: int | None = None,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"`split` must be one of {', '.join(SPLITS)}. Received: split={split!r}.")
        if windows not in ("last", "chunks", "random"):
            raise ValueError(f"`windows` must be one of last, chunks, random. Received: windows={windows!r}.")
        if history_length < 1 or batch_size < 1:
            raise ValueError(
                "`history_length` and `batch_size` must be positive. "
                f"Received: history_length={history_length}, batch_size={batch_size}."
            )
        self.schema = schema
        self.histories = histories
        self.split = split
        self.request_time = request_time
        self._target_types = _target_types(schema)
        if split == "train":
            self.rows = _training_rows(histories, history_length, windows, stream(seed, _PLACE, epoch))
            self.rows = self.rows.take(np.flatnonzero(self._has_target(self.rows)))
            lengths = self.rows.stop - self.rows.start - 1  # the last event of a window is a target alone
        else:
            self.rows = self._query_rows(history_length, max_queries, stream(seed, _SAMPLE))
            lengths = self.rows.stop - self.rows.start
        super().__init__(
            lengths,
            bucket_lengths(history_length) if length_buckets or split != "train" else [history_length],
            batch_size,
            even=split == "train",
            shuffle=stream(seed, _SHUFFLE, epoch) if shuffle and split == "train" else None,
        )

    def __getitem__(self, index: int) -> Batch:
        """The batch at that place of the epoch."""
        chosen, width = self._plan[index]
        rows = self.rows.take(chosen)
        if self.split == "train":
            return self._training_batch(rows, width + 1)
        return self._query_batch(rows, width)

    def _training_batch(self, rows: Rows, width: int) -> Batch:
        batch, events, valid = gather_events(self.histories, rows, width)
        batch["target_mask"] = valid & self._is_target(events)  # (B, L + 1)
        return batch

    def _query_batch(self, rows: Rows, width: int) -> Batch:
        batch, _, _ = gather_events(self.histories, rows, width)
        columns = self.histories.columns
        batch["user"] = rows.user.astype(np.int32)
        batch["target"] = columns["item"][rows.stop]
        if self.schema.has_time:
            batch["target_time"] = columns["time"][rows.stop]
            last = columns["time"][np.maximum(rows.stop - 1, 0)]
            without_history = np.where(rows.stop > rows.start, last, 0)
            batch["request_time"] = batch["target_time"] if self.request_time else without_history
        batch["seen"] = self._seen(rows)
        return batch

    def _seen(self, rows: Rows) -> NDArray[np.int32]:
        starts = self.histories.offsets[rows.user]
        longest = int((rows.stop - starts).max(initial=1))
        width = max(_SHORTEST_BUCKET, 1 << (longest - 1).bit_length())  # few distinct shapes
        events, valid = _positions(starts, rows.stop, width)
        return self.histories.columns["item"][events] * valid

    def _is_target(self, events: Integers) -> NDArray[np.bool_]:
        if self._target_types is None:
            return np.ones(events.shape, bool)
        return self._target_types[self.histories.columns["event_type"][events]]

    def _has_target(self, rows: Rows) -> NDArray[np.bool_]:
        if self._target_types is None:
            return np.ones(len(rows), bool)
        wanted = self._target_types[self.histories.columns["event_type"]]
        before = np.concatenate([[0], np.cumsum(wanted)])  # target events before each place
        return before[rows.stop] > before[rows.start + 1]

    def _query_rows(self, history_length: int, max_queries: int | None, rng: np.random.Generator) -> Rows:
        targets = np.flatnonzero(self.histories.columns["split"] == SPLITS[self.split])
        targets = targets[self._is_target(targets)]
        if max_queries is not None and max_queries < len(targets):
            targets = np.sort(rng.choice(targets, max_queries, replace=False))
        offsets = self.histories.offsets
        users = np.searchsorted(offsets, targets, side="right") - 1
        return Rows(users, np.maximum(targets - history_length, offsets[users]), targets)


def gather_events(histories: Histories, rows: Rows, width: int) -> tuple[Batch, Integers, NDArray[np.bool_]]:
    """The rows' events and users as arrays `(B, width, ...)`; the places of the events, and which of them are real."""
    events, valid = _positions(rows.start, rows.stop, width)
    batch: Batch = {}
    for name, column in histories.columns.items():
        if name == "split":
            continue
        values = column[events]  # (B, L) or (B, L, M)
        if name == "session":  # numbered from 1 in the window; ids of a log's own may interleave
            first = np.where(valid, values, np.iinfo(np.int32).max).min(axis=1, keepdims=True)
            values = values - first + 1
        if values.ndim == 3:
            values = values[..., 0] * valid if values.shape[2] == 1 else values * valid[..., None]
        else:
            values = values * valid
        batch[name] = values
    for name, codes in histories.user.items():
        values = codes[rows.user]
        batch[f"user_{name}"] = values[:, 0] if values.shape[1] == 1 else values
    return batch, events, valid


def _training_rows(histories: Histories, history_length: int, windows: WindowKind, rng: np.random.Generator) -> Rows:
    offsets, stops = histories.offsets[:-1], histories.training_stops
    users = np.flatnonzero(stops - offsets >= 2)  # one event to see and one to predict
    first, stop = offsets[users], stops[users]
    width = history_length + 1
    if windows == "last":
        return Rows(users, np.maximum(first, stop - width), stop)
    if windows == "random":
        spare = np.maximum(stop - first - width, 0)
        start = first + rng.integers(0, spare + 1)
        return Rows(users, start, np.minimum(start + width, stop))
    chunks = -(-(stop - first - 1) // history_length)  # every event but the first is a target once
    row_user = np.repeat(np.arange(len(users)), chunks)
    number = np.arange(len(row_user)) - np.repeat(np.cumsum(chunks) - chunks, chunks)  # 0 = the latest chunk
    row_stop = stop[row_user] - number * history_length
    return Rows(users[row_user], np.maximum(first[row_user], row_stop - width), row_stop)


def _positions(start: Integers, stop: Integers, width: int) -> tuple[Integers, NDArray[np.bool_]]:
    """Places `(B, width)` of the events start to stop, and which of them are real; the others repeat the first."""
    events = start[:, None] + np.arange(width)
    valid = events < stop[:, None]
    return np.where(valid, events, start[:, None]), valid


def target_counts(schema: Schema, histories: Histories) -> NDArray[np.int64]:
    """How often each item is a training event of a type that is predicted, `(V,)`; 0 for padding and unknown."""
    columns, wanted = histories.columns, _target_types(schema)
    chosen = (columns["split"] == SPLITS["train"]) & (columns["item"] >= FIRST_VALUE)
    if wanted is not None:
        chosen &= wanted[columns["event_type"]]
    return np.bincount(columns["item"][chosen], minlength=schema.num_items).astype(np.int64)


def target_events(schema: Schema, histories: Histories) -> NDArray[np.bool_]:
    """The events that a model may learn to predict, `(E,)`: of the training split and of a target type."""
    training: NDArray[np.bool_] = histories.columns["split"] == SPLITS["train"]
    types = _target_types(schema)
    return training if types is None else training & types[histories.columns["event_type"]]


def _target_types(schema: Schema) -> NDArray[np.bool_] | None:
    """Which event type codes are predicted; None = all."""
    if not schema.event_types or schema.target_event_types is None:
        return None
    wanted = [FIRST_VALUE + schema.event_types.index(name) for name in schema.target_event_types]
    table = np.zeros(FIRST_VALUE + len(schema.event_types), bool)
    table[wanted] = True
    return table


def stream(seed: int, *purpose: int) -> np.random.Generator:
    """Random numbers of one purpose, which are those of no other."""
    return np.random.default_rng([seed, *purpose])
