"""The trainable shells: Keras models that tie encoders to an objective, and override `compute_loss` alone."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from tfrec.layers import Tensor
from tfrec.layers.item_table import ItemTable

_EVENT_KEYS = ("item", "time", "session")


class RetrievalModel(keras.Model):
    """Two encoders whose dot product ranks the catalogue, and the objective that trains them.

    Args:
        user_encoder: layer. Batch of histories -> `{"state": (B, L, D)[, "token": (B, L, K, d)]}`.
        item_encoder: layer. Items `(N,)` -> `{"vector": (N, D)[, "token": (N, K, d)]}`.
        objective: layer or None. See `tfrec.objectives`; None where there is nothing to train.
        item_table: ItemTable. The catalogue that both encoders read.
        history_length: int. Events that the user encoder takes at most.
        embedding_dim: int. D.
        tokens_per_item: int or None. K where the user encoder gives token states. Defaults to None.
        request_time: bool. Whether a position sees the time of the event that it predicts, instead of its own event's.
            Defaults to False.

    Input: a training batch: events `(B, L + 1)`, of which positions 0..L-1 are encoded.
    Output: what the user encoder gives.
    """

    def __init__(
        self,
        user_encoder: keras.layers.Layer,
        item_encoder: keras.layers.Layer,
        objective: keras.layers.Layer | None,
        *,
        item_table: ItemTable,
        history_length: int,
        embedding_dim: int,
        tokens_per_item: int | None = None,
        request_time: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.user_encoder = user_encoder
        self.item_encoder = item_encoder
        self.objective = objective
        self.item_table = item_table
        self.history_length = history_length
        self.embedding_dim = embedding_dim
        self.request_time = request_time
        self.objective_metrics: dict[str, keras.metrics.Metric] = {}

        # Build all at once, so that weights can be counted, loaded and sharded before the first batch
        for layer in (item_table, user_encoder, item_encoder):
            if not layer.built:
                layer.build()
        if objective is not None:
            shapes: dict[str, tuple[int | None, ...]] = {"state": (None, None, embedding_dim)}
            if tokens_per_item is not None:
                shapes["token"] = (None, None, tokens_per_item, embedding_dim)
            if not objective.built:
                objective.build(shapes)
            self.objective_metrics = {name: keras.metrics.Mean(name=name) for name in objective.metric_names}
        self.built = True

    def call(self, batch: Mapping[str, Tensor], training: bool | None = None) -> dict[str, Tensor]:
        inputs = {
            key: value[:, :-1] if is_event(key) else value
            for key, value in batch.items()
            if is_event(key) or key.startswith("user_")
        }
        if "time" in batch:
            inputs["query_time"] = batch["time"][:, 1:] if self.request_time else batch["time"][:, :-1]
        return self.user_encoder(inputs, training=training)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Tensor:
        """The objective's loss of a prepared batch `x`; updates the objective's metrics."""
        if self.objective is None:
            return ops.zeros(())
        loss, values = self.objective(y_pred, items=self.item_encoder, batch=x, training=training)
        for name, value in values.items():
            self.objective_metrics[name].update_state(value)
        return loss

    def encode_users(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The state at the last event of each history, `(B, D)`; zeros for a row without events.

        Args:
            batch: dict. Events `(B, L)`, right-padded; `request_time` `(B,)` where the model sees it.
        """
        valid = batch["item"] != 0
        last = ops.maximum(ops.sum(ops.cast(valid, "int32"), axis=1) - 1, 0)  # (B,)
        inputs = {key: value for key, value in batch.items() if is_event(key) or key.startswith("user_")}
        if "time" in batch:
            inputs["query_time"] = self._query_time(batch, last)
        state = self.user_encoder(inputs, training=False)["state"]
        return ops.take_along_axis(state, last[:, None, None], axis=1)[:, 0]  # (B, D)

    def encode_items(self, items: Tensor) -> Tensor:
        """The vectors of items `(N,)`, `(N, D)`."""
        return self.item_encoder(items, training=False)["vector"]

    def set_catalogue(
        self,
        codes: np.ndarray,
        train_count: np.ndarray,
        vectors: Mapping[str, np.ndarray] | None = None,
        *,
        target_count: np.ndarray | None = None,
    ) -> None:
        """Fills the item table and tells the objective how often each item is a target.

        Args:
            codes: `(V, C)` int. Codes of each item, in the columns of `schema.item_columns()`.
            train_count: `(V,)` int. Training events of each item.
            vectors: dict. `(V, d)` of each feature with `keep_vectors`, which only an ablation reads, or with
                standardised values.
            target_count: `(V,)` int. Those training events that are predicted, where not all are: what in-batch
                negatives are drawn by. Defaults to `train_count`.
        """
        self.item_table.fill(codes, train_count, vectors)
        if self.objective is not None:
            self.objective.set_counts(np.asarray(train_count if target_count is None else target_count))

    def _query_time(self, batch: Mapping[str, Tensor], last: Tensor) -> Tensor:
        time = batch["time"]
        if not self.request_time:
            return time
        following = ops.concatenate([time[:, 1:], time[:, -1:]], axis=1)
        place = ops.arange(ops.shape(time)[1], dtype="int32")
        at_last = place[None, :] == last[:, None]
        return ops.where(at_last, ops.cast(batch["request_time"], time.dtype)[:, None], following)


def is_event(key: str) -> bool:
    """Whether a batch's key holds a value for each event."""
    return key in _EVENT_KEYS or key.startswith("event_")
