"""Raw columns to checked ones, whole batches at a time, and which rows fail by which rule."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Literal, TypeAlias

import numpy as np
import polars as pl
from numpy.typing import NDArray

from beam_jobs.sources import ROW
from tfrec.config import FeatureConfig

EARLIEST_SECONDS = 631_152_000
"""1990-01-01: times before are taken for mistakes."""
LATEST_SECONDS = 4_102_444_800
"""2100-01-01: times from here on are taken for mistakes."""
MICROSECONDS = 1_000_000

FieldKind = Literal[
    "id", "integer_id", "time", "integer", "number", "weight", "text", "texts", "weights", "vector", "image"
]

_UNIT_SECONDS = {"seconds": 1.0, "milliseconds": 1e-3, "microseconds": 1e-6, "nanoseconds": 1e-9}
_ISO_FORMATS = (
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%dT%H:%M:%S%.f",
    "%+",
    "%Y-%m-%d %H:%M:%S%.f%#z",
    "%Y-%m-%d",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%dT%H:%M",
)
_SHOWN_CHARACTERS = 200

REJECT_SCHEMA = {"file": pl.String, "row": pl.Int64, "column": pl.String, "value": pl.String, "rule": pl.String}

# The checked values of a column, and of each row the rule that it breaks or null; None = all rows pass.
Checked: TypeAlias = tuple[pl.Series, pl.Series | None]


@dataclass(frozen=True)
class Field:
    """One checked column: what it is made of and what it must be."""

    name: str
    """Name of the checked column."""
    column: str
    """The raw column."""
    kind: FieldKind
    """id and text: texts. integer_id: a column of whole numbers throughout, kept as such. time: microseconds."""
    required: bool = False
    """An empty cell is a reason to reject."""
    time_unit: str = "seconds"
    """Of a time: as in `data.*.time_unit`."""
    separator: str | None = None
    """Of texts: what separates the values in a cell; None where cells are lists."""
    max_values: int = 1
    """Of texts: values kept."""
    weight_separator: str | None = None
    """Of texts and weights: what stands between a value and its weight."""
    dim: int = 0
    """Of a vector: its width."""
    file: str | None = None
    """Of a vector: the .npy file whose rows the column counts; None where cells are vectors."""
    feature: FeatureConfig | None = None
    """Of a text or image that is encoded: its feature."""


def check_batch(
    frame: pl.DataFrame, fields: Sequence[Field], file: str
) -> tuple[pl.DataFrame, pl.Series, pl.DataFrame]:
    """Checks every field of every row.

    Returns:
        The checked columns with `ROW`, all rows, values that fail being null; whether each row passes everything; the
        rejects (`REJECT_SCHEMA`), one for each row that does not pass, by the first rule that it breaks.
    """
    columns: list[pl.Series] = [frame[ROW]]
    passes = pl.repeat(True, len(frame), dtype=pl.Boolean, eager=True)
    rejects: list[pl.DataFrame] = []
    for field in fields:
        raw = frame[field.column]
        if isinstance(raw.dtype, pl.Categorical | pl.Enum):
            raw = raw.cast(pl.String)
        if raw.dtype == pl.Binary and field.kind != "image":
            raw = raw.cast(pl.String, strict=False)
        values, rules = _CHECKS[field.kind](raw, field)
        columns.append(values.alias(field.name))
        if rules is None:
            continue
        rejects.append(reject(frame[ROW], raw, rules, file, passes & rules.is_not_null()))
        passes = passes & rules.is_null()
    return pl.DataFrame(columns), passes, pl.concat([empty_rejects(), *rejects])


def reject(rows: pl.Series, raw: pl.Series, rules: pl.Series, file: str, mask: pl.Series) -> pl.DataFrame:
    """The rejects of the rows where `mask` holds."""
    shown = [None if value is None else str(value)[:_SHOWN_CHARACTERS] for value in raw.filter(mask).to_list()]
    chosen = rows.filter(mask)
    return pl.DataFrame(
        {
            "file": [file] * len(chosen),
            "row": chosen,
            "column": [raw.name] * len(chosen),
            "value": pl.Series(shown, dtype=pl.String),
            "rule": rules.filter(mask),
        },
        schema=REJECT_SCHEMA,
    )


def broken_rejects(broken: Sequence[tuple[int, str, str]], file: str) -> pl.DataFrame:
    """The rejects of lines that could not be read at all: (row, text, rule)."""
    rows = [
        {"file": file, "row": row, "column": "", "value": text[:_SHOWN_CHARACTERS], "rule": rule}
        for row, text, rule in broken
    ]
    return pl.DataFrame(rows, schema=REJECT_SCHEMA)


def empty_rejects() -> pl.DataFrame:
    """No rejects."""
    return pl.DataFrame(schema=REJECT_SCHEMA)


def _check_id(raw: pl.Series, field: Field) -> Checked:
    values, wrong = as_texts(raw)
    return values, _rules((wrong, "must be a text or a whole number"), *_missing(values, field))


def _check_integer_id(raw: pl.Series, field: Field) -> Checked:
    return raw.cast(pl.Int64), _rules(*_missing(raw, field))


def _check_text(raw: pl.Series, field: Field) -> Checked:
    if raw.dtype.is_nested():
        return _all_wrong(raw, pl.String, "must be a text, not a list")
    if raw.dtype.is_float():
        values = raw.to_frame().select(float_text(pl.col(raw.name))).to_series()
        infinite = raw.is_infinite().fill_null(False)
        return values.set(infinite, None), _rules((infinite, "must be a finite number"), *_missing(values, field))
    values = as_texts(raw)[0]
    return values, _rules(*_missing(values, field))


def _check_texts(raw: pl.Series, field: Field) -> Checked:
    """Lists of texts without their weights, the first `max_values` of each cell; a cell without values is null."""
    lists, rules = _lists_of_values(raw, field)
    if field.weight_separator is not None:
        lists = lists.list.eval(pl.element().str.replace(_weight_pattern(field.weight_separator), ""))
    return lists, rules


def _check_weights(raw: pl.Series, field: Field) -> Checked:
    """Lists of the weights, as float32, of what `_check_texts` keeps; a text of values only is told there."""
    assert field.weight_separator is not None, "Weights stand behind a separator."
    lists, rules = _lists_of_values(raw, field)
    if rules is not None:
        return _nulls(raw, pl.List(pl.Float32)), None
    pattern = _weight_pattern(field.weight_separator)
    texts = lists.list.eval(pl.element().str.extract(pattern, 1).fill_null("1"))
    weights = texts.list.eval(pl.element().cast(pl.Float32, strict=False))
    wrong = ~weights.list.eval(((pl.element() > 0) & pl.element().is_finite()).fill_null(False)).list.all()
    wrong = wrong.fill_null(False)
    alone = lists.list.eval(pl.element().str.replace(pattern, "") == "").list.any().fill_null(False)
    return weights.set(wrong | alone, None), _rules(
        (wrong, "a weight must be a finite number above 0"), (alone, "a weight must stand behind a value")
    )


def _weight_pattern(separator: str) -> str:
    """A regular expression of the last separator and what follows it."""
    return f"{re.escape(separator)}([^{re.escape(separator[0])}]*)$"


def _lists_of_values(raw: pl.Series, field: Field) -> Checked:
    if field.separator is not None and not raw.dtype.is_nested():
        lists = as_texts(raw)[0].str.split(field.separator).list.eval(pl.element().str.strip_chars())
    elif isinstance(raw.dtype, pl.List | pl.Array) or raw.null_count() == len(raw):
        lists = _lists_of_texts(raw)
    else:
        return _all_wrong(raw, pl.List(pl.String), "must be a list of values, or set the feature's `separator`")
    lists = lists.list.eval(pl.element().filter(pl.element().str.len_bytes() > 0)).list.head(field.max_values)
    return lists.set(lists.list.len() == 0, None), None


def _check_number(raw: pl.Series, field: Field) -> Checked:
    values, wrong = _as_numbers(raw)
    infinite = values.is_infinite().fill_null(False)
    rules = _rules((wrong, "must be a number"), (infinite, "must be a finite number"), *_missing(values, field))
    return values.fill_nan(None).set(infinite, None), rules


def _check_weight(raw: pl.Series, field: Field) -> Checked:
    values, rules = _check_number(raw, field)
    negative = (values < 0).fill_null(False)
    if not negative.any():
        return values, rules
    told = _rules((negative, "must be a number from 0 on"))
    return values.set(negative, None), told if rules is None else rules.fill_null(told)


def _check_integer(raw: pl.Series, field: Field) -> Checked:
    if raw.dtype.is_integer():
        return raw.cast(pl.Int64), _rules(*_missing(raw, field))
    values, wrong = _as_numbers(raw)
    wrong = wrong | ((values != values.round()) | (values.abs() >= 2.0**63)).fill_null(False)
    whole = values.set(wrong, None).cast(pl.Int64)
    if raw.dtype == pl.String:  # beyond 2^53 a float is not exact
        whole = raw.str.strip_chars().cast(pl.Int64, strict=False).fill_null(whole)
    return whole, _rules((wrong, "must be a whole number"), *_missing(values, field))


def _check_vector(raw: pl.Series, field: Field) -> Checked:
    """Vectors as float32 lists of width `dim`; a null cell has no vector."""
    empty = pl.List(pl.Float32)
    if field.file is not None:
        return _rows_of(field.file, raw, field)
    if not isinstance(raw.dtype, pl.List | pl.Array):
        if raw.null_count() == len(raw):
            return pl.repeat(None, len(raw), dtype=empty, eager=True), None
        return _all_wrong(raw, empty, "must be a list of numbers (JSON lines, Parquet), or set the feature's `vectors`")
    try:
        values = raw.cast(empty)
    except pl.exceptions.PolarsError:
        return _all_wrong(raw, empty, "must be a list of numbers")
    widths = values.list.len()
    wrong_width = (widths != field.dim).fill_null(False)
    finite = values.list.eval(pl.element().is_finite().fill_null(False)).list.all().fill_null(True)
    texts = f"must have width {field.dim} (the feature's `dim`), has " + widths.cast(pl.String)
    rules = _rules((wrong_width, texts), (~finite, "holds a NaN, an infinity or an empty entry"))
    return (values if rules is None else values.set(rules.is_not_null(), None)), rules


def _rows_of(file: str, raw: pl.Series, field: Field) -> Checked:
    """The rows of a .npy file that the cells name."""
    rows, rules = _check_integer(raw, field)
    stored = open_vectors(file)
    outside = ((rows < 0) | (rows >= len(stored))).fill_null(False)
    inside = rows.is_not_null() & ~outside
    chosen = np.asarray(stored[rows.filter(inside).to_numpy()], np.float32)
    finite = np.isfinite(chosen).all(axis=1)
    places = np.flatnonzero(inside)
    vectors = np.zeros((len(raw), field.dim), np.float32)
    vectors[places[finite]] = chosen[finite]
    absent = np.ones(len(raw), np.bool_)
    absent[places[finite]] = False
    broken = np.zeros(len(raw), np.bool_)
    broken[places[~finite]] = True
    found = _rules(
        (rules.is_not_null() if rules is not None else _never(raw), "must be a whole number"),
        (outside, f"must be a row of {PurePath(file).name}, 0 to {len(stored) - 1}"),
        (pl.Series(broken), f"is a row of {PurePath(file).name} with a NaN or an infinity"),
    )
    lists = pl.Series(vectors, dtype=pl.Array(pl.Float32, field.dim)).cast(pl.List(pl.Float32))
    return lists.set(pl.Series(absent), None), found


def open_vectors(file: str) -> NDArray[Any]:
    """A .npy file, mapped into memory."""
    vectors: NDArray[Any] = np.load(Path(file).expanduser(), mmap_mode="r", allow_pickle=False)
    return vectors


def _check_image(raw: pl.Series, field: Field) -> Checked:
    """Bytes, or paths of files; an empty cell has no image."""
    if raw.dtype not in (pl.Binary, pl.String):
        return _all_wrong(raw, pl.String, "must be the bytes of an image or the path of its file")
    sizes = raw.str.len_bytes() if raw.dtype == pl.String else raw.bin.size()
    return raw.set((sizes == 0).fill_null(False), None), None


def _check_time(raw: pl.Series, field: Field) -> Checked:
    """Microseconds since 1970 UTC, between 1990 and 2100."""
    micros, seconds, wrong = _parse_time(raw, field.time_unit)
    early, late = seconds < EARLIEST_SECONDS, seconds >= LATEST_SECONDS
    if not (wrong.any() or raw.null_count() or early.any() or late.any()):
        return micros, None
    absurd = (early | late).fill_null(False)
    rules = _rules(
        (wrong, f"must be a time in `time_unit` {field.time_unit}"),
        *_hints(seconds, absurd, field.time_unit),
        (early.fill_null(False), "is before 1990"),
        (late.fill_null(False), "is after 2100"),
        *_missing(raw, field),
    )
    return micros.set(absurd | wrong, None), rules


_CHECKS: dict[FieldKind, Callable[[pl.Series, Field], Checked]] = {
    "id": _check_id,
    "integer_id": _check_integer_id,
    "time": _check_time,
    "integer": _check_integer,
    "number": _check_number,
    "weight": _check_weight,
    "text": _check_text,
    "texts": _check_texts,
    "weights": _check_weights,
    "vector": _check_vector,
    "image": _check_image,
}


def as_texts(raw: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Texts, whole floats without `.0`, the empty text as null; and which values are neither texts nor whole."""
    if raw.dtype.is_float():
        wrong = (raw.is_finite() & (raw != raw.round())).fill_null(False) | raw.is_infinite().fill_null(False)
        return raw.fill_nan(None).set(wrong, None).cast(pl.Int64, strict=False).cast(pl.String), wrong
    if raw.dtype.is_nested():
        return _nulls(raw, pl.String), raw.is_not_null()
    texts = raw.cast(pl.String)
    if raw.dtype == pl.String and (texts == "").any():
        texts = texts.set(texts == "", None)
    return texts, _never(raw)


