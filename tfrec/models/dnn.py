"""A deep network over the fields of a candidate: the baseline of ranking models."""

from typing import Annotated, Any

from pydantic import Field

from tfrec.layers.label_heads import LabelHeads
from tfrec.models.encoders import ItemFeatures
from tfrec.models.pointwise import pointwise_model
from tfrec.models.ranking import places_of
from tfrec.models.shells import RankingModel
from tfrec.objectives import build_objective
from tfrec.schema import Schema

OBJECTIVE = {"name": "binary_crossentropy"}


def dnn(
    schema: Schema,
    *,
    labels: tuple[str, ...],
    objective: Any = None,
    history_length: Annotated[int, Field(ge=1)] = 50,
    embedding_dim: Annotated[int, Field(ge=1)] = 64,
    hidden_units: tuple[Annotated[int, Field(ge=1)], ...] = (128, 64),
    activation: str = "relu",
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1,
    item_features: ItemFeatures = "all",
    item_id_dropout: Annotated[float, Field(ge=0, le=1)] = 0.0,
    user_features: bool = True,
    event_types: bool = True,
    num_positions: Annotated[int, Field(ge=0)] = 20,
) -> RankingModel:
    """Embeddings and an MLP: the item's features, the user's, the mean of the history before the candidate.

    The fields side by side, each of width D, then an MLP that all labels share up to its last layer.

    Args:
        schema: Schema. Of the dataset.
        labels: names. What is predicted.
        objective: layer or None. None = `OBJECTIVE`.
        history_length: int. Events that the model sees at most.
        embedding_dim: int. Width D of a field.
        hidden_units: ints. Widths of the MLP's hidden layers.
        activation: str. Of the hidden layers: a name of Keras, `"prelu"` or `"dice"`.
        dropout: float. After the hidden layers.
        item_features: `"all"` or names. Features of items that are fields.
        item_id_dropout: float. Probability of replacing an id by unknown in training.
        user_features: bool. Whether features of users are fields.
        event_types: bool. Whether the type of an event is added to it.
        num_positions: int. Places in lists of impressions that have a bias in training, where the log has places.

    Outputs: a logit `(B, C)` of each label.

    Reference: the deep part of Cheng et al., 2016, arXiv:1606.07792, with pooled histories as in Covington et al.,
    2016, "Deep Neural Networks for YouTube Recommendations".
    """
    heads = LabelHeads(
        labels,
        hidden_units,
        activation=activation,
        dropout=dropout,
        num_positions=places_of(schema, num_positions),
        name="heads",
    )
    return pointwise_model(
        "dnn",
        schema,
        objective or build_objective(OBJECTIVE),
        heads,
        history_length=history_length,
        embedding_dim=embedding_dim,
        item_features=item_features,
        item_id_dropout=item_id_dropout,
        event_types=event_types,
        user_features=user_features,
    )
