"""The two towers by hand, trained, judged by TensorFlow Recommenders' own metric, and gone on with."""

import json

import numpy as np
import pytest
import tensorflow as tf

from tests.datasets import make_dataset
from tests.tfrec.layers.references import weights_of
from tests.tfrec.models.made import make_catalogue, make_query, make_schema
from tests.tfrec.models.test_models import make
from tfrec.config import parse
from tfrec.data import Batches
from tfrec.evaluation import rank_queries
from tfrec.runs import load_run
from tfrec.training import train

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)


def mlp(x, weights, name):
    hidden = np.maximum(x @ weights[f"{name}/hidden_0/kernel"] + weights[f"{name}/hidden_0/bias"], 0)
    return hidden @ weights[f"{name}/output/kernel"] + weights[f"{name}/output/bias"]


def tokens_of(weights, codes):
    """The four tokens of an item: id, brand, the mean of its tags, two halves of its image."""
    table = {
        name: weights[f"embedder/tokens/{name}_table/embeddings"] for name in ("item_id", "brand", "tags", "image")
    }
    tags = [table["tags"][code] for code in codes[2:4] if code]
    image = np.concatenate([table["image"][codes[4]], table["image"][11 + codes[5]]])
    return [table["item_id"][codes[0]], table["brand"][codes[1]], np.mean(tags, axis=0) if tags else 0 * image, image]


def test_towers_by_hand():
    model, query, codes = make("two_tower"), make_query(make_schema()), make_catalogue()[0]
    user, item = weights_of(model.user_encoder), weights_of(model.item_encoder)
    table = {key.split("/")[-2]: value for key, value in user.items() if key.startswith("context/")}
    root = np.sqrt(8)

    states = np.asarray(model.encode_users(query))
    for row, state in enumerate(states):
        events = []
        for place in np.flatnonzero(query["item"][row]):
            event = sum(tokens_of(user, codes[query["item"][row, place]]))
            event = event + table["event_type_table"][query["event_type"][row, place]]
            events.append(root * (event + table["event_device_table"][query["event_device"][row, place]]))
        pooled = np.mean(events, axis=0)
        profile = root * table["user_segment_table"][query["user_segment"][row]]
        expected = pooled + mlp(np.concatenate([pooled, events[-1], profile]), user, "tower")
        np.testing.assert_allclose(state, expected / np.linalg.norm(expected), atol=1e-5)

    vectors = np.asarray(model.encode_items(np.arange(2, 12, dtype=np.int32)))
    for number, vector in enumerate(vectors, 2):
        tokens = [root * token for token in tokens_of(user, codes[number])]
        expected = sum(tokens) + mlp(np.concatenate(tokens), item, "tower")
        np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=1e-5)


def configure(data, **training):
    model = {"name": "two_tower", "embedding_dim": 8, "history_length": 12, "tower_units": [16], "dropout": 0.1}
    small = {"epochs": 8, "batch_size": 16, "learning_rate": 0.02, **training}
    objective = {"num_uniform_negatives": 16}
    evaluation = {"ks": [1, 5, 10]}
    sections = {"model": model, "objective": objective, "training": small, "evaluation": evaluation}
    return parse({"data": {"out": str(data)}, **sections})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("two_tower")
    data = make_dataset(root / "data", users=80, min_events=10, max_events=18, side_features=True)
    return train(configure(data), root / "run", progress=False)


def test_training_learns_and_is_loaded(trained):
    entries = [json.loads(line) for line in (trained / "logs/metrics.jsonl").read_text().splitlines()]
    assert entries[-1]["loss"] < entries[0]["loss"]
    assert entries[-1]["validation"]["recall@5"] > 0.3  # by chance 5 of 40 items
    assert load_run(trained).model.name == "two_tower"


def test_training_again_gives_the_same_bits(trained, tmp_path):
    config = configure(load_run(trained).config.data.out)
    train(config, tmp_path / "run", progress=False)
    name = "logs/metrics.jsonl"
    assert (tmp_path / "run" / name).read_text() == (trained / name).read_text()


def test_training_starts_from_another_run(trained, tmp_path):
    config = configure(load_run(trained).config.data.out, epochs=1, initialize_from=str(trained))
    train(config, tmp_path / "run", progress=False)
    first, *_ = (trained / "logs/metrics.jsonl").read_text().splitlines()
    gone_on = (tmp_path / "run/logs/metrics.jsonl").read_text()
    assert json.loads(gone_on)["loss"] < 0.8 * json.loads(first)["loss"]


class WithoutSeen:
    """A top-k layer of TensorFlow Recommenders that leaves out each query's own exclusions."""

    def __init__(self, layer, exclusions):
        self.layer, self.exclusions = layer, exclusions

    def __call__(self, queries, k):
        return self.layer.query_with_exclusions(queries, self.exclusions, k=k)


@pytest.mark.parametrize("filter_seen", [False, True])
def test_factorized_top_k_agrees_with_our_evaluation(trained, filter_seen):
    import tensorflow_recommenders as tfrs

    run = load_run(trained)
    catalogue, ks = run.dataset.catalogue(), (1, 5, 10)
    queries = list(Batches(run.schema, run.dataset.histories(), "test", history_length=12, batch_size=32))
    ours = rank_queries(run.model, catalogue, queries, filter_seen=filter_seen).metrics(ks)

    items = np.arange(2, len(catalogue.train_count), dtype=np.int32)
    vectors = run.model.encode_items(items)
    layer = tfrs.layers.factorized_top_k.BruteForce(k=max(ks)).index(vectors, tf.constant(items))
    found = []
    for batch in queries:
        users = run.model.encode_users({key: value for key, value in batch.items() if key != "seen"})
        seen = batch["seen"][:, : int((batch["seen"] > 0).sum(axis=1).max())]
        top_k = WithoutSeen(layer, tf.constant(seen)) if filter_seen else layer
        metric = tfrs.metrics.FactorizedTopK(layer, ks=ks)
        metric._candidates = top_k
        true = tf.gather(vectors, batch["target"] - 2)
        metric.update_state(users, true, true_candidate_ids=tf.constant(batch["target"]))
        found.append(np.array([float(value) for value in metric.result()]) * len(batch["target"]))
    theirs = np.sum(found, axis=0) / sum(len(batch["target"]) for batch in queries)
    np.testing.assert_allclose(theirs, [ours[f"recall@{k}"] for k in ks], atol=1e-6)
    assert 0 < theirs[0] < theirs[2] < 1
