"""BERT4Rec: hidden events are guessed from both sides."""

from typing import Annotated, Any

import keras
from pydantic import Field

from tfrec.layers.transformer_block import TransformerBlock
from tfrec.models.encoders import ITEM_ID, ItemFeatures, UserFeatures
from tfrec.models.masked import MaskedSequenceEncoder, PretrainingModel
from tfrec.models.sequence import sequence_model
from tfrec.objectives import build_objective
from tfrec.schema import Schema

OBJECTIVE = {"name": "masked_item", "mask_ratio": 0.2, "last_ratio": 0.5}


def bert4rec(
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
    normalize: bool = True,
    item_features: ItemFeatures = (ITEM_ID,),
    item_id_dropout: Annotated[float, Field(ge=0, le=1)] = 0.0,
    user_features: UserFeatures = "none",
    event_types: bool = True,
    request_time: bool = False,
) -> PretrainingModel:
    """BERT4Rec (Sun et al., 2019, arXiv:1904.06690).

    Item embeddings times sqrt(D) plus learned positions; post-norm transformer blocks that see both ways; the items at
    masked places are predicted, and the next item as one masked place after the history.

    Args:
        schema: Schema. Of the dataset.
        objective: layer or None. None = `OBJECTIVE`, RecBole's shares of masked and of last events.
        history_length: int. Events that the model sees at most.
        embedding_dim: int. Width D.
        num_blocks: int. Blocks.
        num_heads: int. Attention heads; must divide `embedding_dim`.
        intermediate_dim: int or None. Width inside the feed-forward network; None = 4 `embedding_dim`.
        activation: str. Of the feed-forward network.
        dropout: float. Of inputs, attention probabilities and both sublayers.
        position_embedding: bool. Whether places have embeddings.
        normalize: bool. Cosine similarity instead of the dot product.
        item_features: `"all"` or names. Features whose embeddings are summed to an item's.
        item_id_dropout: float. Probability of replacing an id by unknown in training.
        user_features: str. `"prefix"`, `"add"` or `"none"`.
        event_types: bool. Whether the type of an event is added to it.
        request_time: bool. Set by the run; this model reads no times.

    Outputs: `{"state": (B, L + 1, D)}`, `{"vector": (N, D)}`.

    Differs from the paper: cosine similarity at a temperature instead of a projection with a bias for each item, as
    for the other sequence models; a masked place always holds the mask; event types and event features are added where
    the log has them, and hidden with their event.
    """

    def make_blocks(length: int) -> list[keras.layers.Layer]:
        return [
            TransformerBlock(
                num_heads,
                intermediate_dim or 4 * embedding_dim,
                causal=False,
                activation=activation,
                dropout=dropout,
                attention_dropout=dropout,
                name=f"block_{index}",
            )
            for index in range(num_blocks)
        ]

    return sequence_model(
        "bert4rec",
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
        encoder=MaskedSequenceEncoder,
        shell=PretrainingModel,
        extra_places=1,
    )
