"""Ranking by the state of a history: a sequence model encodes it once, an MLP compares it with each candidate."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from tfrec.layers import Tensor
from tfrec.layers.label_heads import LabelHeads
from tfrec.models.encoders import ItemFeatures, SequenceEncoder, item_table
from tfrec.models.masked import MaskedSequenceEncoder, mask_after
from tfrec.models.ranking import RankingInputs, last_state, places_of
from tfrec.models.shells import RankingModel
from tfrec.schema import Schema


class HistoryStateScorer(keras.layers.Layer):
    """Logits of [s, e, s * e, u]: s the history's state before the candidate, e the candidate, u the user.

    Args:
        inputs: RankingInputs. Embeds candidates and users, and owns what the encoder embeds events by.
        encoder: SequenceEncoder. Of histories; of `MaskedSequenceEncoder` s is the state of a mask after the whole
            history, the same for every candidate of a row.
        heads: LabelHeads.

    Input: a ranking batch. Output: `{label: (B, C)}`, and `states` `(B, L, D)` where they see no later event.
    """

    several_positions = True

    def __init__(self, inputs: RankingInputs, encoder: SequenceEncoder, heads: LabelHeads, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.inputs = inputs
        self.encoder = encoder
        self.heads = heads
        self.masked = isinstance(encoder, MaskedSequenceEncoder)
        self.has_states = not self.masked

    def build(self, batch_shape: Any = None) -> None:
        self.inputs.build()
        self.encoder.build()
        parts = 4 if self.inputs.num_user_fields else 3
        self.heads.build((None, None, parts * self.inputs.embedding_dim))
        self.built = True

    def encode_items(self, items: Tensor) -> Tensor:
        """The vectors `(N, D)` of items `(N,)`."""
        return ops.sum(self.inputs.embedder(items), axis=-2)

    def call(self, batch: dict[str, Tensor], training: bool | None = None) -> dict[str, Tensor]:
        candidate, user = self.inputs.embed_candidates(batch, training)
        candidate = ops.sum(candidate, axis=-2)
        outputs: dict[str, Tensor] = {}
        if self.masked:
            state = self._state_after(batch, training)
        else:
            outputs["states"] = self.encoder(batch, training=training)["state"]
            state = last_state(outputs["states"], batch)
        state = ops.cast(state, candidate.dtype) + ops.zeros_like(candidate)  # (B, C, D)
        parts = [state, candidate, state * candidate]
        if user is not None:
            parts.append(ops.sum(user, axis=1, keepdims=True) + ops.zeros_like(candidate))
        x = ops.concatenate(parts, axis=-1)
        return {**self.heads(x, batch.get("candidate_position"), training=training), **outputs}

    def _state_after(self, batch: dict[str, Tensor], training: bool | None) -> Tensor:
        inputs, count = mask_after(batch)
        state = self.encoder(inputs, training=training)["state"]
        return (
            ops.take_along_axis(state, count[:, None, None], axis=1) * ops.cast(count > 0, state.dtype)[:, None, None]
        )


def history_state_model(
    name: str,
    schema: Schema,
    labels: tuple[str, ...],
    make_blocks: Callable[[], list[keras.layers.Layer]],
    objective: keras.layers.Layer,
    *,
    history_length: int,
    embedding_dim: int,
    position_embedding: bool,
    dropout: float,
    hidden_units: tuple[int, ...],
    num_positions: int,
    item_features: ItemFeatures,
    item_id_dropout: float,
    user_features: bool,
    event_types: bool,
    masked: bool = False,
) -> RankingModel:
    """A ranking model of a sequence model's blocks.

    Args:
        name: str. Of the model.
        schema: Schema. Of the dataset.
        labels: names. That are predicted.
        make_blocks: callable. Gives the blocks of a `SequenceEncoder`.
        objective: layer. The loss.
        history_length: int. Events that the model sees at most.
        embedding_dim: int. Width D.
        position_embedding: bool. Whether places have embeddings.
        dropout: float. Of the blocks' input, and in the head.
        hidden_units: ints. Of the head's MLP.
        num_positions: int. Places of impressions that have a bias.
        item_features: `"all"` or names. Features whose embeddings are summed to an item's.
        item_id_dropout: float. Probability of replacing an id by unknown in training.
        user_features: bool. Whether the head sees features of users.
        event_types: bool. Whether the type of an event is added to it.
        masked: bool. Whether the history is read by a mask after it, both ways. Defaults to False.
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
    encoder = MaskedSequenceEncoder if masked else SequenceEncoder
    return RankingModel(
        HistoryStateScorer(
            inputs,
            encoder(
                inputs.embedder,
                inputs.context,
                make_blocks(),
                history_length=history_length + int(masked),
                embedding_dim=embedding_dim,
                time_bias=False,
                position_embedding=position_embedding,
                dropout=dropout,
                normalize=False,
                name="encoder",
            ),
            LabelHeads(labels, hidden_units, num_positions=places_of(schema, num_positions), name="heads"),
            name="scorer",
        ),
        objective,
        labels=labels,
        causal=not masked,
        item_table=table,
        history_length=history_length,
        embedding_dim=embedding_dim,
        name=name,
    )


__all__ = ["HistoryStateScorer", "history_state_model"]
