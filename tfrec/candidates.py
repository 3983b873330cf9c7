"""Impressions as batches for ranking models: rows of events with the candidates that were shown behind them.

A row is one request (`group="request"`: the impressions of one request that stand behind the same events; in a log
without requests those of one moment) or a part of one user's impressions (`group="user"`), at most `max_candidates`
each. In evaluation, as in serving, every candidate sees exactly its latest L events, so a user's candidates share a
row there only as far as they see the same events or L holds all of them. In training a row of a user ends with the
events before its latest candidate, and the earliest one still sees half of L, where it has as many before it.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tfrec.columns import SPLITS, Histories, Impressions
from tfrec.schema import Schema
from tfrec.windows import (
    Batch,
    Integers,
    PlannedBatches,
    Rows,
    SplitName,
    bucket_lengths,
    gather_events,
    stream,
    target_events,
)

Group = Literal["request", "user"]

_SHUFFLE, _SAMPLE = 5, 6  # streams of random numbers; 1 to 4 are those of windows and training
_LABEL = "label_"


@dataclass(frozen=True)
class CandidateRows:
    """Which events and which impressions each row holds."""

    events: Rows
    first: Integers
    """Each row's first place in `shown`, `(R,)`."""
    count: Integers
    """Its impressions, `(R,)`."""
    shown: Integers
    """The impressions, row after row, `(I,)`."""

    def take(self, rows: Integers) -> "CandidateRows":
        """The rows at those positions."""
        return CandidateRows(self.events.take(rows), self.first[rows], self.count[rows], self.shown)


class CandidateBatches(PlannedBatches):
    """The batches of one split's impressions, by index; the same seed and epoch give the same batches.

    Args:
        schema: the dataset's schema.
        histories: the dataset's histories, with impressions.
        split: train, validation or test: of the impressions.
        history_length: events L that a model sees at most.
        batch_size: rows a batch; in training on average.
        group: what a row is.
        max_candidates: candidates of a row at most.
        seed: of the order.
        length_buckets: rows of like length make a training batch; else any `batch_size` rows, `history_length` wide.
        epoch: number of the pass.
        max_rows: rows at most, a fixed sample by seed; None = all.
    """

    def __init__(
        self,
        schema: Schema,
        histories: Histories,
        split: SplitName,
        *,
        history_length: int,
        batch_size: int,
        group: Group = "request",
        max_candidates: int = 64,
        seed: int = 0,
        length_buckets: bool = True,
        epoch: int = 0,
        max_rows: int | None = None,
    ) -> None:
        assert histories.impressions is not None, "A ranking model's dataset has impressions."
        training = split == "train"
        self.schema = schema
        self.histories = histories
        self.split = split
        self.impressions: Impressions = histories.impressions
        self.rows = _rows(histories, self.impressions, split, history_length, group, max_candidates)
        self._widths = bucket_lengths(max_candidates, shortest=1)
        self._first_position = _first_position(self.impressions)
        self._is_target = target_events(schema, histories) if training else None
        if max_rows is not None and max_rows < len(self.rows.first):
            chosen = stream(seed, _SAMPLE).choice(len(self.rows.first), max_rows, replace=False)
            self.rows = self.rows.take(np.sort(chosen))
        super().__init__(
            self.rows.events.stop - self.rows.events.start,
            bucket_lengths(history_length) if length_buckets or not training else [history_length],
            batch_size,
            even=training,
            shuffle=stream(seed, _SHUFFLE, epoch) if training else None,
        )

    def __getitem__(self, index: int) -> Batch:
        """The batch at that place of the epoch."""
        chosen, width = self._plan[index]
        rows = self.rows.take(chosen)
        batch, events, valid = gather_events(self.histories, rows.events, width)
        batch = {name: values for name, values in batch.items() if not name.startswith(_LABEL)}
        place = np.arange(self._width(chosen))
        real = place < rows.count[:, None]
        shown = rows.shown[np.where(real, rows.first[:, None] + place, rows.first[:, None])]  # (B, C)
        batch |= self._candidates(shown, real, rows.events)
        if self._is_target is not None:
            batch["target_mask"] = valid & self._is_target[events]
        else:
            batch["user"] = rows.events.user.astype(np.int32)
            batch["impression"] = np.where(real, shown, -1)
        return batch

    def _candidates(self, shown: Integers, real: NDArray[np.bool_], events: Rows) -> Batch:
        columns = self.impressions.columns
        skipped = (events.start - self.histories.offsets[events.user])[:, None]
        batch: Batch = {
            "candidate": columns["item"][shown] * real,
            "candidate_history": (np.maximum(columns["history"][shown] - skipped, 0) * real).astype(np.int32),
            "candidate_weight": (columns["weight"][shown] * real if "weight" in columns else real).astype(np.float32),
        }
        if "time" in columns:
            batch["candidate_time"] = columns["time"][shown] * real
        if "position" in columns:
            position = np.maximum(columns["position"][shown] - self._first_position + 1, 0)
            batch["candidate_position"] = (position * real).astype(np.int32)
        for name, values in columns.items():
            if name.startswith(_LABEL):
                batch[f"candidate_{name}"] = (values[shown] * real).astype(np.float32)
        return batch

    def _width(self, rows: Integers) -> int:
        most = int(self.rows.count[rows].max(initial=1))
        return self._widths[int(np.searchsorted(self._widths, most))]

    def _shape(self, rows: Integers, width: int) -> tuple[int, ...]:
        return (*super()._shape(rows, width), self._width(rows))


