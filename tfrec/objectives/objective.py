"""What the objectives of the next items share: host-side preparation, and the loss of the plain next item."""

from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from tfrec.objectives.item_softmax import ItemSoftmax, Tensor, masked_mean, pack_states
from tfrec.objectives.packing import Batch, pack_positions
from tfrec.objectives.temperature import add_log_temperature


class Objective(keras.layers.Layer):
    """Packs a batch's positions, draws their negatives, and keeps the constructor's options.

    A subclass names its options, which `get_config` reads as attributes, and computes the loss.

    Args:
        softmax: ItemSoftmax. Of items.
        num_steps: int. Targets of a position, 1 for the next event alone.
    """

    option_names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, softmax: ItemSoftmax, num_steps: int, *, dtype: Any = "float32", **kwargs: Any) -> None:
        super().__init__(dtype=dtype, **kwargs)
        self.num_steps = num_steps
        self._softmax = softmax

    def set_counts(self, target_count: np.ndarray) -> None:
        """Tells how often each item of the catalogue is a target in training, `(V,)`."""
        self._softmax.negatives.set_counts(target_count)

    def prepare(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """Adds packed positions, targets and negatives (host side, NumPy)."""
        return {**batch, **self._softmax.prepare(batch, pack_positions(batch, self.num_steps), rng)}

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), **{name: getattr(self, name) for name in self.option_names}}


class NextItemObjective(Objective):
    """The mean over positions of the softmax's loss of the next event.

    Args:
        softmax: ItemSoftmax. Of items.
        learn_temperature: bool. Start at the attribute `temperature` and learn it. Defaults to False.

    Input: user `{"state": (B, L, D)}`; items, a callable on ids `(N,)` that gives `{"vector": (N, D)}`; a prepared
    batch. Output: the loss, and `all_masked`, the share of positions without any negative, but for `full`.
    """

    def __init__(self, softmax: ItemSoftmax, *, learn_temperature: bool = False, **kwargs: Any) -> None:
        super().__init__(softmax, 1, **kwargs)
        self.learn_temperature = learn_temperature

    @property
    def metric_names(self) -> list[str]:
        """Names of the metrics that `call` returns."""
        return [] if self._softmax.kind == "full" else ["all_masked"]

    def build(self, user_shape: Any = None, batch_shape: Any = None) -> None:
        """Has no weights but a temperature that is learnt."""
        self._log_temperature = add_log_temperature(self) if self.learn_temperature else None
        self.built = True

    def call(
        self, user: dict[str, Tensor], items: Any = None, batch: Any = None, training: bool | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See the class."""
        state = pack_states(user["state"], batch["position"])
        vector = self._softmax.encode(items, batch)["vector"]
        temperature = None if self._log_temperature is None else ops.exp(self._log_temperature)
        loss, _, all_masked = self._softmax(
            state, vector, batch, step=0, length=ops.shape(user["state"])[1], temperature=temperature
        )
        valid = batch["position_mask"][:, 0]
        return masked_mean(loss, valid), {name: masked_mean(all_masked, valid) for name in self.metric_names}


__all__ = ["NextItemObjective", "Objective"]
