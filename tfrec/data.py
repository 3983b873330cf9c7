"""Reads a dataset directory, from TFRecords (tf.data) or from the column cache (NumPy alone), and batches it.

Nothing is taken on trust: sizes are compared with the manifest when a dataset is opened, and the number of records
when they are read, because a TFRecord file that was cut between two records gives no error of its own.
"""

import contextlib
import importlib.util
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfrec import columns
from tfrec.columns import Catalogue, Histories, Impressions
from tfrec.errors import UserError
from tfrec.manifest import MANIFEST, fingerprint, verify
from tfrec.schema import ITEM_ID, WEIGHTS, Schema
from tfrec.transforms import FIRST_VALUE, Quantizer
from tfrec.windows import Batch, Batches, SplitName, WindowKind

__all__ = ["Batch", "Batches", "Catalogue", "Dataset", "Histories", "batches", "prefetch", "tf_dataset", "write_cache"]

_WORKERS = 4
_MADE_AHEAD = 8
_RECORDS_AT_ONCE = 512
_READ_BUFFER_BYTES = 8 << 20
_AGAIN = "run `tfrec preprocess` again."


class Dataset:
    """A dataset directory, checked; `Dataset.open` makes one."""

    def __init__(self, directory: Path, schema: Schema, manifest: dict[str, Any], *, from_cache: bool) -> None:
        self.directory = directory
        self.schema = schema
        self.manifest = manifest
        self.from_cache = from_cache
        self.fingerprint = fingerprint(directory)
        self._catalogue: Catalogue | None = None
        self._histories: Histories | None = None

    @classmethod
    def open(cls, path: str | Path, *, whole: bool = False, use_cache: bool = True) -> "Dataset":
        """Checks a dataset directory against its manifest and returns it; nothing large is read yet.

        Args:
            path: the directory.
            whole: compare every hash (slow), not presence and size alone.
            use_cache: read the column cache where it belongs to this dataset.

        Raises:
            UserError: it is no dataset, was changed, or cannot be read here.
        """
        directory = Path(path)
        if not (directory / MANIFEST).is_file():
            raise UserError(f"{directory}: no dataset there ({MANIFEST} is missing); `tfrec preprocess` makes one.")
        try:
            manifest = verify(directory, whole=whole)
            cached = use_cache and columns.has_cache(directory)
            if cached:
                verify(directory / columns.CACHE, whole=whole)
        except UserError as error:
            raise UserError(f"{error} Run `tfrec preprocess` to make the dataset again.") from None
        if not cached and importlib.util.find_spec("tensorflow") is None:
            raise UserError(
                f"{directory}: TensorFlow is not installed here and the dataset has no column cache of its own; "
                "run `tfrec data cache` on it where TensorFlow is."
            )
        return cls(directory, Schema.read(directory), manifest, from_cache=cached)

    def catalogue(self) -> Catalogue:
        """Every item; read once."""
        if self._catalogue is None:
            self._read()
        assert self._catalogue is not None
        return self._catalogue

    def histories(self) -> Histories:
        """Every user's events; read once."""
        if self._histories is None:
            self._read(histories=True)
        assert self._histories is not None
        return self._histories

    def history_files(self) -> dict[str, int]:
        """The files of histories, and how many users each holds."""
        files = self.manifest["files"].items()
        return {name: entry["records"] for name, entry in files if name.startswith("histories/")}

    def histories_of(self, file: str) -> Histories:
        """The users of one file of histories; read each time."""
        return _read_histories(self, file)

    def _read(self, *, histories: bool = False) -> None:
        if self.from_cache:
            self._catalogue, self._histories = columns.read_cache(self.directory)
        elif histories:
            self._histories = _read_histories(self)
        else:
            self._catalogue = _read_catalogue(self)


def batches(
    dataset: Dataset,
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
) -> Iterator[Batch]:
    """The batches of a split, one after another; `Batches` has the same by index and says what the options mean."""
    return iter(
        Batches(
            dataset.schema,
            dataset.histories(),
            split,
            history_length=history_length,
            batch_size=batch_size,
            windows=windows,
            seed=seed,
            epoch=epoch,
            length_buckets=length_buckets,
            shuffle=shuffle,
            request_time=request_time,
            max_queries=max_queries,
        )
    )


def write_cache(dataset: Dataset) -> Path:
    """Writes the column cache of a dataset, from which NumPy alone reads; returns where it lies."""
    return columns.write_cache(dataset.directory, dataset.catalogue(), dataset.histories())


def tf_dataset(generate: Callable[[], Iterator[Batch]], examples: Sequence[Batch], length: int) -> Any:
    """A tf.data.Dataset of `length` generated batches, of one signature whatever their shapes, so traced once.

    Args:
        generate: makes the batches anew each time.
        examples: batches that differ in every axis that may vary, but for the first axis of each array, which always
            may.
        length: number of batches.
    """
    tf = _tensorflow()
    signature = {}
    for name, array in examples[0].items():
        shapes = [example[name].shape for example in examples]
        later = [sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*shapes, strict=True)][1:]
        signature[name] = tf.TensorSpec([None, *later], tf.as_dtype(array.dtype))
    data = tf.data.Dataset.from_generator(generate, output_signature=signature)
    return data.apply(tf.data.experimental.assert_cardinality(length)).prefetch(2)


