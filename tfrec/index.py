"""The catalogue's vectors searched inside the exported graph: exactly, or by ScaNN, with its recall measured.

Importing this module imports TensorFlow; ScaNN is imported where it is used.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tfrec.errors import UserError

Tensor = Any
Matrix = NDArray[np.float32]

_BRUTE_FORCE_BELOW = 10_000  # items; a tree pays only above
_MAX_SEEN = 1000  # seen items that a ScaNN request makes up for
_UNIT = 1e-3  # lengths within this of 1 count as 1


class Search(Protocol):
    """Top-k over the catalogue's vectors, as ops; positions are rows of the matrix, found nothing scores -inf."""

    def __call__(self, queries: Tensor, k: int, excluded: Tensor) -> tuple[Tensor, Tensor]:
        """Positions and scores `(B, k)` of the greatest dot products with `queries (B, D)`.

        `excluded (B, S)` holds positions that are left out; negative ones mean nothing.
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

    def __call__(self, queries: Tensor, k: int, excluded: Tensor) -> tuple[Tensor, Tensor]:
        """Positions and scores `(B, k)`."""
        scores = tf.matmul(queries, self.vectors, transpose_b=True)  # (B, V)
        return self._top(scores, k, excluded)

    def nearest(self, positions: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Positions and cosines `(B, k)`."""
        units = tf.gather(self.vectors, positions) * tf.gather(self.inverse_lengths, positions)[:, None]
        scores = tf.matmul(units, self.vectors, transpose_b=True) * self.inverse_lengths
        return self._top(scores, k, positions[:, None])

    def _top(self, scores: Tensor, k: int, excluded: Tensor) -> tuple[Tensor, Tensor]:
        rows = tf.where(excluded >= 0)  # (R, 2): row, column
        places = tf.stack([rows[:, 0], tf.cast(tf.gather_nd(excluded, rows), tf.int64)], axis=1)
        scores = tf.tensor_scatter_nd_update(scores, places, tf.fill(tf.shape(places)[:1], -math.inf))
        best, positions = tf.math.top_k(scores, k)
        return positions, best


