"""The retrieval task of TensorFlow Recommenders inside an objective, against loops over single examples."""

import math
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from tests.tfrec.objectives import reference
from tests.tfrec.objectives.reference import NUM_ITEMS, call, counts, make_arrays, make_batch
from tfrec.errors import UserError
from tfrec.models.two_tower import Retrieval

OPTIONS = [
    {},
    {"temperature": 0.5},
    {"log_q": False},
    {"remove_accidental_hits": False},
    {"mask_own": False},
    {"num_uniform_negatives": 0},
    {"num_hard_negatives": 2},
    {"num_hard_negatives": 100},
    {"group_size": 4},
    {"mask_own": False, "remove_accidental_hits": False, "num_hard_negatives": 3, "group_size": 5},
]


def make(**options):
    objective = Retrieval(**{"temperature": 0.1, "num_uniform_negatives": 6, **options})
    objective.set_counts(counts())
    return objective


def prepared_by(objective, seed=0, rows=5):
    batch = make_batch(seed, rows=rows)
    return batch, objective.prepare(batch, np.random.default_rng(seed))


def groups_of(objective, prepared):
    """(position, item) of each group's examples, and its candidates."""
    groups = len(prepared["group"])
    position = prepared["position"].reshape(groups, -1)
    candidates = prepared["candidate_item"].reshape(groups, -1)
    size = position.shape[1]
    assert candidates.shape[1] == size + objective.num_uniform_negatives
    for row in range(groups):
        yield list(zip(position[row], candidates[row, :size], strict=True)), candidates[row].tolist()


def loop(objective, batch, prepared, state, vectors):
    """The definition, one example and one candidate after another: the loss, and the share without negatives."""
    count, length = counts(), batch["item"].shape[1] - 1
    losses, alone = [], []
    for examples, candidates in groups_of(objective, prepared):
        real = sum(item > 0 for _, item in examples)
        for place, (position, item) in enumerate(examples):
            if not item:
                continue
            row, query = position // length, state.reshape(-1, state.shape[-1])[position]

            def logit(other, query=query, real=real):
                score = float(query @ vectors[other]) / objective.temperature
                if not objective.log_q:
                    return score
                expected = real * max(count[other], 1) / count[2:].sum()
                return score - math.log(expected + objective.num_uniform_negatives / (NUM_ITEMS - 2))

            negatives = []
            for column, other in enumerate(candidates):
                equal, own = other == item, other in batch["item"][row]
                if column == place or not other:
                    continue
                if (equal and objective.remove_accidental_hits) or (own and not equal and objective.mask_own):
                    continue
                negatives.append(logit(other))
            negatives = sorted(negatives, reverse=True)[: objective.num_hard_negatives]
            losses.append(reference.cross_entropy(logit(item), negatives))
            alone.append(not negatives)
    return np.mean(losses), np.mean(alone)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_loss_is_the_loop(options):
    objective = make(**options)
    state, vectors = make_arrays(rows=5)
    for seed in range(3):
        batch, prepared = prepared_by(objective, seed)
        loss, metrics = call(objective, prepared, state, vectors)
        assert (loss, metrics["all_masked"]) == pytest.approx(
            loop(objective, batch, prepared, state, vectors), rel=1e-5
        )


def test_every_option_changes_the_loss():
    state, vectors = make_arrays(rows=5)
    losses = {}
    for options in OPTIONS:
        objective = make(**options)
        losses[str(options)] = np.mean(
            [call(objective, prepared_by(objective, seed)[1], state, vectors)[0] for seed in range(3)]
        )
    del losses[str({"num_hard_negatives": 100})]  # more than there are: all of them
    assert len({round(loss, 4) for loss in losses.values()}) == len(losses)


