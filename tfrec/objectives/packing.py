"""Host-side packing: which positions of a batch have something to predict, and which items the loss must encode.

Losses run on packed positions, since most positions of a padded batch are padding, and encode each item that they
need once, however often it is a target or a negative. Both are padded to few distinct sizes: compiled backends
compile once a shape.
"""

import numpy as np

Batch = dict[str, np.ndarray]

_SIZES_A_BATCH = 8


def predictable(batch: Batch) -> np.ndarray:
    """The items that may be predicted, `(B, L + 1)` int32: 0 where `target_mask` forbids it or the item is unknown."""
    item = batch["item"]
    return np.where(batch["target_mask"] & (item > 1), item, 0).astype(np.int32)


def pack_positions(batch: Batch, num_steps: int) -> Batch:
    """Positions with at least one target among the next `num_steps` events.

    Args:
        batch: a training batch with `item` and `target_mask` `(B, L + 1)`.
        num_steps: int. Offsets 1..S whose events are targets.

    Returns:
        `position` `(P,)` int32, flat indices into `(B, L)`, padded with 0; `position_mask` `(P, S)` bool, True where
        the event at that offset is a target; `target_item` `(P, S)` int32, 0 where it is not. P is a multiple of an
        eighth of `B * L`.
    """
    rows, length = batch["item"].shape[0], batch["item"].shape[1] - 1
    allowed = predictable(batch)
    target = np.zeros((rows, length, num_steps), np.int32)
    for step in range(min(num_steps, length)):
        target[:, : length - step, step] = allowed[:, step + 1 :]
    target[batch["item"][:, :-1] == 0] = 0
    return pack_targets(target)


def pack_targets(target: np.ndarray) -> Batch:
    """The positions of `(B, L, S)` targets that have one, as `pack_positions` gives them; 0 = no target."""
    places, num_steps = target.shape[0] * target.shape[1], target.shape[2]
    target = target.reshape(places, num_steps)
    found = np.flatnonzero(target.any(axis=1))
    size = _round_up(max(len(found), 1), max(-(-places // _SIZES_A_BATCH), 1))
    position = np.zeros(size, np.int32)
    position[: len(found)] = found
    target_item = np.zeros((size, num_steps), np.int32)
    target_item[: len(found)] = target[found]
    return {"position": position, "position_mask": target_item > 0, "target_item": target_item}


class ItemRows:
    """Numbers the distinct real items of several id arrays, so that each is encoded once.

    `items` `(M,)` int32 are the distinct ids above 1 in rising order, padded with 0 to a size of which an octave has
    four; `rows(ids)` gives the place of each id in `items`, -1 for ids that are not there; `within(ids)` says which
    of `items` stand in each row of `ids`.
    """

    def __init__(self, arrays: list[np.ndarray], num_items: int) -> None:
        present = np.zeros(num_items, bool)
        for ids in arrays:
            present[ids] = True
        present[:2] = False
        found = np.flatnonzero(present)
        self._row = np.full(num_items, -1, np.int32)
        self._row[found] = np.arange(len(found), dtype=np.int32)
        count = max(len(found), 1)
        self.items = np.zeros(_round_up(count, max(1 << (count - 1).bit_length() >> 3, 1)), np.int32)
        self.items[: len(found)] = found

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """The row of each id, -1 where the id is padding, unknown or in none of the arrays."""
        return self._row[ids]

    def within(self, ids: np.ndarray) -> np.ndarray:
        """Whether each row of ids `(B, T)` holds each item, `(B, M + 1)` bool; the last column, row -1, is True."""
        found = np.zeros((len(ids), len(self.items) + 1), bool)
        np.put_along_axis(found, self.rows(ids), True, axis=1)
        found[:, -1] = True
        return found


def _round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


__all__ = ["Batch", "ItemRows", "pack_positions", "pack_targets", "predictable"]
