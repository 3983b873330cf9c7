"""Listwise multi-step prediction (LMP), HeterRec's objective."""

import math
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from tfrec.objectives.item_softmax import Tensor, check_count
from tfrec.objectives.multi_step import MultiStep, step_losses, step_metric_names
from tfrec.objectives.negatives import draw_targets
from tfrec.objectives.packing import Batch
from tfrec.objectives.step_projections import StepProjections
from tfrec.objectives.token_softmax import token_loss


@keras.saving.register_keras_serializable(package="tfrec")
class ListwiseMultiStep(MultiStep):
    """Multi-step prediction in which a later step counts only while the step before is the more certain one.

    `loss = sum over i of mean over (row, t) of gate_i * -log softmax(l_i) + token_weight * (the same over each token
    type)`, `l_i = MLP_i(u_t) . v_{t+i} / tau`, `gate_i = [exp(l_{i-1}) > exp(l_i) + lambda]`, `gate_1 = 1`, on positive
    logits before logQ. The gate passes no gradient, and a closed gate leaves the normaliser as it is; it is closed
    where the event at i - 1 is no target. MLP_1 belongs to the user encoder, the other matrices are owned here.

    At token level the state of type s predicts the value of type s at the item i places ahead: over all values of
    types with a table of at most 4,096, else over `num_token_negatives` items of the batch with other values.

    Args:
        num_steps: int. Steps S. Defaults to 3.
        margin: float. The paper's lambda_m, at least 0. Defaults to 1.
        token_weight: float. Weight of the token level; 0 turns it off and makes no weights for it. Defaults to 1.
        negatives: str. `in_batch`, `same_step` (the paper's), `uniform`, `mixed`, as for `InBatchSoftmax`, or `full`:
            the whole catalogue. Defaults to `in_batch`.
        num_negatives: int. Shared negatives a batch (`same_step` and `full` ignore it). Defaults to 1024.
        num_token_negatives: int. Items a batch that token types without a table are scored against. Defaults to 256.
        temperature: float. Divides the scores. Defaults to 0.05.
        learn_temperature: bool. Start at `temperature` and learn it, the factor 1 / temperature being held at 100 at
            most, as in CLIP. Defaults to False.
        normalize: bool. L2-normalise projected states, as encoders normalise theirs. Defaults to True.
        log_q: bool or None. Subtract the logarithm of the probability of being drawn. Defaults to None: on for
            `in_batch` and `mixed`.
        null_logit: bool or None. A class of logit 0 in the denominators (the paper's "1 +"). Defaults to None: on for
            `same_step`.

    Input: user `{"state": (B, L, D)[, "token": (B, L, K, d)]}`; items, a callable on ids `(N,)` that gives
    `{"vector": (N, D)[, "token": (N, K, d)]}` and, for the token level, has `token_codes(ids)`, a list of K `(N, c)`,
    and `token_tables()`, a list of K `(values, d)` or None; a prepared batch.
    Output: the loss; `loss_step_<i>`; `gate_open_<i>`, the share of valid positions whose gate is open; `token_loss`
    before its weight, `token_gate_open_<i>` as the mean over token types; `all_masked`, the share of positions
    without any negative (but for `full`).

    Reference: Deng et al., 2025, arXiv:2503.01469, section 2.5.
    Differs from the paper: the printed loss has no logarithm and no minus sign; tokens are L2-normalised; types without
    a table are contrasted with items drawn by popularity, without logQ and with the user's own later items among them,
    and a set of values counts as another one where any of its codes differs; later steps
    of the item level read the state that predicts the next event, MLP_i(norm(MLP_1(u))), not MLP_i(u), since that
    state alone leaves the encoder.
    """

    option_names = (*MultiStep.option_names, "margin", "token_weight", "num_token_negatives")

    def __init__(
        self,
        *,
        num_steps: int = 3,
        margin: float = 1.0,
        token_weight: float = 1.0,
        negatives: Literal["in_batch", "same_step", "uniform", "mixed", "full"] = "in_batch",
        num_negatives: int = 1024,
        num_token_negatives: int = 256,
        temperature: float = 0.05,
        learn_temperature: bool = False,
        normalize: bool = True,
        log_q: bool | None = None,
        null_logit: bool | None = None,
        **kwargs: Any,
    ) -> None:
        check_count("num_token_negatives", num_token_negatives)
        _check_not_negative("margin", margin)
        _check_not_negative("token_weight", token_weight)
        super().__init__(
            num_steps=num_steps,
            negatives=negatives,
            num_negatives=num_negatives,
            temperature=temperature,
            learn_temperature=learn_temperature,
            normalize=normalize,
            log_q=log_q,
            null_logit=null_logit,
            **kwargs,
        )
        self.margin = margin
        self.token_weight = token_weight
        self.num_token_negatives = num_token_negatives
        self._token_projections = None
        if token_weight:
            self._token_projections = StepProjections(num_steps, first=True, normalize=True, name="token_steps")

    @property
    def metric_names(self) -> list[str]:
        """Names of the metrics that `call` returns."""
        names = step_metric_names(self._softmax, self.num_steps, gated=True)
        if not self.token_weight:
            return names
        return [*names, "token_loss", *(f"token_gate_open_{step}" for step in range(2, self.num_steps + 1))]

    def prepare(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """Adds packed positions, targets and negatives (host side, NumPy)."""
        prepared = super().prepare(batch, rng)
        if self.token_weight:
            prepared["token_negative_item"] = draw_targets(batch, self.num_token_negatives, rng)
        return prepared

    def build(self, user_shape: Any = None, batch_shape: Any = None) -> None:
        """Creates the steps' matrices, and the temperature where it is learnt."""
        super().build(user_shape, batch_shape)
        if self._token_projections is None:
            return
        if "token" not in user_shape:
            raise ValueError(
                "`token_weight` must be 0 for a user encoder that has no tokens. "
                f"Received: token_weight={self.token_weight}."
            )
        self._token_projections.build((None, *user_shape["token"][-2:]))

    def call(
        self, user: dict[str, Tensor], items: Any = None, batch: Any = None, training: bool | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See the class."""
        encoded = self._softmax.encode(items, batch)
        temperature = self.temperature if self._log_temperature is None else ops.exp(self._log_temperature)
        losses, metrics = step_losses(
            self._softmax,
            self._projections,
            user["state"],
            encoded["vector"],
            batch,
            temperature=temperature,
            margin=self.margin,
        )
        loss = sum(losses)
        if self._token_projections is None:
            return loss, metrics
        metrics["token_loss"], token_metrics = token_loss(
            self._token_projections,
            user["token"],
            encoded["token"],
            items,
            batch,
            temperature=temperature,
            margin=self.margin,
            null_logit=self._softmax.null_logit,
        )
        return loss + self.token_weight * metrics["token_loss"], {**metrics, **token_metrics}


def _check_not_negative(argument: str, value: float) -> None:
    if isinstance(value, bool) or not (isinstance(value, int | float) and 0 <= value < math.inf):
        raise ValueError(f"`{argument}` must be a number of at least 0. Received: {argument}={value!r}.")


__all__ = ["ListwiseMultiStep"]