@pytest.mark.parametrize("options", [{}, {"num_hard_negatives": 2}, {"remove_accidental_hits": False}], ids=str)
def test_gradients_are_those_of_the_loop(options):
    objective = make(**options)
    state, vectors = make_arrays(rows=5)
    batch, prepared = prepared_by(objective)

    def loss(state, vectors):
        return objective({"state": state}, items=reference.Table(vectors), batch=prepared)[0]

    found = reference.gradients(loss, [state, vectors])
    expected = reference.finite_differences(
        lambda state, vectors: loop(objective, batch, prepared, state, vectors)[0], [state, vectors]
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("group_size", [4, 1024])
def test_every_position_with_a_target_is_one_example(group_size):
    objective = make(group_size=group_size)
    batch, prepared = prepared_by(objective)
    length = batch["item"].shape[1] - 1
    examples = [pair for group, _ in groups_of(objective, prepared) for pair in group if pair[1]]
    found = sorted((int(position) // length, int(position) % length, int(item)) for position, item in examples)
    assert found == sorted(reference.targets(batch, 1))
    assert max(len(group) for group, _ in groups_of(objective, prepared)) <= group_size


def test_uniform_negatives_come_from_the_whole_catalogue():
    objective = make(num_uniform_negatives=4000)
    _, prepared = prepared_by(objective)
    drawn = prepared["candidate_item"][-4000:]
    share = np.bincount(drawn, minlength=NUM_ITEMS) / 4000
    np.testing.assert_allclose(share, [0, 0, *[1 / 7] * 7], atol=0.03)


def test_rare_items_of_large_catalogues_are_corrected_by_their_own_probability():
    count = np.zeros(3_000_000, np.int64)
    count[2:] = 1
    count[2] = 10**9
    objective = Retrieval(temperature=1.0, num_uniform_negatives=0, mask_own=False)
    objective.set_counts(count)
    batch = {"item": np.array([[4, 2], [4, 3], [4, 5]], np.int32), "target_mask": np.ones((3, 2), bool)}
    prepared = objective.prepare(batch, np.random.default_rng(0))
    probability = dict(zip(prepared["candidate_item"].tolist(), prepared["candidate_probability"], strict=True))
    assert probability[3] / probability[2] == pytest.approx(1e-9, rel=1e-4)


def test_an_example_without_negatives_is_counted():
    objective = make(num_uniform_negatives=0)
    batch = {"item": np.array([[2, 3], [4, 3]], np.int32), "target_mask": np.ones((2, 2), bool)}
    prepared = objective.prepare(batch, np.random.default_rng(0))
    loss, metrics = call(objective, prepared, *make_arrays(rows=2, length=1))
    assert (loss, metrics["all_masked"]) == (0.0, 1.0)


def test_a_batch_without_targets_has_no_loss():
    objective = make()
    batch = {"item": np.ones((2, 4), np.int32), "target_mask": np.ones((2, 4), bool)}
    prepared = objective.prepare(batch, np.random.default_rng(0))
    assert call(objective, prepared, *make_arrays(rows=2, length=3))[0] == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_hard_negatives": 0}, "`num_hard_negatives` must be a positive integer"),
        ({"num_uniform_negatives": -1}, "`num_uniform_negatives` must be a positive integer"),
        ({"group_size": 0}, "`group_size` must be a positive integer"),
        ({"temperature": 0}, "`temperature` must be a positive number"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Retrieval(**options)


def test_another_backend_is_refused_when_training_begins(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    objective = Retrieval(temperature=0.123)
    objective.set_counts(counts())
    with pytest.raises(UserError, match="trains on TensorFlow alone; set KERAS_BACKEND=tensorflow") as caught:
        objective.prepare(make_batch(), np.random.default_rng(0))
    assert "\n" not in str(caught.value)


def test_a_keras_that_was_touched_before_is_told():
    code = (
        "import tensorflow as tf; tf.keras.layers\n"
        "import numpy as np\n"
        "from tfrec.models.two_tower import Retrieval\n"
        "objective = Retrieval(); objective.set_counts(np.ones(9))\n"
        "batch = {'item': np.full((2, 3), 2), 'target_mask': np.ones((2, 3), bool)}\n"
        "objective.prepare(batch, np.random.default_rng(0))\n"
    )
    env = {key: value for key, value in os.environ.items() if key != "TF_USE_LEGACY_KERAS"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("tfrec.errors.UserError: `objective`: retrieval needs TensorFlow Recommenders")
    assert "set TF_USE_LEGACY_KERAS=1 before Python starts" in last
