"""SASRec: the self-attentive sequence model that everything is compared with."""

from typing import Annotated, Any

import keras
from pydantic import Field

from tfrec.layers.transformer_block import TransformerBlock
from tfrec.models.encoders import ITEM_ID, ItemFeatures, UserFeatures
from tfrec.models.sequence import sequence_model
from tfrec.models.shells import RetrievalModel
from tfrec.objectives import build_objective
from tfrec.schema import Schema

OBJECTIVE = {"name": "sampled_softmax", "num_negatives": 128, "temperature": 0.05}


def sasrec(
    schema: Schema,
    *,
    objective: Any = None,
    history_length: Annotated[int, Field(ge=1)] = 50,
    embedding_dim: Annotated[int, Field(ge=1)] = 64,
    num_blocks: Annotated[int, Field(ge=0)] = 2,
    num_heads: Annotated[int, Field(ge=1)] = 1,
    intermediate_dim: Annotated[int, Field(ge=1)] | None = None,
    activation: str = "relu",
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2,
    position_embedding: bool = True,
    normalize: bool = True,
    item_features: ItemFeatures = (ITEM_ID,),
    item_id_dropout: Annotated[float, Field(ge=0, le=1)] = 0.0,
    user_features: UserFeatures = "none",
    event_types: bool = True,
    request_time: bool = False,
) -> RetrievalModel:
    """SASRec (Kang and McAuley, 2018, arXiv:1808.09781), as Meta's generative-recommenders train it.

    Item embeddings times sqrt(D) plus learned positions; blocks of causal attention whose queries alone are normalised;
    L2-normalised states and items; softmax over 128 uniform negatives at temperature 0.05.

    Args:
        schema: Schema. Of the dataset.
        objective: layer or None. None = `OBJECTIVE`.
        history_length: int. Events that the model sees at most.
        embedding_dim: int. Width D.
        num_blocks: int. Blocks.
        num_heads: int. Attention heads; must divide `embedding_dim`.
        intermediate_dim: int or None. Width inside the feed-forward network; None = `embedding_dim`.
        activation: str. Of the feed-forward network.
        dropout: float. Of inputs, attention probabilities and the feed-forward network.
        position_embedding: bool. Whether places have embeddings.
        normalize: bool. Cosine similarity instead of the dot product.
        item_features: `"all"` or names. Features whose embeddings are summed to an item's.
        item_id_dropout: float. Probability of replacing an id by unknown in training.
        user_features: str. `"prefix"`, `"add"` or `"none"`.
        event_types: bool. Whether the type of an event is added to it.
        request_time: bool. Set by the run; this model reads no times.

    Outputs: `{"state": (B, L, D)}`, `{"vector": (N, D)}`.

    Differs from the paper: in what Meta changed (cosine, sampled softmax, no norm after the last block), and from
    Meta's code in norms with parameters and an epsilon of 1e-6; event types and event features are added where the
    log has them.
    """

    def make_blocks(length: int) -> list[keras.layers.Layer]:
        return [
            TransformerBlock(
                num_heads,
                intermediate_dim or embedding_dim,
                norm_first=True,
                activation=activation,
                dropout=dropout,
                attention_dropout=dropout,
                name=f"block_{index}",
            )
            for index in range(num_blocks)
        ]

    return sequence_model(
        "sasrec",
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
    )
