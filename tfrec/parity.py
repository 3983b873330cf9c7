"""The parity gate: the same users asked of the run, of the SavedModel in Python, and of the C++ loader.

Users are queries of the dataset's test split (else of validation). The run answers from codes in Keras and NumPy; the
others get raw strings and times, made again from the codes, and must come to the same lists.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfrec.errors import UserError
from tfrec.models.shells import RankingModel
from tfrec.runs import Run
from tfrec.schema import Feature
from tfrec.transforms import FIRST_VALUE, Bins, Hashed, Vocabulary
from tfrec.windows import Batch, Batches, SplitName

TOLERANCE = 1e-5
"""Scores closer than this (as a share of the greatest, where that exceeds 1) may swap places."""

_BATCH_SIZE = 64
_TEXTS_AT_ONCE = 1 << 16
_UNKNOWN_ID = "\0"

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Sample:
    """One batch of queries: what the run is given, and the same as a raw request."""

    batch: Batch
    request: Arrays


def samples(run: Run) -> list[Sample]:
    """`export.parity_users` queries of the run's dataset, those of the test split, else of validation."""
    histories = run.dataset.histories()
    splits: tuple[SplitName, ...] = ("test", "validation")
    for split in splits:
        queries = Batches(
            run.schema,
            histories,
            split,
            history_length=run.model.history_length,
            batch_size=_BATCH_SIZE,
            request_time=wants_request_time(run),
            max_queries=run.config.export.parity_users,
            seed=run.config.training.seed,
        )
        if len(queries):
            return [Sample(batch, raw_request(run, batch)) for batch in queries]
    raise UserError(
        f"{run.dataset.directory}: has neither test nor validation events to compare the export on; "
        "change `data.split` and preprocess again."
    )


def wants_request_time(run: Run) -> bool:
    """Whether requests to the exported run say when they are made."""
    return run.schema.has_time and (isinstance(run.model, RankingModel) or run.model.request_time)


def raw_request(run: Run, batch: Batch) -> Arrays:
    """The queries of an evaluation batch as strings and times, whole histories, as a client would send them."""
    schema, histories = run.schema, run.dataset.histories()
    users = np.asarray(batch["user"], np.int64)
    lengths = (batch["seen"] != 0).sum(axis=1)
    place = np.arange(max(1, int(lengths.max())))
    valid = place < lengths[:, None]
    events = np.where(valid, histories.offsets[users][:, None] + place, 0)  # (B, T)
    columns = histories.columns
    # An event of an item outside the catalogue had an id of its own, which nobody knows any more.
    item_ids = np.array([_UNKNOWN_ID, _UNKNOWN_ID, *run.dataset.catalogue().item_ids[FIRST_VALUE:]], object)
    request: Arrays = {
        "history_item_ids": np.where(valid, item_ids[columns["item"][events]], ""),
        "history_length": lengths.astype(np.int32),
    }
    if schema.has_time:
        request["history_times"] = columns["time"][events].astype(np.int64) + schema.time_origin
    if wants_request_time(run):
        request["request_time"] = batch["request_time"].astype(np.int64) + schema.time_origin
    if schema.event_types:
        request["history_event_types"] = np.array(["", "", *schema.event_types], object)[columns["event_type"][events]]
    if schema.has_sessions and schema.session_gap_seconds is None:
        request["history_sessions"] = columns["session"][events].astype(str).astype(object)
    for feature in schema.inputs("event"):
        codes = columns[f"event_{feature.name}"][events]
        request[f"event_{feature.name}"] = raw_values(feature, codes, run.dataset.directory)
    for feature in schema.inputs("user"):
        codes = histories.user[feature.name][users]
        request[f"user_{feature.name}"] = raw_values(feature, codes, run.dataset.directory)
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


