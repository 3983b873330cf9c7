"""Where pipelines meet: tables of codes with their dictionaries, one folder a bucket, in Arrow IPC files."""

import io
import shutil
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
import polars as pl
from numpy.typing import NDArray

from beam_jobs.sources import from_bytes

Chunk: TypeAlias = tuple[int, int, str, int, int]
"""Place of the log's file, first row, then where the rows lie as Arrow IPC: a file, and the first and last byte in it.

Chunks sorted by the first two hold the rows of the log in order. These few bytes are what passes the shuffle, which
thereby needs no memory for rows.
"""

_ROWS = "rows"


@dataclass
class Table:
    """Rows whose texts are replaced by positions in dictionaries."""

    rows: pl.DataFrame
    texts: dict[str, pl.Series] = field(default_factory=dict)
    """Column -> its sorted distinct texts; the column holds positions in them, or null."""

    def write(self, folder: Path) -> None:
        """Writes one file for the rows and one for each dictionary, by one rename.

        A runner may give the same work to two workers, or again to one; what is there already is the same.
        """
        temporary = folder.with_name(f".tmp-{uuid.uuid4().hex}")
        temporary.mkdir(parents=True)
        self.rows.write_ipc(temporary / f"{_ROWS}.arrow", compression="uncompressed")
        for name, texts in self.texts.items():
            texts.to_frame("text").write_ipc(temporary / f"texts-{name}.arrow", compression="uncompressed")
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
            shutil.rmtree(temporary)

    @classmethod
    def read(cls, folder: Path) -> "Table":
        """Reads what `write` wrote, by memory map."""
        names = [path.stem.removeprefix("texts-") for path in sorted(folder.glob("texts-*.arrow"))]
        texts = {name: read_texts(folder, name) for name in names}
        return cls(read_frame(folder / f"{_ROWS}.arrow"), texts)

    def codes(self, column: str) -> NDArray[np.int64]:
        """A column's positions in its dictionary; -1 where it is null."""
        return self.rows[column].cast(pl.Int64).fill_null(-1).to_numpy()


def read_frame(path: Path, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """A frame, or some of its columns, from an Arrow IPC file; the path is no pattern, whatever it holds."""
    frame = pl.scan_ipc(path, glob=False)
    return (frame if columns is None else frame.select(columns)).collect()


def read_texts(folder: Path, column: str) -> pl.Series:
    """The dictionary of one column."""
    return read_frame(folder / f"texts-{column}.arrow")["text"]


def read_rows(folder: Path, columns: Sequence[str]) -> pl.DataFrame:
    """Some columns of a table's rows."""
    return read_frame(folder / f"{_ROWS}.arrow", columns)


def bucket_folders(folder: Path) -> list[Path]:
    """The buckets that hold rows, in order."""
    return sorted(folder.glob("[0-9]*"))


def bucket_name(bucket: int) -> str:
    """The folder of a bucket."""
    return f"{bucket:05d}"


def write_chunks(folder: Path, file: int, first_row: int, frames: Mapping[int, pl.DataFrame]) -> dict[int, Chunk]:
    """Writes frames one behind another into a file of their own, for good or for nothing; returns a chunk of each.

    A runner that gives the same work to two workers, or again to one, gets chunks of which it takes one set.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, chunks = folder / f"{uuid.uuid4().hex}.chunks", {}
    with path.open("wb") as target:
        for key, frame in frames.items():
            start = target.tell()
            frame.write_ipc(content := io.BytesIO(), compression="uncompressed")
            target.write(content.getbuffer())
            chunks[key] = (file, first_row, path.name, start, target.tell())
    return chunks


def join_chunks(folder: Path, chunks: Iterable[Chunk]) -> pl.DataFrame:
    """The rows of some chunks in the order of the log."""
    return pl.concat([_read_chunk(folder, *chunk[2:]) for chunk in sorted(chunks)], rechunk=True)


def _read_chunk(folder: Path, name: str, start: int, stop: int) -> pl.DataFrame:
    with (folder / name).open("rb") as file:
        file.seek(start)
        return from_bytes(file.read(stop - start))


def encode_texts(frame: pl.DataFrame, ids: Sequence[str] = ()) -> Table:
    """Replaces every column of texts, and the `ids` (texts or whole numbers), by positions in dictionaries."""
    columns, dictionaries = [], {}
    for series in frame:
        if series.name in ids or series.dtype in (pl.String, pl.List(pl.String)):
            series, dictionaries[series.name] = factorize(series)
        columns.append(series)
    return Table(pl.DataFrame(columns), dictionaries)


def factorize(series: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Positions (UInt32, null for null) in the sorted distinct texts, and those; whole numbers sort as their texts."""
    if isinstance(series.dtype, pl.List):
        codes, texts = factorize(series.explode(empty_as_null=False, keep_nulls=False))
        lengths = series.list.len().fill_null(0).to_numpy()
        row = pl.Series("row", np.repeat(np.arange(len(series)), lengths))
        lists = pl.DataFrame({"row": row, "code": codes}).group_by("row", maintain_order=True).agg("code")
        rows = pl.DataFrame({"row": np.arange(len(series))}).join(lists, on="row", how="left", maintain_order="left")
        return rows["code"].cast(pl.List(pl.UInt32)).alias(series.name), texts
    found = series.to_arrow().dictionary_encode()  # hashes each value once
    texts = pl.Series(found.dictionary).cast(pl.String)
    order = texts.arg_sort()
    ranks = np.zeros(max(len(order), 1), np.uint32)
    ranks[order.to_numpy()] = np.arange(len(order), dtype=np.uint32)
    return pl.Series(series.name, ranks).gather(pl.Series(found.indices)), texts.gather(order)


def positions(series: pl.Series, texts: pl.Series) -> pl.Series:
    """Where each text stands in `texts` (distinct, sorted); null where it is not among them.

    By bisection: the work goes with the number of rows, not with that of `texts`, which may be ten million.
    """
    if len(texts) == 0:
        return pl.repeat(None, len(series), dtype=pl.UInt32, eager=True).alias(series.name)
    places = pl.Series(texts.search_sorted(series), dtype=pl.UInt32).clip(upper_bound=len(texts) - 1)
    found = (texts.gather(places) == series).fill_null(False)
    return places.set(~found, None).alias(series.name)


def all_item_ids(path: Path) -> pl.Series:
    """The ids of every item that any log names, sorted (what `write_item_ids` wrote)."""
    return _item_ids(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _item_ids(path: Path, written: int) -> pl.Series:
    return read_frame(path)["text"]


def write_item_ids(path: Path, ids: Iterable[pl.Series]) -> int:
    """Writes the distinct ids, sorted, and returns how many there are."""
    distinct = pl.concat([pl.Series([], dtype=pl.String), *(one.cast(pl.String) for one in ids)]).unique().sort()
    distinct.to_frame("text").write_ipc(path)
    return len(distinct)
