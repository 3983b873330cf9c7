"""The third pipeline, first half: the catalogue as TFRecords, one tf.train.Example an item, in code order."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import polars as pl

from beam_jobs.analysis import ITEM_CODES, MISSING_ITEMS, item_buckets
from beam_jobs.arranging import ITEM_IDS
from beam_jobs.encoding import as_array, encode_features, vectors_of, weights_of
from beam_jobs.examples import Column, encode_examples, write_records
from beam_jobs.plan import LogPlan
from beam_jobs.sources import as_bytes, from_bytes
from beam_jobs.staging import all_item_ids, encode_texts, positions, read_frame
from tfrec.schema import ITEM_ID, Feature, Schema
from tfrec.transforms import FIRST_VALUE, UNKNOWN, Quantizer

ITEMS_A_FILE = 50_000


@dataclass(frozen=True)
class ItemFiles:
    """What the writing of items needs to know."""

    staging: Path
    directory: Path
    features: tuple[Feature, ...]
    """The item features, the id first."""
    display: tuple[str, ...]
    num_files: int

    def path(self, file: int) -> Path:
        """Where a file lies."""
        return self.directory / "items" / f"items-{file:05d}-of-{self.num_files:05d}.tfrecord"


def count_files(num_items: int) -> int:
    """Number of item files, from the size of the catalogue alone."""
    return max(1, -(-num_items // ITEMS_A_FILE))


def encode_bucket(frame: pl.DataFrame, files: ItemFiles) -> pl.DataFrame:
    """Codes, display texts and vectors of a bucket's items; those outside the catalogue are left out."""
    if "item" not in frame.columns:
        ids = all_item_ids(files.staging / ITEM_IDS)
        item = np.load(files.staging / ITEM_CODES)[positions(frame["item_id"], ids).to_numpy()]
        frame = frame.with_columns(pl.Series("item", item), pl.lit(False).alias("retired"))
        frame = frame.filter(pl.col("item") >= FIRST_VALUE)
    table = encode_texts(frame)
    columns = [frame["item_id"], frame["item"], frame["retired"]]
    features = [feature for feature in files.features if feature.name != ITEM_ID]
    codes = encode_features(table, "item_", features, files.directory)
    for feature in features:
        name = f"item_{feature.name}"
        columns.append(pl.Series(name, codes[feature.name], dtype=pl.Array(pl.Int32, feature.num_codes)))
        if feature.standard is not None:
            columns.append(pl.Series(f"vector_{feature.name}", feature.standard.encode(as_array(table.rows[name]))))
        if feature.weight_separator is not None:
            weights = weights_of(table, name, feature)
            columns.append(pl.Series(f"vector_{feature.name}", weights, dtype=pl.Array(pl.Float32, weights.shape[1])))
        if feature.keep_vectors and isinstance(feature.transform, Quantizer):
            vectors = vectors_of(table, name, feature, files.directory)
            columns.append(pl.Series(f"vector_{feature.name}", vectors, dtype=pl.Array(pl.Float32, vectors.shape[1])))
    columns.extend(frame[f"display_{field}"].fill_null("") for field in files.display)
    return pl.DataFrame(columns)


def write_counter_keys(staging: Path, directory: Path, schema: Schema, plan: LogPlan | None) -> None:
    """Writes, for each feature of items that a counter is `of`, the code of every item `(num_items,)` to staging."""
    names = {counter.of for counter in schema.counters().values()} - {"user", ITEM_ID}
    if not names:
        return
    crossed = {part for name in names for part in getattr(schema.feature(name).transform, "cross", ())}
    features = tuple(one for one in schema.side("item") if one.name in names | crossed)
    files = ItemFiles(staging, directory, features, (), 1)
    codes = {name: np.full(schema.num_items, UNKNOWN, np.int32) for name in names}
    needed = {"item_id", "item", "retired", *(f"item_{one.name}" for one in features)}
    for path in item_sources(staging):
        frame = _with_columns(read_frame(path), plan)
        encoded = encode_bucket(frame.select(name for name in frame.columns if name in needed), files)
        for name, values in codes.items():
            values[encoded["item"].to_numpy()] = encoded[f"item_{name}"].to_numpy()[:, 0]
    for name, values in codes.items():
        np.save(counter_keys(staging, name), values)


def counter_keys(staging: Path, name: str) -> Path:
    """Where `write_counter_keys` writes."""
    return staging / f"counter_keys_{name}.npy"


