"""The assembly that the plain sequence models share; they differ in their blocks."""

from collections.abc import Callable
from typing import Any

import keras

from tfrec.models.encoders import (
    EventContext,
    ItemEmbedder,
    ItemFeatures,
    SequenceEncoder,
    SumItemEncoder,
    UserFeatures,
    item_table,
)
from tfrec.models.shells import RetrievalModel
from tfrec.schema import Schema


def sequence_model(
    name: str,
    schema: Schema,
    make_blocks: Callable[[int], list[keras.layers.Layer]],
    objective: keras.layers.Layer,
    *,
    history_length: int,
    embedding_dim: int,
    time_bias: bool,
    position_embedding: bool,
    dropout: float,
    normalize: bool,
    item_features: ItemFeatures,
    item_id_dropout: float,
    user_features: UserFeatures,
    event_types: bool,
    request_time: bool,
    encoder: type[SequenceEncoder] = SequenceEncoder,
    shell: type[RetrievalModel] = RetrievalModel,
    extra_places: int = 0,
    **encoder_options: Any,
) -> Any:
    """A model whose histories are sums of embeddings, passed through blocks; items share the embeddings.

    Args:
        name: str. Of the model.
        schema: Schema. Of the dataset.
        make_blocks: callable. Gives the blocks of a `SequenceEncoder`, told the most tokens that they see.
        objective: layer. The loss.
        history_length: int. Events that the model sees at most.
        embedding_dim: int. Width D.
        time_bias: bool. Whether the blocks are given time gaps.
        position_embedding: bool. Whether places have embeddings.
        dropout: float. Of the blocks' input.
        normalize: bool. Cosine similarity instead of the dot product.
        item_features: `"all"` or names. Features whose embeddings are summed to an item's.
        item_id_dropout: float. Probability of replacing an id by unknown in training.
        user_features: str. `"prefix"`, `"add"` or `"none"`.
        event_types: bool. Whether the type of an event is added to it.
        request_time: bool. Which times a position sees.
        encoder: type. Of the user encoder. Defaults to `SequenceEncoder`.
        shell: type. Of the model. Defaults to `RetrievalModel`.
        extra_places: int. Places that the encoder sees beside the history. Defaults to 0.
        **encoder_options: further arguments of the encoder.
    """
    table = item_table(schema)
    embedder = ItemEmbedder(
        schema, table, embedding_dim, item_features=item_features, item_id_dropout=item_id_dropout, name="embedder"
    )
    context = EventContext(schema, embedding_dim, event_types=event_types, user_features=user_features, name="context")
    user_encoder = encoder(
        embedder,
        context,
        make_blocks(history_length + extra_places + context.prefix_length),
        history_length=history_length + extra_places,
        embedding_dim=embedding_dim,
        time_bias=time_bias,
        position_embedding=position_embedding,
        dropout=dropout,
        normalize=normalize,
        name="user_encoder",
        **encoder_options,
    )
    return shell(
        user_encoder,
        SumItemEncoder(embedder, normalize=normalize, name="item_encoder"),
        objective,
        item_table=table,
        history_length=history_length,
        embedding_dim=embedding_dim,
        request_time=request_time,
        name=name,
    )


__all__ = ["sequence_model"]
