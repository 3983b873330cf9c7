"""MTGR: one sample a request, tokens of four kinds, each with norms and a view of its own."""

from collections.abc import Sequence
from typing import Annotated, Any

import keras
from keras import ops
from pydantic import Field

from tfrec.layers import Tensor
from tfrec.layers.label_heads import LabelHeads
from tfrec.layers.mlp import MLP
from tfrec.layers.mtgr_block import MTGRBlock
from tfrec.layers.position_embedding import PositionEmbedding
from tfrec.models.encoders import ItemFeatures, item_table
from tfrec.models.ranking import RankingInputs, places_of
from tfrec.models.shells import RankingModel
from tfrec.objectives import build_objective
from tfrec.schema import Schema

OBJECTIVE = {"name": "binary_crossentropy"}
USER, STATIC, REALTIME, CANDIDATE = range(4)
"""The groups of tokens."""


def mtgr(
    schema: Schema,
    *,
    labels: tuple[str, ...],
    objective: Any = None,
    history_length: Annotated[int, Field(ge=1)] = 50,
    embedding_dim: Annotated[int, Field(ge=1)] = 64,
    num_blocks: Annotated[int, Field(ge=0)] = 3,
    num_heads: Annotated[int, Field(ge=1)] = 2,
    intermediate_dim: Annotated[int, Field(ge=1)] | None = None,
    realtime_events: Annotated[int, Field(ge=0)] | None = 10,
    position_embedding: bool = True,
    hidden_units: tuple[Annotated[int, Field(ge=1)], ...] = (64,),
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1,
    num_positions: Annotated[int, Field(ge=0)] = 20,
    item_features: ItemFeatures = "all",
    item_id_dropout: Annotated[float, Field(ge=0, le=1)] = 0.0,
    user_features: bool = True,
    event_types: bool = True,
) -> RankingModel:
    """MTGR (Han et al., 2025, arXiv:2505.18654): HSTU over [user | history | realtime | candidates].

    A sample is a user's request with all of its candidates. A candidate's token is an MLP over its features side by
    side, crosses of the schema among them. User and history are visible to all; a realtime event to itself, to later
    ones and to candidates; a candidate to itself. Blocks of `MTGRBlock`, whose norms have parameters for each kind.

    Args:
        schema: Schema. Of the dataset.
        labels: names. That are predicted.
        objective: layer or None. None = `OBJECTIVE`.
        history_length: int. Events that the model sees at most.
        embedding_dim: int. Width D.
        num_blocks: int. Blocks.
        num_heads: int. Attention heads; must divide `embedding_dim`.
        intermediate_dim: int or None. Width inside MLPs; None = `embedding_dim`.
        realtime_events: int or None. Events at the end of the history that are realtime; None = all of them, so that
            candidates of one row may stand anywhere in its history.
        position_embedding: bool. Whether places, counted from the first event, have embeddings.
        hidden_units: ints. Of the head's MLP.
        dropout: float. Of inputs, and inside MLPs.
        num_positions: int. Places of impressions that have a bias, where the log has places; 0 = none.
        item_features: `"all"` or names. Features whose embeddings make an item's tokens.
        item_id_dropout: float. Probability of replacing an id by unknown in training.
        user_features: bool. Whether features of users are tokens.
        event_types: bool. Whether the type of an event is added to it.

    Outputs: `{label: (B, C)}` logits.

    Differs from the paper: cross features are those of the schema, of items alone; an event is the sum of its features,
    not an MLP over them; what is realtime is a number of events, not those since a nightly batch; the realtime mask
    goes by the order of events; places have embeddings; products are divided by the root of a head's width.
    """
    table = item_table(schema)
    inputs = RankingInputs(
        schema,
        table,
        embedding_dim,
        item_features=item_features,
        item_id_dropout=item_id_dropout,
        event_types=event_types,
        user_features=user_features,
        name="inputs",
    )
    width = intermediate_dim or embedding_dim
    blocks = [
        MTGRBlock(
            num_heads,
            width,
            history_length + inputs.num_user_fields,
            dropout=dropout,
            name=f"block_{index}",
        )
        for index in range(num_blocks)
    ]
    scorer = MTGRScorer(
        inputs,
        MLP([width], embedding_dim, activation="silu", dropout=dropout, name="candidate_mlp"),
        blocks,
        LabelHeads(labels, hidden_units, num_positions=places_of(schema, num_positions), name="heads"),
        position=PositionEmbedding(history_length, name="position") if position_embedding else None,
        realtime_events=realtime_events,
        dropout=dropout,
        name="scorer",
    )
    return RankingModel(
        scorer,
        objective or build_objective(OBJECTIVE),
        labels=labels,
        causal=realtime_events is None,
        item_table=table,
        history_length=history_length,
        embedding_dim=embedding_dim,
        name="mtgr",
    )


