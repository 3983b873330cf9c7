"""GRU4Rec: a recurrent network over items."""

from typing import Annotated, Any

import keras
from pydantic import Field

from tfrec.layers.gated_recurrence import GatedRecurrence
from tfrec.models.encoders import ITEM_ID, ItemFeatures, UserFeatures
from tfrec.models.sequence import sequence_model
from tfrec.models.shells import RetrievalModel
from tfrec.objectives import build_objective
from tfrec.schema import Schema

OBJECTIVE = {"name": "full_softmax", "temperature": 0.05}


def gru4rec(
    schema: Schema,
    *,
    objective: Any = None,
    history_length: Annotated[int, Field(ge=1)] = 50,
    embedding_dim: Annotated[int, Field(ge=1)] = 64,
    num_blocks: Annotated[int, Field(ge=1)] = 1,
    units: Annotated[int, Field(ge=1)] = 128,
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.3,
    normalize: bool = True,
    item_features: ItemFeatures = (ITEM_ID,),
    item_id_dropout: Annotated[float, Field(ge=0, le=1)] = 0.0,
    user_features: UserFeatures = "none",
    event_types: bool = True,
    request_time: bool = False,
) -> RetrievalModel:
    """GRU4Rec (Hidasi et al., 2016, arXiv:1511.06939), with the sizes of RecBole.

    Item embeddings times sqrt(D); gated recurrent units; a linear map back to the width of the items.

    Args:
        schema: Schema. Of the dataset.
        objective: layer or None. None = `OBJECTIVE`.
        history_length: int. Events that the model sees at most.
        embedding_dim: int. Width D.
        num_blocks: int. Recurrent layers, each with its map back.
        units: int. Width of the recurrent state.
        dropout: float. Of inputs and recurrent states.
        normalize: bool. Cosine similarity instead of the dot product.
        item_features: `"all"` or names. Features whose embeddings are summed to an item's.
        item_id_dropout: float. Probability of replacing an id by unknown in training.
        user_features: str. `"prefix"`, `"add"` or `"none"`.
        event_types: bool. Whether the type of an event is added to it.
        request_time: bool. Set by the run; this model reads no times.

    Outputs: `{"state": (B, L, D)}`, `{"vector": (N, D)}`.

    Differs from the paper: a state for every event of a history and cross entropy over the catalogue, instead of
    parallel sessions and pairwise losses over a batch; cosine similarity at a temperature, as for the other models;
    event types and event features are added where the log has them.
    """

    def make_blocks(length: int) -> list[keras.layers.Layer]:
        return [GatedRecurrence(units, dropout=dropout, name=f"block_{index}") for index in range(num_blocks)]

    return sequence_model(
        "gru4rec",
        schema,
        make_blocks,
        objective or build_objective(OBJECTIVE),
        history_length=history_length,
        embedding_dim=embedding_dim,
        time_bias=False,
        position_embedding=False,
        dropout=dropout,
        normalize=normalize,
        item_features=item_features,
        item_id_dropout=item_id_dropout,
        user_features=user_features,
        event_types=event_types,
        request_time=request_time,
    )