def float_text(number: pl.Expr) -> pl.Expr:
    """Each number as one text whatever else stands in its column: whole ones without a point, NaN as null."""
    whole = (number == number.round()) & (number.abs() < 2.0**63)
    return (
        pl.when(number.is_nan())
        .then(None)
        .when(whole)
        .then(number.cast(pl.Int64, strict=False).cast(pl.String))
        .otherwise(number.cast(pl.String))
    )


def _lists_of_texts(raw: pl.Series) -> pl.Series:
    lists = raw.cast(pl.List(raw.dtype.inner)) if isinstance(raw.dtype, pl.Array) else raw
    if isinstance(lists.dtype, pl.List) and lists.dtype.inner.is_float():
        return lists.list.eval(float_text(pl.element()))
    return lists.cast(pl.List(pl.String))


def _as_numbers(raw: pl.Series) -> tuple[pl.Series, pl.Series]:
    if raw.dtype.is_numeric() or raw.dtype == pl.Boolean:
        return raw.cast(pl.Float64), _never(raw)
    if raw.dtype == pl.String:
        stripped = raw.str.strip_chars()
        values = stripped.cast(pl.Float64, strict=False)
        return values, values.is_null() & (stripped != "").fill_null(False)
    return _nulls(raw, pl.Float64), raw.is_not_null()


