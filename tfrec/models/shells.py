"""The trainable shells: Keras models that tie encoders to an objective, and override `compute_loss` alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from tfrec.layers import Tensor
from tfrec.layers.item_table import ItemTable

_EVENT_KEYS = ("item", "time", "session")
_OUTCOMES = ("candidate_label_", "candidate_weight")
_POSITION, _COMPARED = "candidate_position", "compared_position"
_STATES = "states"


class Shell(keras.Model):
    """What all shells share: layers that are built at once, the catalogue, and the objective with its metrics.

    Args:
        layers: layers. Built in this order, the item table before them.
        objective: layer or None. See `tfrec.objectives`; None where there is nothing to train.
        objective_shape: shapes. What the objective is built with.
        item_table: ItemTable. The catalogue that the layers read.
        history_length: int. Events that the model takes at most.
        embedding_dim: int. D.
        layer_metrics: names. Metrics beside the objective's. Defaults to none.
    """

    def __init__(
        self,
        layers: Sequence[keras.layers.Layer],
        objective: keras.layers.Layer | None,
        objective_shape: Mapping[str, tuple[int | None, ...]],
        *,
        item_table: ItemTable,
        history_length: int,
        embedding_dim: int,
        layer_metrics: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.objective = objective
        self.item_table = item_table
        self.history_length = history_length
        self.embedding_dim = embedding_dim

        # Build all at once, so that weights can be counted, loaded and sharded before the first batch
        for layer in (item_table, *layers):
            if not layer.built:
                layer.build()
        names = list(layer_metrics)
        if objective is not None:
            if not objective.built:
                objective.build(dict(objective_shape))
            names += objective.metric_names
        self.objective_metrics = {name: keras.metrics.Mean(name=name) for name in names}
        self.built = True

    def set_catalogue(
        self, codes: np.ndarray, train_count: np.ndarray, vectors: Mapping[str, np.ndarray] | None = None
    ) -> None:
        """Fills the item table.

        Args:
            codes: `(V, C)` int. Codes of each item, in the columns of `schema.item_columns()`.
            train_count: `(V,)` int. Training events of each item.
            vectors: dict. `(V, d)` of each feature with `keep_vectors`, which only an ablation reads, or with
                standardised values.
        """
        self.item_table.fill(codes, train_count, vectors)

    def _measure(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self.objective_metrics[name].update_state(value)


class RetrievalModel(Shell):
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
        embedding_dim: int,
        tokens_per_item: int | None = None,
        request_time: bool = False,
        **kwargs: Any,
    ) -> None:
        shapes: dict[str, tuple[int | None, ...]] = {"state": (None, None, embedding_dim)}
        if tokens_per_item is not None:
            shapes["token"] = (None, None, tokens_per_item, embedding_dim)
        super().__init__((user_encoder, item_encoder), objective, shapes, embedding_dim=embedding_dim, **kwargs)
        self.user_encoder = user_encoder
        self.item_encoder = item_encoder
        self.request_time = request_time

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
        self._measure(values)
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
            codes: see `Shell`.
            train_count: see `Shell`.
            vectors: see `Shell`.
            target_count: `(V,)` int. Those training events that are predicted, where not all are: what in-batch
                negatives are drawn by. Defaults to `train_count`.
        """
        super().set_catalogue(codes, train_count, vectors)
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