@dataclass(frozen=True)
class ScannParameters:
    """How ScaNN looks for neighbours; `leaves` 0 = every vector is scored."""

    leaves: int
    """Partitions of the catalogue."""
    leaves_to_search: int
    """Partitions that a query looks into."""
    reorder: int
    """Candidates that are scored again exactly."""


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

    def __call__(self, queries: Tensor, k: int, excluded: Tensor) -> tuple[Tensor, Tensor]:
        """Positions and scores `(B, k)`; at most 1,000 excluded items of a row are made up for."""
        return self._search(self.dot_products, queries, k, excluded)

    def nearest(self, positions: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Positions and cosines `(B, k)`."""
        # The cosine index keeps the unit vectors that it scores candidates with.
        units = tf.gather(tf.reshape(self.cosines.dataset, [self.num_items, self.dim]), positions)
        return self._search(self.cosines, units, k, positions[:, None])

    def _search(self, state: Any, queries: Tensor, k: int, excluded: Tensor) -> tuple[Tensor, Tensor]:
        # ScaNN refuses a batch without rows, hence one row more.
        queries = tf.pad(queries, [[0, 1], [0, 0]])
        excluded = tf.pad(excluded, [[0, 1], [0, 0]], constant_values=-1)
        most_seen = tf.reduce_max(tf.reduce_sum(tf.cast(excluded >= 0, tf.int32), axis=1))
        wanted = tf.minimum(k + tf.minimum(most_seen, _MAX_SEEN), self.num_items)
        positions, scores = self._found(state, queries, wanted)
        # An item that is excluded stands in the sorted row just where it would be inserted.
        ordered = tf.sort(excluded, axis=1)
        place = tf.minimum(tf.searchsorted(ordered, positions), tf.shape(ordered)[1] - 1)
        left_out = (tf.gather(ordered, place, batch_dims=1) == positions) | tf.math.is_nan(scores)
        scores = tf.pad(tf.where(left_out, -math.inf, scores), [[0, 0], [0, k]], constant_values=-math.inf)
        best, chosen = tf.math.top_k(scores, k)
        positions = tf.gather(tf.pad(positions, [[0, 0], [0, k]]), chosen, batch_dims=1)
        return positions[:-1], best[:-1]

    def _found(self, state: Any, queries: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Positions and scores `(B, about wanted)` by falling score; a row with fewer ends in NaN scores."""
        searcher = _scann().searcher_from_module(state)
        if not self.parameters.leaves:
            return searcher.search_batched(queries, final_num_neighbors=wanted)
        reorder = tf.maximum(wanted, self.parameters.reorder)
        return searcher.search_batched(
            queries,
            final_num_neighbors=wanted,
            pre_reorder_num_neighbors=reorder,
            leaves_to_search=self.parameters.leaves_to_search,
        )


def _scann() -> Any:
    try:
        from scann.scann_ops.py import scann_ops
    except ImportError as error:
        raise UserError(f"ScaNN cannot be imported ({error}); install it, or export with `--index exact`.") from None
    return scann_ops


def _build(vectors: Matrix, parameters: ScannParameters) -> Any:
    """ScaNN's tensors as a module that can be saved."""
    builder = _scann().builder(vectors, min(10, len(vectors)), "dot_product")
    if not parameters.leaves:
        return builder.score_brute_force().build().serialize_to_module()
    sample = min(len(vectors), 100_000)
    builder = builder.tree(parameters.leaves, parameters.leaves_to_search, training_sample_size=sample)
    builder = builder.score_ah(2, anisotropic_quantization_threshold=0.2, training_sample_size=sample)
    return builder.reorder(parameters.reorder).build().serialize_to_module()


def tune(vectors: Matrix, queries: Matrix, k: int, target_recall: float) -> ScannSearch:
    """A search with the cheapest parameters whose recall@k on `queries` reaches the target.

    Catalogues below 10,000 items, and vectors of one dimension, are scored whole. Otherwise the catalogue is cut into
    about sqrt(V) leaves, and the share of leaves searched and the number of candidates scored again are doubled in
    turn, the one that gains more first.

    Args:
        vectors: `(V, D)`, one row an item.
        queries: `(Q, D)`, a sample of what will be asked.
        k: items of an answer.
        target_recall: share of the exact top-k that must be found.
    """
    count, dim = vectors.shape
    if count < _BRUTE_FORCE_BELOW or dim < 2:
        return ScannSearch(vectors, ScannParameters(leaves=0, leaves_to_search=0, reorder=0))
    leaves = round(math.sqrt(count))
    best = ScannParameters(leaves, leaves_to_search=max(1, leaves // 50), reorder=min(2 * k, count))
    search = ScannSearch(vectors, best)
    truth = exact_top(vectors, queries, k)

    def measure(parameters: ScannParameters) -> float:
        search.parameters = parameters
        return recall(truth, found_by(search, queries, k))

    reached = measure(best)
    while reached < target_recall:
        wider = ScannParameters(leaves, min(2 * best.leaves_to_search, leaves), best.reorder)
        deeper = ScannParameters(leaves, best.leaves_to_search, min(2 * best.reorder, count))
        options = [option for option in (wider, deeper) if option != best]
        if not options:
            break
        reached, best = max(((measure(option), option) for option in options), key=lambda found: found[0])
    search.parameters = best
    return search


def found_by(search: Search, queries: Matrix, k: int) -> NDArray[np.int32]:
    """Positions `(Q, k)` that a search finds; -1 where it found fewer."""
    nothing = tf.fill([len(queries), 1], -1)
    positions, scores = search(tf.constant(queries), k, nothing)
    return np.where(np.isfinite(scores.numpy()), positions.numpy(), -1)


def exact_top(vectors: Matrix, queries: Matrix, k: int, *, chunk: int = 64) -> NDArray[np.int64]:
    """Positions `(Q, k)` of the greatest dot products, in no order."""
    k = min(k, len(vectors))
    parts = [
        np.argpartition(-(queries[start : start + chunk] @ vectors.T), k - 1, axis=1)[:, :k]
        for start in range(0, len(queries), chunk)
    ]
    return np.concatenate(parts)


def recall(truth: NDArray[Any], found: NDArray[Any]) -> float:
    """The share of the true items `(Q, k)` that are among the found ones `(Q, k)`."""
    hits = (truth[:, :, None] == found[:, None, :]).any(axis=2)
    return float(hits.mean())


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
    search = tune(vectors, queries[::2], k, target_recall)
    return search, {"kind": kind, **asdict(search.parameters)}
