"""MultiStep and ListwiseMultiStep against loops in plain NumPy."""

import math

import keras
import numpy as np
import pytest
from keras import ops

from tests.tfrec.objectives.reference import (
    NUM_ITEMS,
    Table,
    counts,
    cross_entropy,
    finite_differences,
    gradients,
    make_arrays,
    make_batch,
    targets,
    unit,
)
from tfrec.objectives.listwise_multi_step import ListwiseMultiStep
from tfrec.objectives.multi_step import MultiStep

pytestmark = pytest.mark.jax

TAU = 0.3
STEPS = 3
CODES = [  # token types: a table of 4 values; two columns without a table
    np.array([[0], [1], [2], [3], [3], [1], [2], [2], [3]], np.int32),
    np.array([[0, 0], [1, 0], [2, 3], [2, 3], [4, 0], [5, 2], [0, 0], [2, 3], [6, 0]], np.int32),
]


class TokenTable(Table):
    """An item encoder with two token types, of which the first has a table."""

    def __init__(self, vectors, tokens, table):
        super().__init__(vectors)
        self.tokens, self.table = tokens, table

    def __call__(self, ids):
        return {**super().__call__(ids), "token": ops.take(self.tokens, ids, axis=0)}

    def token_codes(self, ids):
        return [ops.take(ops.convert_to_tensor(codes), ids, axis=0) for codes in CODES]

    def token_tables(self):
        return [self.table, None]


def kernel(seed=5, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def make(cls, batch, seed=0, matrices=None, token_matrices=None, **options):
    objective = cls(num_steps=STEPS, num_negatives=6, temperature=TAU, **options)
    objective.set_counts(counts())
    tokens = {"token": (None, None, 2, 3)} if token_matrices is not None else {}
    objective.build({"state": (None, None, 4), **tokens})
    if matrices is not None:
        objective._projections.kernel.assign(matrices)
    if token_matrices is not None:
        objective._token_projections.kernel.assign(token_matrices)
    return objective, objective.prepare(batch, np.random.default_rng(seed))


def negatives_of(kind, batch, prepared, row, place, step, target):
    """Item ids against the item `step` places ahead, those of the row's own window left out."""
    item, mask = batch["item"], batch["target_mask"]
    if kind == "full":
        return [other for other in range(2, NUM_ITEMS) if other != target]
    if kind == "same_step":
        later = [other for other in range(len(item)) if other != row and mask[other, place + step]]
        drawn = [int(item[other, place + step]) for other in later if item[other, place + step] > 1]
    else:
        drawn = prepared["unique_item"][prepared["negative_row"]].tolist()
    return [other for other in drawn if other not in item[row]]


def reference(kind, batch, prepared, state, vectors, matrices, *, margin=None, null=False, log_q=False):
    """Sum over steps of the gated mean loss, and the share of open gates."""
    log_p = np.log(np.maximum(counts(), 1) / counts().sum()) if log_q else np.zeros(NUM_ITEMS)
    positive, total, shares = {}, 0.0, []
    for step in range(1, STEPS + 1):
        terms, opened = [], []
        for row, place, item in targets(batch, step):
            user = state[row, place] if step == 1 else unit(state[row, place] @ matrices[step - 2])
            score = vectors @ user / TAU
            positive[step, row, place] = score[item]
            drawn = negatives_of(kind, batch, prepared, row, place, step, item)
            score = score - log_p
            term = cross_entropy(score[item], [score[other] for other in drawn], null)
            if margin is not None and step > 1:
                before = positive.get((step - 1, row, place))
                opened.append(before is not None and math.exp(before) > math.exp(positive[step, row, place]) + margin)
                term *= opened[-1]
            terms.append(term)
        total += np.mean(terms)
        shares.append(np.mean(opened) if opened else None)
    return total, shares[1:]


def run(objective, prepared, state, items, **user):
    loss, metrics = objective({"state": state, **user}, items=items, batch=prepared)
    return float(loss), {name: float(value) for name, value in metrics.items()}


@pytest.mark.parametrize("kind", ["in_batch", "same_step", "uniform", "full"])
def test_multi_step_equals_the_loop(kind):
    batch, (state, vectors), matrices = (
        make_batch(2, rows=8, length=8),
        make_arrays(2, rows=8, length=8),
        kernel(5, 2, 4, 4),
    )
    objective, prepared = make(MultiStep, batch, matrices=matrices, negatives=kind)
    loss, metrics = run(objective, prepared, state, Table(vectors))
    defaults = {"null": kind == "same_step", "log_q": kind == "in_batch"}
    assert loss == pytest.approx(reference(kind, batch, prepared, state, vectors, matrices, **defaults)[0], rel=1e-5)
    assert list(metrics) == objective.metric_names
    assert sum(metrics[f"loss_step_{step}"] for step in (1, 2, 3)) == pytest.approx(loss)


def test_steps_start_as_the_identity():
    batch, (state, vectors) = make_batch(2, rows=8, length=8), make_arrays(2, rows=8, length=8)
    objective, prepared = make(MultiStep, batch, negatives="full")
    same = np.stack([np.eye(4)] * 2)
    expected, _ = reference("full", batch, prepared, state, vectors, same)
    assert run(objective, prepared, state, Table(vectors))[0] == pytest.approx(expected, rel=1e-5)


def test_one_step_has_no_weights():
    objective = MultiStep(num_steps=1)
    objective.build({"state": (None, None, 4)})
    assert objective.weights == []


def test_learnt_temperature_starts_at_the_constant_and_gets_a_gradient():
    batch, (state, vectors) = make_batch(2, rows=8, length=8), make_arrays(2, rows=8, length=8)
    constant, prepared = make(MultiStep, batch, negatives="full")
    learnt, _ = make(MultiStep, batch, negatives="full", learn_temperature=True)
    assert run(learnt, prepared, state, Table(vectors))[0] == pytest.approx(
        run(constant, prepared, state, Table(vectors))[0], rel=1e-5
    )
    before = run(learnt, prepared, state, Table(vectors))[0]
    learnt._log_temperature.assign(math.log(10 * TAU))
    assert run(learnt, prepared, state, Table(vectors))[0] != pytest.approx(before, rel=1e-2)
    assert len(learnt.trainable_weights) == 2


@pytest.mark.parametrize("cls", [MultiStep, ListwiseMultiStep])
def test_learnt_temperature_multiplies_by_100_at_most(cls):
    options = {"num_steps": 1, "negatives": "full", "learn_temperature": True}
    objective = cls(**options) if cls is MultiStep else cls(**options, token_weight=0)
    objective.build({"state": (None, None, 4)})
    optimizer = keras.optimizers.SGD(1.0)
    (weight,) = objective.trainable_weights
    for gradient, expected in ((50.0, 0.01), (-math.log(2), 0.02)):  # held at the bound, and free to come back
        optimizer.apply([ops.full((), gradient)], [weight])
        assert math.exp(float(weight.value)) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match=r"`temperature` must be at least 0\.01 where it is learnt"):
        cls(temperature=0.005, learn_temperature=True).build({"state": (None, None, 4), "token": (None, None, 2, 3)})


