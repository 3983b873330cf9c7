"""InBatchSoftmax and its negatives against loops in plain NumPy."""

import itertools
import math

import numpy as np
import pytest

from tests.tfrec.objectives.reference import (
    NUM_ITEMS,
    Table,
    call,
    counts,
    cross_entropy,
    finite_differences,
    gradients,
    make_arrays,
    make_batch,
    targets,
)
from tfrec.objectives.in_batch_softmax import InBatchSoftmax
from tfrec.objectives.listwise_multi_step import ListwiseMultiStep
from tfrec.objectives.multi_step import MultiStep

pytestmark = pytest.mark.jax

KINDS = ["in_batch", "same_step", "uniform", "mixed"]
CASES = [
    (kind, log_q, null)
    for kind, log_q, null in itertools.product(KINDS, [False, True], [False, True])
    if kind != "uniform" or null or not log_q  # what changes nothing is refused
]


def probability(kind, item):
    popular = counts()[item] / counts().sum()
    uniform = 1 / (NUM_ITEMS - 2)
    return {"in_batch": popular, "same_step": popular, "uniform": uniform, "mixed": (popular + uniform) / 2}[kind]


def negatives_of(kind, batch, prepared, row, place):
    """Item ids that stand against the position's next item, before any is left out."""
    if kind != "same_step":
        return prepared["unique_item"][prepared["negative_row"]].tolist()
    item, mask = batch["item"], batch["target_mask"]
    others = (other for other in range(len(item)) if other != row)
    return [int(item[other, place + 1]) for other in others if mask[other, place + 1] and item[other, place + 1] > 1]


def reference(kind, batch, prepared, state, vectors, *, log_q, null):
    terms, masked = [], []
    for row, place, item in targets(batch, 1):

        def logit(other, row=row, place=place):
            correction = math.log(probability(kind, other)) if log_q else 0.0
            return state[row, place] @ vectors[other] / 0.3 - correction

        own = set(batch["item"][row].tolist())
        negatives = [logit(other) for other in negatives_of(kind, batch, prepared, row, place) if other not in own]
        terms.append(cross_entropy(logit(item), negatives, null))
        masked.append(not negatives)
    return np.mean(terms), np.mean(masked)


def make(kind, **options):
    objective = InBatchSoftmax(negatives=kind, num_negatives=6, temperature=0.3, **options)
    objective.set_counts(counts())
    return objective


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("kind", "log_q", "null_logit"), CASES)
def test_in_batch_softmax_equals_the_loop(kind, log_q, null_logit, seed):
    batch, (state, vectors) = make_batch(seed, rows=4), make_arrays(seed, rows=4)
    objective = make(kind, log_q=log_q, null_logit=null_logit)
    prepared = objective.prepare(batch, np.random.default_rng(seed))
    loss, metrics = call(objective, prepared, state, vectors)
    expected, masked = reference(kind, batch, prepared, state, vectors, log_q=log_q, null=null_logit)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert metrics == {"all_masked": pytest.approx(masked)}


@pytest.mark.parametrize("kind", ["in_batch", "same_step"])
def test_in_batch_softmax_gradient_equals_finite_differences(kind):
    batch, arrays = make_batch(3, rows=4), make_arrays(3, rows=4)
    objective = make(kind)
    prepared = objective.prepare(batch, np.random.default_rng(0))
    found = gradients(lambda s, v: objective({"state": s}, items=Table(v), batch=prepared)[0], arrays)
    options = {"log_q": kind == "in_batch", "null": kind == "same_step"}  # the documented defaults
    expected = finite_differences(lambda s, v: reference(kind, batch, prepared, s, v, **options)[0], arrays)
    for gradient, value in zip(found, expected, strict=True):
        np.testing.assert_allclose(gradient, value, atol=3e-5)


def test_permuting_the_rows_changes_nothing():
    batch, (state, vectors) = make_batch(1, rows=4), make_arrays(1, rows=4)
    order = np.array([2, 0, 3, 1])
    moved = {name: value[order] for name, value in batch.items()}
    rng = np.random.default_rng(0)
    before, _ = call(make("same_step"), make("same_step").prepare(batch, rng), state, vectors)
    after, _ = call(make("same_step"), make("same_step").prepare(moved, rng), state[order], vectors)
    assert after == pytest.approx(before, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_more_padding_changes_nothing(kind):
    batch, (state, vectors) = make_batch(1, rows=4), make_arrays(1, rows=4)
    wide = {name: np.pad(value, ((0, 0), (0, 3))) for name, value in batch.items()}
    before = call(make(kind), make(kind).prepare(batch, np.random.default_rng(0)), state, vectors)
    noise = np.full((4, 3, 4), 7.0, np.float32)
    after = call(
        make(kind), make(kind).prepare(wide, np.random.default_rng(0)), np.concatenate([state, noise], 1), vectors
    )
    assert after[0] == pytest.approx(before[0], rel=1e-6)


def test_accidental_hits_contribute_nothing():
    batch, (state, vectors) = make_batch(1, rows=4), make_arrays(1, rows=4)
    objective = make("in_batch", log_q=False)
    row, place, item = targets(batch, 1)[0]
    only = {name: np.where(np.arange(4)[:, None] == row, value, 0) for name, value in batch.items()}
    only["target_mask"] = np.zeros_like(batch["target_mask"])
    only["target_mask"][row, place + 1] = True
    prepared = objective.prepare(only, np.random.default_rng(0))
    assert prepared["unique_item"][prepared["negative_row"]].tolist() == [item] * 6
    loss, metrics = call(objective, prepared, state, vectors)
    assert loss == 0.0
    assert metrics == {"all_masked": 1.0}


def test_in_batch_negatives_are_the_targets_of_the_batch_with_duplicates():
    item = np.array([[2, 3, 3, 4], [5, 4, 0, 0], [3, 3, 1, 4]], np.int32)
    objective = InBatchSoftmax(num_negatives=6)  # as many as there are targets: drawn without replacement
    objective.set_counts(counts())
    prepared = objective.prepare({"item": item, "target_mask": item > 0}, np.random.default_rng(0))
    assert sorted(prepared["unique_item"][prepared["negative_row"]].tolist()) == [3, 3, 3, 4, 4, 4]


def test_batch_without_targets_costs_nothing():
    batch, (state, vectors) = make_batch(), make_arrays()
    batch["target_mask"][:] = False
    for kind in KINDS:
        objective = make(kind)
        loss, _ = call(objective, objective.prepare(batch, np.random.default_rng(0)), state, vectors)
        assert loss == 0.0


def test_refuses_unknown_negatives():
    with pytest.raises(ValueError, match="`negatives` must be one of in_batch, same_step, uniform, mixed"):
        InBatchSoftmax(negatives="full")


@pytest.mark.parametrize("cls", [InBatchSoftmax, MultiStep, ListwiseMultiStep])
def test_refuses_a_correction_that_changes_nothing(cls):
    with pytest.raises(ValueError, match="`log_q` must be None or False for uniform negatives without a null class"):
        cls(negatives="uniform", log_q=True)
    assert cls(negatives="uniform", log_q=True, null_logit=True).log_q is True
