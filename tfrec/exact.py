"""Exact search in chunks: the greatest dot products of a catalogue that need not fit in memory."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float16] | NDArray[np.float32]
Positions = NDArray[np.int64]
Scores = NDArray[np.float32]

_ITEMS_AT_ONCE = 1 << 15
_QUERIES_AT_ONCE = 256


def exact_search(
    vectors: Vectors,
    queries: NDArray[np.float32],
    k: int,
    *,
    places: Positions | None = None,
    excluded: NDArray[Any] | None = None,
) -> tuple[Positions, Scores]:
    """Positions and scores `(Q, k)` of the greatest dot products, best first, equal ones by position.

    Where fewer than k items are left, the rest is position -1 and score -inf. Memory is bounded whatever the size of
    the catalogue: 32,768 vectors are read and turned into float32 at a time, and scored for 256 queries.

    Args:
        vectors: `(V, D)`, float16 or float32; an array on disk (`np.load(..., mmap_mode="r")`) is read chunk by chunk.
        queries: `(Q, D)`.
        k: items of an answer.
        places: the positions that may be answered, rising; None = all.
        excluded: `(Q, S)` positions that a query is not answered; negative ones mean nothing.
    """
    count = len(vectors) if places is None else len(places)
    columns = _columns(excluded, places)
    positions = np.full((len(queries), k), -1, np.int64)
    scores = np.full((len(queries), k), -np.inf, np.float32)
    for start in range(0, count, _ITEMS_AT_ONCE):
        stop = min(start + _ITEMS_AT_ONCE, count)
        chosen = np.arange(start, stop) if places is None else places[start:stop]
        block = np.asarray(vectors[start:stop] if places is None else vectors[chosen], np.float32)
        for first in range(0, len(queries), _QUERIES_AT_ONCE):
            rows = slice(first, first + _QUERIES_AT_ONCE)
            products = queries[rows] @ block.T
            if columns is not None:
                row, column = np.nonzero((columns[rows] >= start) & (columns[rows] < stop))
                products[row, columns[rows][row, column] - start] = -np.inf
            positions[rows], scores[rows] = _merged(positions[rows], scores[rows], products, chosen)
    return positions, scores


def merge_answers(answers: list[tuple[Positions, Scores]], k: int) -> tuple[Positions, Scores]:
    """The best k of several answers to the same queries, best first, equal ones by position."""
    positions = np.concatenate([each for each, _ in answers], axis=1)
    scores = np.concatenate([each for _, each in answers], axis=1)
    order = np.lexsort((positions, -scores), axis=1)[:, :k]
    return np.take_along_axis(positions, order, axis=1), np.take_along_axis(scores, order, axis=1)


def _columns(excluded: NDArray[Any] | None, places: Positions | None) -> Positions | None:
    """What is excluded, as indices into `places`; -1 = nothing."""
    if excluded is None or not excluded.size:
        return None
    if places is None:
        return excluded.astype(np.int64)
    found = np.searchsorted(places, excluded).clip(max=max(len(places) - 1, 0))
    hit = (excluded >= 0) & (places[found] == excluded) if len(places) else np.zeros(excluded.shape, bool)
    return np.where(hit, found, -1)


def _merged(positions: Positions, scores: Scores, products: Scores, chosen: Positions) -> tuple[Positions, Scores]:
    """The best k of what was found and of a block of scores `(Q, block)`."""
    count, k = scores.shape
    least = scores[:, -1:]  # a later position must be better than this
    enters = products > least
    if enters.sum() > 4 * count * k and products.shape[1] > k:  # the first blocks: most of it is better
        kth = np.partition(products, products.shape[1] - k, axis=1)[:, -k][:, None]
        enters &= products >= kth
    row, column = np.nonzero(enters)
    all_rows = np.concatenate([np.repeat(np.arange(count), k), row])
    all_positions = np.concatenate([positions.ravel(), chosen[column]])
    all_scores = np.concatenate([scores.ravel(), products[row, column]])
    order = np.lexsort((all_positions, -all_scores, all_rows))
    first = np.searchsorted(all_rows[order], np.arange(count))
    best = order[first[:, None] + np.arange(k)]
    return all_positions[best], all_scores[best]
