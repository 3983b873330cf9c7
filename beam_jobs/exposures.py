"""Impressions for logs that have none: every event of a target type is one, and items that a user never had are drawn.

A drawn item is none of the user's at any time, real and not retired, and no other one of the same event. Of the
`negatives` of an event the first `popular_share` are drawn by the items' training events, the others uniformly. Draws
are hashes of user id, event, place and attempt, so that they depend on neither workers nor buckets.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import polars as pl
from numpy.typing import NDArray

from beam_jobs.analysis import ITEM_CODES, Fitted
from beam_jobs.hashing import hash_ids, mix
from beam_jobs.parts import IMPRESSION_SPLIT, Arranged, impression_split, target_rows
from beam_jobs.plan import Plan
from beam_jobs.splits import row_starts
from beam_jobs.staging import Table
from tfrec.config import EventImpressions
from tfrec.transforms import FIRST_VALUE

Integers = NDArray[np.int64]

_ATTEMPTS = 30
_ODD = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Catalogue:
    """The items that may be drawn, as places among all item ids, and how often each is in a training event."""

    places: Integers
    train_count: Integers

    @classmethod
    def of(cls, staging: Path, fitted: Fitted) -> "Catalogue":
        """All real items that are not retired, in the order of their codes."""
        item_codes = np.load(staging / ITEM_CODES)
        known = np.flatnonzero(item_codes >= FIRST_VALUE)
        known = known[~fitted.retired[item_codes[known]]]
        known = known[np.argsort(item_codes[known])]
        return cls(known, fitted.train_count[item_codes[known]])


def make_impressions(arranged: Arranged, plan: Plan, catalogue: Catalogue) -> Table:
    """The impressions of a bucket: user by user, event by event, each event before what is drawn for it."""
    rule = plan.config.data.impressions_from_events
    assert rule is not None, "Called where the configuration asks for them."
    rows = arranged.events.rows.with_row_index("event")
    starts = row_starts(rows["user"].to_numpy().astype(np.int64), len(arranged.users.rows))
    rows = rows.with_columns(
        pl.Series("history", np.arange(len(rows)) - starts[rows["user"].to_numpy()], dtype=pl.Int32)
    )
    shown = rows.filter(pl.Series(target_rows(arranged.events.texts, rows, plan.config.data.target_events)))
    columns = ["user", "item", "split", "history", *(["seconds"] if "seconds" in rows.columns else [])]
    if not rule.negatives:
        labels = [f"label_{label.name}" for label in plan.events.labels]
        return Table(shown.select(pl.col("user").cast(pl.Int64), *columns[1:], *labels))
    label, request = f"label_{rule.label}", pl.col("event").alias("request")
    kept = shown.select(pl.col("user").cast(pl.Int64), *columns[1:], request, pl.lit(1, pl.Int8).alias(label))
    event, item = draw(arranged, shown, starts, catalogue, rule)
    drawn = kept[event].with_columns(pl.Series("item", item, dtype=pl.Int32), pl.lit(0, pl.Int8).alias(label))
    return Table(pl.concat([kept, drawn]).sort("user", "request", maintain_order=True))


def draw(
    arranged: Arranged, shown: pl.DataFrame, starts: Integers, catalogue: Catalogue, rule: EventImpressions
) -> tuple[Integers, Integers]:
    """Of each drawn impression the row of `shown` that it is drawn for, and the item, a place among all item ids.

    A user who has nearly everything gets fewer.
    """
    users = hash_ids(arranged.users.rows["user_id"]) ^ mix(np.full(1, rule.seed, np.uint64))
    user = shown["user"].to_numpy().astype(np.int64)
    row = np.repeat(np.arange(len(shown)), rule.negatives)
    place = np.tile(np.arange(rule.negatives), len(shown))
    number = shown["history"].to_numpy().astype(np.int64)[row] * rule.negatives + place + 1  # of the user's draws
    key = mix(users[user[row]] + _ODD * number.astype(np.uint64))
    popular = place < round(rule.negatives * rule.popular_share)
    chances = np.cumsum(catalogue.train_count) / max(int(catalogue.train_count.sum()), 1)
    size = int(max(catalogue.places.max(initial=0), arranged.events.rows["item"].max() or 0)) + 1
    events = arranged.events.rows
    own = np.unique(events["user"].to_numpy().astype(np.int64) * size + events["item"].to_numpy())
    drawn = np.full(len(row), -1, np.int64)
    for attempt in range(_ATTEMPTS):
        left = np.flatnonzero(drawn < 0)
        if not len(left) or not len(catalogue.places):
            break
        chance = (mix(key[left] + np.uint64(attempt)) >> np.uint64(11)).astype(np.float64) / (1 << 53)  # in [0, 1)
        by_count = np.searchsorted(chances, chance, side="right")
        index = np.where(popular[left], by_count, (chance * len(catalogue.places)).astype(np.int64))
        drawn[left] = catalogue.places[np.minimum(index, len(catalogue.places) - 1)]
        refused = np.isin(user[row[left]] * size + drawn[left], own)
        drawn[left[refused]] = -1
        drawn[_repeated(row, drawn, size)] = -1
    found = np.flatnonzero(drawn >= 0)
    return row[found], drawn[found]


def _repeated(row: Integers, drawn: Integers, size: int) -> Integers:
    """Places whose item stands at an earlier place of the same row too."""
    found = np.flatnonzero(drawn >= 0)
    _, first = np.unique(row[found] * size + drawn[found], return_index=True)
    return np.delete(found, first)


class _Make(beam.DoFn):
    def __init__(self, plan: Plan, staging: Path, catalogue: Catalogue) -> None:
        self.plan, self.staging, self.catalogue = plan, staging, catalogue

    def process(self, name: str) -> Iterator[str]:
        folder = self.staging / "arranged" / name
        table = make_impressions(Arranged.read(folder), self.plan, self.catalogue)
        table.write(folder / "impressions")
        impression_split(table).write_ipc(self.staging / "parts" / name / f"{IMPRESSION_SPLIT}.arrow")
        yield name


@dataclass
class MakeImpressions(beam.PTransform[Any, Any]):
    """PCollection[bucket name] → the same: writes the impressions of each bucket to staging."""

    plan: Plan
    staging: Path
    catalogue: Catalogue

    def expand(self, names: Any) -> Any:
        """Wires the work on each bucket."""
        return names | "Make impressions" >> beam.ParDo(_Make(self.plan, self.staging, self.catalogue))