def _with_columns(frame: pl.DataFrame, plan: LogPlan | None) -> pl.DataFrame:
    """Adds empty columns for those that the items file has and these items do not, since no row of it names them."""
    types: dict[str, Any] = {"number": pl.Float64, "texts": pl.List(pl.String), "vector": pl.List(pl.Float32)}
    types["weights"] = pl.List(pl.Float32)
    missing = [field for field in (plan.fields if plan else ()) if field.name not in frame.columns]
    kinds = {field.name: "vector" if field.feature else field.kind for field in missing}
    return frame.with_columns(pl.lit(None, types.get(kind, pl.String)).alias(name) for name, kind in kinds.items())


def item_examples(frame: pl.DataFrame, train_count: np.ndarray[Any, Any]) -> dict[str, Column]:
    """The features of the Examples of some items, which stand in the order of their codes.

    A vector that an item does not have is a row of NaN. `retired` is there where an item of theirs is.
    """
    columns = {
        "item_id": Column.texts([value.encode() for value in frame["item_id"]]),
        "item": Column.fixed(frame["item"].to_numpy()),
        "train_count": Column.fixed(train_count),
    }
    if frame["retired"].any():
        columns["retired"] = Column.fixed(frame["retired"].cast(pl.Int64).to_numpy())
    for series in frame:
        if isinstance(series.dtype, pl.Array):
            columns[series.name] = Column.fixed(series.to_numpy().reshape(len(frame), -1))
        elif series.name.startswith("vector_"):
            columns[series.name] = Column.fixed(series.to_numpy())
        elif series.name.startswith("display_"):
            columns[series.name] = Column.texts([value.encode() for value in series])
    return columns


def item_sources(staging: Path) -> list[Path]:
    """The staged buckets: of the items file, and of the ids that events alone name."""
    return [*item_buckets(staging), staging / "items" / MISSING_ITEMS]


def stored_items(staging: Path, plan: LogPlan) -> dict[tuple[str, ...], int]:
    """What becomes of the accepted rows of the items file: in the catalogue or, by `features.item_id`, not."""
    ids, codes = all_item_ids(staging / ITEM_IDS), np.load(staging / ITEM_CODES)
    counts: dict[tuple[str, ...], int] = {}
    for path in item_buckets(staging):
        frame = read_frame(path, ["item_id", "file", "_accepted"])
        stored = codes[positions(frame["item_id"], ids).to_numpy()] >= FIRST_VALUE
        rows = frame.with_columns(pl.Series("stored", stored)).filter("_accepted").group_by("file", "stored").len()
        for file, kept, count in rows.iter_rows():
            outcome = ("stored", "") if kept else ("filtered", "features.item_id")
            key = ("items", plan.file_names[file], *outcome)
            counts[key] = counts.get(key, 0) + count
    return counts


class _EncodeItems(beam.DoFn):
    def __init__(self, files: ItemFiles, plan: LogPlan | None) -> None:
        self.files, self.plan = files, plan

    def process(self, path: Path) -> Iterator[tuple[int, bytes]]:
        frame = _with_columns(read_frame(path), self.plan)
        if len(frame):
            encoded = encode_bucket(frame, self.files)
            file = pl.Series("_file", (encoded["item"].to_numpy() - FIRST_VALUE) // ITEMS_A_FILE)
            parts = encoded.with_columns(file).partition_by("_file", as_dict=True, include_key=False)
            for (number,), part in parts.items():
                yield int(number), as_bytes(part)


class _WriteItems(beam.DoFn):
    def __init__(self, files: ItemFiles, train_count: np.ndarray[Any, Any]) -> None:
        self.files, self.train_count = files, train_count

    def process(self, element: tuple[int, Iterable[bytes]]) -> Iterator[tuple[str, int]]:
        file, parts = element
        frame = pl.concat([from_bytes(part) for part in parts]).sort("item")
        path = self.files.path(file)
        counts = self.train_count[frame["item"].to_numpy()]
        write_records(path, *encode_examples(item_examples(frame, counts)))
        yield path.relative_to(self.files.directory).as_posix(), len(frame)


@dataclass
class WriteItems(beam.PTransform[Any, Any]):
    """Pipeline → PCollection[(file, records)]: encodes the staged items and writes items/, sorted by code."""

    files: ItemFiles
    plan: LogPlan | None
    train_count: np.ndarray[Any, Any]

    def expand(self, pipeline: Any) -> Any:
        """Wires encoding, shuffling by code, and writing."""
        return (
            pipeline
            | "List items" >> beam.Create(item_sources(self.files.staging))
            | "Spread items" >> beam.Reshuffle()
            | "Encode items" >> beam.ParDo(_EncodeItems(self.files, self.plan))
            | "Gather items" >> beam.GroupByKey()
            | "Write items" >> beam.ParDo(_WriteItems(self.files, self.train_count))
        )
