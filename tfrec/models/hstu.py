"""HSTU: gated, softmax-free attention over items, with positions and times."""

from typing import Annotated, Any

import keras
from pydantic import Field

from tfrec.layers.hstu_block import HSTUBlock
from tfrec.models.encoders import ITEM_ID, ItemFeatures, UserFeatures, has_time_bias
from tfrec.models.sequence import sequence_model
from tfrec.models.shells import RetrievalModel
from tfrec.objectives import build_objective
from tfrec.schema import Schema

OBJECTIVE = {"name": "sampled_softmax", "num_negatives": 128, "temperature": 0.05}


def hstu(
    schema: Schema,
    *,
    objective: Any = None,
    history_length: Annotated[int, Field(ge=1)] = 50,
    embedding_dim: Annotated[int, Field(ge=1)] = 64,
    num_blocks: Annotated[int, Field(ge=0)] = 2,
    num_heads: Annotated[int, Field(ge=1)] = 1,
    key_dim: Annotated[int, Field(ge=1)] | None = None,
    value_dim: Annotated[int, Field(ge=1)] | None = None,
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2,
    position_embedding: bool = True,
    position_bias: bool = True,
    time_bias: bool | None = None,
    concat_ua: bool = False,
    normalize: bool = True,
    item_features: ItemFeatures = (ITEM_ID,),
    item_id_dropout: Annotated[float, Field(ge=0, le=1)] = 0.0,
    user_features: UserFeatures = "none",
    event_types: bool = True,
    request_time: bool = False,
) -> RetrievalModel:
    """HSTU (Zhai et al., 2024, arXiv:2402.17152), the block of its public experiments, for retrieval.

    Item embeddings times sqrt(D) plus learned positions; HSTU blocks with the biases of positions and time gaps;
    L2-normalised states and items; softmax over 128 uniform negatives at temperature 0.05. Published with
    `features.request_time: true`: a position knows when the event that it predicts takes place.

    Args:
        schema: Schema. Of the dataset.
        objective: layer or None. None = `OBJECTIVE`.
        history_length: int. Events that the model sees at most, and the constant N that attention is divided by.
        embedding_dim: int. Width D.
        num_blocks: int. Blocks.
        num_heads: int. Attention heads.
        key_dim: int or None. Width of Q and K of a head; None = `embedding_dim` / `num_heads`.
        value_dim: int or None. Width of U and V of a head; None = `embedding_dim` / `num_heads`.
        dropout: float. Of inputs and gated outputs.
        position_embedding: bool. Whether places have embeddings.
        position_bias: bool. Whether attention is biased by distance.
        time_bias: bool or None. Whether attention is biased by time gaps; None = where the log has times.
        concat_ua: bool. The `concat_ua` variant of the public code.
        normalize: bool. Cosine similarity instead of the dot product.
        item_features: `"all"` or names. Features whose embeddings are summed to an item's.
        item_id_dropout: float. Probability of replacing an id by unknown in training.
        user_features: str. `"prefix"`, `"add"` or `"none"`.
        event_types: bool. Whether the type of an event is added to it.
        request_time: bool. Set by the run; which times a position sees.

    Outputs: `{"state": (B, L, D)}`, `{"vector": (N, D)}`.

    Differs from the paper: N has no slots for the code's eleven outputs; logs without times keep the position bias,
    which the code adds only together with the time bias; event types and event features are added where the log has
    them.
    """
    with_time = has_time_bias(schema, time_bias)

    def make_blocks(length: int) -> list[keras.layers.Layer]:
        return [
            HSTUBlock(
                num_heads,
                key_dim or max(embedding_dim // num_heads, 1),
                value_dim or max(embedding_dim // num_heads, 1),
                length,
                position_bias=position_bias,
                time_bias=with_time,
                dropout=dropout,
                concat_ua=concat_ua,
                name=f"block_{index}",
            )
            for index in range(num_blocks)
        ]

    return sequence_model(
        "hstu",
        schema,
        make_blocks,
        objective or build_objective(OBJECTIVE),
        history_length=history_length,
        embedding_dim=embedding_dim,
        time_bias=with_time,
        position_embedding=position_embedding,
        dropout=dropout,
        normalize=normalize,
        item_features=item_features,
        item_id_dropout=item_id_dropout,
        user_features=user_features,
        event_types=event_types,
        request_time=request_time,
    )
