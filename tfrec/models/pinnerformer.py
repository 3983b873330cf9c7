"""PinnerFormer: a user is what they will do in the next weeks, not what they do next."""

from typing import Annotated, Any

import keras
from pydantic import Field

from tfrec.layers.time_encoding import TimeEncoding
from tfrec.layers.transformer_block import TransformerBlock
from tfrec.models.encoders import ItemFeatures, UserFeatures
from tfrec.models.sequence import sequence_model
from tfrec.models.shells import RetrievalModel
from tfrec.objectives import build_objective
from tfrec.schema import Schema

OBJECTIVE = {"name": "dense_all_action"}


def pinnerformer(
    schema: Schema,
    *,
    objective: Any = None,
    history_length: Annotated[int, Field(ge=1)] = 50,
    embedding_dim: Annotated[int, Field(ge=1)] = 64,
    num_blocks: Annotated[int, Field(ge=0)] = 2,
    num_heads: Annotated[int, Field(ge=1)] = 2,
    intermediate_dim: Annotated[int, Field(ge=1)] | None = None,
    activation: str = "gelu",
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2,
    position_embedding: bool = True,
    time_encoding: bool | None = None,
    normalize: bool = True,
    item_features: ItemFeatures = "all",
    item_id_dropout: Annotated[float, Field(ge=0, le=1)] = 0.0,
    user_features: UserFeatures = "none",
    event_types: bool = True,
    request_time: bool = False,
) -> RetrievalModel:
    """PinnerFormer (Pancha et al., 2022, arXiv:2205.04507).

    The sum of an item's feature embeddings, of when and of what kind an event was, and of its place; causal
    transformer blocks; unit vectors; trained by the dense all-action loss.

    Args:
        schema: Schema. Of the dataset.
        objective: layer or None. None = `OBJECTIVE`.
        history_length: int. Events that the model sees at most.
        embedding_dim: int. Width D.
        num_blocks: int. Blocks.
        num_heads: int. Attention heads; must divide `embedding_dim`.
        intermediate_dim: int or None. Width inside the feed-forward network; None = 4 `embedding_dim`.
        activation: str. Of the feed-forward network.
        dropout: float. Of inputs, attention probabilities and both sublayers.
        position_embedding: bool. Whether places have embeddings.
        time_encoding: bool or None. Whether an event's time is added to it; None = where the log has times.
        normalize: bool. Cosine similarity instead of the dot product.
        item_features: `"all"` or names. Features whose embeddings are summed to an item's.
        item_id_dropout: float. Probability of replacing an id by unknown in training.
        user_features: str. `"prefix"`, `"add"` or `"none"`.
        event_types: bool. Whether the type of an event is added to it.
        request_time: bool. Set by the run; this model reads the times of events alone.

    Outputs: `{"state": (B, L, D)}`, `{"vector": (N, D)}`.

    Raises:
        ValueError: times are asked for and the log has none.

    Differs from the paper: embeddings of the catalogue's features, learnt here, stand for its PinSage vectors; no
    network between the blocks and the unit vector; post-norm blocks.
    """
    if time_encoding and not schema.has_time:
        raise ValueError("`time_encoding` must be false or left out: the log has no times. Received: True.")
    with_time = schema.has_time if time_encoding is None else time_encoding

    def make_blocks(length: int) -> list[keras.layers.Layer]:
        return [
            TransformerBlock(
                num_heads,
                intermediate_dim or 4 * embedding_dim,
                activation=activation,
                dropout=dropout,
                attention_dropout=dropout,
                name=f"block_{index}",
            )
            for index in range(num_blocks)
        ]

    return sequence_model(
        "pinnerformer",
        schema,
        make_blocks,
        objective or build_objective(OBJECTIVE),
        history_length=history_length,
        embedding_dim=embedding_dim,
        time_bias=False,
        position_embedding=position_embedding,
        dropout=dropout,
        normalize=normalize,
        item_features=item_features,
        item_id_dropout=item_id_dropout,
        user_features=user_features,
        event_types=event_types,
        request_time=request_time,
        time_encoding=TimeEncoding(embedding_dim, name="time_encoding") if with_time else None,
    )
