"""HSTU for ranking: candidates as tokens that see the history and themselves."""

from typing import Annotated, Any

from pydantic import Field

from tfrec.models.encoders import ItemFeatures
from tfrec.models.shells import RankingModel
from tfrec.models.target_aware import PositionKind, target_aware_model
from tfrec.objectives import build_objective
from tfrec.schema import Schema

OBJECTIVE = {"name": "binary_crossentropy"}


def hstu_ranking(
    schema: Schema,
    *,
    labels: tuple[str, ...],
    objective: Any = None,
    history_length: Annotated[int, Field(ge=1)] = 50,
    embedding_dim: Annotated[int, Field(ge=1)] = 64,
    num_blocks: Annotated[int, Field(ge=0)] = 2,
    num_heads: Annotated[int, Field(ge=1)] = 2,
    key_dim: Annotated[int, Field(ge=1)] | None = None,
    value_dim: Annotated[int, Field(ge=1)] | None = None,
    alpha: Annotated[float, Field(gt=0)] | None = None,
    group_norm: bool = False,
    hidden_units: tuple[Annotated[int, Field(ge=1)], ...] = (64,),
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2,
    position: PositionKind = "backward",
    time_embedding: bool | None = None,
    relative_bias: bool = False,
    num_positions: Annotated[int, Field(ge=0)] = 20,
    item_features: ItemFeatures = "all",
    item_id_dropout: Annotated[float, Field(ge=0, le=1)] = 0.0,
    user_features: bool = True,
    event_types: bool = True,
) -> RankingModel:
    """HSTU (Zhai et al., 2024, arXiv:2402.17152), the block of its public ranking code (`STULayer`).

    Embeddings times sqrt(D) plus places and times; blocks of `HSTUTargetBlock`; layer norm; an MLP and a logit a label.
    One history is encoded once for all of its candidates.

    Args:
        schema: Schema. Of the dataset.
        labels: names. That are predicted.
        objective: layer or None. None = `OBJECTIVE`.
        history_length: int. Events that the model sees at most, and the constant N that attention is divided by.
        embedding_dim: int. Width D.
        num_blocks: int. Blocks.
        num_heads: int. Attention heads.
        key_dim: int or None. Width of Q and K of a head; None = `embedding_dim` / `num_heads`.
        value_dim: int or None. Width of U and V of a head; None = `embedding_dim` / `num_heads`.
        alpha: float or None. Scale of the products; None = 1 / sqrt(key_dim).
        group_norm: bool. Whether attention's output is normed head by head.
        hidden_units: ints. Of the head's MLP.
        dropout: float. Of the blocks' input and of their gated outputs.
        position: str. `"backward"`: places and times are counted from the candidates (the published code, for rows of
            requests); `"shared"`: from the first event, and candidates share one place; `"time_aware"`: candidates
            take their place in the order of time.
        time_embedding: bool or None. Whether times are embedded; None = where the log has times.
        relative_bias: bool. Whether distances and time gaps bias attention, as in the public experiments.
        num_positions: int. Places of impressions that have a bias, where the log has places; 0 = none.
        item_features: `"all"` or names. Features whose embeddings are summed to an item's.
        item_id_dropout: float. Probability of replacing an id by unknown in training.
        user_features: bool. Whether features of users are added to candidates.
        event_types: bool. Whether the type of an event is added to it.

    Outputs: `{label: (B, C)}` logits.

    Differs from the public code: features of users are added to candidates, instead of tokens in front of the history;
    event types are summed to events instead of concatenated through an MLP; states are layer-normed before the head;
    no stochastic depth, no truncated attention.
    """
    return target_aware_model(
        "hstu_ranking",
        schema,
        labels,
        objective or build_objective(OBJECTIVE),
        history_length=history_length,
        embedding_dim=embedding_dim,
        num_blocks=num_blocks,
        num_heads=num_heads,
        key_dim=key_dim,
        value_dim=value_dim,
        alpha=alpha,
        group_norm=group_norm,
        hidden_units=hidden_units,
        dropout=dropout,
        position=position,
        time_embedding=time_embedding,
        relative_bias=relative_bias,
        num_positions=num_positions,
        item_features=item_features,
        item_id_dropout=item_id_dropout,
        user_features=user_features,
        event_types=event_types,
    )
