"""The token level of listwise multi-step prediction: each token state predicts the same feature of later items."""

from typing import Any

from keras import ops

from tfrec.layers.normalization import l2_normalize
from tfrec.objectives.item_softmax import Tensor, contrast, full_cross_entropy, masked_mean, pack_states
from tfrec.objectives.multi_step import gate
from tfrec.objectives.step_projections import StepProjections
from tfrec.transforms import FIRST_VALUE


def token_loss(
    projections: StepProjections,
    user_token: Tensor,
    item_token: Tensor,
    items: Any,
    batch: dict[str, Tensor],
    *,
    temperature: float | Tensor,
    margin: float,
    null_logit: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The sum over steps and token types of the gated mean cross entropy of the type's value i places ahead.

    And the metrics `token_gate_open_<i>`, i from 2: the share of open gates among the valid positions of all types.

    A type whose values have a table of token vectors is scored against all of them, codes 0 and 1 left out; any other
    type against the batch's `token_negative_item`, those with the target's own codes left out. Where the target has
    no value, the term is neither in the sum nor in the normaliser; a type without any value has no term.

    Args:
        projections: StepProjections with a matrix for every step and type.
        user_token: `(B, L, K, d)`. The user encoder's token states.
        item_token: `(M, K, d)`. Tokens of the encoded items.
        items: the item encoder, with `token_codes(ids)` and `token_tables()`.
        batch: dict. The prepared batch.
        temperature: float or scalar tensor. Divides the logits.
        margin: float. Lambda of the gate.
        null_logit: bool. A class of logit 0 in the denominator.
    """
    packed = pack_states(user_token, batch["position"])
    targets = [
        (ops.take(item_token, batch["target_row"][:, step], axis=0), items.token_codes(batch["target_item"][:, step]))
        for step in range(projections.num_steps)
    ]
    states = [projections(packed, step=step) / temperature for step in range(projections.num_steps)]  # (P, K, d)
    tables = items.token_tables()
    negative_token: Any = None
    negative_codes: Any = None
    if any(table is None for table in tables):
        negative_token = items(batch["token_negative_item"])["token"]
        negative_codes = items.token_codes(batch["token_negative_item"])
    total, gates = 0.0, []
    for kind, table in enumerate(tables):
        if table is not None and table.shape[0] <= FIRST_VALUE:
            continue  # no value of the feature was frequent enough to have a code
        terms = []
        for state, (token, codes) in zip(states, targets, strict=True):
            if table is not None:
                terms.append(_table_term(state[:, kind], table, codes[kind][:, 0], null_logit))
                continue
            negative = (negative_token[:, kind], negative_codes[kind])
            terms.append(_in_batch_term(state[:, kind], token[:, kind], codes[kind], *negative, null_logit))
        has_value = [ops.any(codes[kind] > 1, axis=-1) for _, codes in targets]
        loss, found = _gated_sum(terms, has_value, batch["position_mask"], margin)
        total = total + loss
        gates.append(found)
    metrics = {}
    for step, each in enumerate(zip(*gates, strict=True), start=2):
        is_open, valid = (ops.concatenate(parts) for parts in zip(*each, strict=True))
        metrics[f"token_gate_open_{step}"] = masked_mean(ops.cast(is_open, "float32"), valid)
    return total, metrics


def _gated_sum(
    terms: list[tuple[Tensor, Tensor]], has_value: list[Tensor], mask: Tensor, margin: float
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """The sum of one type's mean losses over the steps; of each step but the first, open gates and valid places."""
    total, gates = 0.0, []
    for step, (loss, positive) in enumerate(terms):
        valid = ops.logical_and(mask[:, step], has_value[step])
        if step:
            compared = ops.logical_and(mask[:, step - 1], has_value[step - 1])
            is_open = ops.logical_and(gate(terms[step - 1][1], positive, margin), compared)
            loss = loss * ops.cast(is_open, "float32")
            gates.append((is_open, valid))
        total = total + masked_mean(loss, valid)
    return total, gates


def _table_term(state: Tensor, table: Tensor, code: Tensor, null_logit: bool) -> tuple[Tensor, Tensor]:
    """Loss and positive logit against every value of a type; row 0 of `table[2:]` is code 2."""
    values = l2_normalize(table[FIRST_VALUE:])
    row = ops.maximum(code - FIRST_VALUE, 0)
    positive = ops.sum(state * ops.take(values, row, axis=0), axis=-1)
    loss = full_cross_entropy(state, values, row)
    if null_logit:
        loss = ops.logaddexp(loss + positive, ops.zeros_like(positive)) - positive
    return loss, positive


def _in_batch_term(
    state: Tensor, target: Tensor, codes: Tensor, negative: Tensor, negative_codes: Tensor, null_logit: bool
) -> tuple[Tensor, Tensor]:
    """Loss and positive logit against drawn items; equal codes and items without a value are no negatives."""
    positive = ops.sum(state * l2_normalize(target), axis=-1)
    logits = ops.matmul(state, ops.transpose(l2_normalize(negative)))  # (P, N)
    valid = ops.expand_dims(ops.any(negative_codes > 1, axis=-1), 0)
    differs = ops.zeros_like(logits, dtype="bool")
    for column in range(codes.shape[1]):
        differs = ops.logical_or(differs, codes[:, column : column + 1] != negative_codes[None, :, column])
    return contrast(positive, logits, ops.logical_and(valid, differs), null_logit=null_logit), positive


__all__ = ["token_loss"]
