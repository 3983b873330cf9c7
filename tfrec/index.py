"""The catalogue's vectors searched inside the exported graph: exactly, or by ScaNN with parameters found by measuring.

Importing this module imports TensorFlow; ScaNN is imported where it is used.
"""

import math
from dataclasses import asdict
from typing import Any, Protocol

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tfrec.errors import UserError
from tfrec.exact import exact_search
from tfrec.tuning import Matrix, ScannParameters, choose, configure, first_parameters, recall

Tensor = Any

_MAX_SEEN = 1000  # seen items that a ScaNN request makes up for
_OVER_FETCH = 4  # a filter that leaves a smaller part of the catalogue is answered by exact search
_UNIT = 1e-3  # lengths within this of 1 count as 1
_SMALLEST_BLOCK = 8  # scores; smaller ones are not worth two steps


class Search(Protocol):
    """Top-k over the catalogue's vectors, as ops; positions are rows of the matrix, found nothing scores -inf."""

    def __call__(
        self, queries: Tensor, k: int, excluded: Tensor, allowed: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Positions and scores `(B, k)` of the greatest dot products with `queries (B, D)`.

        `excluded (B, S)` holds positions that are left out, negative ones mean nothing; of `allowed (V, B)`, where
        given, those that are False are left out too.
        """

    def nearest(self, positions: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Positions and cosines `(B, k)` of the items nearest to the items at `positions (B,)`, themselves left out."""


class ExactSearch(tf.Module):
    """Every dot product, then top-k: ops that every TensorFlow has.

    Args:
        vectors: `(V, D)`, one row an item.
    """

    def __init__(self, vectors: Matrix) -> None:
        super().__init__()
        self.vectors = tf.Variable(vectors, trainable=False, name="item_vectors")
        lengths = np.linalg.norm(vectors, axis=1)
        inverse = np.divide(1, lengths, out=np.zeros_like(lengths), where=lengths > 0)
        self.inverse_lengths = tf.Variable(inverse, trainable=False, name="inverse_lengths")

    def __call__(
        self, queries: Tensor, k: int, excluded: Tensor, allowed: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Positions and scores `(B, k)`."""
        return _exact(self.vectors, queries, k, excluded, allowed)

    def nearest(self, positions: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Positions and cosines `(B, k)`."""
        vectors, inverse_lengths = self.vectors.read_value(), self.inverse_lengths.read_value()
        units = tf.gather(vectors, positions) * tf.gather(inverse_lengths, positions)[:, None]
        scores = _dot_products(vectors, units) * inverse_lengths[:, None]
        return _top(scores, k, positions[:, None])


class ScannSearch(tf.Module):
    """ScaNN's approximate search; needs its ops where the model is loaded.

    Args:
        vectors: `(V, D)`, one row an item.
        parameters: of the search.
    """

    def __init__(self, vectors: Matrix, parameters: ScannParameters) -> None:
        super().__init__()
        self.num_items, self.dim = vectors.shape
        self.parameters = parameters
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        self.dot_products = _build(vectors, parameters)
        self.cosines = self.dot_products
        if np.abs(lengths - 1).max() > _UNIT:
            self.cosines = _build(vectors / np.maximum(lengths, 1e-12), parameters)

    def __call__(
        self, queries: Tensor, k: int, excluded: Tensor, allowed: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Positions and scores `(B, k)`; at most 1,000 excluded items of a row are made up for.

        Where `allowed` leaves a fourth of the catalogue or less, or too little of it is found, the search is exact.
        """
        if allowed is None:
            return self._search(self.dot_products, queries, k, excluded)

        def exactly() -> tuple[Tensor, Tensor]:
            return _exact(self._vectors(self.dot_products), queries, k, excluded, allowed)

        def found_or_exactly() -> tuple[Tensor, Tensor]:
            found = self._search(self.dot_products, queries, k, excluded, allowed)
            is_short = tf.reduce_any(tf.math.is_inf(found[1]))
            return tf.cond(is_short, exactly, lambda: found)

        shares = tf.reduce_mean(tf.cast(allowed, tf.float32), axis=0)
        return tf.cond(tf.reduce_any(shares <= 1 / _OVER_FETCH), exactly, found_or_exactly)

    def nearest(self, positions: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Positions and cosines `(B, k)`."""
        units = tf.gather(self._vectors(self.cosines), positions)
        return self._search(self.cosines, units, k, positions[:, None])

    def _vectors(self, state: Any) -> Tensor:
        """The vectors `(V, D)` that an index keeps to score candidates with."""
        return tf.reshape(state.dataset, [self.num_items, self.dim])

    def _search(
        self, state: Any, queries: Tensor, k: int, excluded: Tensor, allowed: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        # ScaNN refuses a batch without rows, hence one row more.
        queries = tf.pad(queries, [[0, 1], [0, 0]])
        excluded = tf.pad(excluded, [[0, 1], [0, 0]], constant_values=-1)
        most_seen = tf.reduce_max(tf.reduce_sum(tf.cast(excluded >= 0, tf.int32), axis=1))
        over = 1 if allowed is None else _OVER_FETCH
        wanted = tf.minimum(over * (k + tf.minimum(most_seen, _MAX_SEEN)), self.num_items)
        positions, scores = self.found(scann_ops().searcher_from_module(state), queries, wanted, over)
        # An item that is excluded stands in the sorted row just where it would be inserted.
        ordered = tf.sort(excluded, axis=1)
        place = tf.minimum(tf.searchsorted(ordered, positions), tf.shape(ordered)[1] - 1)
        left_out = (tf.gather(ordered, place, batch_dims=1) == positions) | tf.math.is_nan(scores)
        if allowed is not None:
            inside = tf.clip_by_value(positions, 0, self.num_items - 1)
            left_out |= ~_of_rows(tf.pad(allowed, [[0, 0], [0, 1]]), inside)
        scores = tf.pad(tf.where(left_out, -math.inf, scores), [[0, 0], [0, k]], constant_values=-math.inf)
        best, chosen = tf.math.top_k(scores, k)
        positions = tf.gather(tf.pad(positions, [[0, 0], [0, k]]), chosen, batch_dims=1)
        return positions[:-1], best[:-1]

    def found(self, searcher: Any, queries: Tensor, wanted: Tensor, over: int = 1) -> tuple[Tensor, Tensor]:
        """Positions and scores `(B, about wanted)` by falling score; a row with fewer ends in NaN scores.

        Where `over` times the usual number is wanted, as many times the candidates and leaves are looked at.
        """
        if not self.parameters.leaves:
            return searcher.search_batched(queries, final_num_neighbors=wanted)
        reorder = tf.minimum(tf.maximum(wanted, over * self.parameters.reorder), self.num_items)
        return searcher.search_batched(
            queries,
            final_num_neighbors=wanted,
            pre_reorder_num_neighbors=reorder,
            leaves_to_search=min(over * self.parameters.leaves_to_search, self.parameters.leaves),
        )


def scann_ops() -> Any:
    """ScaNN's operations, which a graph that holds them needs loaded."""
    try:
        from scann.scann_ops.py import scann_ops as module
    except ImportError as error:
        raise UserError(f"ScaNN cannot be imported ({error}); install it, or export with `--index exact`.") from None
    return module


def _build(vectors: Matrix, parameters: ScannParameters) -> Any:
    """ScaNN's tensors as a module that can be saved."""
    builder = scann_ops().builder(vectors, min(10, len(vectors)), "dot_product")
    return configure(builder, parameters, len(vectors)).build().serialize_to_module()


def _exact(vectors: Tensor, queries: Tensor, k: int, excluded: Tensor, allowed: Tensor | None) -> tuple[Tensor, Tensor]:
    scores = _dot_products(vectors, queries)  # (V, B)
    if allowed is not None:
        scores = tf.where(allowed, scores, -math.inf)
    return _top(scores, k, excluded)


def _dot_products(vectors: Tensor, queries: Tensor) -> Tensor:
    """`(V, B)`: an item a row, for which TensorFlow takes half the time that a query a row takes, but for one query."""
    products = tf.cond(
        tf.shape(queries)[0] == 1,
        # Not a reshape to (V, 1): from it TensorFlow would infer that there is one query, whatever the condition says.
        lambda: tf.transpose(tf.matmul(queries, vectors, transpose_b=True)),
        lambda: tf.matmul(vectors, queries, transpose_b=True),
    )
    return tf.ensure_shape(products, [vectors.shape[0], None])


def _top(scores: Tensor, k: int, excluded: Tensor) -> tuple[Tensor, Tensor]:
    rows = tf.where(excluded >= 0)  # (R, 2): row, column
    places = tf.stack([tf.cast(tf.gather_nd(excluded, rows), tf.int64), rows[:, 0]], axis=1)
    scores = tf.tensor_scatter_nd_update(scores, places, tf.fill(tf.shape(places)[:1], -math.inf))
    best, positions = top_k(scores, k)
    return positions, best


def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k greatest of each column of `(V, B)`, values and positions `(B, k)`; equal ones by position.

    The k blocks of rows with the greatest maxima, then inside them: over a whole catalogue `tf.math.top_k` costs a
    batch more than the products do; maxima cost little. What stands in another block is not among the k best: each of
    these k holds a score that is greater, or equal and before it.
    """
    count = scores.shape[0]
    size = round(math.sqrt(count / k))
    if size < _SMALLEST_BLOCK:
        return tf.math.top_k(tf.transpose(scores), k)
    whole = count // size
    maxima = tf.reduce_max(tf.reshape(scores[: whole * size], [whole, size, tf.shape(scores)[1]]), axis=1)
    if count % size:
        maxima = tf.concat([maxima, tf.reduce_max(scores[whole * size :], axis=0, keepdims=True)], axis=0)
    _, chosen = tf.math.top_k(tf.transpose(maxima), k)
    chosen = tf.sort(chosen, axis=1)
    inside = tf.reshape(chosen[:, :, None] * size + tf.range(size), [-1, k * size])  # (B, k * size): positions
    found = tf.where(inside < count, _of_rows(scores, tf.minimum(inside, count - 1)), -math.inf)
    best, places = tf.math.top_k(found, k)  # what lies past the end is never chosen: it stands last
    return best, tf.gather(inside, places, batch_dims=1)


def _of_rows(values: Tensor, positions: Tensor) -> Tensor:
    """`(B, N)`: of column b of `values (V, B)` those at row b of `positions (B, N)`."""
    rows = tf.shape(values, tf.int64)[1]  # a large batch of a large catalogue has more than 2 ** 31 values
    return tf.gather(tf.reshape(values, [-1]), tf.cast(positions, tf.int64) * rows + tf.range(rows)[:, None])


def tune(vectors: Matrix, queries: Matrix, k: int, target_recall: float) -> ScannSearch:
    """A search with the cheapest parameters whose recall@k on `queries` reaches the target (see `tfrec.tuning`).

    Args:
        vectors: `(V, D)`, one row an item.
        queries: `(Q, D)`, a sample of what will be asked.
        k: items of an answer.
        target_recall: share of the exact top-k that must be found.
    """
    first = first_parameters(len(vectors), vectors.shape[1], k)
    search = ScannSearch(vectors, first)
    truth, _ = exact_search(vectors, queries, k)
    searcher = scann_ops().searcher_from_module(search.dot_products)  # once: it takes over every vector

    def measure(parameters: ScannParameters) -> float:
        search.parameters = parameters
        positions, scores = search.found(searcher, tf.constant(queries), truth.shape[1])
        return recall(truth, np.where(np.isfinite(scores.numpy()), positions.numpy(), -1))

    search.parameters = choose(first, len(vectors), k, target_recall, measure)
    return search


def found_by(search: Search, queries: Matrix, k: int) -> NDArray[np.int32]:
    """Positions `(Q, k)` that a search finds; -1 where it found fewer."""
    nothing = tf.fill([len(queries), 1], -1)
    positions, scores = search(tf.constant(queries), k, nothing)
    return np.where(np.isfinite(scores.numpy()), positions.numpy(), -1)


def build_search(
    vectors: Matrix, queries: Matrix, kind: str, *, k: int, target_recall: float
) -> tuple[ExactSearch | ScannSearch, dict[str, Any]]:
    """A search of the kind asked for, and what describes it in a manifest.

    Args:
        vectors: `(V, D)`, one row an item.
        queries: `(Q, D)`, a sample of what will be asked; ScaNN's parameters are chosen on every second one.
        kind: `exact` or `scann`.
        k: items of an answer.
        target_recall: what ScaNN's parameters are chosen for.
    """
    if kind == "exact":
        return ExactSearch(vectors), {"kind": kind}
    held_out = queries[1::2] if len(queries) > 1 else queries
    search = tune(vectors, queries[::2], k, target_recall)
    reached = recall(exact_search(vectors, held_out, k)[0], found_by(search, held_out, k))
    return search, {"kind": kind, **asdict(search.parameters), "held_out_recall": reached}