class MTGRScorer(keras.layers.Layer):
    """Tokens of a row, the two masks, blocks, heads.

    Args:
        inputs: RankingInputs. Embeds the row.
        candidate_mlp: MLP. Makes a candidate's features one token.
        blocks: sequence of MTGRBlock.
        heads: LabelHeads.
        position: PositionEmbedding or None. Of events.
        realtime_events: int or None. See `mtgr`.
        dropout: float. Of the tokens.

    Input: a ranking batch. Output: `{label: (B, C)}`, and `states` `(B, L, D)` where events see no later one.
    """

    several_positions = True

    def __init__(
        self,
        inputs: RankingInputs,
        candidate_mlp: MLP,
        blocks: Sequence[MTGRBlock],
        heads: LabelHeads,
        *,
        position: PositionEmbedding | None,
        realtime_events: int | None,
        dropout: float,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.inputs = inputs
        self.candidate_mlp = candidate_mlp
        self.blocks = list(blocks)
        self.heads = heads
        self.position = position
        self.realtime_events = realtime_events
        self.has_states = realtime_events is None
        self.input_dropout = keras.layers.Dropout(dropout, name="input_dropout")

    def build(self, batch_shape: Any = None) -> None:
        shape = (None, None, self.inputs.embedding_dim)
        self.inputs.build()
        self.candidate_mlp.build((None, None, self.inputs.num_item_fields * self.inputs.embedding_dim))
        for layer in (self.position, self.heads, *self.blocks):
            if layer is not None:
                layer.build(shape)
        self.built = True

    def encode_items(self, items: Tensor) -> Tensor:
        """The vectors `(N, D)` of items `(N,)`."""
        return ops.sum(self.inputs.embedder(items), axis=-2)

    def call(self, batch: dict[str, Tensor], training: bool | None = None) -> dict[str, Tensor]:
        # Embed
        parts = self.inputs(batch, training=training)
        fields, scale = parts["candidate"], self.inputs.embedding_dim**0.5
        side_by_side = ops.reshape(fields, (*ops.shape(fields)[:2], fields.shape[2] * fields.shape[3]))
        candidate = self.candidate_mlp(side_by_side * scale, training=training)
        history = parts["history"] * scale
        if self.position is not None:
            history = history + self.position(history)
        context = [parts["user"] * scale] if "user" in parts else []
        context = self.input_dropout(ops.concatenate([*context, history], axis=1), training=training)
        seen, visible, group = self._views(batch, parts["visible"])

        # Encode, and ask
        state = {"context": context, "candidate": self.input_dropout(candidate, training=training)}
        for block in self.blocks:
            state = block(**state, seen=seen, visible=visible, context_group=group, training=training)
        logits = self.heads(state["candidate"], batch.get("candidate_position"), training=training)
        return {**logits, "states": state["context"][:, self.inputs.num_user_fields :]} if self.has_states else logits

    def _views(self, batch: dict[str, Tensor], visible: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What context sees of context `(B, T, T)`, what candidates see of it `(B, C, T)`, and its groups `(B, T)`."""
        users = self.inputs.num_user_fields
        valid = batch["item"] != 0
        place = ops.arange(ops.shape(valid)[1], dtype="int32")
        realtime = ops.ones_like(valid)
        if self.realtime_events is not None:
            count = ops.sum(ops.cast(valid, "int32"), axis=1, keepdims=True)
            realtime = place[None] >= count - self.realtime_events
        past = place[None, :] <= place[:, None]  # (L, L)
        seen = ops.logical_and(ops.logical_or(past[None], ops.logical_not(realtime)[:, None]), valid[:, None])
        group = ops.where(realtime, REALTIME, STATIC)
        if users:
            # Users see themselves and what is static, events see users
            static = ops.logical_and(valid, ops.logical_not(realtime))[:, None]
            above = ops.repeat(ops.pad(static, ((0, 0), (0, 0), (users, 0)), constant_values=True), users, axis=1)
            seen = ops.pad(seen, ((0, 0), (0, 0), (users, 0)), constant_values=True)
            seen = ops.concatenate([above, seen], axis=1)
            visible = ops.pad(visible, ((0, 0), (0, 0), (users, 0)), constant_values=True)
            group = ops.pad(group, ((0, 0), (users, 0)), constant_values=USER)
        return seen, visible, group
