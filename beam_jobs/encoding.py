"""Fitted transforms applied to whole columns: the codes that `tfrec.transforms` gives value by value."""

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from beam_jobs.staging import Table, positions
from tfrec.schema import WEIGHTS, Feature
from tfrec.transforms import (
    FIRST_VALUE,
    UNKNOWN,
    Bins,
    Codes,
    Cross,
    EventCounter,
    Hashed,
    Quantizer,
    TfidfSvd,
    Vectors,
    Vocabulary,
    scaled_weights,
    unescaped,
)


def encode_features(table: Table, prefix: str, features: Iterable[Feature], directory: Path) -> dict[str, Codes]:
    """Codes `(N, num_codes)` of each feature by its name; the column of its raw values is called `prefix` + name."""
    codes: dict[str, Codes] = {}
    crosses: dict[str, Cross] = {}
    for feature in features:
        if isinstance(feature.transform, EventCounter):
            continue  # made of the codes of items, see `beam_jobs.histories`
        codes[feature.name] = np.zeros((0, 1), np.int32)  # in schema order, whenever its turn comes
        if isinstance(feature.transform, Cross):
            crosses[feature.name] = feature.transform
        else:
            codes[feature.name] = encode_column(table, prefix + feature.name, feature, directory)
    for name, transform in crosses.items():
        first, second = (codes[part][:, 0] for part in transform.cross)
        codes[name] = transform.encode_codes(first, second)[:, None]
    return codes


def encode_column(table: Table, name: str, feature: Feature, directory: Path) -> Codes:
    """Codes `(N, num_codes)` of the column that holds a feature's raw values."""
    transform = feature.transform
    if isinstance(transform, Vocabulary | Hashed):
        codes = code_map(table.texts[name], transform, directory)
        if feature.multivalued:
            return _pad(table.rows[name], codes, feature.num_codes)
        return codes[table.codes(name)][:, None]
    if isinstance(transform, Bins):
        return transform.encode(as_array(table.rows[name]), directory)[:, None]
    assert isinstance(transform, Quantizer), "A cross is made of codes, not of a column."
    return transform.encode(vectors_of(table, name, feature, directory), directory)


def vectors_of(table: Table, name: str, feature: Feature, directory: Path) -> Vectors:
    """Vectors `(N, d)` of a feature that is quantised; NaN where a row has none."""
    assert isinstance(feature.transform, Quantizer), "Vectors are quantised."
    if isinstance(feature.encoder, TfidfSvd):
        return feature.encoder.encode(texts_of(table, name), directory)
    return stack_vectors(table.rows[name], feature.transform.input_dim)


def weights_of(table: Table, name: str, feature: Feature) -> Vectors:
    """Scaled weights `(N, num_codes)` of each row's values; a row without any has one, of the code for that."""
    lists = table.rows[name + WEIGHTS]
    weights = np.zeros((len(lists), feature.num_codes), np.float32)
    lengths = lists.list.len().fill_null(0).to_numpy().astype(np.int64)
    row, place = _cells(lengths)
    weights[row, place] = lists.explode(empty_as_null=False, keep_nulls=False).to_numpy()
    weights[lengths == 0, 0] = 1
    return scaled_weights(weights)


def texts_of(table: Table, name: str) -> list[str | None]:
    """A column of texts."""
    return table.texts[name].gather(table.rows[name]).to_list()


def stack_vectors(lists: pl.Series, dim: int) -> Vectors:
    """Lists of `dim` numbers as an array; a null list is a row of NaN."""
    vectors = np.full((len(lists), dim), np.nan, np.float32)
    known = lists.is_not_null()
    vectors[known.to_numpy()] = lists.filter(known).explode().to_numpy().reshape(-1, dim)
    return vectors


def code_map(texts: pl.Series, transform: Vocabulary | Hashed, directory: Path) -> Codes:
    """The code of each text, and at the end (place -1) that of a missing one."""
    if isinstance(transform, Hashed):
        return np.append(transform.encode(texts), UNKNOWN).astype(np.int32)
    path = directory / transform.file
    values, codes = _sorted_values(path, path.stat().st_mtime_ns)
    found = codes.gather(positions(texts, values)).fill_null(UNKNOWN)
    return np.append(found.to_numpy(), UNKNOWN).astype(np.int32)


@lru_cache(maxsize=4)
def _sorted_values(path: Path, written: int) -> tuple[pl.Series, pl.Series]:
    """A vocabulary's values, sorted, and their codes, as Arrow holds them: ten million of Python's take a gigabyte."""
    lines = pl.read_lines(path, glob=False).to_series()
    escaped = lines.str.contains("\\", literal=True).arg_true()
    if len(escaped):
        lines = lines.scatter(escaped, [unescaped(line) for line in lines.gather(escaped)])
    order = lines.arg_sort()
    return lines.gather(order), order.cast(pl.Int32) + FIRST_VALUE


def as_array(values: pl.Series) -> NDArray[np.float64]:
    """Numbers with NaN for null."""
    return values.cast(pl.Float64).fill_null(np.nan).to_numpy()


def _pad(lists: pl.Series, codes: Codes, width: int) -> Codes:
    lengths = lists.list.len().fill_null(0).to_numpy().astype(np.int64)
    flat = lists.explode(empty_as_null=False, keep_nulls=False).to_numpy()
    row, place = _cells(lengths)
    padded = np.zeros((len(lists), width), np.int32)
    padded[row, place] = codes[flat]
    padded[lengths == 0, 0] = UNKNOWN
    return padded


def _cells(lengths: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row and place within it of each value of lists of these lengths, one list after another."""
    row = np.repeat(np.arange(len(lengths)), lengths)
    place = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return row, place
