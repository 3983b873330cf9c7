"""Small untrained runs to export, and raw requests to what was exported."""

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from tests.checks import randomise, seed_weights
from tests.datasets import TIME_ORIGIN, make_dataset
from tfrec import publishing
from tfrec.config import parse
from tfrec.data import Dataset
from tfrec.models.din import din
from tfrec.runs import Run, build_model, save_run, start_run

LENGTH, K = 6, 12
MODEL = {"name": "sasrec", "embedding_dim": 16, "num_blocks": 1, "history_length": LENGTH, "item_features": "all"}
MODEL |= {"user_features": "prefix", "normalize": False}


def make_run(root, *, name="run", config=None, **data):
    """A run with its first weights at `root / name`, of the dataset at `root / "data"`, which is made where missing."""
    directory = root / "data"
    dataset = Dataset.open(directory if directory.exists() else make_dataset(directory, **data))
    parsed = parse({"data": {"out": str(directory)}, "model": MODEL, "export": {"k": K}} | (config or {}))
    start_run(root / name, parsed, dataset)
    seed_weights(3)
    run = Run(root / name, parsed, dataset.schema, dataset, build_model(parsed, dataset))
    save_run(run, {})
    return run


def make_ranking_run(root, *, labels=("click", "cart"), config=None, **data):
    """A run of `din` with random weights at `root / "ranker"`, of the dataset at `root / "data"`."""
    directory = root / "data"
    dataset = Dataset.open(directory if directory.exists() else make_dataset(directory, **data))
    parsed = parse({"data": {"out": str(directory)}, "model": {"name": "din"}} | (config or {}))
    start_run(root / "ranker", parsed, dataset)
    seed_weights(3)
    model = din(dataset.schema, labels=labels, history_length=LENGTH, embedding_dim=8, hidden_units=(6,))
    catalogue = dataset.catalogue()
    model.set_catalogue(catalogue.codes, catalogue.train_count, catalogue.vectors)
    randomise(model, scale=0.2)
    run = Run(root / "ranker", parsed, dataset.schema, dataset, model)
    save_run(run, {})
    return run


def strings(rows):
    width = max(len(row) for row in rows)
    array = np.empty((len(rows), width), object)
    array[:] = [list(row) + [""] * (width - len(row)) for row in rows]
    return array


def users(*histories, times=None, length=None):
    """A raw request of these histories; by default an event a minute."""
    ids = strings(histories)
    counted = np.array([len(history) for history in histories] if length is None else length, np.int32)
    minutes = np.broadcast_to(60 * np.arange(ids.shape[1]), ids.shape) if times is None else np.array(times)
    return {
        "history_item_ids": ids,
        "history_length": counted,
        "history_times": (TIME_ORIGIN + minutes).astype(np.int64),
        "history_event_types": np.full(ids.shape, "view", object),
        "request_time": np.full(len(ids), TIME_ORIGIN + 90_000, np.int64),
        "event_device": np.full(ids.shape, "phone", object),
        "event_network": np.full(ids.shape, "wifi", object),
        "user_segment": np.full(len(ids), "loyal", object),
        "event_topics": np.broadcast_to(np.array(["x", "y"], object), (*ids.shape, 2)),
        "event_topics_weights": np.broadcast_to(np.array([3, 1], np.float32), (*ids.shape, 2)),
        "user_tags": strings([["b", "a", ""]] * len(ids)),
        "user_tags_weights": np.array([[0.3, 0.1, 0]] * len(ids), np.float32),
    }


def coded_as_users_are(schema, items, brands):
    """What a model is given of the features in such a request of one user with these items `(T,)` of these brands."""
    features = {feature.name: feature for feature in schema.side("event")}
    device = np.full((1, len(items)), 2, np.int32)  # phone
    network = features["network"].transform.encode(["wifi"] * len(items)).astype(np.int32)[None]
    return {
        "event_device": device,
        "event_network": network,
        "event_mood": features["mood"].transform.encode_codes(device[0], network[0]).astype(np.int32)[None],
        "event_again": np.where(np.array(brands) == 1, 1, 2).astype(np.int32)[None],  # nothing was purchased
        "event_topics": np.full((1, len(items), 2), [2, 3], np.int32),
        "event_topics_weights": np.full((1, len(items), 2), [0.75, 0.25], np.float32),
        "user_segment": np.array([3], np.int32),
        "user_tags": np.array([[3, 2, 0]], np.int32),
        "user_tags_weights": np.array([[0.6, 0.2, 0]], np.float32),
    }


def answer(signature, inputs):
    """What a signature of a SavedModel loaded in Python answers."""
    tensors = {name: tf.constant(value.tolist(), value.dtype.type, value.shape) for name, value in inputs.items()}
    return {name: value.numpy() for name, value in signature(**tensors).items()}


def raw_items(run, places):
    catalogue = run.dataset.catalogue()
    return publishing.raw_items(run.schema, catalogue, run.dataset.directory, np.array(places))


def uses(version):
    """The operations that the signatures do on each variable, by its name; not reads that nothing needs."""
    graph = saved_model_pb2.SavedModel.FromString((version / "saved_model.pb").read_bytes()).meta_graphs[0].graph_def
    functions = {function.signature.name: function for function in graph.library.function}

    def called(node):
        names = [node.attr[key].func.name for key in ("f", "then_branch", "else_branch") if key in node.attr]
        return [functions[name] for name in names if "_traced_" not in name]  # those save and restore

    def of(nodes, source):
        found = set()
        needed = {name.partition(":")[0] for node in nodes for name in node.input}
        for node in nodes:
            if node.op == "ReadVariableOp" and node.name not in needed:
                continue
            inputs = [name.partition(":")[0] for name in node.input]
            for place in (place for place, name in enumerate(inputs) if name == source):
                found.add(node.op)
                for function in called(node):
                    argument = function.signature.input_arg[place - (node.op in ("If", "StatelessIf"))]
                    found |= of(function.node_def, argument.name)
        return found

    calls = [node for node in graph.node if called(node)]
    return {node.name: of(calls, node.name) for node in graph.node if node.op == "VarHandleOp"}


def assert_nothing_is_copied(version):
    """No variable is both gathered from and read whole: TensorFlow would copy all of it for each request."""
    found = uses(version)
    assert any("ReadVariableOp" in operations for operations in found.values())
    assert any("ResourceGather" in operations for operations in found.values())
    assert [each for each, operations in found.items() if {"ReadVariableOp", "ResourceGather"} <= operations] == []
