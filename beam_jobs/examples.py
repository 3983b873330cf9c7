"""tf.train.Example records from whole columns, byte for byte what TensorFlow writes with `deterministic=True`.

Millions of small messages are put together column by column in NumPy, without TensorFlow: a protobuf message is a run
of (tag, length, content) pieces, and every piece of one feature is placed for all rows at once.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from struct import Struct
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = 0x0A, 0x12, 0x1A  # tags of Feature's fields
_LENGTH = Struct("<Q")
_CHECKSUM = Struct("<I")


@dataclass(frozen=True)
class Column:
    """One feature of many rows: `values[offsets[i] : offsets[i + 1]]` belong to row i.

    `values` are integers (int64_list), float32 (float_list), or bytes objects (bytes_list, one a row).
    """

    values: NDArray[Any] | Sequence[bytes]
    offsets: NDArray[np.int64]

    @classmethod
    def fixed(cls, values: NDArray[Any]) -> "Column":
        """The same number of values a row: values `(N,)` or `(N, width)`."""
        width = 1 if values.ndim == 1 else values.shape[1]
        return cls(np.ascontiguousarray(values).reshape(-1), np.arange(len(values) + 1, dtype=np.int64) * width)

    @classmethod
    def texts(cls, values: Sequence[bytes]) -> "Column":
        """One bytes value a row."""
        return cls(values, np.arange(len(values) + 1, dtype=np.int64))


def encode_examples(columns: Mapping[str, Column]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The serialised Examples of all rows, one after the other, and the offsets `(N + 1,)` between them."""
    entries = [_Entry(name.encode(), columns[name]) for name in sorted(columns)]
    sizes = np.zeros(len(entries[0].sizes), np.int64)
    for entry in entries:
        sizes += entry.sizes
    offsets = _offsets(1 + _varint_sizes(sizes) + sizes)
    records = np.empty(offsets[-1], np.uint8)
    # Example { Features features = 1 }: its tag and length stand before the entries of the map.
    cursor = _place_varints(records, _place_constant(records, offsets[:-1].copy(), b"\x0a"), sizes)
    for entry in entries:
        cursor = entry.place(records, cursor)
    return records, offsets


def write_records(path: Path, records: NDArray[np.uint8], offsets: NDArray[np.int64]) -> None:
    """Writes a TFRecord file: length, its checksum, record, its checksum."""
    with path.open("wb") as file:
        for record in _frames(records, offsets):
            file.write(record)


def _frames(records: NDArray[np.uint8], offsets: NDArray[np.int64]) -> Iterator[bytes]:
    content, places = records.tobytes(), offsets.tolist()
    for start, end in pairwise(places):
        record, length = content[start:end], _LENGTH.pack(end - start)
        yield b"".join((length, _masked_checksum(length), record, _masked_checksum(record)))


def _masked_checksum(content: bytes) -> bytes:
    checksum = google_crc32c.value(content)
    return _CHECKSUM.pack((((checksum >> 15) | (checksum << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


class _Entry:
    """The map entries `1: {1: name, 2: Feature {tag: list {1: values}}}` of one feature in every row.

    The sizes of all nested messages are worked out from the inside; then every row is written at its place in the end.
    """

    def __init__(self, name: bytes, column: Column) -> None:
        self.key = b"\x0a" + bytes([len(name)]) + name + b"\x12"
        self.values, self.counts = _values(column)
        rows = len(column.offsets) - 1
        self.tag = {"B": _BYTES_LIST, "f": _FLOAT_LIST}.get(self.values.dtype.char, _INT64_LIST)
        if self.tag == _INT64_LIST:
            self.value_sizes = _varint_sizes(self.values)
            places = _offsets(self.value_sizes)
            self.packed_sizes = np.diff(places[column.offsets])
        else:
            self.packed_sizes = self.counts * self.values.itemsize
        # A list of numbers without any is left out; a text is there even when it is empty.
        self.present = np.ones(rows, np.bool_) if self.tag == _BYTES_LIST else self.packed_sizes > 0
        self.list_sizes = np.where(self.present, 1 + _varint_sizes(self.packed_sizes), 0) + self.packed_sizes
        self.feature_sizes = 1 + _varint_sizes(self.list_sizes) + self.list_sizes
        self.body_sizes = len(self.key) + _varint_sizes(self.feature_sizes) + self.feature_sizes
        self.sizes = 1 + _varint_sizes(self.body_sizes) + self.body_sizes

    def place(self, records: NDArray[np.uint8], cursor: NDArray[np.int64]) -> NDArray[np.int64]:
        """Writes each row's entry at `cursor` and returns where it ends."""
        cursor = _place_varints(records, _place_constant(records, cursor, b"\x0a"), self.body_sizes)
        cursor = _place_varints(records, _place_constant(records, cursor, self.key), self.feature_sizes)
        cursor = _place_varints(records, _place_constant(records, cursor, bytes([self.tag])), self.list_sizes)
        head = _place_constant(records, cursor[self.present], b"\x0a")
        cursor = cursor.copy()
        cursor[self.present] = _place_varints(records, head, self.packed_sizes[self.present])
        if self.tag == _INT64_LIST:
            starts = _offsets(self.value_sizes)[:-1]
            shift = np.repeat(cursor - _offsets(self.packed_sizes)[:-1], self.counts)
            _place_varints(records, starts + shift, self.values, self.value_sizes)
        else:
            content = self.values.view(np.uint8)
            shift = np.repeat(cursor - _offsets(self.packed_sizes)[:-1], self.packed_sizes)
            records[shift + np.arange(len(content), dtype=np.int64)] = content
        return cursor + self.packed_sizes


def _values(column: Column) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """A column's values as uint64, float32 or bytes, one after the other, and how many each row has."""
    if not isinstance(column.values, np.ndarray):
        sizes = np.fromiter(map(len, column.values), np.int64, len(column.values))
        return np.frombuffer(b"".join(column.values), np.uint8), sizes
    counts = np.diff(column.offsets)
    if column.values.dtype.kind == "f":
        return column.values.astype("<f4"), counts
    return column.values.astype(np.int64).view(np.uint64), counts


def _varint_sizes(values: NDArray[Any]) -> NDArray[np.int64]:
    """Bytes of each value as a varint."""
    values = values.astype(np.uint64, copy=False)
    highest = values.max(initial=0)
    sizes = np.ones(len(values), np.int64)
    for byte in range(1, 10):
        limit = np.uint64(1 << (7 * byte))
        if highest < limit:
            break
        sizes += values >= limit
    return sizes


def _place_varints(
    records: NDArray[np.uint8], starts: NDArray[np.int64], values: NDArray[Any], sizes: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Writes varints, 7 bits a byte, lowest first, the top bit set on all but the last; returns where they end."""
    values = values.astype(np.uint64, copy=False)
    sizes = _varint_sizes(values) if sizes is None else sizes
    ends, longest = starts + sizes, int(sizes.max(initial=0))
    for byte in range(longest):
        if byte:
            more = np.flatnonzero(sizes > byte)
            values, starts, sizes = values[more], starts[more], sizes[more]
        low = values.astype(np.uint8)
        if longest > byte + 1:
            low = (low & np.uint8(0x7F)) | ((sizes > byte + 1).view(np.uint8) << np.uint8(7))
        records[starts + byte] = low
        values = values >> np.uint64(7)
    return ends


def _place_constant(records: NDArray[np.uint8], cursor: NDArray[np.int64], content: bytes) -> NDArray[np.int64]:
    for place, byte in enumerate(content):
        records[cursor + place] = byte
    return cursor + len(content)


def _offsets(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    offsets = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=offsets[1:])
    return offsets
