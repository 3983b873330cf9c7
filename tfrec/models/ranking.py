"""What ranking models are composed of: what a row is made of, and what a candidate may know of its history.

Like the parts in `tfrec.models.encoders` they take layers as arguments and are rebuilt by a builder, never from a
config.
"""

from typing import Any

import keras
from keras import ops

from tfrec.layers import Tensor
from tfrec.layers.feature_embedding import FeatureEmbedding
from tfrec.layers.item_table import ItemTable
from tfrec.models.encoders import EventContext, ItemEmbedder, ItemFeatures, embed_items
from tfrec.schema import WEIGHTS, Schema


class RankingInputs(keras.layers.Layer):
    """Embeds a ranking row: its events, its candidates, its user, all of width D; items share one set of tables.

    Args:
        schema: Schema. Of the dataset.
        table: ItemTable. The catalogue.
        embedding_dim: int. D.
        item_features: `"all"` or names. Features that become tokens. Defaults to `"all"`.
        item_id_dropout: float. Probability of replacing an id by unknown in training. Defaults to 0.
        event_types: bool. Whether the type of an event is added to it, where the log has types. Defaults to True.
        user_features: bool. Whether features of users are embedded. Defaults to True.

    Input: a batch with `item` `(B, L)`, `candidate`, `candidate_history` `(B, C)`, `event_type`, `event_<name>`,
    `user_<name>`.
    Output: dict with `history` `(B, L, D)`, the sum of an event's item tokens, type and features; `candidate`
    `(B, C, K, D)`, the tokens of each candidate; `user` `(B, U, D)`, one token a feature, where there are any; and
    `visible` `(B, C, L)` bool, the events before each candidate. Padding is zeros.
    """

    def __init__(
        self,
        schema: Schema,
        table: ItemTable,
        embedding_dim: int,
        *,
        item_features: ItemFeatures = "all",
        item_id_dropout: float = 0.0,
        event_types: bool = True,
        user_features: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.embedding_dim = embedding_dim
        self.embedder = ItemEmbedder(
            schema, table, embedding_dim, item_features=item_features, item_id_dropout=item_id_dropout, name="embedder"
        )
        self.context = EventContext(
            schema, embedding_dim, event_types=event_types, user_features="none", name="context"
        )
        users = schema.side("user") if user_features else ()
        self.user_tables = {
            f"user_{feature.name}": FeatureEmbedding(
                feature.table_sizes, embedding_dim, feature.num_codes, name=f"user_{feature.name}_table"
            )
            for feature in users
        }

    @property
    def num_item_fields(self) -> int:
        """K."""
        return self.embedder.num_tokens

    @property
    def num_user_fields(self) -> int:
        """U."""
        return len(self.user_tables)

    def build(self, batch_shape: Any = None) -> None:
        layers: list[keras.layers.Layer] = [self.embedder, self.context, *self.user_tables.values()]
        for layer in layers:
            layer.build()
        self.built = True

    def call(self, batch: dict[str, Tensor], training: bool | None = None) -> dict[str, Tensor]:
        candidate, user = self.embed_candidates(batch, training)
        outputs = {
            "history": self.embed_history(batch, training),
            "candidate": candidate,
            "visible": visible_before(batch),
        }
        return outputs if user is None else {**outputs, "user": user}

    def embed_candidates(self, batch: dict[str, Tensor], training: bool | None = None) -> tuple[Tensor, Tensor | None]:
        """Candidates `(B, C, K, D)`, and the user `(B, U, D)`, where there are any features."""
        candidate = embed_items(self.embedder, batch["candidate"], training)
        if not self.user_tables:
            return candidate, None
        return candidate, ops.stack([self._user(key, batch) for key in self.user_tables], axis=1)

    def embed_history(self, batch: dict[str, Tensor], training: bool | None = None) -> Tensor:
        """Events without their places, `(B, L, D)`."""
        x = ops.sum(self.embedder(batch["item"], training=training), axis=-2)
        context = self.context(batch)
        if "event" in context:
            x = x + context["event"]
        return x * ops.cast(batch["item"] != 0, x.dtype)[..., None]

    def _user(self, key: str, batch: dict[str, Tensor]) -> Tensor:
        codes = batch[key]
        if len(codes.shape) == 1:
            return self.user_tables[key](codes[..., None])
        return self.user_tables[key](codes, batch.get(key + WEIGHTS))


def places_of(schema: Schema, num_positions: int) -> int:
    """How many places of impressions have a bias: as many as asked for, none where the log has no places."""
    return num_positions if schema.impressions is not None and schema.impressions.has_positions else 0


def visible_before(batch: dict[str, Tensor]) -> Tensor:
    """The places of the history that hold an event before each candidate, `(B, C, L)` bool."""
    place = ops.arange(ops.shape(batch["item"])[1], dtype="int32")
    before = place < ops.expand_dims(batch["candidate_history"], 2)
    return ops.logical_and(before, ops.expand_dims(batch["item"] != 0, 1))


def last_state(state: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """The state `(B, L, D)` of a causal encoder at the last event before each candidate, `(B, C, D)`; else zeros."""
    count = batch["candidate_history"]
    last = ops.take_along_axis(state, ops.expand_dims(ops.maximum(count - 1, 0), 2), axis=1)
    return last * ops.cast(count > 0, state.dtype)[..., None]


def average_before(x: Tensor, visible: Tensor) -> Tensor:
    """The mean of events `(B, L, D)` over the visible places `(B, C, L)`, `(B, C, D)`; zeros where there are none."""
    visible = ops.cast(visible, x.dtype)
    return ops.matmul(visible, x) / ops.maximum(ops.sum(visible, axis=2, keepdims=True), 1)


__all__ = ["RankingInputs", "average_before", "last_state", "places_of", "visible_before"]
