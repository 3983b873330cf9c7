"""In-batch softmax with logQ correction: next-item training that never scores the whole catalogue."""

from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from tfrec.objectives.item_softmax import ItemSoftmax, Tensor, masked_mean, pack_states, sampling_options
from tfrec.objectives.packing import Batch, pack_positions


@keras.saving.register_keras_serializable(package="tfrec")
class InBatchSoftmax(keras.layers.Layer):
    """Cross entropy of the next item against other items of the batch.

    The mean over positions of `-log(exp(s+) / (null + exp(s+) + sum exp(s-)))`, `s = score / tau - log q`. A negative
    that equals the target, or that stands anywhere in the row's own window, is left out.

    Args:
        negatives: str. `in_batch`: a fixed number of the batch's targets, shared by all positions, duplicates kept;
            `same_step`: the other rows' events at the same place; `uniform`: shared, from the catalogue; `mixed`: half
            `in_batch`, half `uniform`. Defaults to `in_batch`.
        num_negatives: int. Shared negatives a batch (`same_step` ignores it). Defaults to 1024.
        temperature: float. Divides the scores. Defaults to 0.05.
        log_q: bool or None. Subtract the logarithm of the probability of being drawn, from the counts of targets in
            training. Defaults to None: on for `in_batch` and `mixed`.
        null_logit: bool or None. A class of logit 0 in the denominator. Defaults to None: on for `same_step`.

    Input: user `{"state": (B, L, D)}`; items, a callable on ids `(N,)` that gives `{"vector": (N, D)}`; a prepared
    batch. Output: the loss, and `all_masked`, the share of positions without any negative.

    Reference: Yi et al., 2019, "Sampling-bias-corrected neural modeling" (logQ).
    """

    def __init__(
        self,
        *,
        negatives: Literal["in_batch", "same_step", "uniform", "mixed"] = "in_batch",
        num_negatives: int = 1024,
        temperature: float = 0.05,
        log_q: bool | None = None,
        null_logit: bool | None = None,
        dtype: Any = "float32",
        **kwargs: Any,
    ) -> None:
        super().__init__(dtype=dtype, **kwargs)
        self.negatives = negatives
        self.num_negatives = num_negatives
        self.temperature = temperature
        self.log_q = log_q
        self.null_logit = null_logit
        kinds = ("in_batch", "same_step", "uniform", "mixed")
        options = sampling_options(negatives, kinds, log_q=log_q, null_logit=null_logit)
        self._softmax = ItemSoftmax(negatives, num_negatives=num_negatives, temperature=temperature, **options)

    @property
    def metric_names(self) -> list[str]:
        """Names of the metrics that `call` returns."""
        return ["all_masked"]

    def set_counts(self, target_count: np.ndarray) -> None:
        """Tells how often each item of the catalogue is a target in training, `(V,)`."""
        self._softmax.negatives.set_counts(target_count)

    def prepare(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """Adds packed positions, targets and negatives (host side, NumPy)."""
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
        loss, _, all_masked = self._softmax(state, vector, batch, step=0, length=ops.shape(user["state"])[1])
        valid = batch["position_mask"][:, 0]
        return masked_mean(loss, valid), {"all_masked": masked_mean(all_masked, valid)}

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        names = ("negatives", "num_negatives", "temperature", "log_q", "null_logit")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


__all__ = ["InBatchSoftmax"]
