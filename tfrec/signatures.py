"""The exported module of a retrieval model: raw histories and raw items in, item ids, scores and vectors out.

Nothing here holds the Keras model: a tf.Module that does answers in Python, and fails every request in TensorFlow
Serving. The variables are held one by one instead, and the model is called while the signatures are traced.

Of a variable that is also read whole, rows are gathered from its `read_value`: once they were gathered from the
variable itself, TensorFlow copies all of it at every read.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tfrec.coders import SideCoder, VocabularyCoder
from tfrec.filters import ItemFilter
from tfrec.graph import HistoryEncoder
from tfrec.index import Search, top_k
from tfrec.layers.item_table import ItemTable
from tfrec.models.shells import RetrievalModel
from tfrec.schema import ITEM_ID, Schema
from tfrec.transforms import FIRST_VALUE

Tensor = Any
Signature = Callable[..., Any]

NOTHING_LEFT = float(np.finfo(np.float32).min)
"""The score beside an empty item id, where fewer than k items remain: finite, so that it is valid JSON."""


class RetrievalSignatures(tf.Module):
    """Everything that the signatures of a retrieval model need, as variables and tables.

    Args:
        schema: of the dataset.
        directory: of the dataset.
        model: with its weights and its catalogue.
        items: codes of the items that can be recommended.
        codes: `(N, columns)` of the same items' features.
        item_ids: raw ids of the same items.
        train_count: training events of the same items.
        search: over the vectors of the same items.
        k: items of an answer; at most those of the catalogue are given.
        filter_seen: leave out the items of the history.
    """

    def __init__(
        self,
        schema: Schema,
        directory: Path,
        model: RetrievalModel,
        *,
        items: NDArray[np.int64],
        codes: NDArray[np.int32],
        item_ids: list[str],
        train_count: NDArray[Any],
        search: Search,
        k: int,
        filter_seen: bool,
    ) -> None:
        super().__init__()
        self.schema = schema
        self.k = min(k, len(item_ids))
        self.filter_seen = filter_seen
        self.search = search
        self.weights_ = held(model.user_encoder, model.item_encoder, model.item_table)
        self.item_ids = tf.Variable(item_ids, trainable=False, name="item_ids")
        positions = np.full(schema.num_items, -1, np.int32)  # of each code in the search; -1 = not there
        positions[items] = np.arange(len(items))
        self.positions = tf.Variable(positions, trainable=False, name="positions")
        popular = np.argsort(-train_count, kind="stable")[: self.k]
        self.popular = tf.Variable(popular.astype(np.int32), trainable=False, name="popular")
        shares = train_count / max(1, train_count.sum())
        self.popularity = tf.Variable(shares.astype(np.float32), trainable=False, name="popularity")
        self.item_coder = VocabularyCoder(schema.item_vocabulary, directory)
        self.filter = ItemFilter(schema, directory, self.item_coder, codes=codes, positions=self.positions)
        self.history = HistoryEncoder(
            schema,
            directory,
            self.item_coder,
            length=model.history_length,
            request_time=model.request_time,
            item_codes=keras.ops.convert_to_numpy(model.item_table.codes_table),
        )
        self.item_features = SideCoder(schema.side("item")[1:], directory)  # the first is the id

    def trace(self, model: RetrievalModel) -> dict[str, Signature]:
        """The concrete signatures by name, for `tf.saved_model.save`.

        Args:
            model: the one that this was made of.
        """
        history = self.history.signature()
        item = {ITEM_ID: tf.TensorSpec([None], tf.string, ITEM_ID)}
        item |= self.item_features.signature()
        recommend = concrete(lambda **inputs: self.recommend(model, inputs), history)
        return {
            "serving_default": recommend,
            "recommend": recommend,
            "recommend_filtered": concrete(
                lambda **inputs: self.recommend(model, inputs, filtered=True), history | self.filter.signature()
            ),
            "encode_user": concrete(lambda **inputs: {"vector": self._states(model, inputs)[0]}, history),
            "encode_item": concrete(lambda **inputs: {"vector": self._encode_item(model, inputs)}, item),
            "similar_items": concrete(
                lambda item_ids: self._similar(item_ids), {"item_ids": tf.TensorSpec([None], tf.string, "item_ids")}
            ),
        }

    def _states(self, model: RetrievalModel, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Users' vectors `(B, D)` and the codes of all events `(B, T + 1)`."""
        batch, seen = self.history(dict(inputs))
        return tf.cast(model.encode_users(batch), tf.float32), seen

    def recommend(
        self, model: RetrievalModel, inputs: Mapping[str, Tensor], *, filtered: bool = False
    ) -> dict[str, Tensor]:
        """The answer `item_ids` and `scores`, `(B, k)`.

        Args:
            model: the one that this was made of.
            inputs: of the signature `recommend`, or where `filtered` of `recommend_filtered`.
            filtered: whether filters are among the inputs.
        """
        filters = self.filter.signature()
        states, seen = self._states(model, {name: value for name, value in inputs.items() if name not in filters})
        excluded = tf.gather(self.positions, seen) if self.filter_seen else tf.fill([tf.shape(seen)[0], 1], -1)
        is_new = tf.reduce_all(seen == 0, axis=1, keepdims=True)
        if not filtered:
            positions, scores = self.search(states, self.k, excluded)
            popular, popularity = self.popular, tf.gather(self.popularity.read_value(), self.popular)
        else:
            allowed = self._allowed(inputs, rows=tf.shape(seen)[0])
            positions, scores = self.search(states, self.k, excluded, allowed)
            popularity, popular = top_k(tf.where(allowed, self.popularity[:, None], -np.inf), self.k)
        positions = tf.where(is_new, popular, positions)
        scores = tf.where(is_new, popularity, scores)
        return self._answer(positions, scores)

    def _allowed(self, inputs: Mapping[str, Tensor], rows: Tensor) -> Tensor:
        """`(N, B)`; a filter of one row counts for all rows."""
        checks = []
        for name in self.filter.signature():
            given = tf.shape(inputs[name])[0]
            rule = f"{name}: must have as many rows as history_item_ids, or one for all."
            checks.append(tf.debugging.Assert((given == rows) | (given == 1), [rule]))
        with tf.control_dependencies(checks):
            allowed = self.filter(inputs)
        return tf.broadcast_to(allowed, [self.filter.num_items, rows])

    def _similar(self, item_ids: Tensor) -> dict[str, Tensor]:
        positions = tf.gather(self.positions, self.item_coder(item_ids))
        known = positions >= 0
        nearest, scores = self.search.nearest(tf.maximum(positions, 0), self.k)
        return self._answer(nearest, tf.where(known[:, None], scores, -np.inf))

    def _answer(self, positions: Tensor, scores: Tensor) -> dict[str, Tensor]:
        real = tf.math.is_finite(scores)
        ids = tf.where(real, tf.gather(self.item_ids, positions), "")
        scores = tf.where(real, scores, NOTHING_LEFT)
        return {
            "item_ids": tf.ensure_shape(ids, [None, self.k]),
            "scores": tf.ensure_shape(scores, [None, self.k]),
        }

    def _encode_item(self, model: RetrievalModel, inputs: Mapping[str, Tensor]) -> Tensor:
        codes = [self.item_coder(inputs[ITEM_ID])[:, None]]
        codes += self.item_features(inputs).values()
        vectors = {name: self.item_features.vectors(inputs, name) for name in model.item_table.vector_tables}
        with _standing_in(model.item_table, tf.concat(codes, axis=1), vectors) as items:
            return tf.cast(model.encode_items(items), tf.float32)