def run_scores(run: Run, batch: Batch, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scores `(B, N)` of the catalogue's candidates by the run itself; -inf for seen items where they are filtered.

    Args:
        run: whose model answers.
        batch: of queries.
        vectors: `(N, D)` of the candidates.
    """
    catalogue = run.dataset.catalogue()
    scores = np.asarray(run.model.encode_users(batch), np.float32) @ vectors.T
    seen = np.asarray(batch["seen"], np.int64)
    if run.config.evaluation.filter_seen:
        positions = np.full(len(catalogue.train_count), -1)
        positions[catalogue.candidates] = np.arange(len(vectors))
        row, place = np.nonzero(positions[seen] >= 0)
        scores[row, positions[seen[row, place]]] = -np.inf
    shares = catalogue.train_count[catalogue.candidates] / max(1, catalogue.train_count.sum())
    scores[~seen.any(axis=1)] = shares
    return scores


@dataclass(frozen=True)
class Difference:
    """How far the lists of an answer are from the run's."""

    score: float
    """Greatest difference of a score, as a share of the greatest score where that exceeds 1."""
    swapped: int
    """Places of all lists that hold another item than the run's list."""


def compare(
    scores: NDArray[np.float32], answer: Mapping[str, NDArray[Any]], item_ids: Sequence[str], name: str
) -> Difference:
    """Compares lists with the run's scores.

    Every item of an answer must have, by the run, the score that the answer gives it, and the one that the run's own
    list has in that place.

    Args:
        scores: `(B, N)` of the run.
        answer: `item_ids` and `scores`, `(B, k)`, of `recommend`.
        item_ids: raw ids of the same items.
        name: of who answered, for the message.

    Raises:
        UserError: a difference of more than `TOLERANCE`.
    """
    found, own = _places(answer["item_ids"], item_ids), _own_places(scores, answer)  # (B, k)
    expected = np.take_along_axis(scores, own, axis=1)
    by_run = np.where(found < 0, -np.inf, np.take_along_axis(scores, np.maximum(found, 0), axis=1))
    given = np.where(found < 0, -np.inf, answer["scores"])
    scale = max(1.0, float(np.abs(expected[np.isfinite(expected)]).max(initial=0)))
    gaps = np.maximum(_gaps(expected, by_run), _gaps(by_run, given)) / scale  # (B,)
    if not (gaps <= TOLERANCE).all():
        raise UserError(
            f"parity: {name} answers otherwise than the run (query {int(gaps.argmax())}: scores differ by "
            f"{gaps.max():.3g}, {TOLERANCE:g} is allowed); nothing was published."
        )
    swapped = (own != found) & np.isfinite(expected)
    return Difference(float(gaps.max(initial=0)), int(swapped.sum()))


def recalls(
    scores: NDArray[np.float32], answer: Mapping[str, NDArray[Any]], item_ids: Sequence[str]
) -> NDArray[np.float64]:
    """The share of the run's own list that each list of an answer holds, `(B,)`; arguments as of `compare`."""
    found, own = _places(answer["item_ids"], item_ids), _own_places(scores, answer)
    wanted = np.isfinite(np.take_along_axis(scores, own, axis=1))
    hits = (own[:, :, None] == found[:, None, :]).any(axis=2) & wanted
    return hits.sum(axis=1) / np.maximum(wanted.sum(axis=1), 1)


def check_same(first: Mapping[str, NDArray[Any]], second: Mapping[str, NDArray[Any]]) -> None:
    """Raises a `UserError` unless two answers of the same graph, in Python and in C++, are the same lists."""
    close = np.isclose(first["scores"], second["scores"], TOLERANCE, TOLERANCE)
    tied = np.zeros_like(close)  # beside a score that is as good as the same
    tied[:, 1:] |= np.isclose(first["scores"][:, 1:], first["scores"][:, :-1], TOLERANCE, TOLERANCE)
    tied[:, :-1] |= tied[:, 1:]
    tied[:, -1:] = True  # an equal item may stand just behind the list
    if not (close & ((first["item_ids"] == second["item_ids"]) | tied)).all():
        raise UserError("parity: the C++ loader answers otherwise than Python; nothing was published.")


def summary(differences: Sequence[Difference]) -> dict[str, Any]:
    """The figures of several batches as the manifest holds them."""
    return {
        "score_difference": max(each.score for each in differences),
        "swapped_places": sum(each.swapped for each in differences),
    }


def _places(answered: NDArray[Any], item_ids: Sequence[str]) -> NDArray[np.int64]:
    """Where the answered ids (bytes) stand among `item_ids`; -1 for the empty id, where nothing was left."""
    place_of = {item_id.encode(): place for place, item_id in enumerate(item_ids)} | {b"": -1}
    return np.array([place_of[item_id] for item_id in answered.ravel()], np.int64).reshape(answered.shape)


def _own_places(scores: NDArray[np.float32], answer: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
    """The run's own list of the same length, best first."""
    return np.argsort(-scores, axis=1, kind="stable")[:, : answer["item_ids"].shape[1]]


def _gaps(first: NDArray[Any], second: NDArray[Any]) -> NDArray[Any]:
    """The greatest difference of each row; infinities are equal to themselves alone."""
    with np.errstate(invalid="ignore"):
        return np.where(first == second, 0, np.abs(first - second)).max(axis=1, initial=0)