class RankingModel(Shell):
    """A scorer of candidates, and the objective that trains it on what became of them.

    Args:
        scorer: layer. Called on a batch without labels and weights, gives `{label: (B, C)}` logits and, in training,
            a scalar for each name of its attribute `metric_names`, if it has one, and where its attribute `has_states`
            is true `states` `(B, L, D)`, of each event without those behind it. Where its attribute
            `several_positions` is true, `candidate_position` may be `(B, C, P)`, and so are the logits then.
            `scorer.encode_items(items)` gives what it knows of items `(N,)`, `(N, D)`.
        objective: layer. Of the kind of `tfrec.objectives.binary_crossentropy`.
        labels: names. Whose probabilities the model gives.
        item_table: ItemTable. The catalogue that the scorer reads.
        history_length: int. Events that the scorer takes at most.
        embedding_dim: int. D.
        causal: bool. Whether the candidates of one row may stand behind different numbers of its events.
        why_not_causal: str or None. What to tell a user who wants them to. Defaults to None.

    Input: a batch: events `(B, L)`, candidates `(B, C)` with `candidate_time` and `candidate_history`, the number of
    the row's events before each. `candidate_position` is an input of training alone: outside it every candidate is
    taken to stand first, or where `compared_position` `(B, C, P)` says, at P places in turn.
    Output: `{label: (B, C)}` logits in float32, `(B, C, P)` where places are compared; in training the scorer's metrics
    beside them.
    """

    def __init__(
        self,
        scorer: keras.layers.Layer,
        objective: keras.layers.Layer,
        *,
        labels: Sequence[str],
        causal: bool,
        why_not_causal: str | None = None,
        **kwargs: Any,
    ) -> None:
        if objective.reads_states and not getattr(scorer, "has_states", False):
            raise ValueError("`objective.next_item_weight` must be 0: it has no states that see no later event.")
        measured = list(getattr(scorer, "metric_names", ()))
        shapes = dict.fromkeys(labels, (None, None))
        super().__init__((scorer,), objective, shapes, layer_metrics=measured, **kwargs)
        self.scorer = scorer
        self.labels = tuple(labels)
        self._reads_states = objective.reads_states
        self.causal = causal
        self.why_not_causal = why_not_causal

    def call(self, batch: Mapping[str, Tensor], training: bool | None = None) -> dict[str, Tensor]:
        if not training:
            return self._compare(batch)
        outputs = self._score(batch, training)
        beside = [*getattr(self.scorer, "metric_names", ()), *([_STATES] if self._reads_states else [])]
        return {**self._logits(outputs), **{name: outputs[name] for name in beside}}

    def _compare(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        position = batch.get(_COMPARED, ops.cast(batch["candidate"] != 0, "int32"))
        if len(position.shape) == len(batch["candidate"].shape) or getattr(self.scorer, "several_positions", False):
            return self._logits(self._score({**batch, _POSITION: position}, training=False))
        each = [
            self._logits(self._score({**batch, _POSITION: position[..., place]}, training=False))
            for place in range(position.shape[-1])
        ]
        return {label: ops.stack([logits[label] for logits in each], axis=-1) for label in self.labels}

    def _score(self, batch: Mapping[str, Tensor], training: bool | None) -> dict[str, Tensor]:
        inputs = {key: value for key, value in batch.items() if not key.startswith((*_OUTCOMES, _COMPARED))}
        outputs: dict[str, Tensor] = self.scorer(inputs, training=training)
        return outputs

    def _logits(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {label: ops.cast(outputs[label], "float32") for label in self.labels}

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Tensor:
        """The objective's loss of a batch `x`; updates the objective's and the scorer's metrics."""
        assert self.objective is not None, "Asked for by the constructor."
        logits = {label: y_pred[label] for label in self.labels}
        loss, values = self.objective(
            logits, batch=x, states=y_pred.get(_STATES), items=self.scorer.encode_items, training=training
        )
        measured = {name: y_pred[name] for name in y_pred if name not in (*logits, _STATES)}
        self._measure({**values, **measured})
        return loss

    def set_catalogue(
        self, codes: np.ndarray, train_count: np.ndarray, vectors: Mapping[str, np.ndarray] | None = None
    ) -> None:
        """See `Shell`; tells the objective how many items there are."""
        super().set_catalogue(codes, train_count, vectors)
        assert self.objective is not None, "Asked for by the constructor."
        self.objective.set_num_items(len(codes))

    def encode_items(self, items: Tensor) -> Tensor:
        """What the scorer knows of items `(N,)`, `(N, D)`."""
        return self.scorer.encode_items(items)


def is_event(key: str) -> bool:
    """Whether a batch's key holds a value for each event."""
    return key in _EVENT_KEYS or key.startswith("event_")
