"""Dense all-action loss: every position predicts some event of the near future, not the next one."""

from typing import Any, Literal

import keras
import numpy as np

from tfrec.objectives.item_softmax import ItemSoftmax, check_count, sampling_options
from tfrec.objectives.objective import NextItemObjective
from tfrec.objectives.packing import Batch, pack_targets, predictable

NEGATIVES = ("in_batch", "uniform", "mixed")


@keras.saving.register_keras_serializable(package="tfrec")
class DenseAllAction(NextItemObjective):
    """Cross entropy of an event drawn from each position's future, against shared negatives.

    The mean over positions t of `-log softmax(u_t . v_j / tau)`, j drawn from the targets that follow t within the
    horizon; a position without any has no loss.

    Args:
        horizon_days: float or None. How far ahead j may lie; None = as far as `horizon_events`. Defaults to 28, where
            the log has times.
        horizon_events: int. Events ahead at most, where `horizon_days` is None or the log has no times. Defaults to 10.
        negatives: str. `in_batch`, `uniform` or `mixed`, as for `InBatchSoftmax`. Defaults to `mixed`.
        num_negatives: int. Shared negatives a batch. Defaults to 1024.
        temperature: float. Divides the scores. Defaults to 0.05.
        learn_temperature: bool. Start at `temperature` and learn it, as for `MultiStep`. Defaults to True.
        log_q: bool or None. Subtract the logarithm of the probability of being drawn. Defaults to None: on for
            `in_batch` and `mixed`.

    Input: user `{"state": (B, L, D)}`; items, a callable on ids `(N,)` that gives `{"vector": (N, D)}`; a prepared
    batch. Output: the loss, and `all_masked`, the share of positions without any negative.

    Reference: Pancha et al., 2022, arXiv:2205.04507. Differs from the paper: all positions are trained,
    not a sample of them, and counts of the training data stand for its count-min sketch.
    """

    option_names = (
        "horizon_days",
        "horizon_events",
        "negatives",
        "num_negatives",
        "temperature",
        "learn_temperature",
        "log_q",
    )

    def __init__(
        self,
        *,
        horizon_days: float | None = 28.0,
        horizon_events: int = 10,
        negatives: Literal["in_batch", "uniform", "mixed"] = "mixed",
        num_negatives: int = 1024,
        temperature: float = 0.05,
        learn_temperature: bool = True,
        log_q: bool | None = None,
        **kwargs: Any,
    ) -> None:
        check_count("horizon_events", horizon_events)
        if horizon_days is not None and not horizon_days > 0:
            raise ValueError(f"`horizon_days` must be a positive number. Received: horizon_days={horizon_days!r}.")
        options = sampling_options(negatives, NEGATIVES, log_q=log_q, null_logit=None)
        softmax = ItemSoftmax(negatives, num_negatives=num_negatives, temperature=temperature, **options)
        super().__init__(softmax, learn_temperature=learn_temperature, **kwargs)
        self.horizon_days = horizon_days
        self.horizon_events = horizon_events
        self.negatives = negatives
        self.num_negatives = num_negatives
        self.temperature = temperature
        self.log_q = log_q

    def prepare(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """Adds packed positions, drawn targets and negatives (host side, NumPy)."""
        target = predictable(batch)
        count: np.ndarray = np.cumsum(target > 0, axis=1)  # targets up to and at each place
        before = count[:, :-1]
        ahead: np.ndarray = np.take_along_axis(count, self._last_place(batch), axis=1) - before
        wanted = before + 1 + np.floor(rng.random(ahead.shape) * ahead).astype(int)
        row, width = np.arange(len(target))[:, None], target.shape[1]
        apart = row * (width + 1)  # counts of a row stay below those of the next
        place = np.searchsorted((count + apart).ravel(), wanted + apart) - row * width
        drawn = np.take_along_axis(target, np.minimum(place, width - 1), axis=1)
        drawn = np.where((ahead > 0) & (batch["item"][:, :-1] > 0), drawn, 0)
        return {**batch, **self._softmax.prepare(batch, pack_targets(drawn[..., None]), rng)}

    def _last_place(self, batch: Batch) -> np.ndarray:
        """The last place that each position may predict, `(B, L)`."""
        width = batch["item"].shape[1]
        if self.horizon_days is None or "time" not in batch:
            last = np.minimum(np.arange(width - 1) + self.horizon_events, width - 1)
            return np.tile(last, (len(batch["item"]), 1))
        real = batch["item"] > 0
        time = np.where(real, batch["time"], np.iinfo(np.int32).max).astype(np.int64)
        reach = time[:, :-1] + round(self.horizon_days * 86_400)
        within = (time[:, None, :] <= reach[:, :, None]) & real[:, None, :]
        return np.maximum(within.sum(axis=2) - 1, np.arange(width - 1))


__all__ = ["NEGATIVES", "DenseAllAction"]
