"""Popularity: the baseline that any model must beat."""

from typing import Annotated, Any

import keras
from keras import ops
from pydantic import Field

from tfrec.layers import Tensor
from tfrec.layers.item_table import ItemTable
from tfrec.models.encoders import item_table
from tfrec.models.shells import RetrievalModel
from tfrec.schema import Schema


class ConstantUserEncoder(keras.layers.Layer):
    """The same state, 1, for every event: all users are alike.

    Input: a batch of `(B, L)` events. Output: `{"state": (B, L, 1)}`, 0 where there is no event.
    """

    def build(self, batch_shape: Any = None) -> None:
        self.built = True

    def call(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"state": ops.cast(batch["item"] != 0, "float32")[..., None]}


class CountItemEncoder(keras.layers.Layer):
    """The training events of an item.

    Args:
        table: ItemTable. The catalogue.

    Input: items `(N,)`. Output: `{"vector": (N, 1)}`.
    """

    def __init__(self, table: ItemTable, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.table = table

    def build(self, items_shape: Any = None) -> None:
        self.built = True

    def call(self, items: Tensor) -> dict[str, Tensor]:
        return {"vector": ops.cast(self.table.train_count(items), "float32")[..., None]}


def popularity(
    schema: Schema,
    *,
    objective: Any = None,
    history_length: Annotated[int, Field(ge=1)] = 50,
    request_time: bool = False,
) -> RetrievalModel:
    """Ranks items by the number of their training events. No weights, so training it does nothing.

    Args:
        schema: Schema. Of the dataset.
        objective: None. There is nothing to train.
        history_length: int. Events that a batch holds at most.
        request_time: bool. Set by the run; this model reads no times.

    Outputs: `{"state": (B, L, 1)}`, `{"vector": (N, 1)}`.
    """
    if objective is not None:
        raise ValueError(f"`objective` must be left out: popularity is not trained. Received: {objective.name!r}.")
    table = item_table(schema)
    return RetrievalModel(
        ConstantUserEncoder(name="user_encoder"),
        CountItemEncoder(table, name="item_encoder"),
        None,
        item_table=table,
        history_length=history_length,
        embedding_dim=1,
        request_time=request_time,
        name="popularity",
    )