def _parse_time(raw: pl.Series, unit: str) -> tuple[pl.Series, pl.Series, pl.Series]:
    """Microseconds, seconds, and which values are no time at all."""
    if raw.dtype == pl.Date or isinstance(raw.dtype, pl.Datetime):
        micros = raw.cast(pl.Datetime("us")).to_physical()
        return micros, micros / MICROSECONDS, _never(raw)
    if unit in _UNIT_SECONDS:
        return _parse_number_time(raw, _UNIT_SECONDS[unit])
    if raw.dtype != pl.String:
        return _nulls(raw, pl.Int64), _nulls(raw, pl.Float64), raw.is_not_null()
    parsed = _parse_text_time(raw, _ISO_FORMATS if unit == "iso" else (unit,))
    wrong = parsed.is_null() & (raw.str.strip_chars() != "").fill_null(False)
    return parsed, parsed / MICROSECONDS, wrong


def _parse_number_time(raw: pl.Series, unit_seconds: float) -> tuple[pl.Series, pl.Series, pl.Series]:
    values, wrong = _as_numbers(raw)
    seconds = values * unit_seconds
    possible = ((seconds >= EARLIEST_SECONDS) & (seconds < LATEST_SECONDS)).fill_null(False)
    whole = raw.cast(pl.Int64, strict=False) if raw.dtype.is_integer() or raw.dtype == pl.String else None
    micros_a_unit = unit_seconds * MICROSECONDS
    if whole is None or whole.null_count() > values.null_count():  # some have fractions
        micros = (values.set(~possible, None) * micros_a_unit).floor().cast(pl.Int64)
    elif micros_a_unit >= 1:
        micros = whole.set(~possible, None) * round(micros_a_unit)
    else:
        micros = whole.set(~possible, None) // round(1 / micros_a_unit)
    return micros, seconds, wrong


