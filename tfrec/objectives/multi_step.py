"""Multi-step prediction: each position predicts the next events, not the next one alone."""

from typing import Any, ClassVar, Literal

import keras
import numpy as np
from keras import ops

from tfrec.objectives.item_softmax import (
    ItemSoftmax,
    Tensor,
    check_count,
    masked_mean,
    pack_states,
    sampling_options,
)
from tfrec.objectives.objective import Objective
from tfrec.objectives.step_projections import StepProjections
from tfrec.objectives.temperature import add_log_temperature

NEGATIVES = ("in_batch", "same_step", "uniform", "mixed", "full")


@keras.saving.register_keras_serializable(package="tfrec")
class MultiStep(Objective):
    """The sum over steps i = 1..S of the mean cross entropy of the event i places ahead.

    `loss = sum over i of mean over (row, t) of -log softmax(MLP_i(u_t) . v_{t+i} / tau)`. MLP_1 belongs to the user
    encoder; MLP_2..MLP_S are one matrix each, owned here and not exported.

    Args:
        num_steps: int. Steps S. Defaults to 3.
        negatives: str. `in_batch`, `same_step`, `uniform`, `mixed` as for `InBatchSoftmax`, or `full`: the whole
            catalogue, the strongest while it is small. Defaults to `in_batch`.
        num_negatives: int. Shared negatives a batch (`same_step` and `full` ignore it). Defaults to 1024.
        temperature: float. Divides the scores. Defaults to 0.05.
        learn_temperature: bool. Start at `temperature` and learn it, the factor 1 / temperature being held at 100 at
            most, as in CLIP. Defaults to False.
        normalize: bool. L2-normalise projected states, as encoders normalise theirs. Defaults to True.
        log_q: bool or None. Subtract the logarithm of the probability of being drawn. Defaults to None: on for
            `in_batch` and `mixed`.
        null_logit: bool or None. A class of logit 0 in the denominator. Defaults to None: on for `same_step`.

    Input: user `{"state": (B, L, D)}`; items, a callable on ids `(N,)` that gives `{"vector": (N, D)}`; a prepared
    batch.
    Output: the loss; `loss_step_<i>`; `all_masked`, the share of positions without any negative (but for `full`).

    Reference: Gloeckle et al., 2024, arXiv:2404.19737; HeterRec's "w/o LMP", Deng et al., 2025, arXiv:2503.01469.
    Differs from the paper: later steps read the state that predicts the next event, MLP_i(norm(MLP_1(u))), not
    MLP_i(u), since that state alone leaves the encoder.
    """

    option_names: ClassVar[tuple[str, ...]] = (
        "num_steps",
        "negatives",
        "num_negatives",
        "temperature",
        "learn_temperature",
        "normalize",
        "log_q",
        "null_logit",
    )

    def __init__(
        self,
        *,
        num_steps: int = 3,
        negatives: Literal["in_batch", "same_step", "uniform", "mixed", "full"] = "in_batch",
        num_negatives: int = 1024,
        temperature: float = 0.05,
        learn_temperature: bool = False,
        normalize: bool = True,
        log_q: bool | None = None,
        null_logit: bool | None = None,
        **kwargs: Any,
    ) -> None:
        check_count("num_steps", num_steps)
        options = sampling_options(negatives, NEGATIVES, log_q=log_q, null_logit=null_logit)
        softmax = ItemSoftmax(negatives, num_negatives=num_negatives, temperature=temperature, **options)
        super().__init__(softmax, num_steps, **kwargs)
        self.negatives = negatives
        self.num_negatives = num_negatives
        self.temperature = temperature
        self.learn_temperature = learn_temperature
        self.normalize = normalize
        self.log_q = log_q
        self.null_logit = null_logit
        self._projections = StepProjections(num_steps, first=False, normalize=normalize, name="steps")

    @property
    def metric_names(self) -> list[str]:
        """Names of the metrics that `call` returns."""
        return step_metric_names(self._softmax, self.num_steps, gated=False)

    def build(self, user_shape: Any = None, batch_shape: Any = None) -> None:
        """Creates the steps' matrices, and the temperature where it is learnt."""
        self._projections.build((None, user_shape["state"][-1]))
        self._log_temperature = add_log_temperature(self) if self.learn_temperature else None
        self.built = True

    def call(
        self, user: dict[str, Tensor], items: Any = None, batch: Any = None, training: bool | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See the class."""
        vector = self._softmax.encode(items, batch)["vector"]
        temperature = None if self._log_temperature is None else ops.exp(self._log_temperature)
        losses, metrics = step_losses(
            self._softmax, self._projections, user["state"], vector, batch, temperature=temperature
        )
        return sum(losses), metrics


def step_losses(
    softmax: ItemSoftmax,
    projections: StepProjections,
    state: Tensor,
    vector: Tensor,
    batch: dict[str, Tensor],
    *,
    temperature: Tensor | None = None,
    margin: float | None = None,
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The mean loss of each step, and metrics.

    Args:
        softmax: ItemSoftmax.
        projections: StepProjections without a first matrix.
        state: `(B, L, D)`. The user encoder's states.
        vector: `(M, D)`. The encoded items.
        batch: dict. The prepared batch.
        temperature: scalar tensor or None. Where it is learnt.
        margin: float or None. Lambda of the gate that lets a later step count; None = every step counts.
    """
    packed = pack_states(state, batch["position"])
    mask = batch["position_mask"]
    losses, masked, metrics = [], [], {}
    previous = None
    for step in range(projections.num_steps):
        valid = mask[:, step]
        projected = projections(packed, step=step)
        loss, positive, all_masked = softmax(
            projected, vector, batch, step=step, length=ops.shape(state)[1], temperature=temperature
        )
        masked.append(all_masked)
        if margin is not None and previous is not None:
            is_open = ops.logical_and(gate(previous, positive, margin), mask[:, step - 1])
            loss = loss * ops.cast(is_open, "float32")
            metrics[f"gate_open_{step + 1}"] = masked_mean(ops.cast(is_open, "float32"), valid)
        losses.append(masked_mean(loss, valid))
        metrics[f"loss_step_{step + 1}"] = losses[-1]
        previous = positive
    if softmax.kind != "full":
        metrics["all_masked"] = masked_mean(ops.stack(masked, axis=1), mask)
    return losses, metrics


def gate(previous: Tensor, positive: Tensor, margin: float) -> Tensor:
    """Whether `exp(previous) > exp(positive) + margin`, without overflow and without gradient, bool.

    Args:
        previous: `(P,)`. Positive logits of the step before.
        positive: `(P,)`. Positive logits of this step.
        margin: float. Lambda, at least 0.
    """
    if margin > 0:
        positive = ops.logaddexp(positive, ops.full_like(positive, np.log(margin)))
    return ops.stop_gradient(ops.greater(previous, positive))


def step_metric_names(softmax: ItemSoftmax, num_steps: int, *, gated: bool) -> list[str]:
    """Names of the metrics that `step_losses` returns."""
    names = [f"loss_step_{step}" for step in range(1, num_steps + 1)]
    if gated:
        names += [f"gate_open_{step}" for step in range(2, num_steps + 1)]
    return names if softmax.kind == "full" else [*names, "all_masked"]


__all__ = ["NEGATIVES", "MultiStep", "gate", "step_losses", "step_metric_names"]
