"""Binary cross entropy of candidates: what became of each that was shown, one label or several."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from tfrec.objectives.item_softmax import Tensor
from tfrec.objectives.packing import Batch


@keras.saving.register_keras_serializable(package="tfrec")
class BinaryCrossentropy(keras.layers.Layer):
    """The weighted mean over candidates of `-y log p - (1 - y) log(1 - p)`, summed over labels with their weights.

    A candidate counts by its `candidate_weight`, and where its label is missing (below 0) not at all.

    Args:
        label_weights: dict of str to float. Weight of a label's loss; 1 for those left out. Defaults to none.

    Input: logits `{label: (B, C)}`; a batch with `candidate_label_<label>` and `candidate_weight` `(B, C)`.
    Output: the loss, and where there are several labels `loss_<label>`, each without its weight.
    """

    def __init__(
        self, *, label_weights: Mapping[str, float] | None = None, dtype: Any = "float32", **kwargs: Any
    ) -> None:
        super().__init__(dtype=dtype, **kwargs)
        for name, weight in (label_weights or {}).items():
            if not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
                raise ValueError(f"`label_weights` must be numbers from 0 on. Received: {name}: {weight!r}.")
        self.label_weights = None if label_weights is None else dict(label_weights)
        self.labels: tuple[str, ...] = ()

    @property
    def metric_names(self) -> list[str]:
        """Names of the metrics that `call` returns."""
        return [f"loss_{label}" for label in self.labels] if len(self.labels) > 1 else []

    def build(self, logits_shape: Mapping[str, Any]) -> None:
        """Learns the labels; has no weights."""
        self.labels = tuple(logits_shape)
        for name in self.label_weights or {}:
            if name not in self.labels:
                raise ValueError(f"`label_weights` must name labels of {list(self.labels)}. Received: {name!r}.")
        self.built = True

    def prepare(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """The batch as it is: there is nothing to draw."""
        return batch

    def call(
        self, logits: dict[str, Tensor], batch: Any = None, training: bool | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See the class."""
        losses = {label: self._mean_loss(logits[label], batch, label) for label in self.labels}
        weights = self.label_weights or {}
        loss = sum(losses[label] * weights.get(label, 1.0) for label in self.labels)
        return loss, {f"loss_{label}": losses[label] for label in self.labels} if self.metric_names else {}

    def _mean_loss(self, logit: Tensor, batch: Mapping[str, Tensor], label: str) -> Tensor:
        logit = ops.cast(logit, "float32")
        outcome = ops.cast(batch[f"candidate_label_{label}"], "float32")
        weight = ops.cast(batch["candidate_weight"], "float32") * ops.cast(outcome >= 0, "float32")
        loss = ops.softplus(logit) - logit * outcome  # -log p and -log(1 - p) without p
        return ops.sum(loss * weight) / ops.maximum(ops.sum(weight), keras.config.epsilon())

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "label_weights": self.label_weights}


__all__ = ["BinaryCrossentropy"]
