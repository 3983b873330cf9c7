"""The optimizer of a configuration: AdamW with warm-up, schedule, clipping and averaged weights."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from tfrec.config import Training

_NOT_DECAYED = ("embedding", "table", "bias", "gamma", "beta", "scale")


class DenseAdamW(keras.optimizers.AdamW):
    """AdamW that adds up the gradients of a row that a batch reads several times before it squares them.

    Some variables may learn at a share of the rate: one optimizer with one step count and one norm to clip at, whose
    state is that of any other.

    TensorFlow gives the gradient of a look-up as one slice a read. Keras 3.15 squares and averages these slices one by
    one, which is not Adam, nor what the JAX backend does. A dense gradient is.
    """

    _slow: frozenset[int] = frozenset()
    _share = 1.0

    def slow_down(self, variables: Sequence[keras.Variable], share: float) -> None:
        """Lets variables of a built optimizer learn at a share of the rate."""
        self._slow = frozenset(self._get_variable_index(variable) for variable in variables)
        self._share = share

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Changes one variable by its gradient."""
        slow = self._get_variable_index(variable) in self._slow
        super().update_step(gradient, variable, learning_rate * self._share if slow else learning_rate)

    def apply(self, grads: list[Any], trainable_variables: Any = None) -> None:
        """Applies gradients, slices among them made dense first."""
        super().apply([_dense(grad) if hasattr(grad, "indices") else grad for grad in grads], trainable_variables)


def _dense(slices: Any) -> Any:
    return ops.add(ops.zeros(slices.shape, slices.dtype), slices)


def make_optimizer(training: Training, total_steps: int) -> DenseAdamW:
    """AdamW as the `training:` section says.

    Args:
        training: the section.
        total_steps: steps of all epochs, over which the cosine falls to 0.
    """
    return DenseAdamW(
        learning_rate=learning_rate(training, total_steps),
        weight_decay=training.weight_decay,
        beta_1=training.beta_1,
        beta_2=training.beta_2,
        global_clipnorm=training.clip_norm,
        use_ema=training.ema is not None,
        ema_momentum=training.ema if training.ema is not None else 0.99,
    )


def learning_rate(training: Training, total_steps: int) -> float | keras.optimizers.schedules.LearningRateSchedule:
    """Linear warm-up from 1 / warmup_steps of the peak, then constant or a cosine to 0."""
    peak, warmup = training.learning_rate, training.warmup_steps
    if training.schedule == "constant" and not warmup:
        return peak
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=peak / warmup if warmup else peak,
        decay_steps=max(total_steps - warmup, 1),
        alpha=0.0 if training.schedule == "cosine" else 1.0,  # the share of the peak that the cosine falls to
        warmup_target=peak if warmup else None,
        warmup_steps=warmup,
    )


def exclude_from_decay(
    optimizer: keras.optimizers.Optimizer, model: keras.Model, inherited: Sequence[keras.Variable] = ()
) -> list[str]:
    """Spares embeddings, biases, norms and what was inherited the weight decay.

    Returns:
        The paths of the weights that are decayed.
    """
    kept = {id(variable) for variable in inherited}
    decayed: list[keras.Variable] = []
    spared: list[keras.Variable] = []
    for variable in model.trainable_variables:
        is_kernel = len(variable.shape) >= 2 and not any(word in variable.name for word in _NOT_DECAYED)
        (decayed if is_kernel and id(variable) not in kept else spared).append(variable)
    optimizer.exclude_from_weight_decay(var_list=spared)
    return [variable.path for variable in decayed]