def prefetch(make: Callable[[int], Batch], indices: Iterable[int]) -> Iterator[Batch]:
    """`make(index)` for each index, in order, some made ahead in other threads."""
    with ThreadPoolExecutor(min(_WORKERS, os.cpu_count() or 1)) as pool:
        ahead: deque[Future[Batch]] = deque()
        for index in indices:
            ahead.append(pool.submit(make, index))
            if len(ahead) > _MADE_AHEAD:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _tensorflow() -> Any:
    import keras
    import tensorflow as tf

    if keras.backend.backend() != "tensorflow":
        with contextlib.suppress(RuntimeError):  # TensorFlow already has the device: too late, and not needed
            tf.config.set_visible_devices([], "GPU")  # reading must not take the memory that another backend needs
    return tf


def _read_catalogue(dataset: Dataset) -> Catalogue:
    schema, folder = dataset.schema, dataset.directory / "items"
    parts = schema.item_columns()
    vector_features = [feature for feature in schema.side("item") if feature.stored_dim]
    integers = ["item", "train_count", "retired", *(f"item_{name}" for name in parts if name != ITEM_ID)]
    floats = [f"vector_{feature.name}" for feature in vector_features]
    texts = ["item_id", *(f"display_{name}" for name in schema.display)]
    read = _read_records(dataset, "items", integers, floats, texts)
    values, size = schema.num_items - FIRST_VALUE, schema.num_items
    item, _ = read["item"]
    if not np.array_equal(item, np.arange(FIRST_VALUE, size)):
        raise UserError(f"{folder}: its items are not those of the schema's vocabulary ({values}); {_AGAIN}")
    codes = np.zeros((size, max(part.stop for part in parts.values())), np.int32)
    codes[1, [part.start for part in parts.values()]] = 1  # the unknown item: unknown throughout
    for feature in schema.side("item"):
        part = parts[feature.name]
        if isinstance(feature.transform, Quantizer):
            codes[1, part] = 1
        if feature.name != ITEM_ID:
            codes[FIRST_VALUE:, part] = _matrix(read, f"item_{feature.name}", feature.num_codes, folder)
    codes[:, parts[ITEM_ID]] = np.arange(size)[:, None]
    vectors = {}
    for feature in vector_features:
        vectors[feature.name] = np.zeros((size, feature.stored_dim), np.float16)
        vectors[feature.name][FIRST_VALUE:] = _vectors(read, feature.name, feature.stored_dim, folder)
    return Catalogue(
        codes=codes,
        train_count=np.concatenate([[0, 0], read["train_count"][0]]).astype(np.int64),
        retired=_flags(read, "retired"),
        vectors=vectors,
        item_ids=["", "", *_strings(read, "item_id", values)],
        display={name: ["", "", *_strings(read, f"display_{name}", values)] for name in schema.display},
    )


def _read_histories(dataset: Dataset, file: str | None = None) -> Histories:
    schema, folder = dataset.schema, dataset.directory / "histories"
    widths = {"item": 1, "split": 1}
    widths |= {name: 1 for name, has in _optional_columns(schema).items() if has}
    widths |= {f"label_{label.name}": 1 for label in schema.labels}
    widths |= {f"event_{feature.name}": feature.num_codes for feature in schema.side("event")}
    users = {f"user_{feature.name}": feature.num_codes for feature in schema.side("user")}
    weights = {f"event_{feature.name}{WEIGHTS}": feature.num_codes for feature in schema.weighted("event")}
    user_weights = {f"user_{feature.name}{WEIGHTS}": feature.num_codes for feature in schema.weighted("user")}
    shown = _impression_columns(schema)
    floats = [key for name, key in shown.items() if name == "weight"]
    integers = [*widths, *users, *(key for key in shown.values() if key not in floats)]
    floats += [*weights, *user_weights]
    read = _read_records(dataset, "histories", integers, floats, ["user_id"], file)
    lengths = read["item"][1]
    read_columns = {}
    for name, width in (widths | weights).items():
        values, counts = read[name]
        if name.startswith("label_") and not len(values):
            continue  # a label of impressions alone
        if not np.array_equal(counts, lengths * width):
            raise UserError(f"{folder}: `{name}` has not {width} value(s) an event; {_AGAIN}")
        read_columns[name] = values.reshape(-1, width) if name.startswith("event_") and name != "event_type" else values
    return Histories(
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        user_ids=_strings(read, "user_id", len(lengths)),
        columns=read_columns,
        user={
            name.removeprefix("user_"): _matrix(read, name, width, folder)
            for name, width in (users | user_weights).items()
        },
        impressions=_impressions(read, shown, folder) if shown else None,
    )


