"""Codes back to raw values: what a client would send to be understood as these codes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfrec.columns import Histories
from tfrec.schema import WEIGHTS, Feature, Schema
from tfrec.transforms import FIRST_VALUE, Bins, Hashed, Vocabulary

_TEXTS_AT_ONCE = 1 << 16
_UNKNOWN_ID = "\0"

Arrays = dict[str, NDArray[Any]]


def raw_histories(
    schema: Schema,
    directory: Path,
    item_ids: Sequence[str],
    histories: Histories,
    users: NDArray[np.int64],
    lengths: NDArray[np.int64],
    *,
    request_time: NDArray[np.int64] | None = None,
) -> Arrays:
    """The inputs of `recommend` for the first events of some users, as strings and times.

    Args:
        schema: of the dataset.
        directory: of the dataset.
        item_ids: raw ids by code; those of padding and unknown are not read.
        histories: of the dataset.
        users: rows of the histories, `(B,)`.
        lengths: events of each that are told, `(B,)`.
        request_time: Unix seconds of the requests `(B,)`; None = the model does not ask for it.
    """
    place = np.arange(max(1, int(lengths.max(initial=0))))
    valid = place < lengths[:, None]
    events = np.where(valid, histories.offsets[users][:, None] + place, 0)  # (B, T)
    columns = histories.columns
    # An event of an item outside the catalogue had an id of its own, which nobody knows any more.
    texts = np.array([_UNKNOWN_ID, _UNKNOWN_ID, *item_ids[FIRST_VALUE:]], object)
    request: Arrays = {
        "history_item_ids": np.where(valid, texts[columns["item"][events]], ""),
        "history_length": lengths.astype(np.int32),
    }
    if schema.has_time:
        request["history_times"] = columns["time"][events].astype(np.int64) + schema.time_origin
    if schema.has_time and request_time is not None:
        request["request_time"] = request_time
    if schema.event_types:
        request["history_event_types"] = np.array(["", "", *schema.event_types], object)[columns["event_type"][events]]
    if schema.has_sessions and schema.session_gap_seconds is None:
        request["history_sessions"] = columns["session"][events].astype(str).astype(object)
    for feature in schema.inputs("event"):
        codes = columns[f"event_{feature.name}"][events]
        request[f"event_{feature.name}"] = raw_values(feature, codes, directory)
    for feature in schema.weighted("event"):
        request[f"event_{feature.name}{WEIGHTS}"] = columns[f"event_{feature.name}{WEIGHTS}"][events]
    for feature in schema.inputs("user"):
        codes = histories.user[feature.name][users]
        request[f"user_{feature.name}"] = raw_values(feature, codes, directory)
    for feature in schema.weighted("user"):
        request[f"user_{feature.name}{WEIGHTS}"] = histories.user[feature.name + WEIGHTS][users]
    return request


def raw_values(feature: Feature, codes: NDArray[np.int32], directory: Path) -> NDArray[Any]:
    """Values that have these codes `(..., num_codes)`: strings, or one number of each bin.

    Args:
        feature: of the schema; not one of quantised vectors, nor a cross.
        codes: of a dataset.
        directory: of the dataset.
    """
    if isinstance(feature.transform, Bins):
        return _numbers(feature.transform)[codes[..., 0]]
    codes = codes if feature.multivalued else codes[..., 0]
    if isinstance(feature.transform, Hashed):
        return _texts_of_buckets(feature.transform, codes)
    if not isinstance(feature.transform, Vocabulary):
        raise ValueError(f"`feature` must be made of texts or numbers. Received: {feature.name!r}.")
    return np.array(["", "", *feature.transform.read(directory)], object)[codes]


def _texts_of_buckets(transform: Hashed, codes: NDArray[np.int32]) -> NDArray[Any]:
    """A text of each code: of the texts "0", "1", ... the first that falls into its bucket."""
    wanted, places = np.unique(codes, return_inverse=True)
    texts = np.full(len(wanted), "", object)
    left, start = wanted >= FIRST_VALUE, 0
    while left.any():
        tried = [str(number) for number in range(start, start + _TEXTS_AT_ONCE)]
        found, first = np.unique(transform.encode(tried), return_index=True)
        at = np.searchsorted(found, wanted).clip(max=len(found) - 1)
        hit = left & (found[at] == wanted)
        texts[hit] = np.array(tried, object)[first[at[hit]]]
        left &= ~hit
        start += _TEXTS_AT_ONCE
    return texts[places.reshape(codes.shape)]


def _numbers(transform: Bins) -> NDArray[np.float64]:
    """A number of each code: NaN where missing, else the lower boundary of the bin."""
    boundaries = np.array(transform.boundaries, np.float64)
    lowest = np.nextafter(boundaries[:1], -np.inf) if len(boundaries) else np.zeros(1)
    return np.concatenate([[np.nan, np.nan], lowest, boundaries])
