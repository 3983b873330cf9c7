"""Masked items: which places are drawn, and the loss against a loop."""

import math

import numpy as np
import pytest
from keras import ops

from tests.checks import to_numpy
from tfrec.errors import UserError
from tfrec.objectives import build_objective
from tfrec.objectives.masked_item import MaskedItem

pytestmark = pytest.mark.jax

NUM_ITEMS = 30


def make_batch(rows=200, width=9, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, width + 1, rows)
    real = np.arange(width) < lengths[:, None]
    item = np.where(real, rng.integers(2, NUM_ITEMS, (rows, width)), 0).astype(np.int32)
    session = np.where(real, 1 + np.arange(width) // 3, 0).astype(np.int32)
    return {"item": item, "session": session, "target_mask": real}


def prepared(batch, seed=0, **options):
    objective = MaskedItem(**options)
    objective.set_counts(np.ones(NUM_ITEMS, int))
    return objective, objective.prepare(batch, np.random.default_rng(seed))


def test_the_share_of_masked_events_is_the_ratio_and_every_row_has_one():
    batch = make_batch(2000)
    _, done = prepared(batch, mask_ratio=0.3)
    long = (batch["item"] > 0).all(axis=1)
    expected = 0.3 + 0.7**9 / 9  # rows without any are given one
    assert done["masked"][long].mean() == pytest.approx(expected, abs=0.015)  # 3 standard errors of 2,200 places
    assert done["masked"].any(axis=1).all()
    assert not done["masked"][batch["item"] == 0].any()


def test_what_is_no_target_is_not_masked():
    batch = make_batch()
    batch["target_mask"] = batch["target_mask"] & (np.arange(9) % 2 == 0)
    batch["item"][:, 2] = np.minimum(batch["item"][:, 2], 1)  # unknown
    _, done = prepared(batch, mask_ratio=0.9)
    assert not done["masked"][:, 1::2].any()
    assert not done["masked"][:, 2].any()


def test_sessions_are_masked_whole():
    batch = make_batch(2000)
    _, done = prepared(batch, mask_ratio=0.0, session_ratio=0.4)
    long = (batch["item"] > 0).all(axis=1)
    by_session = done["masked"][long].reshape(-1, 3, 3)
    whole, part = by_session.all(axis=2), by_session.any(axis=2) & ~by_session.all(axis=2)
    none_drawn = 0.6**3
    assert whole.mean() == pytest.approx(0.4, abs=0.06)
    assert part.sum(axis=1).mean() == pytest.approx(none_drawn, abs=0.08)  # rows that were given one event
    with pytest.raises(UserError, match=r"`objective\.session_ratio`: must be 0"):
        prepared({key: value for key, value in batch.items() if key != "session"}, session_ratio=0.1)


def test_the_last_event_alone_in_a_share_of_batches():
    batch = make_batch()
    last = np.arange(9) == ((batch["item"] > 0).sum(axis=1) - 1)[:, None]
    alone = [np.array_equal(prepared(batch, seed, last_ratio=0.5)[1]["masked"], last) for seed in range(60)]
    assert 18 <= sum(alone) <= 42
    assert np.array_equal(prepared(batch, last_ratio=1.0)[1]["masked"], last)


def test_equal_seeds_mask_alike():
    batch = make_batch()
    first, again, other = (prepared(batch, seed)[1]["masked"] for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("negatives", ["full", "uniform"])
def test_loss_is_the_loop(negatives):
    batch = make_batch(6)
    objective, done = prepared(batch, mask_ratio=0.4, negatives=negatives, num_negatives=16, temperature=0.2)
    rng = np.random.default_rng(1)
    state = rng.normal(size=(6, 9, 4)).astype("float32")
    table = rng.normal(size=(NUM_ITEMS, 4)).astype("float32")
    loss, metrics = objective(
        {"state": ops.convert_to_tensor(state)}, items=lambda ids: {"vector": ops.take(table, ids, axis=0)}, batch=done
    )
    drawn = done["unique_item"][done["negative_row"]] if negatives == "uniform" else np.arange(2, NUM_ITEMS)
    losses = []
    for row, place in np.argwhere(done["masked"]):
        target = batch["item"][row, place]
        scores = {item: float(state[row, place].astype(np.float64) @ table[item]) / 0.2 for item in range(NUM_ITEMS)}
        others = sum(math.exp(scores[item]) for item in drawn if item != target)
        losses.append(-math.log(math.exp(scores[target]) / (math.exp(scores[target]) + others)))
    assert float(to_numpy(loss)) == pytest.approx(np.mean(losses), rel=1e-4)
    assert set(metrics) == set(objective.metric_names) == (set() if negatives == "full" else {"all_masked"})


def test_options_are_kept_and_checked():
    objective = build_objective({"name": "masked_item", "mask_ratio": 0.5, "last_ratio": 0.25, "negatives": "uniform"})
    assert MaskedItem.from_config(objective.get_config()).get_config() == objective.get_config()
    with pytest.raises(ValueError, match=r"`session_ratio` must be in 0\.\.1"):
        MaskedItem(session_ratio=1.5)
    with pytest.raises(ValueError, match="`negatives` must be one of"):
        MaskedItem(negatives="in_batch")
