"""Wukong: stacked factorisation machines."""

from typing import Annotated, Any

from pydantic import Field

from tfrec.layers.label_heads import LabelHeads
from tfrec.layers.wukong_block import WukongBlock
from tfrec.models.encoders import ItemFeatures
from tfrec.models.pointwise import pointwise_model
from tfrec.models.ranking import places_of
from tfrec.models.shells import RankingModel
from tfrec.objectives import build_objective
from tfrec.schema import Schema

OBJECTIVE = {"name": "binary_crossentropy"}


def wukong(
    schema: Schema,
    *,
    labels: tuple[str, ...],
    objective: Any = None,
    history_length: Annotated[int, Field(ge=1)] = 50,
    embedding_dim: Annotated[int, Field(ge=1)] = 64,
    num_blocks: Annotated[int, Field(ge=1)] = 2,
    num_interactions: Annotated[int, Field(ge=1)] = 8,
    num_compressed: Annotated[int, Field(ge=1)] = 8,
    rank: Annotated[int, Field(ge=1)] = 8,
    block_units: tuple[Annotated[int, Field(ge=1)], ...] = (128,),
    hidden_units: tuple[Annotated[int, Field(ge=1)], ...] = (128, 64),
    activation: str = "relu",
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1,
    item_features: ItemFeatures = "all",
    item_id_dropout: Annotated[float, Field(ge=0, le=1)] = 0.0,
    user_features: bool = True,
    event_types: bool = True,
    num_positions: Annotated[int, Field(ge=0)] = 20,
) -> RankingModel:
    """Blocks of a factorisation machine beside a linear compression over the fields of a candidate, then an MLP.

    A block doubles the order of the products that it is given, so two hold products of four fields.

    Args:
        schema: Schema. Of the dataset.
        labels: names. What is predicted.
        objective: layer or None. None = `OBJECTIVE`.
        history_length: int. Events that the model sees at most.
        embedding_dim: int. Width D of a field.
        num_blocks: int. Wukong blocks.
        num_interactions: int. Embeddings that a block's factorisation machine makes.
        num_compressed: int. Embeddings that a block's linear compression makes.
        rank: int. Columns that a block's dot products are compressed to.
        block_units: ints. Widths of the hidden layers of a block's MLP.
        hidden_units: ints. Widths of the hidden layers of the last MLP.
        activation: str. Of the hidden layers: a name of Keras.
        dropout: float. After the hidden layers.
        item_features: `"all"` or names. Features of items that are fields.
        item_id_dropout: float. Probability of replacing an id by unknown in training.
        user_features: bool. Whether features of users are fields.
        event_types: bool. Whether the type of an event is added to it.
        num_positions: int. Places in lists of impressions that have a bias in training, where the log has places.

    Outputs: a logit `(B, C)` of each label.

    Reference: Zhang et al., 2024, arXiv:2403.02545. Differs from the paper: see `WukongBlock`; all fields have one
    width, so none is split or mapped before the first block.
    """
    heads = LabelHeads(
        labels,
        hidden_units,
        activation=activation,
        dropout=dropout,
        num_positions=places_of(schema, num_positions),
        name="heads",
    )
    blocks = [
        WukongBlock(
            num_interactions,
            num_compressed,
            rank,
            block_units,
            activation=activation,
            dropout=dropout,
            name=f"block_{index}",
        )
        for index in range(num_blocks)
    ]
    return pointwise_model(
        "wukong",
        schema,
        objective or build_objective(OBJECTIVE),
        heads,
        history_length=history_length,
        embedding_dim=embedding_dim,
        item_features=item_features,
        item_id_dropout=item_id_dropout,
        event_types=event_types,
        user_features=user_features,
        blocks=blocks,
    )