def held(*layers: keras.layers.Layer) -> list[tf.Variable]:
    """The variables of layers that answering reads, each once: not those of an objective or of metrics."""
    variables = {id(variable): variable.value for layer in layers for variable in layer.variables}
    return list(variables.values())


def concrete(function: Signature, inputs: Mapping[str, tf.TensorSpec]) -> Signature:
    """A function of keyword arguments as a signature with these inputs."""
    return tf.function(function, autograph=False).get_concrete_function(**inputs)


@contextmanager
def _standing_in(table: ItemTable, codes: Tensor, vectors: Mapping[str, Tensor]) -> Iterator[Tensor]:
    """While it lasts, the table's rows are these new items; yields their places in it.

    Padding and unknown stand before them, so that no new item is taken for padding.
    """
    count = tf.shape(codes)[0]
    scope = keras.StatelessScope()
    scope.add_update((table.codes_table, tf.pad(codes, [[FIRST_VALUE, 0], [0, 0]])))
    scope.add_update((table.train_count_table, tf.zeros([count + FIRST_VALUE], tf.int32)))
    for name, values in vectors.items():
        halves = tf.cast(values, tf.float16)
        finite = tf.where(tf.math.is_finite(halves), halves, tf.zeros_like(halves))
        scope.add_update((table.vector_tables[name], tf.pad(finite, [[FIRST_VALUE, 0], [0, 0]])))
    with scope:
        yield tf.range(count, dtype=tf.int32) + FIRST_VALUE
