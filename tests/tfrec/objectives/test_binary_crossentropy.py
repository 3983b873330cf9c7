"""The loss of candidates against a loop."""

import math

import numpy as np
import pytest
from keras import ops

from tests.checks import to_numpy
from tfrec.objectives.binary_crossentropy import BinaryCrossentropy

pytestmark = pytest.mark.jax


def made(seed=0, shape=(6, 5)):
    rng = np.random.default_rng(seed)
    batch = {"candidate_weight": rng.choice([0.0, 1.0, 2.5], shape).astype(np.float32)}
    for label in ("click", "cart"):
        batch[f"candidate_label_{label}"] = rng.integers(-1, 2, shape).astype(np.float32)
    return {label: rng.normal(0, 3, shape).astype(np.float32) for label in ("click", "cart")}, batch


def mean_loss(logits, batch, label):
    total = weights = 0.0
    for logit, outcome, weight in zip(
        logits[label].ravel(), batch[f"candidate_label_{label}"].ravel(), batch["candidate_weight"].ravel(), strict=True
    ):
        if outcome >= 0:
            p = 1 / (1 + math.exp(-float(logit)))
            total -= weight * math.log(p if outcome == 1 else 1 - p)
            weights += weight
    return total / weights


def loss_of(objective, logits, batch):
    objective.build({label: value.shape for label, value in logits.items()})
    loss, metrics = objective({label: ops.convert_to_tensor(value) for label, value in logits.items()}, batch=batch)
    return float(to_numpy(loss)), {name: float(to_numpy(value)) for name, value in metrics.items()}


def test_loss_is_the_weighted_mean_of_each_label_without_missing_ones():
    logits, batch = made()
    click, cart = (mean_loss(logits, batch, label) for label in ("click", "cart"))
    loss, metrics = loss_of(BinaryCrossentropy(label_weights={"cart": 0.3}), logits, batch)
    assert loss == pytest.approx(click + 0.3 * cart, rel=1e-5)
    assert metrics == pytest.approx({"loss_click": click, "loss_cart": cart}, rel=1e-5)


def test_one_label_is_its_own_metric_and_extremes_are_finite():
    batch = {
        "candidate_weight": np.ones((1, 3), np.float32),
        "candidate_label_click": np.array([[1.0, 0.0, 1.0]], np.float32),
    }
    logits = {"click": np.array([[-200.0, 200.0, 200.0]], np.float32)}
    loss, metrics = loss_of(BinaryCrossentropy(), logits, batch)
    assert loss == pytest.approx(400 / 3)
    assert metrics == {}


def test_a_batch_without_any_outcome_has_no_loss():
    logits, batch = made()
    batch["candidate_label_click"][:] = -1
    loss, metrics = loss_of(BinaryCrossentropy(), logits, batch)
    assert metrics["loss_click"] == 0
    assert loss == pytest.approx(metrics["loss_cart"])


@pytest.mark.parametrize("weights", [{"click": -1.0}, {"click": math.inf}, {"click": "much"}])
def test_weights_are_numbers_from_0_on(weights):
    with pytest.raises(ValueError, match="`label_weights` must be numbers from 0 on"):
        BinaryCrossentropy(label_weights=weights)


def test_it_comes_back_from_its_config():
    objective = BinaryCrossentropy(label_weights={"click": 2.0}, next_item_weight=0.1, temperature=0.2)
    assert BinaryCrossentropy.from_config(objective.get_config()).get_config() == objective.get_config()


def test_the_next_item_is_told_from_drawn_ones_by_a_loop():
    rng = np.random.default_rng(1)
    logits, batch = made()
    batch["item"] = np.array([[4, 6, 1, 5, 7], [8, 4, 0, 0, 0]], np.int32)
    batch["target_mask"] = np.array([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]], bool)
    states, table = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 5, 4), (9, 4)))
    objective = BinaryCrossentropy(next_item_weight=0.5, num_negatives=6, temperature=0.2)
    objective.set_num_items(9)
    prepared = objective.prepare(batch, np.random.default_rng(3))
    objective.build({label: value.shape for label, value in logits.items()})
    loss, metrics = objective(logits, batch=prepared, states=states, items=lambda ids: ops.take(table, ids, axis=0))

    drawn = prepared["unique_item"][prepared["negative_row"]]
    assert len(drawn) == 6
    unit_states, unit = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (states, table))
    terms = []
    # An unknown item (1) and one that is no target (7) are not predicted, but what follows the unknown one is
    for row, place, target in ((0, 0, 6), (0, 2, 5), (1, 0, 4)):
        scores = unit @ unit_states[row, place] / 0.2
        negatives = sum(math.exp(scores[item]) for item in drawn if item != target)
        terms.append(-math.log(math.exp(scores[target]) / (math.exp(scores[target]) + negatives)))
    click, cart = (mean_loss(logits, batch, label) for label in ("click", "cart"))
    found = {name: float(to_numpy(value)) for name, value in metrics.items()}
    assert found == pytest.approx({"loss_click": click, "loss_cart": cart, "loss_next_item": np.mean(terms)}, rel=1e-5)
    assert float(to_numpy(loss)) == pytest.approx(click + cart + 0.5 * np.mean(terms), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"next_item_weight": -1.0}, "`next_item_weight` must be a number from 0 on. Received: -1.0."),
        ({"num_negatives": 5}, "must be left out where `next_item_weight` is 0"),
    ],
)
def test_options_of_the_next_item_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        BinaryCrossentropy(**options)
