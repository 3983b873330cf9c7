"""The catalogue inside a model: what is known of every item, looked up by its id."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from tfrec.layers import Tensor
from tfrec.transforms import UNKNOWN


class ItemTable(keras.layers.Layer):
    """Codes, training counts and vectors of every item, so that a batch carries ids alone.

    `codes[item]`, with ids outside 0..num_items-1 read as unknown. The tables are filled by `fill` from a dataset; they
    are not trained and not written into weight files, since the dataset identifies them.

    Args:
        num_items: int. Rows: the catalogue + padding + unknown.
        num_columns: int. Code columns of an item.
        vector_dims: dict of str to int. Width of each float16 table of vectors. Defaults to no such table.

    Input: items `(...)` int.
    Output: `(..., C)` int32; zeros before `fill`.
    """

    def __init__(
        self, num_items: int, num_columns: int, vector_dims: Mapping[str, int] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if num_items < UNKNOWN + 1:
            raise ValueError(f"`num_items` must be at least {UNKNOWN + 1}. Received: num_items={num_items}.")
        if num_columns < 1:
            raise ValueError(f"`num_columns` must be at least 1. Received: num_columns={num_columns}.")
        self.num_items = num_items
        self.num_columns = num_columns
        self.vector_dims = vector_dims

    def build(self, items_shape: Any = None) -> None:
        def table(name: str, width: tuple[int, ...], dtype: str) -> keras.Variable:
            return self.add_weight(
                name=name,
                shape=(self.num_items, *width),
                dtype=dtype,
                initializer="zeros",
                trainable=False,
                autocast=False,
            )

        self.codes_table = table("codes", (self.num_columns,), "int32")
        self.train_count_table = table("train_count", (), "int32")
        dims = self.vector_dims or {}
        self.vector_tables = {name: table(f"vectors_{name}", (dim,), "float16") for name, dim in dims.items()}
        self.built = True

    def call(self, items: Tensor) -> Tensor:
        return ops.take(self.codes_table.value, self.known(items), axis=0)

    def train_count(self, items: Tensor) -> Tensor:
        """Training events of each item, `(...)` int32."""
        return ops.take(self.train_count_table.value, self.known(items), axis=0)

    def vectors(self, items: Tensor, name: str) -> Tensor:
        """Stored vectors of one feature, `(..., d)` in the compute dtype; zeros where an item has none."""
        return ops.cast(ops.take(self.vector_tables[name].value, self.known(items), axis=0), self.compute_dtype)

    def known(self, items: Tensor) -> Tensor:
        """The ids themselves, those outside the table replaced by unknown."""
        # The rows are asked of the value: an export puts other rows, those of new items, in the table's place, and the
        # variable itself goes on giving its own shape.
        rows = ops.shape(self.codes_table.value)[0]
        inside = ops.logical_and(items >= 0, items < rows)
        return ops.where(inside, items, UNKNOWN)

    def fill(self, codes: np.ndarray, train_count: np.ndarray, vectors: Mapping[str, np.ndarray] | None = None) -> None:
        """Loads a catalogue: codes `(num_items, C)`, train_count `(num_items,)`, vectors `{name: (num_items, d)}`."""
        expected = (self.num_items, self.num_columns)
        if tuple(codes.shape) != expected:
            raise ValueError(f"`codes` must have shape {expected}. Received: codes.shape={tuple(codes.shape)}.")
        if tuple(train_count.shape) != expected[:1]:
            received = tuple(train_count.shape)
            raise ValueError(f"`train_count` must have shape {expected[:1]}. Received: train_count.shape={received}.")
        self.codes_table.assign(np.asarray(codes, np.int32))
        self.train_count_table.assign(np.minimum(train_count, np.iinfo(np.int32).max).astype(np.int32))
        for name, table in self.vector_tables.items():
            if vectors is None or name not in vectors:
                raise ValueError(f"`vectors` must hold the vectors of `{name}`. Received: {sorted(vectors or {})}.")
            table.assign(np.nan_to_num(np.asarray(vectors[name], np.float16), posinf=0, neginf=0))

    def save_own_variables(self, store: Any) -> None:
        """Writes nothing: the dataset holds the tables."""

    def load_own_variables(self, store: Any) -> None:
        """Reads nothing: `fill` does."""

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_items": self.num_items,
            "num_columns": self.num_columns,
            "vector_dims": self.vector_dims,
        }
