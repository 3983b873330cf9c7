"""The third pipeline, second half: histories as TFRecords, one tf.train.Example a user, one file a bucket of users."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import apache_beam as beam
import numpy as np
import polars as pl
from numpy.typing import NDArray

from beam_jobs.analysis import ITEM_CODES
from beam_jobs.encoding import encode_features, weights_of
from beam_jobs.examples import Column, encode_examples, write_records
from beam_jobs.items import counter_keys
from beam_jobs.parts import Arranged
from beam_jobs.splits import row_starts
from beam_jobs.staging import Table, bucket_name
from beam_jobs.threads import InThreads
from tfrec.schema import ITEM_ID, WEIGHTS, Schema
from tfrec.transforms import FIRST_VALUE, UNKNOWN, Codes


@dataclass(frozen=True)
class HistoryFiles:
    """What the writing of histories needs to know."""

    staging: Path
    directory: Path
    schema: Schema
    num_files: int

    def path(self, bucket: int) -> Path:
        """Where the file of a bucket lies."""
        return self.directory / "histories" / f"histories-{bucket:05d}-of-{self.num_files:05d}.tfrecord"


def history_columns(
    arranged: Arranged,
    item_codes: NDArray[np.int32],
    schema: Schema,
    directory: Path,
    counter_codes: Mapping[str, NDArray[np.int32]] = MappingProxyType({}),
) -> dict[str, Column]:
    """The features of a bucket's Examples: user by user, events in order.

    Args:
        arranged: the bucket.
        item_codes: of each of all item ids.
        schema: of the dataset.
        directory: of the dataset.
        counter_codes: of each feature of items that a counter is `of`, the code of each item.
    """
    events, users = arranged.events, arranged.users
    starts = row_starts(events.rows["user"].to_numpy().astype(np.int64), len(users.rows))
    columns = {"user_id": Column.texts([value.encode() for value in users.rows["user_id"]])}
    values: dict[str, NDArray[Any]] = {
        "item": item_codes[events.rows["item"].to_numpy()],
        "split": events.rows["split"].to_numpy(),
    }
    if schema.has_time:
        values["time"] = events.rows["seconds"].to_numpy() - schema.time_origin
    if schema.has_sessions:
        values["session"] = events.rows["session"].to_numpy()
    if "event_type" in events.rows.columns:
        values["event_type"] = _event_type_codes(events, schema)
    values.update({name: events.rows[name].to_numpy() for name in events.rows.columns if name.startswith("label_")})
    columns.update({name: Column(array, starts) for name, array in values.items()})
    for name, codes in encode_features(events, "event_", schema.side("event"), directory).items():
        columns[f"event_{name}"] = Column(codes.reshape(-1), starts * codes.shape[1])
    for feature in schema.weighted("event"):
        weights = weights_of(events, f"event_{feature.name}", feature)
        columns[f"event_{feature.name}{WEIGHTS}"] = Column(weights.reshape(-1), starts * feature.num_codes)
    for name, codes in counter_columns(values, starts, schema, counter_codes).items():
        columns[f"event_{name}"] = Column(codes, starts)
    for name, codes in encode_features(users, "user_", schema.side("user"), directory).items():
        columns[f"user_{name}"] = Column.fixed(codes)
    for feature in schema.weighted("user"):
        weights = weights_of(users, f"user_{feature.name}", feature)
        columns[f"user_{feature.name}{WEIGHTS}"] = Column.fixed(weights)
    if schema.impressions is not None:
        columns.update(_impression_columns(arranged, item_codes, schema))
    return columns


def counter_columns(
    columns: Mapping[str, NDArray[Any]],
    starts: NDArray[np.int64],
    schema: Schema,
    counter_codes: Mapping[str, NDArray[np.int32]],
) -> dict[str, Codes]:
    """Codes `(E,)` of each counter, from the columns `item`, `time` and `event_type` of the stored events."""
    user = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    found = {}
    for name, counter in schema.counters().items():
        keys = user
        if counter.of != "user":
            codes = columns["item"] if counter.of == ITEM_ID else counter_codes[counter.of][columns["item"]]
            table = schema.feature(counter.of).table_sizes[0]
            keys = np.where(codes == UNKNOWN, -1, user * table + codes)
        types = schema.counted_types(counter)
        counted = None if types is None else np.isin(columns["event_type"], types)
        found[name] = counter.encode(keys, columns.get("time"), counted)
    return found


def _event_type_codes(events: Table, schema: Schema) -> NDArray[np.int32]:
    code_of = {name: code for code, name in enumerate(schema.event_types, start=FIRST_VALUE)}
    codes = [code_of.get(name, UNKNOWN) for name in events.texts["event_type"]]
    return np.array([*codes, UNKNOWN], np.int32)[events.codes("event_type")]


def _impression_columns(arranged: Arranged, item_codes: NDArray[np.int32], schema: Schema) -> dict[str, Column]:
    table = arranged.impressions
    assert table is not None, "The schema says that there are impressions."
    rows = table.rows
    starts = row_starts(rows["user"].to_numpy(), len(arranged.users.rows))
    values: dict[str, NDArray[Any]] = {
        "item": item_codes[rows["item"].to_numpy()],
        "split": rows["split"].to_numpy(),
        "history": rows["history"].to_numpy(),
    }
    if schema.has_time:
        values["time"] = rows["seconds"].to_numpy() - schema.time_origin
    values.update({name: rows[name].to_numpy() for name in rows.columns if name.startswith("label_")})
    if "position" in rows.columns:
        values["position"] = rows["position"].fill_null(-1).to_numpy()
    if "weight" in rows.columns:
        values["weight"] = rows["weight"].to_numpy().astype(np.float32)
    if "request" in rows.columns:
        values["request"] = number_requests(rows["user"].to_numpy(), table.codes("request"))
    return {f"impression_{name}": Column(array, starts) for name, array in values.items()}


def number_requests(user: NDArray[np.int64], request: NDArray[np.int64]) -> NDArray[np.int64]:
    """Requests of each user numbered 1, 2, ... by first appearance; 0 where an impression has none."""
    frame = pl.DataFrame({"user": user, "request": request}).with_row_index()
    known = frame.filter(pl.col("request") >= 0)
    first = known.group_by("user", "request").agg(pl.min("index").alias("first"))
    numbered = first.with_columns(pl.col("first").rank("ordinal").over("user").alias("number").cast(pl.Int64))
    joined = frame.join(numbered, on=["user", "request"], how="left", maintain_order="left")
    return joined["number"].fill_null(0).to_numpy()


def write_bucket(bucket: int, files: HistoryFiles) -> tuple[Path, int]:
    """Writes the file of one bucket (empty where no user falls in it) and returns it with its number of records."""
    path, folder = files.path(bucket), files.staging / "arranged" / bucket_name(bucket)
    if not folder.exists():
        path.touch()
        return path, 0
    arranged = Arranged.read(folder)
    item_codes = np.load(files.staging / ITEM_CODES)
    names = {counter.of for counter in files.schema.counters().values()} - {"user", ITEM_ID}
    counter_codes = {name: np.load(counter_keys(files.staging, name)) for name in names}
    columns = history_columns(arranged, item_codes, files.schema, files.directory, counter_codes)
    write_records(path, *encode_examples(columns))
    return path, len(arranged.users.rows)


class _WriteHistories(InThreads):
    def __init__(self, files: HistoryFiles) -> None:
        self.files = files

    def work(self, element: int) -> list[tuple[str, int]]:
        path, records = write_bucket(element, self.files)
        return [(path.relative_to(self.files.directory).as_posix(), records)]


@dataclass
class WriteHistories(beam.PTransform[Any, Any]):
    """Pipeline → PCollection[(file, records)]: codes the arranged buckets and writes histories/."""

    files: HistoryFiles

    def expand(self, pipeline: Any) -> Any:
        """Wires the writing of each bucket."""
        return (
            pipeline
            | "List buckets" >> beam.Create(range(self.files.num_files))
            | "Spread buckets" >> beam.Reshuffle()
            | "Write histories" >> beam.ParDo(_WriteHistories(self.files))
        )
