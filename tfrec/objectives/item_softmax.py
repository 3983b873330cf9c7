"""The softmax over a positive item and its negatives that every next-item objective is made of."""

import math
from typing import Any, get_args

import numpy as np
from keras import ops

from tfrec.objectives.negatives import Kind, Negatives
from tfrec.objectives.packing import Batch

Tensor = Any  # Keras has no common tensor type for its backends.

_MASKED = -1e9  # Far below any logit, and finite: no NaN where every negative is masked.


class ItemSoftmax:
    """Cross entropy of packed states against their target items, `-log(exp(pos) / (null + exp(pos) + sum exp(neg)))`.

    Logits are dot products divided by the temperature. Not a layer: it owns no weights, objectives own one each.

    Args:
        kind: str. How negatives come about, see `Negatives`.
        num_negatives: int. Negatives a position.
        temperature: float. Divides every logit.
        log_q: bool. Subtract the logarithm of the sampling probability from every logit.
        null_logit: bool. Add a class of logit 0 to the denominator.
        mask_own: bool. Items of the row's own window are no negatives.
    """

    def __init__(
        self,
        kind: Kind,
        *,
        num_negatives: int,
        temperature: float,
        log_q: bool = False,
        null_logit: bool = False,
        mask_own: bool = True,
    ) -> None:
        check_choice("negatives", kind, get_args(Kind))
        check_count("num_negatives", num_negatives)
        check_positive("temperature", temperature)
        self.kind = kind
        self.temperature = temperature
        self.log_q = log_q
        self.null_logit = null_logit
        self.negatives = Negatives(kind, num_negatives, mask_own=mask_own and kind != "full")

    def prepare(self, batch: Batch, packed: Batch, rng: np.random.Generator) -> Batch:
        """Adds targets and negatives to packed positions (host side)."""
        return self.negatives.add(batch, packed, rng)

    def encode(self, items: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Encodes the items that the batch needs: every real item for `full`, else the distinct ones."""
        if self.kind == "full":
            return items(ops.arange(2, self.negatives.num_items, dtype="int32"))
        return items(batch["unique_item"])

    def __call__(
        self,
        state: Tensor,
        vector: Tensor,
        batch: dict[str, Tensor],
        *,
        step: int,
        length: int | Tensor,
        temperature: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, positive logit (before logQ) and whether all negatives are masked, each `(P,)`.

        Args:
            state: `(P, D)`. Packed states.
            vector: `(M, D)`. What `encode` gave.
            batch: dict. The prepared batch.
            step: int. Which target, 0 for the next event.
            length: int. L, which turns a flat position into its row.
            temperature: scalar tensor. Stands in for the constant where it is learnt.
        """
        target_row = batch["target_row"][:, step]
        state = ops.cast(state, "float32") / (self.temperature if temperature is None else temperature)
        vector = ops.cast(vector, "float32")
        positive = ops.sum(state * ops.take(vector, target_row, axis=0), axis=-1)
        if self.kind == "full":
            loss = full_cross_entropy(state, vector, target_row)
            if self.null_logit:
                loss = ops.logaddexp(loss + positive, ops.zeros_like(positive)) - positive
            return loss, positive, ops.zeros_like(positive)
        negative_row, negative, valid = self._negative_logits(state, vector, batch, step, length)
        corrected = positive
        if self.log_q:
            log_probability = ops.cast(batch["unique_log_probability"], "float32")
            negative = negative - ops.take(log_probability, negative_row, axis=0)
            corrected = positive - ops.take(log_probability, target_row, axis=0)
        loss = contrast(corrected, negative, valid, null_logit=self.null_logit)
        all_masked = ops.cast(ops.logical_not(ops.any(valid, axis=-1)), "float32")
        return loss, positive, all_masked

    def _negative_logits(
        self, state: Tensor, vector: Tensor, batch: dict[str, Tensor], step: int, length: int | Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        target_row = batch["target_row"][:, step]
        negative_row = batch["negative_row"]
        valid = batch.get("negative_valid")
        if len(negative_row.shape) == 1:
            negative = ops.matmul(state, ops.transpose(ops.take(vector, negative_row, axis=0)))  # (P, N)
            negative_row = ops.expand_dims(negative_row, 0)
            if valid is not None:
                valid = ops.take(valid, batch["position"] // length, axis=0)
        else:
            place = 0 if self.kind == "per_position" else step
            negative_row = negative_row[:, place]
            negative = ops.einsum("pd,pnd->pn", state, ops.take(vector, negative_row, axis=0))
            valid = None if valid is None else valid[:, place]
        differs = ops.not_equal(negative_row, ops.expand_dims(target_row, -1))
        return negative_row, negative, differs if valid is None else ops.logical_and(valid, differs)


def full_cross_entropy(state: Tensor, table: Tensor, target_row: Tensor) -> Tensor:
    """Cross entropy `(P,)` of states `(P, D)`, already divided by the temperature, over all rows of a table."""
    logits = ops.matmul(state, ops.transpose(table))
    return ops.sparse_categorical_crossentropy(target_row, logits, from_logits=True)


def contrast(positive: Tensor, negative: Tensor, valid: Tensor, *, null_logit: bool) -> Tensor:
    """`-log(exp(pos) / (null + exp(pos) + sum over valid exp(neg)))`, `(P,)`; 0 where nothing stands against it.

    Args:
        positive: `(P,)`. Logits of the targets.
        negative: `(P, N)`. Logits of the negatives.
        valid: `(P, N)` bool. Negatives that count.
        null_logit: bool. Whether the denominator has a 1.
    """
    negative = ops.where(valid, negative, _MASKED)
    denominator = ops.logaddexp(positive, ops.logsumexp(negative, axis=-1))
    if null_logit:
        denominator = ops.logaddexp(denominator, ops.zeros_like(denominator))
    return denominator - positive


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the places where `mask` is True; 0 where there is none."""
    weight = ops.cast(mask, "float32")
    return ops.sum(values * weight) / ops.maximum(ops.sum(weight), 1.0)


def pack_states(state: Tensor, position: Tensor) -> Tensor:
    """The states `(P, ...)` at flat positions of `(B, L, ...)`."""
    return ops.take(ops.reshape(state, (-1, *state.shape[2:])), position, axis=0)


def sampling_options(
    kind: str, kinds: tuple[str, ...], *, log_q: bool | None, null_logit: bool | None
) -> dict[str, bool]:
    """What `log_q` and `null_logit` mean for a kind of negatives where they are left to None."""
    check_choice("negatives", kind, kinds)
    if kind == "full" and log_q:
        raise ValueError("`log_q` must be None or False where nothing is sampled. Received: negatives='full'.")
    if kind == "uniform" and log_q and not null_logit:
        raise ValueError(
            "`log_q` must be None or False for uniform negatives without a null class: every item is as probable. "
            f"Received: negatives='uniform', log_q={log_q}, null_logit={null_logit}."
        )
    return {
        "log_q": kind in ("in_batch", "mixed") if log_q is None else log_q,
        "null_logit": kind == "same_step" if null_logit is None else null_logit,
    }


def check_choice(argument: str, value: object, choices: tuple[str, ...]) -> None:
    """A `ValueError` unless `value` is one of the choices."""
    if value not in choices:
        raise ValueError(f"`{argument}` must be one of {', '.join(choices)}. Received: {argument}={value!r}.")


def check_count(argument: str, value: int) -> None:
    """A `ValueError` unless `value` is an integer above 0."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"`{argument}` must be a positive integer. Received: {argument}={value!r}.")


def check_positive(argument: str, value: float) -> None:
    """A `ValueError` unless `value` is a finite number above 0."""
    if not (isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf):
        raise ValueError(f"`{argument}` must be a positive number. Received: {argument}={value!r}.")


__all__ = [
    "ItemSoftmax",
    "Tensor",
    "check_choice",
    "check_count",
    "check_positive",
    "contrast",
    "full_cross_entropy",
    "masked_mean",
    "pack_states",
    "sampling_options",
]
