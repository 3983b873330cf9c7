"""MMoE: experts that several labels share, mixed for each label by a gate of its own."""

from typing import Annotated, Any

from pydantic import Field

from tfrec.layers.label_heads import LabelHeads
from tfrec.layers.mixture_of_experts import MixtureOfExperts
from tfrec.models.encoders import ItemFeatures
from tfrec.models.pointwise import pointwise_model
from tfrec.models.ranking import places_of
from tfrec.models.shells import RankingModel
from tfrec.objectives import build_objective
from tfrec.schema import Schema

OBJECTIVE = {"name": "binary_crossentropy"}


def mmoe(
    schema: Schema,
    *,
    labels: tuple[str, ...],
    objective: Any = None,
    history_length: Annotated[int, Field(ge=1)] = 50,
    embedding_dim: Annotated[int, Field(ge=1)] = 64,
    num_experts: Annotated[int, Field(ge=1)] = 4,
    expert_units: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (128, 64),
    hidden_units: tuple[Annotated[int, Field(ge=1)], ...] = (32,),
    activation: str = "relu",
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1,
    item_features: ItemFeatures = "all",
    item_id_dropout: Annotated[float, Field(ge=0, le=1)] = 0.0,
    user_features: bool = True,
    event_types: bool = True,
    num_positions: Annotated[int, Field(ge=0)] = 20,
) -> RankingModel:
    """Experts over the fields of a candidate, a softmax gate over them for each label, then an MLP for each label.

    With one label this is a mixture of experts.

    Args:
        schema: Schema. Of the dataset.
        labels: names. What is predicted.
        objective: layer or None. None = `OBJECTIVE`.
        history_length: int. Events that the model sees at most.
        embedding_dim: int. Width D of a field.
        num_experts: int. E.
        expert_units: ints. Widths of an expert's layers.
        hidden_units: ints. Widths of the hidden layers of each label's MLP.
        activation: str. Of the hidden layers: a name of Keras.
        dropout: float. After the hidden layers.
        item_features: `"all"` or names. Features of items that are fields.
        item_id_dropout: float. Probability of replacing an id by unknown in training.
        user_features: bool. Whether features of users are fields.
        event_types: bool. Whether the type of an event is added to it.
        num_positions: int. Places in lists of impressions that have a bias in training, where the log has places.

    Outputs: a logit `(B, C)` of each label.

    Reference: Ma et al., 2018, "Modeling Task Relationships in Multi-task Learning with Multi-gate
    Mixture-of-Experts".
    """
    heads = LabelHeads(
        labels,
        hidden_units,
        activation=activation,
        dropout=dropout,
        separate=True,
        num_positions=places_of(schema, num_positions),
        name="heads",
    )
    experts = MixtureOfExperts(
        num_experts, len(labels), expert_units, activation=activation, dropout=dropout, name="experts"
    )
    return pointwise_model(
        "mmoe",
        schema,
        objective or build_objective(OBJECTIVE),
        heads,
        history_length=history_length,
        embedding_dim=embedding_dim,
        item_features=item_features,
        item_id_dropout=item_id_dropout,
        event_types=event_types,
        user_features=user_features,
        networks=[experts],
    )
