"""The first rows of a log file whose format nobody has named yet: delimiter, header and encoding are found out."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet

from tfrec.errors import UserError

SAMPLE_ROWS = 20_000

_SAMPLE_BYTES = 8 << 20
_COMPRESSIONS = (".gz", ".bz2", ".zst", ".lz4")
_DELIMITERS = (",", "\t", ";", "|")


@dataclass(frozen=True)
class Sample:
    """The first rows of one file, and how the file has to be read."""

    path: Path
    format: str
    frame: pl.DataFrame
    """Columns of numbers, texts, times or lists; a number column of a CSV is cast where every cell fits."""
    delimiter: str = ","
    encoding: str = "utf-8"
    has_header: bool = True
    whole: bool = False
    """The sample is the whole file."""


def read_sample(path: Path) -> Sample:
    """The first rows of a CSV, TSV, Parquet or JSON lines file, compressed or not.

    Raises:
        UserError: the file is missing, empty, or none of these.
    """
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name the files in it.")
    if not path.is_file():
        raise UserError(f"{path}: no such file.")
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in _COMPRESSIONS]
    suffix = suffixes[-1] if suffixes else ""
    try:
        if suffix in (".parquet", ".pq"):
            sample = _read_parquet(path)
        elif suffix in (".jsonl", ".json", ".ndjson"):
            sample = _read_json_lines(path)
        else:
            sample = _read_csv(path)
    except (pa.ArrowInvalid, OSError, EOFError, pl.exceptions.PolarsError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]:.200}).") from None
    if sample.frame.height == 0:
        raise UserError(f"{path}: holds no row.")
    return sample


def _read_parquet(path: Path) -> Sample:
    file = pa.parquet.ParquetFile(path)
    batch = next(file.iter_batches(SAMPLE_ROWS), None)
    table = pa.Table.from_batches([batch] if batch is not None else [], file.schema_arrow)
    frame = pl.DataFrame(table)
    return Sample(path, "parquet", frame, whole=frame.height == file.metadata.num_rows)


def _read_json_lines(path: Path) -> Sample:
    lines, whole = _first_lines(_first_bytes(path).decode("utf-8", errors="replace"))
    if not lines:
        return Sample(path, "jsonl", pl.DataFrame())
    frame = pl.read_ndjson(io.BytesIO("\n".join(lines).encode()), infer_schema_length=None)
    return Sample(path, "jsonl", frame, whole=whole)


def _read_csv(path: Path) -> Sample:
    raw = _first_bytes(path)
    encoding = _encoding(raw)
    lines, whole = _first_lines(raw.decode(encoding, errors="replace"))
    if not lines:
        return Sample(path, "csv", pl.DataFrame())
    delimiter = _delimiter(path, lines[:100])
    rows = list(csv.reader(lines, delimiter=delimiter))
    width = len(rows[0])
    rows = [row for row in rows if len(row) == width]
    has_header = _has_header(rows)
    names = rows[0] if has_header else [f"column_{place + 1}" for place in range(width)]
    columns = list(zip(*rows[1:] if has_header else rows, strict=True)) or [()] * width
    frame = pl.DataFrame([_typed(name, cells) for name, cells in zip(names, columns, strict=True)])
    return Sample(path, "csv", frame, delimiter, "utf-8" if encoding == "utf-8-sig" else encoding, has_header, whole)


def _first_bytes(path: Path) -> bytes:
    with pa.input_stream(str(path), compression="detect") as stream:
        return bytes(stream.read(_SAMPLE_BYTES))


def _encoding(raw: bytes) -> str:
    try:
        raw[: len(raw) - 4 if len(raw) == _SAMPLE_BYTES else None].decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return "utf-8-sig" if error.end >= len(raw) - 4 > 0 else "latin-1"
    return "utf-8-sig"


def _first_lines(text: str) -> tuple[list[str], bool]:
    """The lines that hold something, and whether they are all there are."""
    lines = text.split("\n")
    cut = len(text.encode()) >= _SAMPLE_BYTES
    lines = [line.rstrip("\r") for line in (lines[:-1] if cut else lines) if line.strip()]
    return lines[: SAMPLE_ROWS + 1], not cut and len(lines) <= SAMPLE_ROWS + 1


def _delimiter(path: Path, lines: list[str]) -> str:
    """The character that stands on every line, most often on the first; a file of one column has none."""
    if all("::" in line for line in lines):
        raise UserError(
            f"{path}: separated by `::`, a delimiter must be one character; recipe `movielens` reads MovieLens."
        )
    return max(_DELIMITERS, key=lambda mark: (min(line.count(mark) for line in lines) > 0, lines[0].count(mark)))


def _has_header(rows: list[list[str]]) -> bool:
    """Whether the first row names columns: no cell is empty, a number, or a value of its own column."""
    first, rest = rows[0], rows[1:]
    if any(not cell.strip() or _is_number(cell) for cell in first):
        return False
    return not any(cell in {row[place] for row in rest[:200]} for place, cell in enumerate(first))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _typed(name: str, cells: tuple[str, ...]) -> pl.Series:
    series = pl.Series(name, cells, pl.String)
    series = series.zip_with(
        series.str.strip_chars() != "", pl.Series([None], dtype=pl.String).new_from_index(0, len(series))
    )
    if series.null_count() == len(series) or series.str.contains(r"^0\d").any():
        return series  # 007 is an identifier
    for dtype in (pl.Int64, pl.Float64):
        number = series.cast(dtype, strict=False)
        if number.null_count() == series.null_count():
            return number
    return series
