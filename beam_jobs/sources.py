"""Raw logs to Arrow batches: which files and columns there are, how CSV, Parquet and JSON lines are read in parts."""

import codecs
import io
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from beam_jobs.jsonlines import Broken, column_names, read_blocks
from beam_jobs.utf8 import MarkedText, without_marks
from tfrec.config import Source, suggest
from tfrec.errors import UserError

LogKind = Literal["events", "items", "users", "impressions"]

ROLES: dict[LogKind, tuple[str, ...]] = {
    "events": ("user_id", "item_id", "time", "order", "event_type", "session"),
    "items": ("item_id",),
    "users": ("user_id",),
    "impressions": ("user_id", "item_id", "time", "position", "request", "weight"),
}
REQUIRED_ROLES: dict[LogKind, tuple[str, ...]] = {
    "events": ("user_id", "item_id"),
    "items": ("item_id",),
    "users": ("user_id",),
    "impressions": ("user_id", "item_id", "time"),
}
ROW = "_row"
"""Column of a batch: the number of a row in its file, from 1, a header not counted."""

BIGQUERY = "bigquery://"
"""Begins what stands for a file where a log is a table: bigquery://PROJECT.DATASET.TABLE."""

_BATCH_ROWS = 1 << 18
_IMAGE_ROWS = 1 << 10
_BLOCK_BYTES = 1 << 23
_COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4"}
_FORMATS = {".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".pq": "parquet", ".jsonl": "jsonl", ".json": "jsonl"}


@dataclass(frozen=True)
class LogFile:
    """One file of a log."""

    path: str
    """Where it is read, relative to this folder where it lies below it."""
    name: str
    """Its path relative to the folder that all files of the log share: what outputs call it."""
    index: int
    """Its place in the sorted list of the log's files."""
    format: str
    compression: str | None
    size_bytes: int
    columns: tuple[str, ...]
    integer_columns: frozenset[str] = frozenset()
    """Columns stored as whole numbers (Parquet)."""
    row_groups: tuple[int, ...] = ()
    """Rows of each row group (Parquet), or of the table (BigQuery)."""


@dataclass(frozen=True)
class Log:
    """A `Source` whose files have been found and whose columns are known to exist."""

    kind: LogKind
    source: Source
    files: tuple[LogFile, ...]
    roles: dict[str, str]
    """Role -> column, for the roles that the log has."""

    @property
    def columns(self) -> frozenset[str]:
        """The columns that every file has."""
        return frozenset.intersection(*(frozenset(file.columns) for file in self.files))

    @property
    def integer_columns(self) -> frozenset[str]:
        """The columns that are whole numbers in every file, so that no row of them can be text."""
        return frozenset.intersection(*(file.integer_columns for file in self.files))

    @property
    def estimated_rows(self) -> int:
        """Rows, exact for Parquet, else guessed from the size of the files."""
        return sum(_estimated_rows(file) for file in self.files)

    def require(self, column: str, key: str) -> str:
        """Returns `column`, or raises a `UserError` that names `key`, the file without it, and what it has."""
        for file in self.files:
            if column not in file.columns:
                hint = suggest(column, file.columns)
                raise UserError(f"{file.path}: no column `{column}`, which `{key}` names; {hint}")
        return column


@dataclass(frozen=True)
class Fragment:
    """A part of a file that one worker reads: some row groups of a Parquet file, else the whole file."""

    file: LogFile
    row_groups: tuple[int, ...] = ()
    first_row: int = 1


@dataclass
class Batch:
    """Some rows of one file, with their row numbers in column `ROW`, and the lines that could not be read at all."""

    file: LogFile
    frame: pl.DataFrame
    broken: list[tuple[int, str, str]] = field(default_factory=list)
    """Row, text and rule of each unreadable line."""


def open_log(kind: LogKind, source: Source) -> Log:
    """Finds a log's files and the columns of its roles.

    Raises:
        UserError: a pattern matches no file, a file cannot be read, or a column is missing.
    """
    sizes = _matching(kind, source.files)
    names = _short_names(list(sizes))
    files = tuple(
        _inspect(_shown(path), names[path], index, size, source, kind)
        for index, (path, size) in enumerate(sizes.items())
    )
    for role in source.columns:
        if role not in ROLES[kind]:
            raise UserError(f"`data.{kind}.columns.{role}`: no such role; {suggest(role, ROLES[kind])}", exit_code=2)
    log = Log(kind, source, files, {})
    for role in ROLES[kind]:
        if role in source.columns:
            log.roles[role] = log.require(source.columns[role], f"data.{kind}.columns.{role}")
        elif role in log.columns:
            log.roles[role] = role
        elif role in REQUIRED_ROLES[kind]:
            raise UserError(
                f"{files[0].path}: no column for role `{role}`; name one under `data.{kind}.columns.{role}`. "
                f"Columns: {', '.join(files[0].columns)}."
            )
    return log


def list_fragments(log: Log) -> list[Fragment]:
    """The parts that a log is read in, in the order of its files; tables are none."""
    fragments = []
    for file in log.files:
        if file.format == "bigquery":
            continue
        if file.format != "parquet":
            fragments.append(Fragment(file))
            continue
        group: list[int] = []
        first_row, rows = 1, 0
        for number, size in enumerate(file.row_groups):
            group.append(number)
            rows += size
            if rows >= _BATCH_ROWS or number == len(file.row_groups) - 1:
                fragments.append(Fragment(file, tuple(group), first_row))
                group, first_row, rows = [], first_row + rows, 0
    return fragments


def read_batches(
    fragment: Fragment, columns: Sequence[str], source: Source, images: Collection[str] = ()
) -> Iterator[Batch]:
    """The rows of a fragment, in order, `columns` alone; a damaged file is a `UserError`.

    Args:
        fragment: what is read.
        columns: sorted.
        source: says how.
        images: columns whose bytes, where they are bytes (Parquet), are no texts; such rows come few at a time.
    """
    readers = {"csv": _read_csv, "jsonl": _read_jsonl}
    try:
        if fragment.file.format == "parquet":
            yield from _read_parquet(fragment, columns, images)
        else:
            yield from readers[fragment.file.format](fragment, columns, source)
    except (pa.ArrowException, OSError, EOFError, UnicodeError) as error:
        raise _unreadable(fragment.file.path, error) from error


def _matching(kind: LogKind, patterns: Sequence[str]) -> dict[str, int]:
    """The files that the patterns match, each once, by their whole paths in order, with their sizes."""
    found: dict[str, int] = {}
    for pattern in patterns:
        matches = {pattern: 0} if pattern.startswith(BIGQUERY) else _match(pattern)
        if not matches:
            raise UserError(f"{pattern}: no such file, which `data.{kind}.files` names.")
        found.update(matches)
    return dict(sorted(found.items()))


def _match(pattern: str) -> dict[str, int]:
    if "://" not in pattern:
        local = Path(os.path.abspath(Path(pattern).expanduser()))
        if local.is_file():  # its name may hold what would be a pattern
            return {str(local): local.stat().st_size}
        pattern = f"{local}/" if pattern.endswith("/") else str(local)
    return {match.path: int(match.size_in_bytes) for match in FileSystems.match([pattern])[0].metadata_list}


def _shown(path: str) -> str:
    """A path below this folder relative to it, another as it is: what messages call it."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path


def _short_names(paths: Sequence[str]) -> dict[str, str]:
    """Paths without the folders that all of them share."""
    parts = {path: PurePosixPath(path).parts for path in paths}
    shared = 0
    while (
        all(len(part) > shared + 1 for part in parts.values()) and len({part[shared] for part in parts.values()}) == 1
    ):
        shared += 1
    return {path: "/".join(part[shared:]) for path, part in parts.items()}


def _inspect(path: str, name: str, index: int, size: int, source: Source, kind: LogKind) -> LogFile:
    if path.startswith(BIGQUERY):
        return _inspect_table(path, name, index)
    format_, compression = _format_of(path, source, kind)
    integers: frozenset[str] = frozenset()
    row_groups: tuple[int, ...] = ()
    try:
        if format_ == "parquet":
            with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
                parquet = pa.parquet.ParquetFile(file)
                schema = parquet.schema_arrow
                metadata = parquet.metadata
                columns = tuple(schema.names)
                integers = frozenset(one.name for one in schema if _fits_int64(one.type))
                row_groups = tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
        elif source.header is not None and format_ == "csv":
            columns = source.header
        else:
            with _open(path, compression) as file:
                columns = _csv_columns(path, file, source) if format_ == "csv" else column_names(file)
    except (pa.ArrowException, OSError, EOFError, UnicodeError) as error:
        raise _unreadable(path, error) from error
    return LogFile(path, name, index, format_, compression, size, columns, integers, row_groups)


def _inspect_table(path: str, name: str, index: int) -> LogFile:
    parts = path.removeprefix(BIGQUERY).split(".")
    if len(parts) != 3 or not all(parts):
        raise UserError(f"{path}: must look like {BIGQUERY}PROJECT.DATASET.TABLE.")
    try:
        from apache_beam.io.gcp.bigquery_tools import BigQueryWrapper

        table = BigQueryWrapper().get_table(*parts)
    except Exception as error:  # without the package, credentials, the right to read, or the table
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: cannot be read: {reason} (`pip install 'tfrec[gcp]'` brings the client).") from None
    fields = {field.name: field.type for field in table.schema.fields}
    integers = frozenset(name for name, kind in fields.items() if kind in ("INTEGER", "INT64"))
    rows = int(table.numRows or 0)
    return LogFile(path, name, index, "bigquery", None, int(table.numBytes or 0), tuple(fields), integers, (rows,))


def _fits_int64(dtype: pa.DataType) -> bool:
    return pa.types.is_integer(dtype) and not pa.types.is_uint64(dtype)


def _format_of(path: str, source: Source, kind: LogKind) -> tuple[str, str | None]:
    suffixes = [suffix.lower() for suffix in PurePosixPath(path).suffixes]
    compression = _COMPRESSIONS.get(suffixes[-1]) if suffixes else None
    if compression:
        suffixes.pop()
    if source.format != "auto":
        return source.format, compression
    if not suffixes or suffixes[-1] not in _FORMATS:
        raise UserError(f"{path}: the suffix names no format; set `data.{kind}.format` to csv, parquet or jsonl.")
    return _FORMATS[suffixes[-1]], compression


def _open(path: str, compression: str | None) -> IO[bytes]:
    file = FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)
    return pa.CompressedInputStream(file, compression) if compression else file


def _estimated_rows(file: LogFile) -> int:
    if file.row_groups:
        return sum(file.row_groups)
    bytes_a_row = 32 if file.format == "csv" else 96
    return file.size_bytes * (4 if file.compression else 1) // bytes_a_row


def _read_parquet(fragment: Fragment, columns: Sequence[str], images: Collection[str]) -> Iterator[Batch]:
    path, row = fragment.file.path, fragment.first_row
    with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
        parquet = pa.parquet.ParquetFile(file, page_checksum_verification=True)
        size = _IMAGE_ROWS if images else _BATCH_ROWS
        threads = pl.thread_pool_size() > 1
        groups = list(fragment.row_groups)
        for batch in parquet.iter_batches(size, row_groups=groups, columns=list(columns), use_threads=threads):
            frame, rows, broken = _as_frame(batch, range(row, row + len(batch)), images)
            yield Batch(fragment.file, _numbered(frame, rows), broken)
            row += len(batch)


def _csv_options(path: str, source: Source) -> dict[str, Any]:
    return {
        "read_options": pa.csv.ReadOptions(
            column_names=list(source.header) if source.header is not None else None,
            block_size=_BLOCK_BYTES,
            encoding=source.encoding,
            use_threads=False,  # only then are broken rows numbered; it is no slower
        ),
        "parse_options": pa.csv.ParseOptions(
            delimiter=source.delimiter or _usual_delimiter(path), newlines_in_values=True
        ),
    }


def _usual_delimiter(path: str) -> str:
    return "\t" if ".tsv" in (suffix.lower() for suffix in PurePosixPath(path).suffixes[-2:]) else ","


def _csv_columns(path: str, file: IO[bytes], source: Source) -> tuple[str, ...]:
    options = _csv_options(path, source)
    options["parse_options"].invalid_row_handler = lambda _: "skip"
    names = tuple(pa.csv.open_csv(MarkedText(file) if _is_utf8(source) else file, **options).schema.names)
    if any(without_marks(name) != name for name in names):
        raise pa.ArrowInvalid("the header is not valid UTF-8")
    return names


def _is_utf8(source: Source) -> bool:
    return codecs.lookup(source.encoding).name == "utf-8"


def _read_csv(fragment: Fragment, columns: Sequence[str], source: Source) -> Iterator[Batch]:
    broken: list[tuple[int, str, str]] = []
    header_rows = 0 if source.header is not None else 1

    def skip(row: pa.csv.InvalidRow) -> str:
        rule = f"has {row.actual_columns} columns, must have {row.expected_columns}"
        rule += " (several lines in quotes, perhaps one that is not closed)" if "\n" in row.text.strip() else ""
        broken.append((row.number - header_rows, without_marks(row.text), rule))
        return "skip"

    options = _csv_options(fragment.file.path, source)
    options["parse_options"].invalid_row_handler = skip
    options["convert_options"] = pa.csv.ConvertOptions(
        include_columns=list(columns),
        column_types=dict.fromkeys(columns, pa.binary()),  # texts, once they are known to be valid
        strings_can_be_null=True,
        null_values=[""],
    )
    next_row, reported = 1, 0
    with _open(fragment.file.path, fragment.file.compression) as file:
        marked = MarkedText(file) if _is_utf8(source) else None
        for batch in pa.csv.open_csv(marked or file, **options):
            taken = {row for row, _, _ in broken}
            rows = list(_free_numbers(next_row, len(batch), taken))
            next_row = rows[-1] + 1 if rows else next_row
            frame, valid_rows, invalid = _as_frame(marked.unmark(batch) if marked else batch, rows)
            frame, lines = _without_lines_in_ids(_numbered(frame, valid_rows), source)
            yield Batch(fragment.file, frame, [*_line_by_line(broken[reported:]), *invalid, *_line_by_line(lines)])
            reported = len(broken)
    if broken[reported:]:
        yield Batch(fragment.file, pl.DataFrame({ROW: pl.Series([], dtype=pl.Int64)}), _line_by_line(broken[reported:]))


def _line_by_line(broken: Broken) -> Broken:
    """A row that a quote stretched over several lines is as many rows of the log, and each is in the account."""
    return [(row, line, rule) for row, text, rule in broken for line in text.strip("\r\n").split("\n")]


def _free_numbers(first: int, count: int, taken: set[int]) -> Iterable[int]:
    """The first `count` numbers from `first` on that are not taken."""
    if not taken or max(taken) < first:
        return range(first, first + count)
    free = (number for number in range(first, first + count + len(taken)) if number not in taken)
    return [number for _, number in zip(range(count), free, strict=False)]


def _read_jsonl(fragment: Fragment, columns: Sequence[str], source: Source) -> Iterator[Batch]:
    with _open(fragment.file.path, fragment.file.compression) as file:
        for frame, rows, broken in read_blocks(file, columns, _BLOCK_BYTES):
            yield Batch(fragment.file, _numbered(frame, rows), broken)


def _as_frame(
    batch: pa.RecordBatch, rows: Sequence[int], images: Collection[str] = ()
) -> tuple[pl.DataFrame, Sequence[int], Broken]:
    """The rows of a batch whose texts are valid UTF-8, their numbers, and the others as broken.

    Bytes are taken for texts. Only what has been checked may become a polars frame, which trusts its texts.
    """
    texts = {pa.binary(): pa.string(), pa.large_binary(): pa.large_string()}
    columns = [
        pc.cast(column, options=pc.CastOptions(texts[column.type], allow_invalid_utf8=True))
        if column.type in texts and name not in images
        else column
        for name, column in zip(batch.schema.names, batch.columns, strict=True)
    ]
    checked = pa.RecordBatch.from_arrays(columns, names=batch.schema.names)
    if _is_valid(checked):
        return pl.DataFrame(pa.Table.from_batches([checked])), rows, []
    invalid = {
        place: name
        for name, column in zip(checked.schema.names, columns, strict=True)
        for place in range(len(column))
        if not _is_valid(_values_of(column.slice(place, 1)))
    }
    good = [place for place in range(len(checked)) if place not in invalid]
    kept = [column.take(pa.array(good, pa.int64())) for column in columns]
    rule = "column {}: must be valid UTF-8 (or set `encoding` of the source)"
    broken = [(rows[place], "", rule.format(invalid[place])) for place in sorted(invalid)]
    return pl.DataFrame(pa.table(kept, names=checked.schema.names)), [rows[place] for place in good], broken


def _is_valid(values: pa.Array | pa.RecordBatch) -> bool:
    try:
        values.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _values_of(column: pa.Array) -> pa.Array:
    """What lists hold: a part of a column of lists is validated with the values of all of it."""
    return column.flatten() if isinstance(column, pa.ListArray | pa.LargeListArray) else column


def _without_lines_in_ids(frame: pl.DataFrame, source: Source) -> tuple[pl.DataFrame, Broken]:
    """Takes the rows of a CSV out whose ids hold line breaks: a quote that is not closed swallows lines."""
    names = [source.columns.get(role, role) for role in ("user_id", "item_id")]
    held = [pl.col(name).str.contains("\n", literal=True) for name in names if name in frame.columns]
    if not held:
        return frame, []
    swallowed = frame.select(pl.any_horizontal(held).fill_null(False)).to_series()
    if not swallowed.any():
        return frame, []
    rule = "an id holds a line break, perhaps by a quote that is not closed"
    rows = frame.filter(swallowed)
    broken = [(row[ROW], ",".join(str(row[name]) for name in names if name in row), rule) for row in rows.to_dicts()]
    return frame.filter(~swallowed), broken


def _numbered(frame: pl.DataFrame, rows: Iterable[int]) -> pl.DataFrame:
    if isinstance(rows, range):
        return frame.with_columns(pl.int_range(rows.start, rows.stop, dtype=pl.Int64).alias(ROW))
    return frame.with_columns(pl.Series(ROW, list(rows), dtype=pl.Int64))


def _unreadable(path: str, error: BaseException) -> UserError:
    reason = " ".join(str(error).split())
    hint = " Set `encoding` of the source." if "utf" in reason.lower() and isinstance(error, pa.ArrowInvalid) else ""
    if "straddling" in reason:
        reason = f"a row of more than {_BLOCK_BYTES >> 20} MiB, perhaps a quote that is not closed"
    return UserError(f"{path}: cannot be read: {reason[:300].rstrip('.')}.{hint}")


def as_bytes(frame: pl.DataFrame) -> bytes:
    """A frame as Arrow IPC, compressed: what passes a shuffle."""
    buffer = io.BytesIO()
    frame.write_ipc(buffer, compression="lz4")
    return buffer.getvalue()


def from_bytes(content: bytes) -> pl.DataFrame:
    """What `as_bytes` made."""
    return pl.read_ipc(io.BytesIO(content))
