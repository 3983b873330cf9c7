"""SASRec for ranking: the state of the past beside each candidate."""

from typing import Annotated, Any

import keras
from pydantic import Field

from tfrec.layers.transformer_block import TransformerBlock
from tfrec.models.encoders import ItemFeatures
from tfrec.models.history_state import history_state_model
from tfrec.models.shells import RankingModel
from tfrec.objectives import build_objective
from tfrec.schema import Schema

OBJECTIVE = {"name": "binary_crossentropy"}


def sasrec_ranking(
    schema: Schema,
    *,
    labels: tuple[str, ...],
    objective: Any = None,
    history_length: Annotated[int, Field(ge=1)] = 50,
    embedding_dim: Annotated[int, Field(ge=1)] = 64,
    num_blocks: Annotated[int, Field(ge=0)] = 2,
    num_heads: Annotated[int, Field(ge=1)] = 1,
    intermediate_dim: Annotated[int, Field(ge=1)] | None = None,
    activation: str = "relu",
    hidden_units: tuple[Annotated[int, Field(ge=1)], ...] = (64,),
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2,
    position_embedding: bool = True,
    num_positions: Annotated[int, Field(ge=0)] = 20,
    item_features: ItemFeatures = "all",
    item_id_dropout: Annotated[float, Field(ge=0, le=1)] = 0.0,
    user_features: bool = True,
    event_types: bool = True,
) -> RankingModel:
    """SASRec (Kang and McAuley, 2018, arXiv:1808.09781) as a ranking model.

    The encoder of `sasrec`; s, its state at the last event before a candidate e, goes through an MLP beside it: logits
    of [s, e, s * e, user]. One history is encoded once for all candidates.

    Args:
        schema: Schema. Of the dataset.
        labels: names. That are predicted.
        objective: layer or None. None = `OBJECTIVE`.
        history_length: int. Events that the model sees at most.
        embedding_dim: int. Width D.
        num_blocks: int. Blocks.
        num_heads: int. Attention heads; must divide `embedding_dim`.
        intermediate_dim: int or None. Width inside the feed-forward network; None = `embedding_dim`.
        activation: str. Of the feed-forward network.
        hidden_units: ints. Of the head's MLP.
        dropout: float. Of inputs and blocks.
        position_embedding: bool. Whether places have embeddings.
        num_positions: int. Places of impressions that have a bias, where the log has places; 0 = none.
        item_features: `"all"` or names. Features whose embeddings are summed to an item's.
        item_id_dropout: float. Probability of replacing an id by unknown in training.
        user_features: bool. Whether the head sees features of users.
        event_types: bool. Whether the type of an event is added to it.

    Outputs: `{label: (B, C)}` logits.

    Differs from the paper: an MLP over state and candidate instead of their dot product, trained on outcomes of
    impressions instead of one drawn negative a position.
    """

    def make_blocks() -> list[keras.layers.Layer]:
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

    return history_state_model(
        "sasrec_ranking",
        schema,
        labels,
        make_blocks,
        objective or build_objective(OBJECTIVE),
        history_length=history_length,
        embedding_dim=embedding_dim,
        position_embedding=position_embedding,
        dropout=dropout,
        hidden_units=hidden_units,
        num_positions=num_positions,
        item_features=item_features,
        item_id_dropout=item_id_dropout,
        user_features=user_features,
        event_types=event_types,
    )
