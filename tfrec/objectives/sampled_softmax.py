"""Sampled softmax with uniform negatives: how SASRec and HSTU are trained in the public benchmarks."""

from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from tfrec.objectives.item_softmax import ItemSoftmax, Tensor, check_choice, masked_mean, pack_states
from tfrec.objectives.packing import Batch, pack_positions

_KINDS: dict[str, Any] = {"per_position": "per_position", "shared": "uniform"}


@keras.saving.register_keras_serializable(package="tfrec")
class SampledSoftmax(keras.layers.Layer):
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

    def __init__(
        self,
        *,
        num_negatives: int = 128,
        negatives: Literal["per_position", "shared"] = "per_position",
        temperature: float = 0.05,
        dtype: Any = "float32",
        **kwargs: Any,
    ) -> None:
        super().__init__(dtype=dtype, **kwargs)
        check_choice("negatives", negatives, tuple(_KINDS))
        self.num_negatives = num_negatives
        self.negatives = negatives
        self.temperature = temperature
        self._softmax = ItemSoftmax(
            _KINDS[negatives], num_negatives=num_negatives, temperature=temperature, mask_own=False
        )

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
        length = ops.shape(user["state"])[1]
        loss, _, all_masked = self._softmax(state, vector, batch, step=0, length=length)
        valid = batch["position_mask"][:, 0]
        return masked_mean(loss, valid), {"all_masked": masked_mean(all_masked, valid)}

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        options = {name: getattr(self, name) for name in ("num_negatives", "negatives", "temperature")}
        return {**super().get_config(), **options}


__all__ = ["SampledSoftmax"]