def _parse_text_time(raw: pl.Series, formats: Sequence[str]) -> pl.Series:
    """The first format that fits each text; a text without a zone is UTC."""
    texts = raw.str.strip_chars()
    parsed = _nulls(raw, pl.Int64)
    for format_ in formats:
        try:
            found = texts.str.to_datetime(format_, time_unit="us", strict=False)
        except pl.exceptions.PolarsError:  # a format without a time of day
            found = texts.str.to_date(format_, strict=False).cast(pl.Datetime("us"))
        parsed = parsed.fill_null(found.to_physical())
        if parsed.null_count() == texts.null_count():
            break
    return parsed


def _hints(seconds: pl.Series, absurd: pl.Series, unit: str) -> list[tuple[pl.Series, str]]:
    """Rules that say in which unit an absurd time would be a plausible one."""
    if unit not in _UNIT_SECONDS or not absurd.any():
        return []
    hints = []
    for other, other_seconds in _UNIT_SECONDS.items():
        as_other = seconds * (other_seconds / _UNIT_SECONDS[unit])
        plausible = absurd & ((as_other >= EARLIEST_SECONDS) & (as_other < LATEST_SECONDS)).fill_null(False)
        place = "after 2100" if other_seconds < _UNIT_SECONDS[unit] else "before 1990"
        hints.append((plausible, f"is {place} in {unit}; it looks like {other}: set `time_unit: {other}`"))
    return hints


