"""Softmax over the whole catalogue: the strongest objective while the catalogue is small enough to score at once."""

from typing import Any

import keras
import numpy as np
from keras import ops

from tfrec.objectives.item_softmax import ItemSoftmax, Tensor, masked_mean, pack_states
from tfrec.objectives.packing import Batch, pack_positions


@keras.saving.register_keras_serializable(package="tfrec")
class FullSoftmax(keras.layers.Layer):
    """Cross entropy of the next item over all real items; the item encoder runs once a batch on all of them.

    The mean over positions of `-log(exp(s+/tau) / sum over items exp(s/tau))`. Memory is positions x items.

    Args:
        temperature: float. Divides the scores. Defaults to 0.05.

    Input: user `{"state": (B, L, D)}`; items, a callable on ids `(N,)` that gives `{"vector": (N, D)}`; a prepared
    batch. Output: the loss, and no metrics.
    """

    def __init__(self, *, temperature: float = 0.05, dtype: Any = "float32", **kwargs: Any) -> None:
        super().__init__(dtype=dtype, **kwargs)
        self.temperature = temperature
        self._softmax = ItemSoftmax("full", num_negatives=1, temperature=temperature)

    @property
    def metric_names(self) -> list[str]:
        """Names of the metrics that `call` returns."""
        return []

    def set_counts(self, target_count: np.ndarray) -> None:
        """Tells how often each item of the catalogue is a target in training, `(V,)`."""
        self._softmax.negatives.set_counts(target_count)

    def prepare(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """Adds packed positions and targets (host side, NumPy)."""
        return {**batch, **self._softmax.prepare(batch, pack_positions(batch, 1), rng)}

    def build(self, user_shape: Any = None, batch_shape: Any = None) -> None:
        """Has no weights."""
        self.built = True

    def call(
        self, user: dict[str, Tensor], items: Any = None, batch: Any = None, training: bool | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See the class."""
        state = pack_states(user["state"], batch["position"])
        vector = self._softmax.encode(items, batch)["vector"]
        loss, _, _ = self._softmax(state, vector, batch, step=0, length=ops.shape(user["state"])[1])
        return masked_mean(loss, batch["position_mask"][:, 0]), {}

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "temperature": self.temperature}


__all__ = ["FullSoftmax"]
