"""Binary cross entropy of candidates: what became of each that was shown, one label or several.

Beside it, where asked for, histories are continued: what comes next is a label that every event has.
"""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from tfrec.layers.normalization import l2_normalize
from tfrec.objectives.item_softmax import Tensor
from tfrec.objectives.packing import Batch
from tfrec.objectives.sampled_softmax import SampledSoftmax

NEXT_ITEM = "loss_next_item"


@keras.saving.register_keras_serializable(package="tfrec")
class BinaryCrossentropy(keras.layers.Layer):
    """The weighted mean over candidates of `-y log p - (1 - y) log(1 - p)`, summed over labels with their weights.

    A candidate counts by its `candidate_weight`, and where its label is missing (below 0) not at all. To this the loss
    of the next item may be added: `SampledSoftmax` of the state at each event against the one behind it, both of
    length one, for models that give states of histories.

    Args:
        label_weights: dict of str to float. Weight of a label's loss; 1 for those left out. Defaults to none.
        next_item_weight: float. Weight of the loss of the next item; 0 = there is none. Defaults to 0.
        num_negatives: int. Of the next item, drawn uniformly, once a batch. Defaults to 128.
        temperature: float. Divides the products of states and items. Defaults to 0.05.

    Input: logits `{label: (B, C)}`; a batch with `candidate_label_<label>` and `candidate_weight` `(B, C)`, for the
    next item also `item` and `target_mask` `(B, L)`; states `(B, L, D)`; items, a callable on ids `(N,)` that gives
    `(N, D)`.
    Output: the loss, and where there are several losses `loss_<label>` and `loss_next_item`, each without its weight.
    """

    def __init__(
        self,
        *,
        label_weights: Mapping[str, float] | None = None,
        next_item_weight: float = 0.0,
        num_negatives: int = 128,
        temperature: float = 0.05,
        dtype: Any = "float32",
        **kwargs: Any,
    ) -> None:
        super().__init__(dtype=dtype, **kwargs)
        for name, weight in (label_weights or {}).items():
            if not _is_weight(weight):
                raise ValueError(f"`label_weights` must be numbers from 0 on. Received: {name}: {weight!r}.")
        if not _is_weight(next_item_weight):
            raise ValueError(f"`next_item_weight` must be a number from 0 on. Received: {next_item_weight!r}.")
        if not next_item_weight and (num_negatives, temperature) != (128, 0.05):
            raise ValueError("`num_negatives` and `temperature` must be left out where `next_item_weight` is 0.")
        self.label_weights = None if label_weights is None else dict(label_weights)
        self.next_item_weight = next_item_weight
        self.num_negatives = num_negatives
        self.temperature = temperature
        self.labels: tuple[str, ...] = ()
        self._next_item = (
            SampledSoftmax(num_negatives=num_negatives, negatives="shared", temperature=temperature, name="next_item")
            if next_item_weight
            else None
        )

    @property
    def reads_states(self) -> bool:
        """Whether `call` needs the states of histories."""
        return self._next_item is not None

    @property
    def metric_names(self) -> list[str]:
        """Names of the metrics that `call` returns."""
        names = [*(f"loss_{label}" for label in self.labels), *([NEXT_ITEM] if self.reads_states else [])]
        return names if len(names) > 1 else []

    def build(self, logits_shape: Mapping[str, Any]) -> None:
        """Learns the labels; has no weights."""
        self.labels = tuple(logits_shape)
        for name in self.label_weights or {}:
            if name not in self.labels:
                raise ValueError(f"`label_weights` must name labels of {list(self.labels)}. Received: {name!r}.")
        self.built = True

    def set_num_items(self, num_items: int) -> None:
        """Tells how many items the catalogue has, padding and unknown among them: what negatives are drawn from."""
        if self._next_item is not None:
            self._next_item.set_counts(np.ones(num_items))

    def prepare(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """Adds packed positions and negatives of the next item, where there is such a loss (host side)."""
        return batch if self._next_item is None else self._next_item.prepare(batch, rng)

    def call(
        self,
        logits: dict[str, Tensor],
        batch: Any = None,
        states: Any = None,
        items: Any = None,
        training: bool | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See the class."""
        losses = {f"loss_{label}": self._mean_loss(logits[label], batch, label) for label in self.labels}
        weights = self.label_weights or {}
        loss = sum(losses[f"loss_{label}"] * weights.get(label, 1.0) for label in self.labels)
        if self._next_item is not None:
            # The last state of a row has nothing behind it
            user = {"state": l2_normalize(states[:, :-1])}
            losses[NEXT_ITEM], _ = self._next_item(
                user, items=lambda ids: {"vector": l2_normalize(items(ids))}, batch=batch
            )
            loss = loss + losses[NEXT_ITEM] * self.next_item_weight
        return loss, {name: losses[name] for name in self.metric_names}

    def _mean_loss(self, logit: Tensor, batch: Mapping[str, Tensor], label: str) -> Tensor:
        logit = ops.cast(logit, "float32")
        outcome = ops.cast(batch[f"candidate_label_{label}"], "float32")
        weight = ops.cast(batch["candidate_weight"], "float32") * ops.cast(outcome >= 0, "float32")
        loss = ops.softplus(logit) - logit * outcome  # -log p and -log(1 - p) without p
        return ops.sum(loss * weight) / ops.maximum(ops.sum(weight), keras.config.epsilon())

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        names = ("label_weights", "next_item_weight", "num_negatives", "temperature")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def _is_weight(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value < float("inf")


__all__ = ["BinaryCrossentropy"]
