"""JSON lines in blocks: parsed fast as a whole, line by line where a block holds something broken."""

import io
import json
from collections.abc import Iterator, Sequence
from typing import IO, Any

import polars as pl

Broken = list[tuple[int, str, str]]


def column_names(file: IO[bytes], sample_bytes: int = 1 << 20) -> tuple[str, ...]:
    """The keys of the objects at the beginning of a file, in the order of their first appearance."""
    lines = file.read(sample_bytes).split(b"\n")
    if len(lines) > 1:
        lines.pop()  # perhaps cut in the middle
    names: dict[str, None] = {}
    for line in lines:
        value, _ = _parse(line)
        names.update(dict.fromkeys(value or ()))
    return tuple(names)


def read_blocks(
    file: IO[bytes], columns: Sequence[str], block_bytes: int
) -> Iterator[tuple[pl.DataFrame, Sequence[int], Broken]]:
    """Frames of `columns`, the line numbers of their rows from 1, and the lines that hold no JSON object."""
    first_line = 1
    for block in _whole_lines(file, block_bytes):
        lines = block.count(b"\n") + (not block.endswith(b"\n"))
        frame = _parse_block(block)
        if frame is not None and len(frame) == lines:
            yield _with_columns(frame, columns), range(first_line, first_line + lines), []
        else:
            yield _parse_lines(block, columns, first_line)
        first_line += lines


def _whole_lines(file: IO[bytes], block_bytes: int) -> Iterator[bytes]:
    rest = b""
    while chunk := file.read(block_bytes):
        head, newline, tail = chunk.rpartition(b"\n")
        if newline:
            yield rest + head + newline
            rest = tail
        else:
            rest += chunk
    if rest:
        yield rest


def _parse_block(block: bytes) -> pl.DataFrame | None:
    """All lines at once; None where they hold anything but objects with columns of one type each."""
    try:
        return pl.read_ndjson(io.BytesIO(block), infer_schema_length=None)
    except (pl.exceptions.PolarsError, ValueError):
        return None


def _parse_lines(block: bytes, columns: Sequence[str], first_line: int) -> tuple[pl.DataFrame, list[int], Broken]:
    values: dict[str, list[Any]] = {name: [] for name in columns}
    rows: list[int] = []
    broken: Broken = []
    lines = block.removesuffix(b"\n").split(b"\n")
    for number, line in enumerate(lines, start=first_line):
        value, rule = _parse(line)
        if value is not None:
            rows.append(number)
            for name in columns:
                values[name].append(value.get(name))
        elif line.strip():
            broken.append((number, line.decode("utf-8", "replace"), rule))
    return pl.DataFrame([_series(name, column) for name, column in values.items()]), rows, broken


def _parse(line: bytes) -> tuple[dict[str, Any] | None, str]:
    if not line.strip():
        return None, "is empty"
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):  # nested beyond all reason
        return None, "must be a JSON object"
    return (value, "") if isinstance(value, dict) else (None, "must be a JSON object")


def _series(name: str, values: list[Any]) -> pl.Series:
    """A column of values of one type, else of texts."""
    try:
        return pl.Series(name, values, strict=True)
    except (TypeError, pl.exceptions.PolarsError, OverflowError):
        return pl.Series(name, [_text(value) for value in values], dtype=pl.String)


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return json.dumps(value)


def _with_columns(frame: pl.DataFrame, columns: Sequence[str]) -> pl.DataFrame:
    missing = [pl.lit(None, pl.String).alias(name) for name in columns if name not in frame.columns]
    return frame.with_columns(missing).select(columns)
