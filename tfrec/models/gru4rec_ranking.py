"""GRU4Rec for ranking: a recurrent state of the past beside each candidate."""

from typing import Annotated, Any

import keras
from pydantic import Field

from tfrec.layers.gated_recurrence import GatedRecurrence
from tfrec.models.encoders import ItemFeatures
from tfrec.models.history_state import history_state_model
from tfrec.models.shells import RankingModel
from tfrec.objectives import build_objective
from tfrec.schema import Schema

OBJECTIVE = {"name": "binary_crossentropy"}


def gru4rec_ranking(
    schema: Schema,
    *,
    labels: tuple[str, ...],
    objective: Any = None,
    history_length: Annotated[int, Field(ge=1)] = 50,
    embedding_dim: Annotated[int, Field(ge=1)] = 64,
    num_blocks: Annotated[int, Field(ge=1)] = 1,
    units: Annotated[int, Field(ge=1)] = 128,
    hidden_units: tuple[Annotated[int, Field(ge=1)], ...] = (64,),
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.3,
    num_positions: Annotated[int, Field(ge=0)] = 20,
    item_features: ItemFeatures = "all",
    item_id_dropout: Annotated[float, Field(ge=0, le=1)] = 0.0,
    user_features: bool = True,
    event_types: bool = True,
) -> RankingModel:
    """GRU4Rec (Hidasi et al., 2016, arXiv:1511.06939) as a ranking model.

    The encoder of `gru4rec`; s, its state at the last event before a candidate e, goes through an MLP beside it: logits
    of [s, e, s * e, user]. One history is encoded once for all candidates.

    Args:
        schema: Schema. Of the dataset.
        labels: names. That are predicted.
        objective: layer or None. None = `OBJECTIVE`.
        history_length: int. Events that the model sees at most.
        embedding_dim: int. Width D.
        num_blocks: int. Recurrent layers, each with its map back.
        units: int. Width of the recurrent state.
        hidden_units: ints. Of the head's MLP.
        dropout: float. Of inputs and blocks.
        num_positions: int. Places of impressions that have a bias, where the log has places; 0 = none.
        item_features: `"all"` or names. Features whose embeddings are summed to an item's.
        item_id_dropout: float. Probability of replacing an id by unknown in training.
        user_features: bool. Whether the head sees features of users.
        event_types: bool. Whether the type of an event is added to it.

    Outputs: `{label: (B, C)}` logits.

    Differs from the paper: an MLP over state and candidate instead of a score for every item, trained on outcomes of
    impressions instead of pairwise losses over a batch.
    """

    def make_blocks() -> list[keras.layers.Layer]:
        return [GatedRecurrence(units, dropout=dropout, name=f"block_{index}") for index in range(num_blocks)]

    return history_state_model(
        "gru4rec_ranking",
        schema,
        labels,
        make_blocks,
        objective or build_objective(OBJECTIVE),
        history_length=history_length,
        embedding_dim=embedding_dim,
        position_embedding=False,
        dropout=dropout,
        hidden_units=hidden_units,
        num_positions=num_positions,
        item_features=item_features,
        item_id_dropout=item_id_dropout,
        user_features=user_features,
        event_types=event_types,
    )
