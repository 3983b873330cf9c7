"""Dense all-action loss: what may be drawn, how often, and the loss against a loop."""

import math

import numpy as np
import pytest
from keras import ops

from tests.checks import to_numpy
from tfrec.objectives.dense_all_action import DenseAllAction

pytestmark = pytest.mark.jax

NUM_ITEMS, DAY = 400, 86_400


def make_batch(rows=40, width=12, seed=0):
    rng = np.random.default_rng(seed)
    real = np.arange(width) < rng.integers(2, width + 1, rows)[:, None]
    item = np.where(real, rng.permuted(np.tile(np.arange(2, NUM_ITEMS), (rows, 1)), axis=1)[:, :width], 0)
    time = np.where(real, np.cumsum(rng.integers(0, 3 * DAY, (rows, width)), axis=1), 0)
    mask = real & (rng.random(real.shape) < 0.7)
    return {"item": item.astype(np.int32), "time": time.astype(np.int32), "target_mask": mask}


def prepared(batch, seed=0, **options):
    objective = DenseAllAction(num_negatives=8, **options)
    objective.set_counts(np.ones(NUM_ITEMS, int))
    objective.build({"state": (None, None, 4)})
    return objective, objective.prepare(batch, np.random.default_rng(seed))


def allowed(batch, days, events):
    """Of each position the items that may be drawn, by a loop."""
    found = {}
    rows, width = batch["item"].shape
    for row in range(rows):
        for place in range(width - 1):
            if not batch["item"][row, place]:
                continue
            later = [
                int(batch["item"][row, other])
                for other in range(place + 1, width)
                if batch["target_mask"][row, other]
                and (
                    other - place <= events
                    if days is None
                    else int(batch["time"][row, other]) - int(batch["time"][row, place]) <= days * DAY
                )
            ]
            if later:
                found[row, place] = later
    return found


def drawn(batch, done):
    width = batch["item"].shape[1] - 1
    places = done["position"][done["position_mask"][:, 0]]
    items = done["target_item"][done["position_mask"][:, 0], 0]
    return {(int(p) // width, int(p) % width): int(item) for p, item in zip(places, items, strict=True)}


@pytest.mark.parametrize(("days", "events"), [(None, 3), (4, 10)])
def test_targets_are_drawn_from_the_horizon_alone_and_all_of_it(days, events):
    batch = make_batch()
    expected = allowed(batch, days, events)
    seen = {key: set() for key in expected}
    for seed in range(150):
        _, done = prepared(batch, seed, horizon_days=days, horizon_events=events)
        found = drawn(batch, done)
        assert found.keys() == expected.keys()
        for key, item in found.items():
            assert item in expected[key]
            seen[key].add(item)
    few = [key for key, items in expected.items() if len(items) <= 6]
    assert len(few) > 50
    missed = sum(len(set(expected[key]) - seen[key]) for key in few)  # (5/6)^150 each
    assert missed == 0


def test_logs_without_times_have_a_horizon_of_events():
    batch = make_batch()
    del batch["time"]
    _, done = prepared(batch, horizon_events=2)
    found = drawn(batch, done)
    assert found.keys() == allowed(batch, None, 2).keys()


def test_every_event_of_the_horizon_is_as_likely():
    batch = make_batch(1, 6)
    batch["item"][:] = np.arange(2, 8)
    batch["target_mask"][:] = True
    first = [drawn(batch, prepared(batch, seed, horizon_days=None, horizon_events=4)[1])[0, 0] for seed in range(600)]
    counts = np.bincount(first, minlength=8)[3:7]
    assert counts.sum() == 600
    assert np.abs(counts - 150).max() < 45  # 4 standard deviations


def test_loss_is_the_loop():
    batch = make_batch(6)
    objective, done = prepared(batch, negatives="uniform", temperature=0.2, horizon_days=None)
    rng = np.random.default_rng(1)
    state = rng.normal(size=(6, 11, 4)).astype("float32")
    table = rng.normal(size=(NUM_ITEMS, 4)).astype("float32")
    loss, _ = objective(
        {"state": ops.convert_to_tensor(state)}, items=lambda ids: {"vector": ops.take(table, ids, axis=0)}, batch=done
    )
    negatives = done["unique_item"][done["negative_row"]]
    losses = []
    for (row, place), target in drawn(batch, done).items():
        score = {item: float(state[row, place].astype(np.float64) @ table[item]) / 0.2 for item in range(NUM_ITEMS)}
        own = set(batch["item"][row].tolist())
        others = sum(math.exp(score[item]) for item in negatives if item not in own)
        losses.append(-math.log(math.exp(score[target]) / (math.exp(score[target]) + others)))
    assert float(to_numpy(loss)) == pytest.approx(np.mean(losses), rel=1e-4)


def test_temperature_is_learnt_where_asked_for():
    assert [len(prepared(make_batch(4), learn_temperature=learn)[0].weights) for learn in (True, False)] == [1, 0]


def test_options_are_checked():
    with pytest.raises(ValueError, match="`horizon_days` must be a positive number"):
        DenseAllAction(horizon_days=0)
    with pytest.raises(ValueError, match="`horizon_events` must be a positive integer"):
        DenseAllAction(horizon_events=0)
