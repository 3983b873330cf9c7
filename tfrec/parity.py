"""The parity gate: the same users asked of the run, of the SavedModel in Python, and of the C++ loader.

Users are queries of the dataset's test split (else of validation). The run answers from codes in Keras and NumPy; the
others get raw strings and times, made again from the codes, and must come to the same lists.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfrec.config import Config
from tfrec.errors import UserError
from tfrec.models.shells import RankingModel
from tfrec.raw import Arrays, raw_histories
from tfrec.runs import Run
from tfrec.windows import Batch, Batches, SplitName

TOLERANCE = 1e-5
"""Scores closer than this (as a share of the greatest, where that exceeds 1) may swap places."""

_BATCH_SIZE = 64


@dataclass(frozen=True)
class Sample:
    """One batch of queries: what the run is given, and the same as a raw request."""

    batch: Batch
    request: Arrays


def samples(run: Run, settings: Config | None = None) -> list[Sample]:
    """`export.parity_users` queries of the run's dataset, those of the test split, else of validation.

    Args:
        run: who is asked.
        settings: whose `export.parity_users` and `training.seed` say which queries; None = the run's.
    """
    settings = settings or run.config
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
            max_queries=settings.export.parity_users,
            seed=settings.training.seed,
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
    schema = run.schema
    times = batch["request_time"].astype(np.int64) + schema.time_origin if wants_request_time(run) else None
    return raw_histories(
        schema,
        run.dataset.directory,
        run.dataset.catalogue().item_ids,
        run.dataset.histories(),
        np.asarray(batch["user"], np.int64),
        (batch["seen"] != 0).sum(axis=1),
        request_time=times,
    )


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
