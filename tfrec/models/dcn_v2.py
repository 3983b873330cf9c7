"""DCN V2: explicit products of features beside a deep network."""

from typing import Annotated, Any, Literal

import keras
from pydantic import Field

from tfrec.layers.cross_network import CrossNetwork
from tfrec.layers.label_heads import LabelHeads
from tfrec.layers.mlp import MLP
from tfrec.models.encoders import ItemFeatures
from tfrec.models.pointwise import pointwise_model
from tfrec.models.ranking import places_of
from tfrec.models.shells import RankingModel
from tfrec.objectives import build_objective
from tfrec.schema import Schema

OBJECTIVE = {"name": "binary_crossentropy"}


def dcn_v2(
    schema: Schema,
    *,
    labels: tuple[str, ...],
    objective: Any = None,
    history_length: Annotated[int, Field(ge=1)] = 50,
    embedding_dim: Annotated[int, Field(ge=1)] = 64,
    num_cross_layers: Annotated[int, Field(ge=1)] = 3,
    rank: Annotated[int, Field(ge=1)] | None = None,
    num_experts: Annotated[int, Field(ge=1)] = 1,
    structure: Literal["stacked", "parallel"] = "stacked",
    hidden_units: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (128, 64),
    activation: str = "relu",
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1,
    item_features: ItemFeatures = "all",
    item_id_dropout: Annotated[float, Field(ge=0, le=1)] = 0.0,
    user_features: bool = True,
    event_types: bool = True,
    num_positions: Annotated[int, Field(ge=0)] = 20,
) -> RankingModel:
    """A cross network over the fields of a candidate, before or beside an MLP.

    `stacked`: the MLP is given what the cross network makes. `parallel`: both are given the fields, and the logits are
    linear in both outputs.

    Args:
        schema: Schema. Of the dataset.
        labels: names. What is predicted.
        objective: layer or None. None = `OBJECTIVE`.
        history_length: int. Events that the model sees at most.
        embedding_dim: int. Width D of a field.
        num_cross_layers: int. Layers of the cross network.
        rank: int or None. Of its matrices; None = whole matrices.
        num_experts: int. Low-rank matrices a layer, mixed by a gate; more than 1 needs `rank`.
        structure: str. `"stacked"` or `"parallel"`.
        hidden_units: ints. Widths of the MLP's hidden layers.
        activation: str. Of the hidden layers: a name of Keras.
        dropout: float. After the hidden layers.
        item_features: `"all"` or names. Features of items that are fields.
        item_id_dropout: float. Probability of replacing an id by unknown in training.
        user_features: bool. Whether features of users are fields.
        event_types: bool. Whether the type of an event is added to it.
        num_positions: int. Places in lists of impressions that have a bias in training, where the log has places.

    Outputs: a logit `(B, C)` of each label.

    Reference: Wang et al., 2021, arXiv:2008.13535.
    """
    stacked = structure == "stacked"
    heads = LabelHeads(
        labels,
        hidden_units if stacked else (),
        activation=activation,
        dropout=dropout,
        num_positions=places_of(schema, num_positions),
        name="heads",
    )
    networks: list[keras.layers.Layer] = [CrossNetwork(num_cross_layers, rank, num_experts, name="cross")]
    if not stacked:
        *hidden, output = hidden_units
        networks.append(
            MLP(hidden, output, activation=activation, dropout=dropout, output_activation=activation, name="deep")
        )
    return pointwise_model(
        "dcn_v2",
        schema,
        objective or build_objective(OBJECTIVE),
        heads,
        history_length=history_length,
        embedding_dim=embedding_dim,
        item_features=item_features,
        item_id_dropout=item_id_dropout,
        event_types=event_types,
        user_features=user_features,
        networks=networks,
    )