@pytest.mark.parametrize("margin", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("kind", ["in_batch", "same_step", "full"])
def test_listwise_equals_the_loop(kind, margin):
    batch, (state, vectors), matrices = (
        make_batch(2, rows=8, length=8),
        make_arrays(2, rows=8, length=8),
        kernel(5, 2, 4, 4),
    )
    objective, prepared = make(
        ListwiseMultiStep, batch, matrices=matrices, negatives=kind, margin=margin, token_weight=0
    )
    loss, metrics = run(objective, prepared, state, Table(vectors))
    options = {"margin": margin, "null": kind == "same_step", "log_q": kind == "in_batch"}
    expected, shares = reference(kind, batch, prepared, state, vectors, matrices, **options)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert [metrics["gate_open_2"], metrics["gate_open_3"]] == pytest.approx(shares)
    assert 0 < shares[0] < 1
    assert sorted(metrics) == sorted(objective.metric_names)


def test_listwise_gradient_equals_finite_differences():
    batch, arrays, matrices = make_batch(2, rows=8, length=8), make_arrays(2, rows=8, length=8), kernel(5, 2, 4, 4)
    objective, prepared = make(ListwiseMultiStep, batch, matrices=matrices, negatives="full", token_weight=0)
    found = gradients(lambda s, v: objective({"state": s}, items=Table(v), batch=prepared)[0], arrays)
    expected = finite_differences(
        lambda s, v: reference("full", batch, prepared, s, v, matrices, margin=1.0)[0], arrays
    )
    for gradient, value in zip(found, expected, strict=True):
        np.testing.assert_allclose(gradient, value, atol=5e-5)


def test_closed_gates_leave_the_gradient_of_the_first_step_alone():
    batch, arrays, matrices = make_batch(2, rows=8, length=8), make_arrays(2, rows=8, length=8), kernel(5, 2, 4, 4)
    objective, prepared = make(
        ListwiseMultiStep, batch, matrices=matrices, negatives="full", margin=1e6, token_weight=0
    )
    found = gradients(lambda s, v: objective({"state": s}, items=Table(v), batch=prepared)[0], arrays)
    expected = finite_differences(lambda s, v: first_step(batch, s, v), arrays)
    for gradient, value in zip(found, expected, strict=True):
        np.testing.assert_allclose(gradient, value, atol=5e-5)


def first_step(batch, state, vectors):
    terms = []
    for row, place, item in targets(batch, 1):
        score = vectors @ state[row, place] / TAU
        terms.append(cross_entropy(score[item], [score[other] for other in range(2, NUM_ITEMS) if other != item]))
    return np.mean(terms)


def test_rows_in_another_order_and_more_padding_change_nothing():
    batch, (state, vectors), matrices = (
        make_batch(2, rows=8, length=8),
        make_arrays(2, rows=8, length=8),
        kernel(5, 2, 4, 4),
    )
    options = {"matrices": matrices, "negatives": "full", "token_weight": 0}
    before, _ = run(*make(ListwiseMultiStep, batch, **options), state, Table(vectors))
    order = np.random.default_rng(0).permutation(8)
    moved = {name: np.pad(value[order], ((0, 0), (0, 5))) for name, value in batch.items()}
    noise = np.full((8, 5, 4), 7.0, np.float32)
    after, _ = run(*make(ListwiseMultiStep, moved, **options), np.concatenate([state[order], noise], 1), Table(vectors))
    assert after == pytest.approx(before, rel=1e-5)


def test_gate_does_not_overflow():
    batch, (state, vectors) = make_batch(2, rows=8, length=8), make_arrays(2, rows=8, length=8)
    objective, prepared = make(ListwiseMultiStep, batch, negatives="full", token_weight=0)
    loss, metrics = run(objective, prepared, state * 1000, Table(vectors))
    assert math.isfinite(loss)
    assert 0 < metrics["gate_open_2"] < 1


def token_arrays(rows, length=8):
    rng = np.random.default_rng(9)
    shapes = [(rows, length, 2, 3), (NUM_ITEMS, 2, 3), (4, 3)]
    return [unit(rng.normal(size=shape)).astype(np.float32) for shape in shapes]


def token_reference(batch, prepared, user_token, tokens, table, matrices, margin):
    """The token level's loss, and of steps 2 and 3 which gates are open, over all types."""
    total, gates = 0.0, {2: [], 3: []}
    for kind, codes in enumerate(CODES):
        positive = {}
        for step in range(1, STEPS + 1):
            terms = []
            for row, place, item in targets(batch, step):
                user = unit(user_token[row, place, kind] @ matrices[step - 1, kind]) / TAU
                if not (codes[item] > 1).any():
                    continue
                if kind == 0:
                    here = user @ unit(table[codes[item, 0]])
                    against = [user @ unit(table[code]) for code in range(2, 4) if code != codes[item, 0]]
                else:
                    here = user @ unit(tokens[item, kind])
                    others = [other for other in prepared["token_negative_item"] if (codes[other] > 1).any()]
                    others = [other for other in others if codes[other].tolist() != codes[item].tolist()]
                    against = [user @ unit(tokens[other, kind]) for other in others]
                positive[step, row, place] = here
                before = positive.get((step - 1, row, place))
                is_open = step == 1 or (before is not None and math.exp(before) > math.exp(here) + margin)
                terms.append(cross_entropy(here, against) * is_open)
                if step > 1:
                    gates[step].append(is_open)
            total += np.mean(terms)
    return total, gates


def test_token_level_equals_the_loop():
    batch, (state, vectors) = make_batch(2, rows=8, length=8), make_arrays(2, rows=8, length=8)
    user_token, tokens, table = token_arrays(8)
    matrices, token_matrices = kernel(5, 2, 4, 4), kernel(6, 3, 2, 3, 3)
    options = {"matrices": matrices, "token_matrices": token_matrices, "negatives": "full", "margin": 0.4}
    objective, prepared = make(ListwiseMultiStep, batch, token_weight=0.7, num_token_negatives=5, **options)
    items = TokenTable(vectors, tokens, table)
    loss, metrics = run(objective, prepared, state, items, token=user_token)
    expected, gates = token_reference(batch, prepared, user_token, tokens, table, token_matrices, 0.4)
    assert metrics["token_loss"] == pytest.approx(expected, rel=1e-5)
    for step in (2, 3):
        assert 0 < np.mean(gates[step]) < 1
        assert metrics[f"token_gate_open_{step}"] == pytest.approx(np.mean(gates[step]))
    item_level, _ = reference("full", batch, prepared, state, vectors, matrices, margin=0.4)
    assert loss == pytest.approx(item_level + 0.7 * expected, rel=1e-5)
    assert sorted(metrics) == sorted(objective.metric_names)


def test_token_gradient_equals_finite_differences():
    batch, (state, vectors) = make_batch(2, rows=4, length=6), make_arrays(2, rows=4, length=6)
    arrays, matrices = token_arrays(4, length=6), kernel(6, 3, 2, 3, 3)
    objective, prepared = make(
        ListwiseMultiStep, batch, token_matrices=matrices, negatives="full", num_token_negatives=5
    )
    found = gradients(
        lambda u, t, w: objective({"state": state, "token": u}, items=TokenTable(vectors, t, w), batch=prepared)[1][
            "token_loss"
        ],
        arrays,
    )
    expected = finite_differences(lambda u, t, w: token_reference(batch, prepared, u, t, w, matrices, 1.0)[0], arrays)
    for gradient, value in zip(found, expected, strict=True):
        np.testing.assert_allclose(gradient, value, atol=5e-5)


def test_token_weight_zero_makes_no_weights():
    objective = ListwiseMultiStep(token_weight=0)
    objective.build({"state": (None, None, 4), "token": (None, None, 2, 3)})
    assert [tuple(weight.shape) for weight in objective.weights] == [(2, 4, 4)]
    with_tokens = ListwiseMultiStep()
    with_tokens.build({"state": (None, None, 4), "token": (None, None, 2, 3)})
    assert sorted(tuple(weight.shape) for weight in with_tokens.weights) == [(2, 4, 4), (3, 2, 3, 3)]


def test_token_level_needs_tokens():
    with pytest.raises(ValueError, match="`token_weight` must be 0 for a user encoder that has no tokens"):
        ListwiseMultiStep().build({"state": (None, None, 4)})


@pytest.mark.parametrize(
    "change",
    [
        {"margin": 0.1},
        {"num_steps": 2},
        {"token_weight": 0.5},
        {"null_logit": True},
        {"temperature": 0.5},
        {"normalize": False},
        {"negatives": "uniform"},
        {"num_token_negatives": 2},
        {"log_q": False},
        {"num_negatives": 3},
    ],
)
def test_every_option_changes_the_loss(change):
    batch, (state, vectors) = make_batch(2, rows=8, length=8), make_arrays(2, rows=8, length=8)
    user_token, tokens, table = token_arrays(8)

    def loss(**options):
        objective = ListwiseMultiStep(**{"num_negatives": 6, "num_token_negatives": 5, "temperature": TAU} | options)
        objective.set_counts(counts())
        objective.build({"state": (None, None, 4), "token": (None, None, 2, 3)})
        steps = objective.num_steps
        objective._projections.kernel.assign(kernel(5, 2, 4, 4)[: steps - 1])
        objective._token_projections.kernel.assign(kernel(6, 3, 2, 3, 3)[:steps])
        prepared = objective.prepare(batch, np.random.default_rng(0))
        return run(objective, prepared, state, TokenTable(vectors, tokens, table), token=user_token)[0]

    assert abs(loss(**change) - loss()) > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0}, "`num_steps` must be a positive integer. Received: num_steps=0"),
        ({"margin": -1}, "`margin` must be a number of at least 0. Received: margin=-1"),
        ({"token_weight": float("nan")}, "`token_weight` must be a number of at least 0"),
        ({"negatives": "full", "log_q": True}, "`log_q` must be None or False where nothing is sampled"),
    ],
)
def test_refuses_values_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        ListwiseMultiStep(**options)
