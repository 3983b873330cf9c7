"""The parts that all sequence models are composed of: what an event is made of, and the two ends of a model.

They take layers as arguments, since encoders share tables; a model is rebuilt by its builder, never from a config.
"""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import keras
from keras import ops

from tfrec.layers import Tensor
from tfrec.layers.feature_embedding import FeatureEmbedding
from tfrec.layers.item_id_dropout import ItemIdDropout
from tfrec.layers.item_table import ItemTable
from tfrec.layers.item_tokens import ItemTokens
from tfrec.layers.mlp import MLP
from tfrec.layers.normalization import l2_normalize
from tfrec.layers.position_embedding import PositionEmbedding
from tfrec.layers.time_encoding import TimeEncoding
from tfrec.layers.time_gap_bias import time_gap_buckets
from tfrec.schema import ITEM_ID, WEIGHTS, Feature, Schema
from tfrec.transforms import FIRST_VALUE, UNKNOWN

UserFeatures: TypeAlias = Literal["prefix", "add", "none"]
ItemFeatures: TypeAlias = Literal["all"] | tuple[str, ...]

MAX_TABLE = 4096
"""Values of a type at most for the token level to be scored against all of them."""


def item_table(schema: Schema, vector_features: Sequence[str] = ()) -> ItemTable:
    """An empty item table of the schema's size, with vectors of the features named, standardised values and weights."""
    num_columns = sum(feature.num_codes for feature in schema.side("item"))
    vector_dims = {name: schema.feature(name).vector_dim or 0 for name in vector_features}
    beside_codes = [one for one in schema.side("item") if one.standard is not None or one.weight_separator is not None]
    vector_dims |= {feature.name: feature.stored_dim for feature in beside_codes}
    return ItemTable(schema.num_items, num_columns, vector_dims, name="item_table")


def chosen_features(schema: Schema, item_features: ItemFeatures) -> tuple[Feature, ...]:
    """The item features that a model embeds, in schema order.

    Raises:
        ValueError: a name that the schema does not have.
    """
    features = schema.side("item")
    if item_features == "all":
        return features
    names = [feature.name for feature in features]
    for name in item_features:
        if name not in names:
            raise ValueError(f"`item_features` must name features of {names}. Received: {name!r}.")
    return tuple(feature for feature in features if feature.name in item_features)


