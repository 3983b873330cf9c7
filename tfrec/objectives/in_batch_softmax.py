"""In-batch softmax with logQ correction: next-item training that never scores the whole catalogue."""

from typing import Any, Literal

import keras

from tfrec.objectives.item_softmax import ItemSoftmax, sampling_options
from tfrec.objectives.objective import NextItemObjective


@keras.saving.register_keras_serializable(package="tfrec")
class InBatchSoftmax(NextItemObjective):
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

    option_names = ("negatives", "num_negatives", "temperature", "log_q", "null_logit")

    def __init__(
        self,
        *,
        negatives: Literal["in_batch", "same_step", "uniform", "mixed"] = "in_batch",
        num_negatives: int = 1024,
        temperature: float = 0.05,
        log_q: bool | None = None,
        null_logit: bool | None = None,
        **kwargs: Any,
    ) -> None:
        kinds = ("in_batch", "same_step", "uniform", "mixed")
        options = sampling_options(negatives, kinds, log_q=log_q, null_logit=null_logit)
        softmax = ItemSoftmax(negatives, num_negatives=num_negatives, temperature=temperature, **options)
        super().__init__(softmax, **kwargs)
        self.negatives = negatives
        self.num_negatives = num_negatives
        self.temperature = temperature
        self.log_q = log_q
        self.null_logit = null_logit


__all__ = ["InBatchSoftmax"]
