"""Softmax over the whole catalogue: the strongest objective while the catalogue is small enough to score at once."""

from typing import Any

import keras

from tfrec.objectives.item_softmax import ItemSoftmax
from tfrec.objectives.objective import NextItemObjective


@keras.saving.register_keras_serializable(package="tfrec")
class FullSoftmax(NextItemObjective):
    """Cross entropy of the next item over all real items; the item encoder runs once a batch on all of them.

    The mean over positions of `-log(exp(s+/tau) / sum over items exp(s/tau))`. Memory is positions x items.

    Args:
        temperature: float. Divides the scores. Defaults to 0.05.

    Input: user `{"state": (B, L, D)}`; items, a callable on ids `(N,)` that gives `{"vector": (N, D)}`; a prepared
    batch. Output: the loss, and no metrics.
    """

    option_names = ("temperature",)

    def __init__(self, *, temperature: float = 0.05, **kwargs: Any) -> None:
        super().__init__(ItemSoftmax("full", num_negatives=1, temperature=temperature), **kwargs)
        self.temperature = temperature


__all__ = ["FullSoftmax"]
