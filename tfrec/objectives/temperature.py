"""Temperatures that are learnt."""

import math
from typing import Any

import keras
from keras import ops

from tfrec.layers import Tensor

LEAST_TEMPERATURE = 0.01
"""Of a temperature that is learnt: scores are multiplied by 100 at most."""


class LowerBound(keras.constraints.Constraint):
    """Lifts a weight to a lower bound after each step, so that its gradient can lead it back up."""

    def __init__(self, bound: float) -> None:
        self.bound = bound

    def __call__(self, value: Tensor) -> Tensor:
        """The weight's value after the step."""
        return ops.maximum(value, self.bound)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"bound": self.bound}


def add_log_temperature(layer: keras.layers.Layer) -> Any:
    """A scalar weight that starts at the logarithm of the layer's `temperature` and stays above `LEAST_TEMPERATURE`."""
    if layer.temperature < LEAST_TEMPERATURE:
        raise ValueError(
            f"`temperature` must be at least {LEAST_TEMPERATURE} where it is learnt. "
            f"Received: temperature={layer.temperature}."
        )
    initializer = keras.initializers.Constant(math.log(layer.temperature))
    constraint = LowerBound(math.log(LEAST_TEMPERATURE))
    return layer.add_weight(name="log_temperature", shape=(), initializer=initializer, constraint=constraint)


__all__ = ["LEAST_TEMPERATURE", "LowerBound", "add_log_temperature"]
