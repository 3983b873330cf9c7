"""DIN: the history weighed anew for each candidate."""

from typing import Annotated, Any

from pydantic import Field

from tfrec.layers.label_heads import LabelHeads
from tfrec.layers.target_attention import TargetAttention
from tfrec.models.encoders import ItemFeatures
from tfrec.models.pointwise import pointwise_model
from tfrec.models.ranking import places_of
from tfrec.models.shells import RankingModel
from tfrec.objectives import build_objective
from tfrec.schema import Schema

OBJECTIVE = {"name": "binary_crossentropy"}


def din(
    schema: Schema,
    *,
    labels: tuple[str, ...],
    objective: Any = None,
    history_length: Annotated[int, Field(ge=1)] = 50,
    embedding_dim: Annotated[int, Field(ge=1)] = 64,
    attention_units: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (36,),
    attention_softmax: bool = False,
    hidden_units: tuple[Annotated[int, Field(ge=1)], ...] = (128, 64),
    activation: str = "dice",
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1,
    item_features: ItemFeatures = "all",
    item_id_dropout: Annotated[float, Field(ge=0, le=1)] = 0.0,
    user_features: bool = True,
    event_types: bool = True,
    num_positions: Annotated[int, Field(ge=0)] = 20,
) -> RankingModel:
    """An MLP over the fields of a candidate, the history among them as a sum of its events weighed by the candidate.

    Args:
        schema: Schema. Of the dataset.
        labels: names. What is predicted.
        objective: layer or None. None = `OBJECTIVE`.
        history_length: int. Events that the model sees at most.
        embedding_dim: int. Width D of a field.
        attention_units: ints. Widths of the hidden layers of the attention's MLP.
        attention_softmax: bool. Whether the weights of the events add up to 1.
        hidden_units: ints. Widths of the MLP's hidden layers.
        activation: str. Of all hidden layers: `"dice"`, `"prelu"` or a name of Keras.
        dropout: float. After the hidden layers of the MLP.
        item_features: `"all"` or names. Features of items that are fields.
        item_id_dropout: float. Probability of replacing an id by unknown in training.
        user_features: bool. Whether features of users are fields.
        event_types: bool. Whether the type of an event is added to it.
        num_positions: int. Places in lists of impressions that have a bias in training, where the log has places.

    Outputs: a logit `(B, C)` of each label.

    Reference: Zhou et al., 2018, arXiv:1706.06978. Differs from the paper: see `TargetAttention`; no mini-batch aware
    regularisation.
    """
    heads = LabelHeads(
        labels,
        hidden_units,
        activation=activation,
        dropout=dropout,
        num_positions=places_of(schema, num_positions),
        name="heads",
    )
    attention = TargetAttention(attention_units, activation=activation, softmax=attention_softmax, name="attention")
    return pointwise_model(
        "din",
        schema,
        objective or build_objective(OBJECTIVE),
        heads,
        history_length=history_length,
        embedding_dim=embedding_dim,
        item_features=item_features,
        item_id_dropout=item_id_dropout,
        event_types=event_types,
        user_features=user_features,
        attention=attention,
    )
