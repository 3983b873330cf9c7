"""An arranged bucket of users, and what it adds to everything that is fitted: counts of values and samples by hash."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from beam_jobs import splits
from beam_jobs.hashing import Hashes, bottom_k, hash_ids, mix
from beam_jobs.plan import Plan
from beam_jobs.staging import Table
from tfrec.config import FeatureConfig

IMPRESSION_SPLIT = "impression_split"
"""The part that counts impressions."""


@dataclass
class Arranged:
    """A bucket of users with everything but the codes of what is still to be fitted.

    `events.rows` has user (0, 1, ...), item (place among all item ids), seconds, event_type, session, split, label_*,
    event_*; `impressions.rows` user, item, seconds, label_*, position, weight, request, split, history; `users.rows` a
    row a user, with user_id and user_*, in the order of their ids.
    """

    events: Table
    users: Table
    impressions: Table | None

    def write(self, folder: Path) -> None:
        """Writes one folder a table."""
        self.events.write(folder / "events")
        self.users.write(folder / "users")
        if self.impressions is not None:
            self.impressions.write(folder / "impressions")

    @classmethod
    def read(cls, folder: Path) -> "Arranged":
        """Reads what `write` wrote."""
        impressions = folder / "impressions"
        return cls(
            Table.read(folder / "events"),
            Table.read(folder / "users"),
            Table.read(impressions) if impressions.exists() else None,
        )


def partial_fits(arranged: Arranged, plan: Plan) -> dict[str, pl.DataFrame]:
    """What a bucket adds to what is fitted on split 0, and to the statistics: small frames by name."""
    rows = arranged.events.rows
    train = rows.filter(pl.col("split") == splits.TRAIN)
    parts = {"item": _item_counts(rows, arranged.impressions)}
    if "event_type" in rows.columns:
        parts["event_type"] = _value_counts(train["event_type"], arranged.events.texts["event_type"])
    sample = plan.config.features.fit_sample
    hashes = (
        _event_hashes(arranged, train) if any(one.kind == "numerical" for one in plan.config.features.events) else None
    )
    for feature in _with_columns(plan.config.features.events):
        name = f"event_{feature.name}"
        parts[name] = _fit_part(train[name], arranged.events.texts.get(name), feature, hashes, sample)
    fitted = arranged.users.rows[train["user"].unique().sort()]
    for feature in _with_columns(plan.config.features.users):
        name = f"user_{feature.name}"
        parts[name] = _fit_part(
            fitted[name], arranged.users.texts.get(name), feature, hash_ids(fitted["user_id"]), sample
        )
    starts = splits.row_starts(rows["user"].to_numpy().astype(np.int64), len(arranged.users.rows))
    parts["length"] = pl.Series("length", np.diff(starts).astype(np.uint32)).value_counts(name="users")
    parts["split"] = rows["split"].value_counts(name="events")
    targets = target_rows(arranged.events.texts, rows, plan.config.data.target_events)
    parts["target_split"] = rows["split"].filter(pl.Series(targets)).value_counts(name="events")
    if arranged.impressions is not None:
        parts[IMPRESSION_SPLIT] = impression_split(arranged.impressions)
    if "seconds" in rows.columns and len(rows):
        parts["seconds"] = rows.select(pl.min("seconds").alias("first"), pl.max("seconds").alias("last"))
    if "session" in rows.columns:
        last = rows["session"].gather(starts[1:] - 1)  # a user's sessions are numbered from 1, and all have events
        parts["session"] = pl.DataFrame({"sessions": [int(last.cast(pl.Int64).sum())]})
    return parts


def impression_split(impressions: Table) -> pl.DataFrame:
    """How many impressions each split has."""
    return impressions.rows["split"].value_counts(name="impressions")


def _with_columns(features: Iterable[FeatureConfig]) -> Iterator[FeatureConfig]:
    return (feature for feature in features if feature.cross is None and feature.kind != "counter")


def target_rows(texts: Mapping[str, pl.Series], rows: pl.DataFrame, target_events: Any) -> NDArray[np.bool_]:
    """Which events are of a target type; `texts` are the dictionaries of the rows' columns."""
    if target_events == "all":
        return np.ones(len(rows), np.bool_)
    wanted = texts["event_type"].is_in(list(target_events)).to_numpy()
    codes = rows["event_type"].cast(pl.Int64).fill_null(-1).to_numpy()
    return np.append(wanted, False)[codes]


def _item_counts(rows: pl.DataFrame, impressions: Table | None) -> pl.DataFrame:
    """Each item with its training events, once, or twice where impressions name it too."""
    is_train = (pl.col("split") == splits.TRAIN).cast(pl.Int64)
    counts = [rows.group_by("item").agg(is_train.sum().alias("train_count"))]
    if impressions is not None:
        shown = impressions.rows["item"].unique()
        counts.append(pl.DataFrame({"item": shown, "train_count": np.zeros(len(shown), np.int64)}))
    return pl.concat(counts)


def _value_counts(codes: pl.Series, texts: pl.Series) -> pl.DataFrame:
    counts = codes.drop_nulls().value_counts(name="count")
    return pl.DataFrame({"value": texts.gather(counts[codes.name]), "count": counts["count"].cast(pl.Int64)})


def _fit_part(
    values: pl.Series, texts: pl.Series | None, feature: FeatureConfig, hashes: Hashes | None, sample: int
) -> pl.DataFrame:
    if feature.kind == "categorical":
        assert texts is not None, "Categorical columns have dictionaries."
        flat = values.explode(empty_as_null=False, keep_nulls=False) if isinstance(values.dtype, pl.List) else values
        return _value_counts(flat, texts)
    assert hashes is not None, "Numerical columns are sampled by hash."
    known = values.is_not_null().to_numpy()
    return sample_by_hash(hashes[known], values.filter(known), sample)


def sample_by_hash(hashes: Hashes, values: pl.Series, size: int) -> pl.DataFrame:
    """The values with the smallest hashes, by rising hash, equal hashes by value."""
    chosen = bottom_k(hashes, size)
    frame = pl.DataFrame({"hash": hashes[chosen], "value": values.gather(chosen)})
    return frame.sort("hash", "value")


def _event_hashes(arranged: Arranged, train: pl.DataFrame) -> Hashes:
    """A hash of each training event: of its user's id and its place among their training events."""
    user = train["user"].to_numpy()
    starts = splits.row_starts(user.astype(np.int64), len(arranged.users.rows))
    place = (np.arange(len(user)) - starts[user]).astype(np.uint64)
    return mix(hash_ids(arranged.users.rows["user_id"])[user] + place * np.uint64(0x9E3779B97F4A7C15))