class ItemEmbedder(keras.layers.Layer):
    """Items to their tokens: looks up codes, hides ids in training, embeds each feature.

    To the embedding of a number's bin a vector times its standardised value is added, where the dataset has it; values
    with weights are averaged by them.

    Args:
        schema: Schema. Of the dataset.
        table: ItemTable. The catalogue.
        embedding_dim: int. Width of a token.
        item_features: `"all"` or names. Features that become tokens.
        item_id_dropout: float. Probability of replacing an id by unknown in training: of every event of a history,
            and of items to be predicted where they have another feature (see `embed_items`). Above 0 it also stands
            for the ids of items without training events, in training and serving, where there is another feature.
        projected_vectors: names. Features whose token is a linear map of the stored vector instead of an embedding.
        concatenated: bool. One token an item instead of one a feature: a dense layer over the features' concatenated
            embeddings.

    Input: items `(...)` int.
    Output: `(..., K, D)`.
    """

    def __init__(
        self,
        schema: Schema,
        table: ItemTable,
        embedding_dim: int,
        *,
        item_features: ItemFeatures = "all",
        item_id_dropout: float = 0.0,
        projected_vectors: Sequence[str] = (),
        concatenated: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.concatenated = concatenated
        self.table = table
        self.embedding_dim = embedding_dim
        columns = schema.item_columns()
        features = chosen_features(schema, item_features)
        self.feature_names = [feature.name for feature in features]
        self.columns = [columns[name] for name in self.feature_names]
        self.projected_vectors = list(projected_vectors)
        self.specifications = [
            {
                "name": feature.name,
                "table_sizes": feature.table_sizes,
                "num_codes": feature.num_codes,
                "combiner": feature.combiner,
                "start": columns[feature.name].start,
            }
            for feature in features
            if feature.name not in self.projected_vectors
        ]
        self.standardised = [feature.name for feature in features if feature.standard is not None]
        self.weighted = [feature.name for feature in features if feature.weight_separator is not None]
        self.id_dropout = ItemIdDropout(item_id_dropout, name="id_dropout")

    @property
    def num_tokens(self) -> int:
        """K."""
        return 1 if self.concatenated else len(self.feature_names)

    def build(self, items_shape: Any = None) -> None:
        self.tokens = ItemTokens(self.specifications, self.embedding_dim, dtype=self.dtype_policy, name="tokens")
        self.tokens.build()
        self.slopes = {}
        for name in self.standardised:
            slope = keras.layers.Dense(
                self.embedding_dim, use_bias=False, dtype=self.dtype_policy, name=f"{name}_slope"
            )
            slope.build((None, 1))
            self.slopes[name] = slope
        self.projections = {}
        for name in self.projected_vectors:
            dense = keras.layers.Dense(self.embedding_dim, dtype=self.dtype_policy, name=f"{name}_projection")
            dense.build((None, (self.table.vector_dims or {})[name]))
            self.projections[name] = dense
        if self.concatenated:
            self.concatenation = MLP([], self.embedding_dim, dtype=self.dtype_policy, name="concatenation")
            self.concatenation.build((None, len(self.feature_names) * self.embedding_dim))
        self.built = True

    def call(self, items: Tensor, training: bool | None = None) -> Tensor:
        codes = self.table(items)
        if self.id_dropout.rate and len(self.feature_names) > 1:
            codes = self._without_untrained(codes)
        codes = self.id_dropout(codes, training=training)
        tokens = self.tokens(codes, {name: self.table.vectors(items, name) for name in self.weighted})
        if self.slopes:
            tokens = self._with_values(items, tokens)
        if self.projections:
            tokens = self._with_projections(items, tokens)
        if not self.concatenated:
            return tokens
        one = self.concatenation(ops.reshape(tokens, (*ops.shape(items), tokens.shape[-2] * tokens.shape[-1])))
        return one[..., None, :]  # (..., 1, D)

    def _without_untrained(self, codes: Tensor) -> Tensor:
        """The id of an item that was never in a training event tells nothing but that it was drawn as a negative."""
        ids = codes[..., :1]
        untrained = ops.logical_and(self.table.train_count(ids) == 0, ids > UNKNOWN)
        return ops.concatenate([ops.where(untrained, UNKNOWN, ids), codes[..., 1:]], axis=-1)

    def _with_values(self, items: Tensor, tokens: Tensor) -> Tensor:
        parts = ops.unstack(tokens, num=len(self.specifications), axis=-2)
        for place, specification in enumerate(self.specifications):
            if slope := self.slopes.get(specification["name"]):
                parts[place] = parts[place] + slope(self.table.vectors(items, specification["name"]))
        return ops.stack(parts, axis=-2)  # (..., K, D)

    def _with_projections(self, items: Tensor, tokens: Tensor) -> Tensor:
        embedded = iter(ops.unstack(tokens, num=len(self.specifications), axis=-2))
        valid = ops.cast(items != 0, tokens.dtype)[..., None]
        ordered = [
            self.projections[name](self.table.vectors(items, name)) * valid
            if name in self.projections
            else next(embedded)
            for name in self.feature_names
        ]
        return ops.stack(ordered, axis=-2)  # (..., K, D)

    def token_codes(self, items: Tensor) -> list[Tensor]:
        """The codes that each of the K tokens is made of, each `(N, c)`."""
        codes = self.table(items)
        parts = [codes[:, columns] for columns in self.columns]
        return [ops.concatenate(parts, axis=1)] if self.concatenated else parts

    def token_tables(self) -> list[Tensor | None]:
        """The tokens of all codes of a type, `(values, D)`; None for types that are not made of one code."""
        if self.concatenated:
            return [None]
        of_one_code = [one for one in self.specifications if one["num_codes"] == 1 and one["name"] not in self.slopes]
        sizes = {each["name"]: each["table_sizes"][0] for each in of_one_code}
        return [
            self.tokens.embeddings[name](ops.arange(sizes[name], dtype="int32")[:, None])
            if sizes.get(name, MAX_TABLE + 1) <= MAX_TABLE
            else None
            for name in self.feature_names
        ]


class EventContext(keras.layers.Layer):
    """What is known of events and users beside the items: event types, event features, user features.

    Args:
        schema: Schema. Of the dataset.
        embedding_dim: int. Width.
        event_types: bool. Whether the type of an event is embedded, where the log has types.
        user_features: str. `"prefix"`: one token before the history; `"add"`: added to every event; `"tower"`: left
            apart, for a tower behind the history; `"none"`.

    Input: a batch with `event_type`, `event_<name>` `(B, L)` or `(B, L, M)`, `user_<name>` `(B,)` or `(B, M)`, and,
        where values have weights, `event_<name>_weights` and `user_<name>_weights` of the same shapes.
    Output: dict with `event` `(B, L, D)`, where there is something to add to events, and `prefix` or `tower`
    `(B, 1, D)`.
    """

    def __init__(
        self,
        schema: Schema,
        embedding_dim: int,
        *,
        event_types: bool = True,
        user_features: UserFeatures | Literal["tower"] = "prefix",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.embedding_dim = embedding_dim
        self.user_features = user_features
        self.tables: dict[str, FeatureEmbedding] = {}
        if event_types and schema.event_types:
            self._add_table("event_type", (FIRST_VALUE + len(schema.event_types),), 1)
        for feature in schema.side("event"):
            self._add_table(f"event_{feature.name}", feature.table_sizes, feature.num_codes)
        if user_features != "none":
            for feature in schema.side("user"):
                self._add_table(f"user_{feature.name}", feature.table_sizes, feature.num_codes)

    @property
    def prefix_length(self) -> int:
        """1 where there is a prefix token, else 0."""
        return int(self.user_features == "prefix" and self.has_user)

    @property
    def has_user(self) -> bool:
        """Whether users have features that are embedded."""
        return any(key.startswith("user_") for key in self.tables)

    def build(self, batch_shape: Any = None) -> None:
        for table in self.tables.values():
            table.build()
        self.built = True

    def call(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        event = [self._embed(key, batch, 2) for key in self.tables if key.startswith("event_")]  # each (B, L, D)
        user = [self._embed(key, batch, 1)[:, None] for key in self.tables if key.startswith("user_")]  # (B, 1, D)
        outputs: dict[str, Tensor] = {}
        if user and self.user_features != "add":
            outputs[self.user_features] = sum(user[1:], user[0])
        elif user:
            event += user
        if event:
            outputs["event"] = sum(event[1:], event[0])
        return outputs

    def _add_table(self, key: str, sizes: tuple[int, ...], num_codes: int) -> None:
        self.tables[key] = FeatureEmbedding(
            sizes, self.embedding_dim, num_codes, dtype=self.dtype_policy, name=f"{key}_table"
        )

    def _embed(self, key: str, batch: dict[str, Tensor], axes: int) -> Tensor:
        codes = batch[key]
        if len(codes.shape) == axes:
            return self.tables[key](codes[..., None])
        return self.tables[key](codes, batch.get(key + WEIGHTS))


class SequenceEncoder(keras.layers.Layer):
    """Histories to states: the sum of each item's tokens, its place, then blocks over events.

    x = sqrt(D) * (sum of tokens + event context) + position; dropout; blocks; L2 norm.

    Args:
        embedder: ItemEmbedder. Shared with the item encoder.
        context: EventContext. Event and user features.
        blocks: sequence of layers called as `block(x, valid_mask, time_gap)`.
        history_length: int. Events at most.
        embedding_dim: int. D.
        time_bias: bool. Whether the blocks are given time gaps.
        position_embedding: bool. Whether places have embeddings.
        dropout: float. Of the input.
        normalize: bool. Whether states have length 1.
        time_encoding: TimeEncoding or None. Added to the events. Defaults to None.

    Input: a batch of `(B, L)` events. Output: `{"state": (B, L, D)}`, zeros where there is no event.
    """

    def __init__(
        self,
        embedder: ItemEmbedder,
        context: EventContext,
        blocks: Sequence[keras.layers.Layer],
        *,
        history_length: int,
        embedding_dim: int,
        time_bias: bool,
        position_embedding: bool,
        dropout: float,
        normalize: bool,
        time_encoding: TimeEncoding | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.embedder = embedder
        self.context = context
        self.time_encoding = time_encoding
        self.blocks = list(blocks)
        self.embedding_dim = embedding_dim
        self.time_bias = time_bias
        self.normalize = normalize
        self.position = None
        if position_embedding:
            self.position = PositionEmbedding(history_length, stddev=embedding_dim**-0.5, name="position")
        self.input_dropout = keras.layers.Dropout(dropout, name="input_dropout")

    def build(self, batch_shape: Any = None) -> None:
        shape = (None, None, self.embedding_dim)
        for layer in (self.embedder, self.context):
            if not layer.built:
                layer.build()
        if self.position is not None:
            self.position.build(shape)
        if self.time_encoding is not None:
            self.time_encoding.build()
        for block in self.blocks:
            block.build(shape)
        self.built = True

    def call(self, batch: dict[str, Tensor], training: bool | None = None) -> dict[str, Tensor]:
        context = self.context(batch)
        events = self.embed_events(batch, context, training) * self.embedding_dim**0.5
        x = self.encode(events, batch, context, training)
        return {"state": finish_state(x, self.valid_mask(batch), self.normalize)}

    def encode(self, x: Tensor, batch: dict[str, Tensor], context: dict[str, Tensor], training: bool | None) -> Tensor:
        """Embedded events through the blocks, `(B, L, D)`."""
        if self.position is not None:
            x = x + self.position(x)
        time_gap = time_gaps(batch, self.context.prefix_length) if self.time_bias else None

        # Put the user in front
        mask = self.valid_mask(batch)
        if "prefix" in context:
            x = ops.concatenate([context["prefix"] * self.embedding_dim**0.5, x], axis=1)  # (B, 1 + L, D)
            mask = ops.pad(mask, ((0, 0), (1, 0)), constant_values=True)

        # Encode
        x = self.input_dropout(x, training=training) * ops.cast(mask, x.dtype)[..., None]
        for block in self.blocks:
            x = block(x, mask, time_gap, training=training)
        return x[:, self.context.prefix_length :]

    def valid_mask(self, batch: dict[str, Tensor]) -> Tensor:
        """The places that hold something, `(B, L)` bool."""
        return batch["item"] != 0

    def embed_events(self, batch: dict[str, Tensor], context: dict[str, Tensor], training: bool | None) -> Tensor:
        """Events without their places, `(B, L, D)`."""
        x = ops.sum(self.embedder(batch["item"], training=training), axis=-2)
        if self.time_encoding is not None:
            x = x + self.time_encoding(batch["time"], batch["item"] != 0)
        return x + context["event"] if "event" in context else x


class SumItemEncoder(keras.layers.Layer):
    """Items to vectors: the sum of their tokens, of length 1 where `normalize`.

    Args:
        embedder: ItemEmbedder. Shared with the user encoder.
        normalize: bool. Whether vectors have length 1.

    Input: items `(N,)`. Output: `{"vector": (N, D)}`.
    """

    def __init__(self, embedder: ItemEmbedder, *, normalize: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.embedder = embedder
        self.normalize = normalize

    def build(self, items_shape: Any = None) -> None:
        if not self.embedder.built:
            self.embedder.build()
        self.built = True

    def call(self, items: Tensor, training: bool | None = None) -> dict[str, Tensor]:
        vector = ops.sum(embed_items(self.embedder, items, training), axis=-2)
        return {"vector": l2_normalize(vector) if self.normalize else ops.cast(vector, "float32")}


def time_gaps(batch: dict[str, Tensor], prefix_length: int) -> Tensor:
    """Buckets `(B, L, L)` of the time between queries and keys; a prefix before the history is at no distance."""
    buckets = time_gap_buckets(batch["query_time"], batch["time"])
    return ops.pad(buckets, ((0, 0), (prefix_length, 0), (prefix_length, 0))) if prefix_length else buckets


def has_time_bias(schema: Schema, time_bias: bool | None) -> bool:
    """Whether a model has a time-gap bias; None = where the log has times.

    Raises:
        ValueError: it is asked for and the log has no times.
    """
    if time_bias and not schema.has_time:
        raise ValueError("`time_bias` must be false or left out: the log has no times. Received: time_bias=True.")
    return schema.has_time if time_bias is None else time_bias


def embed_items(embedder: ItemEmbedder, items: Tensor, training: bool | None) -> Tensor:
    """Tokens `(N, K, D)` of items to be predicted; an item that has nothing but its id keeps it in training."""
    return embedder(items, training=training if len(embedder.feature_names) > 1 else False)


def finish_state(state: Tensor, valid_mask: Tensor, normalize: bool) -> Tensor:
    """States in float32, of length 1 where `normalize`, zeros where there is no event."""
    state = l2_normalize(state) if normalize else ops.cast(state, "float32")
    return state * ops.cast(valid_mask, "float32")[..., None]


__all__ = [
    "ITEM_ID",
    "EventContext",
    "ItemEmbedder",
    "ItemFeatures",
    "SequenceEncoder",
    "SumItemEncoder",
    "UserFeatures",
    "chosen_features",
    "embed_items",
    "finish_state",
    "has_time_bias",
    "item_table",
    "time_gaps",
]
