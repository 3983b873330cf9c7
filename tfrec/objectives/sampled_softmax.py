"""Sampled softmax with uniform negatives: how SASRec and HSTU are trained in the public benchmarks."""

from typing import Any, Literal

import keras

from tfrec.objectives.item_softmax import ItemSoftmax, check_choice
from tfrec.objectives.objective import NextItemObjective

_KINDS: dict[str, Any] = {"per_position": "per_position", "shared": "uniform"}


@keras.saving.register_keras_serializable(package="tfrec")
class SampledSoftmax(NextItemObjective):
    """Cross entropy of the next item against negatives drawn uniformly from the catalogue, with replacement.

    The mean over positions of `-log(exp(s+/tau) / (exp(s+/tau) + sum exp(s-/tau)))`; a negative equal to the target
    is left out. Uniform sampling needs no logQ correction: it is the same constant for every item.

    Args:
        num_negatives: int. Negatives a position. Defaults to 128.
        negatives: str. `per_position` draws for each position, `shared` once a batch. Defaults to `per_position`.
        temperature: float. Divides the scores. Defaults to 0.05.

    Input: user `{"state": (B, L, D)}`; items, a callable on ids `(N,)` that gives `{"vector": (N, D)}`; a prepared
    batch. Output: the loss, and `all_masked`, the share of positions whose negatives all equal the target.

    Reference: Zhai et al., 2024, arXiv:2402.17152, the published code's retrieval set-up.
    """

    option_names = ("num_negatives", "negatives", "temperature")

    def __init__(
        self,
        *,
        num_negatives: int = 128,
        negatives: Literal["per_position", "shared"] = "per_position",
        temperature: float = 0.05,
        **kwargs: Any,
    ) -> None:
        check_choice("negatives", negatives, tuple(_KINDS))
        kind = _KINDS[negatives]
        softmax = ItemSoftmax(kind, num_negatives=num_negatives, temperature=temperature, mask_own=False)
        super().__init__(softmax, **kwargs)
        self.num_negatives = num_negatives
        self.negatives = negatives
        self.temperature = temperature


__all__ = ["SampledSoftmax"]
