"""Which items a request lets through: lists of ids and values of features, as TensorFlow ops of an exported graph.

Importing this module imports TensorFlow.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tfrec.coders import VocabularyCoder
from tfrec.schema import Schema
from tfrec.transforms import FIRST_VALUE, Vocabulary

Tensor = Any


class ItemFilter(tf.Module):
    """Raw filters of a request to the items that may be answered.

    The inputs are lists of strings, a row a request; `""` is padding, and a row of `""` alone restricts nothing.
    Unknown ids and values match no item, so a list of them alone allows none.

    - `allow_item_ids (B, A)`: these items alone;
    - `deny_item_ids (B, E)`: these items not;
    - `allow_<feature> (B, M)`, for each categorical feature of items with a vocabulary: items with one of the values.

    Args:
        schema: of the dataset.
        directory: of the dataset.
        items: the coder of item ids.
        codes: `(N, columns)` of the candidates' features, by `Schema.item_columns`.
        positions: `(V,)` of each item code among the candidates; negative = no candidate.
    """

    def __init__(
        self,
        schema: Schema,
        directory: Path,
        items: VocabularyCoder,
        *,
        codes: NDArray[np.int32],
        positions: tf.Variable,
    ) -> None:
        super().__init__()
        self.num_items = len(codes)
        self.inputs = schema.filter_inputs()
        self.items = items
        self.positions = positions
        self.coders, self.sizes, self.codes = {}, {}, {}
        for feature in schema.filterable():
            name, vocabulary = feature.name, feature.transform
            assert isinstance(vocabulary, Vocabulary), "Others are not filterable."
            columns = codes[:, schema.item_columns()[name]].T
            self.coders[name] = VocabularyCoder(vocabulary, directory)
            self.sizes[name] = vocabulary.size
            self.codes[name] = tf.Variable(columns, trainable=False, name=f"codes_{name}")

    def signature(self) -> dict[str, tf.TensorSpec]:
        """The raw inputs by name."""
        return {name: tf.TensorSpec([None, None], tf.string, name) for name in self.inputs}

    def __call__(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """True for the items that may be answered, `(N, B)`."""
        allowed = self._listed(inputs["allow_item_ids"]) | ~_says_something(inputs["allow_item_ids"])
        allowed &= ~self._listed(inputs["deny_item_ids"])
        for name in self.coders:
            values = inputs[f"allow_{name}"]
            allowed &= self._has_value(name, values) | ~_says_something(values)
        return allowed

    def _listed(self, ids: Tensor) -> Tensor:
        return _marked(tf.gather(self.positions, self.items(ids)), self.num_items, first=0)

    def _has_value(self, name: str, values: Tensor) -> Tensor:
        wanted = _marked(self.coders[name](values), self.sizes[name], first=FIRST_VALUE)  # (vocabulary, B)
        columns = [tf.gather(wanted, column) for column in tf.unstack(self.codes[name])]
        return tf.reduce_any(tf.stack(columns), axis=0)


def listed(codes: Tensor, wanted: Tensor) -> Tensor:
    """Whether each of the item codes `(B, C)` is among the `wanted (B, A)` of its row; padding and unknown never."""
    same = tf.reduce_any(codes[:, :, None] == wanted[:, None, :], axis=2)
    return same & (codes >= FIRST_VALUE)


def _says_something(texts: Tensor) -> Tensor:
    return tf.reduce_any(texts != "", axis=1)  # (B,)


def _marked(places: Tensor, size: int, *, first: int) -> Tensor:
    """`(size, B)`, True at the places `(B, A)` of each column; those below `first` are none."""
    rows = tf.where(places >= first)  # (R, 2): row, column
    marked = tf.stack([tf.cast(tf.gather_nd(places, rows), tf.int64), rows[:, 0]], axis=1)
    nothing = tf.fill([size, tf.shape(places)[0]], False)
    return tf.tensor_scatter_nd_update(nothing, marked, tf.fill(tf.shape(rows)[:1], True))
