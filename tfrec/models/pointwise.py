"""The assembly of ranking models that see a history as one vector: fields of a candidate, and what makes them meet."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from tfrec.layers import Tensor
from tfrec.layers.label_heads import LabelHeads
from tfrec.layers.target_attention import TargetAttention
from tfrec.models.encoders import ItemFeatures, embed_items, item_table
from tfrec.models.ranking import RankingInputs, average_before
from tfrec.models.shells import RankingModel
from tfrec.schema import Schema


class PointwiseScorer(keras.layers.Layer):
    """Fields of each candidate to logits: the item's features, the user's, and the history before the candidate.

    The fields, `(B, C, F, D)`, times sqrt(D), go through the blocks; laid side by side, through the networks, whose
    outputs stand side by side before the heads.

    Args:
        inputs: RankingInputs. Embeds rows.
        heads: LabelHeads. Makes logits.
        blocks: sequence of layers. Fields to fields, one after the other.
        networks: sequence of layers. Each from the fields side by side to a vector; none = the fields themselves.
        attention: TargetAttention or None. Makes a vector of the history; None = the mean of its events.

    Input: a ranking batch. Output: dict of `(B, C)` by label.
    """

    several_positions = True

    def __init__(
        self,
        inputs: RankingInputs,
        heads: LabelHeads,
        *,
        blocks: Sequence[keras.layers.Layer] = (),
        networks: Sequence[keras.layers.Layer] = (),
        attention: TargetAttention | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.inputs = inputs
        self.heads = heads
        self.blocks = list(blocks)
        self.networks = list(networks)
        self.attention = attention
        self.num_fields = inputs.num_item_fields + inputs.num_user_fields + 1

    def build(self, batch_shape: Any = None) -> None:
        width = self.inputs.embedding_dim
        self.inputs.build()
        if self.attention is not None:
            self.attention.build((None, None, width))
        x = keras.KerasTensor((None, None, self.num_fields, width))
        for block in self.blocks:
            block.build(x.shape)
            x = block.compute_output_spec(x)
        flat = keras.KerasTensor((None, None, x.shape[2] * width))
        outputs = []
        for network in self.networks:
            network.build(flat.shape)
            outputs.append(network.compute_output_spec(flat).shape)
        if outputs:
            flat = keras.KerasTensor((*outputs[0][:-1], sum(shape[-1] for shape in outputs)))
        self.heads.build(flat.shape)
        self.built = True

    def call(self, batch: dict[str, Tensor], training: bool | None = None) -> dict[str, Tensor]:
        x = self.fields(batch, training)
        for block in self.blocks:
            x = block(x, training=training)
        x = ops.reshape(x, (*ops.shape(x)[:2], x.shape[2] * x.shape[3]))  # (B, C, F * D)
        if self.networks:
            x = ops.concatenate([network(x, training=training) for network in self.networks], axis=-1)
        return self.heads(x, batch.get("candidate_position"), valid_mask=batch["candidate"] != 0, training=training)

    def fields(self, batch: dict[str, Tensor], training: bool | None = None) -> Tensor:
        """The fields of each candidate, `(B, C, F, D)`."""
        scale = self.inputs.embedding_dim**0.5
        embedded = self.inputs(batch, training=training)
        candidate, history = embedded["candidate"] * scale, embedded["history"] * scale
        if self.attention is None:
            seen = average_before(history, embedded["visible"])  # (B, C, D)
        else:
            item = ops.sum(candidate, axis=2)
            seen = self.attention(item, history, embedded["visible"], training=training)
        fields = [candidate, seen[:, :, None]]
        if "user" in embedded:
            user = embedded["user"][:, None] * scale
            fields.append(ops.repeat(user, ops.shape(candidate)[1], axis=1))  # (B, C, U, D)
        return ops.concatenate(fields, axis=2)

    def encode_items(self, items: Tensor) -> Tensor:
        """The vectors `(N, D)` of items: the sums of their tokens."""
        return ops.sum(embed_items(self.inputs.embedder, items, False), axis=-2)


def pointwise_model(
    name: str,
    schema: Schema,
    objective: keras.layers.Layer,
    heads: LabelHeads,
    *,
    history_length: int,
    embedding_dim: int,
    item_features: ItemFeatures,
    item_id_dropout: float,
    event_types: bool,
    user_features: bool,
    blocks: Sequence[keras.layers.Layer] = (),
    networks: Sequence[keras.layers.Layer] = (),
    attention: TargetAttention | None = None,
) -> RankingModel:
    """A ranking model with a `PointwiseScorer`.

    Args:
        name: str. Of the model.
        schema: Schema. Of the dataset.
        objective: layer. The loss.
        heads: LabelHeads. Of the labels that are predicted.
        history_length: int. Events that the model sees at most.
        embedding_dim: int. Width D of a field.
        item_features: `"all"` or names. Features of items that are fields.
        item_id_dropout: float. Probability of replacing an id by unknown in training.
        event_types: bool. Whether the type of an event is added to it.
        user_features: bool. Whether features of users are fields.
        blocks: sequence of layers. See `PointwiseScorer`.
        networks: sequence of layers. See `PointwiseScorer`.
        attention: TargetAttention or None. See `PointwiseScorer`.
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
    scorer = PointwiseScorer(inputs, heads, blocks=blocks, networks=networks, attention=attention, name="scorer")
    return RankingModel(
        scorer,
        objective,
        labels=heads.labels,
        causal=True,
        item_table=table,
        history_length=history_length,
        embedding_dim=embedding_dim,
        name=name,
    )


__all__ = ["PointwiseScorer", "pointwise_model"]
