"""The exact place of every query's target among all items, with ties by expectation."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from keras import ops
from numpy.typing import NDArray

from tfrec.columns import Catalogue
from tfrec.metrics import mrr, ndcg_at_k, recall_at_k
from tfrec.transforms import FIRST_VALUE, write_arrays
from tfrec.windows import Batch

Array = NDArray[Any]

_ITEMS_AT_ONCE = 8192
_SCORES_AT_ONCE = 1 << 24  # float32 scores of a block of queries: 64 MiB
_LEAST_ROWS = 2
_COLUMNS = 64


@dataclass(frozen=True)
class Ranks:
    """Where each query's target stands among all candidates; queries by user, then by place in the history."""

    user: NDArray[np.int32]
    """Row of the user in the histories, `(Q,)`."""
    place: NDArray[np.int32]
    """Number of events before the query, `(Q,)`."""
    target: NDArray[np.int32]
    """Item, `(Q,)`; 1 = unknown."""
    better: NDArray[np.int32]
    """Candidates with a higher score, `(Q,)`."""
    equal: NDArray[np.int32]
    """Other candidates with the same score, `(Q,)`."""

    @property
    def known(self) -> NDArray[np.bool_]:
        """Queries whose target is in the catalogue, `(Q,)`."""
        known: NDArray[np.bool_] = self.target >= FIRST_VALUE
        return known

    def values(self, ks: Sequence[int]) -> dict[str, NDArray[np.float64]]:
        """Each metric of each query, `(Q,)`; an unknown target is a miss."""
        values = {f"recall@{k}": recall_at_k(self.better, self.equal, k) for k in ks}
        values |= {f"ndcg@{k}": ndcg_at_k(self.better, self.equal, k) for k in ks}
        values["mrr"] = mrr(self.better, self.equal)
        return {name: value * self.known for name, value in values.items()}

    def metrics(self, ks: Sequence[int]) -> dict[str, float]:
        """The mean of each metric."""
        return {name: float(value.mean()) for name, value in self.values(ks).items()}

    def write(self, path: Path) -> None:
        """Writes an .npz that `read` reads."""
        write_arrays(path, dict(vars(self)))

    @classmethod
    def read(cls, path: Path) -> "Ranks":
        """Reads what `write` wrote."""
        with np.load(path, allow_pickle=False) as file:
            return cls(**dict(file))


def rank_queries(model: Any, catalogue: Catalogue, batches: Iterable[Batch], *, filter_seen: bool) -> Ranks:
    """Where the target of each query stands among all items.

    Args:
        model: with `encode_users(batch)` and `encode_items(items)`, whose dot product is the score.
        catalogue: the items.
        batches: of queries, as `tfrec.data.batches` gives them.
        filter_seen: items of a query's history are no candidates, the target excepted.
    """
    items = encode_catalogue(model, len(catalogue.train_count))
    columns = item_columns(items)
    popularity = catalogue.train_count[FIRST_VALUE:].astype(np.float32)
    retired = np.flatnonzero(catalogue.retired[FIRST_VALUE:])
    rows_at_once = max(_SCORES_AT_ONCE // len(items), 1)
    parts: dict[str, list[Array]] = {name: [] for name in ("user", "place", "target", "better", "equal")}
    most_rows = 0
    for batch in batches:
        most_rows = max(most_rows, len(batch["item"]))
        users = encode_users(model, batch, most_rows)
        seen = batch["seen"] if filter_seen else np.zeros((len(users), 0), np.int32)
        for start in range(0, len(users), rows_at_once):
            part = slice(start, start + rows_at_once)
            scores = products(users[part], columns)[:, : len(items)]
            scores[~batch["item"][part].any(axis=1)] = popularity
            scores[:, retired] = -np.inf
            better, equal = count_better(scores, batch["target"][part], seen[part])
            parts["better"].append(better)
            parts["equal"].append(equal)
        parts["user"].append(batch["user"])
        parts["place"].append((batch["seen"] != 0).sum(axis=1))
        parts["target"].append(batch["target"])
    found = {name: np.concatenate(arrays or [np.zeros(0)]).astype(np.int32) for name, arrays in parts.items()}
    order = np.lexsort((found["place"], found["user"]))  # batches are bucketed by length, which no run need share
    return Ranks(**{name: array[order] for name, array in found.items()})


def count_better(scores: Array, target: Array, seen: Array) -> tuple[Array, Array]:
    """How many candidates stand before each target, and how many others beside it, each `(B,)`.

    Args:
        scores: `(B, V - 2)`. Of all real items, item 2 first; changed in place. NaN stands before everything.
        target: `(B,)`. Items; those below 2 have no place and get arbitrary numbers.
        seen: `(B, S)`. Items that are no candidates, padded with 0; the target stays one.
    """
    rows = np.arange(len(scores))
    column = np.maximum(target - FIRST_VALUE, 0)
    own = scores[rows, column].copy()
    seen_row, seen_column = np.nonzero(seen >= FIRST_VALUE)
    scores[seen_row, seen[seen_row, seen_column] - FIRST_VALUE] = -np.inf
    scores[rows, column] = own
    not_better = np.count_nonzero(scores <= own[:, None], axis=1)
    equal = np.count_nonzero(scores == own[:, None], axis=1) - 1
    return scores.shape[1] - not_better, np.maximum(equal, 0)


def encode_catalogue(model: Any, num_items: int) -> NDArray[np.float32]:
    """The vectors of all real items, item 2 first, `(num_items - 2, D)`."""
    ids = np.arange(FIRST_VALUE, num_items, dtype=np.int32)
    at_once = min(_ITEMS_AT_ONCE, len(ids))
    padded = np.concatenate([ids, np.zeros(-len(ids) % at_once, np.int32)]).reshape(-1, at_once)
    vectors = [ops.convert_to_numpy(model.encode_items(chunk)) for chunk in padded]
    return np.concatenate(vectors)[: len(ids)].astype(np.float32)


def encode_users(model: Any, batch: Batch, rows: int) -> NDArray[np.float32]:
    """The users' vectors `(B, D)`; the model sees at least `rows` rows, since a new shape is a new compilation."""
    count = len(batch["item"])
    missing = max(rows - count, 0)
    known = {name: values for name, values in batch.items() if name not in ("seen", "target", "user")}
    padded = {
        name: np.pad(values, [(0, missing)] + [(0, 0)] * (values.ndim - 1)) if missing else values
        for name, values in known.items()
    }
    return ops.convert_to_numpy(model.encode_users(padded))[:count].astype(np.float32)


def item_columns(items: NDArray[np.float32]) -> NDArray[np.float32]:
    """The vectors as columns `(D, V')` of a product, zeros behind them: BLAS rounds the last few columns otherwise."""
    return np.pad(items, [(0, -len(items) % _COLUMNS), (0, 0)]).T


def products(users: NDArray[np.float32], columns: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scores `(B, V')`; equal items have equal ones, also for a single user, whom BLAS would multiply otherwise."""
    padded = np.pad(users, [(0, max(_LEAST_ROWS - len(users), 0)), (0, 0)])
    scores: NDArray[np.float32] = (padded @ columns)[: len(users)]
    return scores


__all__ = [
    "Ranks",
    "count_better",
    "encode_catalogue",
    "encode_users",
    "item_columns",
    "products",
    "rank_queries",
]