def _impression_columns(schema: Schema) -> dict[str, str]:
    """The columns of impressions, and the keys of the records that hold them."""
    if schema.impressions is None:
        return {}
    names = ["item", "split", "history", *(f"label_{label}" for label in schema.impressions.labels)]
    there = {
        "time": schema.has_time,
        "position": schema.impressions.has_positions,
        "request": schema.impressions.has_requests,
        "weight": schema.impressions.has_weights,
    }
    return {name: f"impression_{name}" for name in [*names, *(name for name, has in there.items() if has)]}


def _impressions(read: "Read", keys: Mapping[str, str], folder: Path) -> Impressions:
    lengths = read[keys["item"]][1]
    for key in keys.values():
        if not np.array_equal(read[key][1], lengths):
            raise UserError(f"{folder}: `{key}` has not 1 value an impression; {_AGAIN}")
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Impressions(offsets, {name: read[key][0] for name, key in keys.items()})


def _optional_columns(schema: Schema) -> dict[str, bool]:
    return {"time": schema.has_time, "event_type": bool(schema.event_types), "session": schema.has_sessions}


Read = dict[str, tuple[NDArray[Any], NDArray[np.int64]]]
"""By key of the Examples: all values, one Example after another, and how many each Example has."""


def _read_records(
    dataset: Dataset,
    folder: str,
    integers: list[str],
    floats: list[str],
    texts: list[str],
    file: str | None = None,
) -> Read:
    """Reads every Example of a folder, or of one file, many at a time; compares their number with the manifest."""
    tf = _tensorflow()
    kinds = dict.fromkeys(integers, tf.int64) | dict.fromkeys(floats, tf.float32) | dict.fromkeys(texts, tf.string)
    specification = {name: tf.io.RaggedFeature(kind, row_splits_dtype=tf.int64) for name, kind in kinds.items()}

    def parse(records: Any) -> Any:
        parsed = tf.io.parse_example(records, specification)
        flat = {name: (ragged.flat_values, ragged.row_lengths()) for name, ragged in parsed.items()}
        small = {name: (tf.cast(flat[name][0], tf.int32), flat[name][1]) for name in integers}
        return flat | small

    values: dict[str, list[Any]] = {name: [] for name in kinds}
    lengths: dict[str, list[Any]] = {name: [] for name in kinds}
    for name, entry in dataset.manifest["files"].items():
        if not (name.startswith(f"{folder}/") and name.endswith(".tfrecord")) or name != (file or name):
            continue
        path, records = dataset.directory / name, 0
        data = tf.data.TFRecordDataset(str(path), buffer_size=_READ_BUFFER_BYTES).batch(_RECORDS_AT_ONCE)
        try:
            for chunk in data.map(parse, num_parallel_calls=tf.data.AUTOTUNE).as_numpy_iterator():
                records += len(chunk[next(iter(kinds))][1])
                for key, (flat, counts) in chunk.items():
                    values[key].append(flat)
                    lengths[key].append(counts)
        except (tf.errors.DataLossError, tf.errors.InvalidArgumentError) as error:
            raise UserError(f"{path}: corrupt TFRecord ({_first_line(error)}); {_AGAIN}") from None
        if records != entry["records"]:
            raise UserError(f"{path}: {records} records, {MANIFEST} says {entry['records']}; {_AGAIN}")
    if not any(values.values()):
        raise UserError(f"{dataset.directory / folder}: holds no records; {_AGAIN}")
    return {key: (np.concatenate(values[key]), np.concatenate(lengths[key])) for key in kinds}


def _first_line(error: Exception) -> str:
    first = str(error).partition("\n")[0]
    return re.sub(r"\{\{.*?\}\}\s*|\s*\[Op:.*", "", first)[:120]  # without the place in TensorFlow's graph


def _matrix(read: Read, name: str, width: int, folder: Path) -> NDArray[np.int32]:
    values, counts = read[name]
    if not (counts == width).all():
        raise UserError(f"{folder}: `{name}` has not {width} value(s) in every record; {_AGAIN}")
    return values.reshape(-1, width)


def _flags(read: Read, name: str) -> NDArray[np.bool_]:
    """One flag a code, False where a record has none."""
    values, counts = read[name]
    flags = np.zeros(len(counts) + FIRST_VALUE, np.bool_)
    flags[np.flatnonzero(counts) + FIRST_VALUE] = values != 0
    return flags


def _vectors(read: Read, name: str, width: int, folder: Path) -> NDArray[np.float32]:
    """Vectors `(N, width)`; zeros for records that have none."""
    values, counts = read[f"vector_{name}"]
    if not np.isin(counts, (0, width)).all():
        raise UserError(f"{folder}: `vector_{name}` has not {width} values in every record; {_AGAIN}")
    vectors = np.zeros((len(counts), width), np.float32)
    vectors[counts == width] = values.reshape(-1, width)
    return np.nan_to_num(vectors, nan=0.0)


def _strings(read: Read, name: str, count: int) -> list[str]:
    """One text a record; empty where a record has none."""
    values, counts = read[name]
    texts = np.full(count, b"", object)
    texts[counts > 0] = values[np.cumsum(counts)[counts > 0] - counts[counts > 0]]
    return [text.decode() for text in texts]