def _rows(
    histories: Histories,
    impressions: Impressions,
    split: SplitName,
    history_length: int,
    group: Group,
    max_candidates: int,
) -> CandidateRows:
    columns = impressions.columns
    chosen = np.flatnonzero(columns["split"] == SPLITS[split])
    user = np.searchsorted(impressions.offsets, chosen, side="right") - 1
    before = columns["history"][chosen].astype(np.int64)
    if group == "request":
        keys = [before, *_moments(columns, chosen)]
    else:
        longest: Integers = np.zeros(histories.num_users, np.int64)
        np.maximum.at(longest, user, before)
        apart = before if split != "train" else before // max(history_length // 2, 1) + 1
        fits = before <= history_length if split != "train" else longest[user] <= history_length
        keys = [np.where(fits, 0, apart)]
    order = np.lexsort((chosen, before, *keys, user))
    new = np.zeros(len(order), bool)
    new[:1] = True
    for key in (user, *keys):
        new[1:] |= key[order][1:] != key[order][:-1]
    place = np.arange(len(order)) - _at_last(new)
    first = np.flatnonzero(place % max_candidates == 0)  # a group begins with place 0
    last = np.append(first[1:], len(order)) - 1
    owner = user[order][first]
    stop = histories.offsets[owner] + before[order][last]
    start = np.maximum(stop - history_length, histories.offsets[owner])
    return CandidateRows(Rows(owner, start, stop), first, last - first + 1, chosen[order])


def _moments(columns: dict[str, NDArray[np.int32]], chosen: Integers) -> list[Integers]:
    """What tells requests apart: their numbers, and where there are none the times."""
    request = columns["request"][chosen] if "request" in columns else np.zeros(len(chosen), np.int32)
    time = columns["time"][chosen] if "time" in columns else np.zeros(len(chosen), np.int32)
    return [request.astype(np.int64), np.where(request > 0, 0, time).astype(np.int64)]


def _at_last(new: NDArray[np.bool_]) -> Integers:
    """Of each place the last one up to it where `new` holds."""
    return np.maximum.accumulate(np.where(new, np.arange(len(new)), 0))


def _first_position(impressions: Impressions) -> int:
    """The first place of a list, as the log counts; one that is unknown (-1) stays below it."""
    position = impressions.columns.get("position", np.zeros(0, np.int32))
    return int(position[position >= 0].min(initial=np.iinfo(np.int32).max))


__all__ = ["CandidateBatches", "CandidateRows", "Group"]
