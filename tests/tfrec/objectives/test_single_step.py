"""FullSoftmax and SampledSoftmax against loops in plain NumPy."""

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
from tfrec.objectives.full_softmax import FullSoftmax
from tfrec.objectives.sampled_softmax import SampledSoftmax

pytestmark = pytest.mark.jax


def full_reference(batch, state, vectors, temperature):
    terms = []
    for row, place, item in targets(batch, 1):
        score = [state[row, place] @ vectors[other] / temperature for other in range(NUM_ITEMS)]
        terms.append(cross_entropy(score[item], [score[other] for other in range(2, NUM_ITEMS) if other != item]))
    return np.mean(terms)


def sampled_reference(batch, prepared, state, vectors, temperature):
    """Negatives as `prepare` drew them: `unique_item[negative_row]`."""
    drawn = prepared["unique_item"][prepared["negative_row"]]
    terms, masked = [], []
    order = {int(position): place for place, position in reversed(list(enumerate(prepared["position"])))}
    for row, place, item in targets(batch, 1):
        own = drawn if drawn.ndim == 1 else drawn[order[row * state.shape[1] + place], 0]
        score = state[row, place] @ vectors.T / temperature
        negatives = [score[other] for other in own if other != item]
        terms.append(cross_entropy(score[item], negatives))
        masked.append(not negatives)
    return np.mean(terms), np.mean(masked)


def prepared_by(objective, batch, seed=0):
    objective.set_counts(counts())
    return objective.prepare(batch, np.random.default_rng(seed))


@pytest.mark.parametrize("seed", range(3))
def test_full_softmax_equals_the_loop(seed):
    batch, (state, vectors) = make_batch(seed), make_arrays(seed)
    objective = FullSoftmax(temperature=0.3)
    loss, metrics = call(objective, prepared_by(objective, batch), state, vectors)
    assert loss == pytest.approx(full_reference(batch, state, vectors, 0.3), rel=1e-5)
    assert metrics == {}


def test_full_softmax_gradient_equals_finite_differences():
    batch, arrays = make_batch(1), make_arrays(1)
    objective = FullSoftmax(temperature=0.3)
    prepared = prepared_by(objective, batch)
    found = gradients(lambda s, v: objective({"state": s}, items=Table(v), batch=prepared)[0], arrays)
    expected = finite_differences(lambda s, v: full_reference(batch, s, v, 0.3), arrays)
    for gradient, reference in zip(found, expected, strict=True):
        np.testing.assert_allclose(gradient, reference, atol=2e-5)


def test_full_softmax_gives_padding_and_unknown_no_gradient():
    batch, arrays = make_batch(1), make_arrays(1)
    objective = FullSoftmax()
    prepared = prepared_by(objective, batch)
    _, table = gradients(lambda s, v: objective({"state": s}, items=Table(v), batch=prepared)[0], arrays)
    assert not table[:2].any()
    assert table[2:].any(axis=1).all()


@pytest.mark.parametrize("negatives", ["shared", "per_position"])
@pytest.mark.parametrize("seed", range(3))
def test_sampled_softmax_equals_the_loop(seed, negatives):
    batch, (state, vectors) = make_batch(seed), make_arrays(seed)
    objective = SampledSoftmax(num_negatives=4, negatives=negatives, temperature=0.3)
    prepared = prepared_by(objective, batch, seed)
    loss, metrics = call(objective, prepared, state, vectors)
    expected, masked = sampled_reference(batch, prepared, state, vectors, 0.3)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert metrics == {"all_masked": pytest.approx(masked)}


@pytest.mark.parametrize("negatives", ["shared", "per_position"])
def test_sampled_softmax_gradient_equals_finite_differences(negatives):
    batch, arrays = make_batch(2), make_arrays(2)
    objective = SampledSoftmax(num_negatives=4, negatives=negatives, temperature=0.3)
    prepared = prepared_by(objective, batch)
    found = gradients(lambda s, v: objective({"state": s}, items=Table(v), batch=prepared)[0], arrays)
    expected = finite_differences(lambda s, v: sampled_reference(batch, prepared, s, v, 0.3)[0], arrays)
    for gradient, reference in zip(found, expected, strict=True):
        np.testing.assert_allclose(gradient, reference, atol=2e-5)


def test_sampled_softmax_whose_negatives_all_equal_the_target_is_zero_and_counted():
    batch, (state, vectors) = make_batch(0), make_arrays(0)
    objective = SampledSoftmax(num_negatives=5)
    objective.set_counts(counts(3))  # item 2 is the whole catalogue
    batch["item"] = np.minimum(batch["item"], 2)
    prepared = objective.prepare(batch, np.random.default_rng(0))
    loss, metrics = call(objective, prepared, state, vectors)
    assert loss == 0.0
    assert metrics == {"all_masked": 1.0}


def test_uniform_negatives_are_real_items_each_equally_often():
    objective = SampledSoftmax(num_negatives=20_000, negatives="shared")
    prepared = prepared_by(objective, make_batch())
    drawn = prepared["unique_item"][prepared["negative_row"]]
    share = np.bincount(drawn, minlength=NUM_ITEMS) / len(drawn)
    assert not share[:2].any()
    np.testing.assert_allclose(share[2:], 1 / 7, atol=0.012)  # 5 standard errors


def test_per_position_negatives_differ_from_position_to_position():
    objective = SampledSoftmax(num_negatives=6)
    prepared = prepared_by(objective, make_batch())
    drawn = prepared["negative_row"][:, 0]
    assert len(np.unique(drawn, axis=0)) == len(drawn)


@pytest.mark.parametrize("objective", [FullSoftmax(), SampledSoftmax(num_negatives=4)])
def test_batch_without_targets_costs_nothing(objective):
    batch, (state, vectors) = make_batch(), make_arrays()
    batch["target_mask"][:] = False
    loss, _ = call(objective, prepared_by(objective, batch), state, vectors)
    assert loss == 0.0


@pytest.mark.parametrize("objective", [FullSoftmax(), SampledSoftmax(num_negatives=4)])
def test_each_item_is_encoded_once(objective):
    state, vectors = make_arrays()
    table = Table(vectors)
    objective({"state": state}, items=table, batch=prepared_by(objective, make_batch()))
    assert len(table.asked) == 1
    ids = np.asarray(table.asked[0])
    assert len(set(ids[ids > 0].tolist())) == (ids > 0).sum()


def test_equal_seeds_draw_equal_negatives():
    first, second, other = (
        prepared_by(SampledSoftmax(num_negatives=4), make_batch(), seed)["negative_row"] for seed in (0, 0, 1)
    )
    assert first.tolist() == second.tolist() != other.tolist()


def test_half_precision_states_give_a_single_precision_loss():
    batch, (state, vectors) = make_batch(), make_arrays()
    objective = FullSoftmax()
    loss, _ = objective(
        {"state": state.astype(np.float16)},
        items=Table(vectors.astype(np.float16)),
        batch=prepared_by(objective, batch),
    )
    assert "float32" in str(loss.dtype)
    assert float(loss) == pytest.approx(full_reference(batch, state, vectors, 0.05), rel=1e-2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"negatives": "none"}, "`negatives` must be one of per_position, shared"),
        ({"num_negatives": 0}, "`num_negatives` must be a positive integer. Received: num_negatives=0"),
        ({"temperature": -1.0}, "`temperature` must be a positive number"),
    ],
)
def test_refuses_values_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        SampledSoftmax(**options)


def test_counts_must_be_set_before_use():
    with pytest.raises(ValueError, match="set_counts"):
        SampledSoftmax().prepare(make_batch(), np.random.default_rng(0))