def _missing(values: pl.Series, field: Field) -> list[tuple[pl.Series, str]]:
    if not field.required:
        return []
    empty = values.is_null()
    if values.dtype == pl.String:
        empty = empty | (values == "").fill_null(False)
    elif values.dtype.is_float():
        empty = empty | values.is_nan().fill_null(False)
    return [(empty, "is missing")]


def _rules(*rules: tuple[pl.Series, str | pl.Series]) -> pl.Series | None:
    """Of each row the text of the first rule whose mask holds; None where no mask holds anywhere."""
    broken = [(mask, text) for mask, text in rules if mask.any()]
    if not broken:
        return None
    size = len(broken[0][0])
    result = pl.repeat(None, size, dtype=pl.String, eager=True)
    for mask, text in reversed(broken):
        texts = text if isinstance(text, pl.Series) else pl.repeat(text, size, dtype=pl.String, eager=True)
        result = texts.zip_with(mask, result)
    return result


def _all_wrong(raw: pl.Series, dtype: pl.DataType | type[pl.DataType], rule: str) -> Checked:
    return _nulls(raw, dtype), _rules((raw.is_not_null(), rule))


def _nulls(raw: pl.Series, dtype: pl.DataType | type[pl.DataType]) -> pl.Series:
    return pl.repeat(None, len(raw), dtype=dtype, eager=True)


def _never(raw: pl.Series) -> pl.Series:
    return pl.repeat(False, len(raw), dtype=pl.Boolean, eager=True)
