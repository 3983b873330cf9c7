"""Host-side drawing of negatives, with the masks and sampling probabilities that the softmax needs."""

from typing import Literal

import numpy as np

from tfrec.objectives.packing import Batch, ItemRows, predictable

Kind = Literal["full", "uniform", "per_position", "in_batch", "same_step", "mixed"]


class Negatives:
    """Draws the negatives of one batch.

    Kinds: `uniform` (over the catalogue, with replacement, shared by all positions), `per_position` (the same, drawn
    for each position), `in_batch` (from the batch's targets, so by popularity), `mixed` (half of each shared kind),
    `same_step` (the other rows' events at the same place in the window), `full` (every item, nothing is drawn).

    Args:
        kind: str. See above.
        num_negatives: int. Negatives a position; ignored by `full` and `same_step`.
        mask_own: bool. Items of the row's own window are no negatives.
    """

    def __init__(self, kind: Kind, num_negatives: int, *, mask_own: bool) -> None:
        self.kind = kind
        self.num_negatives = num_negatives
        self.mask_own = mask_own
        self._target_count: np.ndarray | None = None

    @property
    def num_items(self) -> int:
        """Rows of the catalogue, padding and unknown among them."""
        return len(self.target_count)

    @property
    def target_count(self) -> np.ndarray:
        """How often each item is a target in training, `(V,)`."""
        if self._target_count is None:
            raise ValueError("`set_counts(target_count)` must be called before an objective is used.")
        return self._target_count

    def set_counts(self, target_count: np.ndarray) -> None:
        """Tells how often each item is a target in training, `(V,)`; items 0 and 1 are padding and unknown."""
        if len(target_count) < 3:
            raise ValueError(f"`target_count` must cover at least one item. Received: {len(target_count)} rows.")
        self._target_count = np.asarray(target_count, np.int64)

    def add(self, batch: Batch, packed: Batch, rng: np.random.Generator) -> Batch:
        """Adds to packed positions what the loss needs of targets and negatives.

        Returns:
            `packed` with `target_row` `(P, S)`: rows of `unique_item`, or of the catalogue from item 2 on for `full`.
            But for `full` also `unique_item` `(M,)`, `unique_log_probability` `(M,)` (of being drawn) and
            `negative_row` `(N,)`, `(P, 1, N)` or `(P, S, B)`; with `mask_own` also `negative_valid`, `(B, N)` for
            shared negatives, else `(P, S, B)`.
        """
        target = packed["target_item"]
        if self.kind == "full":
            return {**packed, "target_row": np.maximum(target - 2, 0)}
        negative = self._draw(batch, packed, rng)
        rows = ItemRows([target, negative], self.num_items)
        negative_row = rows.rows(negative)
        prepared = {
            **packed,
            "unique_item": rows.items,
            "unique_log_probability": self.log_probability(rows.items),
            "target_row": np.maximum(rows.rows(target), 0),
            "negative_row": np.maximum(negative_row, 0),
        }
        if self.mask_own:
            own = rows.within(batch["item"])
            prepared["negative_valid"] = ~_own_of(own, negative_row, packed["position"], batch["item"].shape[1] - 1)
        return prepared

    def log_probability(self, items: np.ndarray) -> np.ndarray:
        """Logarithm of the probability of drawing each item, float32; an item that is no target counts as one."""
        count = np.maximum(self.target_count[items], 1)
        popular = count / max(self.target_count[2:].sum(), 1)
        uniform = np.full(len(items), 1 / (self.num_items - 2))
        by_kind = {"uniform": uniform, "per_position": uniform, "mixed": (popular + uniform) / 2}
        return np.log(by_kind.get(self.kind, popular)).astype(np.float32)

    def _draw(self, batch: Batch, packed: Batch, rng: np.random.Generator) -> np.ndarray:
        if self.kind == "same_step":
            return _same_step(batch, packed)
        if self.kind == "per_position":
            return self._uniform((len(packed["position"]), 1, self.num_negatives), rng)
        if self.kind == "uniform":
            return self._uniform((self.num_negatives,), rng)
        if self.kind == "in_batch":
            return draw_targets(batch, self.num_negatives, rng)
        popular = self.num_negatives // 2
        uniform = self._uniform((self.num_negatives - popular,), rng)
        return np.concatenate([draw_targets(batch, popular, rng), uniform])

    def _uniform(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        return rng.integers(2, self.num_items, shape, dtype=np.int32)


def draw_targets(batch: Batch, count: int, rng: np.random.Generator) -> np.ndarray:
    """Items at `count` of the batch's target places, duplicates kept; without replacement where there are enough."""
    allowed = predictable(batch)[:, 1:]
    pool = allowed[allowed > 0]
    if not len(pool):
        return np.zeros(count, np.int32)
    return rng.choice(pool, count, replace=len(pool) < count)


def _same_step(batch: Batch, packed: Batch) -> np.ndarray:
    """The events at the same place of the window in every row `(P, S, B)`; 0 for the row itself."""
    length = batch["item"].shape[1] - 1
    num_steps = packed["target_item"].shape[1]
    row, place = np.divmod(packed["position"], length)
    allowed = np.pad(predictable(batch), ((0, 0), (0, num_steps)))
    negative = allowed.T[place[:, None] + np.arange(1, num_steps + 1)]  # (P, S, B)
    negative[np.arange(len(row)), :, row] = 0
    return negative


def _own_of(own: np.ndarray, negative_row: np.ndarray, position: np.ndarray, length: int) -> np.ndarray:
    if negative_row.ndim == 1:
        return own[:, negative_row]
    return own[(position // length)[:, None, None], negative_row]


__all__ = ["Kind", "Negatives", "draw_targets"]
