"""Hides item ids in training, so that the unknown id is learnt."""

from typing import Any

import keras
from keras import ops

from tfrec.layers import Tensor
from tfrec.transforms import PADDING, UNKNOWN


class ItemIdDropout(keras.layers.Layer):
    """Replaces the item id, the first code of an item, by unknown with a given probability while training.

    Without it the embedding of the unknown id stays what it was drawn as, and an item that came after training would
    be represented by its content plus noise.

    Args:
        rate: float. Probability, in 0..1.
        seed: int or None. Seed of the draws. Defaults to None.

    Input: codes `(..., C)` int.
    Output: the same shape; padding stays padding.
    """

    def __init__(self, rate: float, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 <= rate <= 1:
            raise ValueError(f"`rate` must be in 0..1. Received: rate={rate}.")
        self.rate = rate
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def build(self, codes_shape: Any = None) -> None:
        self.built = True

    def call(self, codes: Tensor, training: bool | None = None) -> Tensor:
        if not training or self.rate == 0:
            return codes
        ids = codes[..., :1]
        drawn = keras.random.uniform(ops.shape(ids), seed=self.seed_generator) < self.rate
        hidden = ops.where(ops.logical_and(drawn, ids != PADDING), UNKNOWN, ids)
        return ops.concatenate([hidden, codes[..., 1:]], axis=-1)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}
