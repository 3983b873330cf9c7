"""Every kind of model, exported: the C++ loader and the server answer as Python does."""

from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

import tfrec.export
from serving.app import ModelServer
from tests.exports import MODEL, answer, assert_nothing_is_copied, make_run
from tests.serving.saved_models import Client
from tfrec import parity
from tfrec.stock_loader import ask

SMALL = {"embedding_dim": 8, "history_length": 6}
HETERREC = SMALL | {"name": "heterrec", "num_token_blocks": 1, "num_item_blocks": 1}
CONFIGS = {
    "sasrec": {"model": MODEL},
    "hstu": {"model": SMALL | {"name": "hstu", "num_blocks": 1, "time_bias": True}},
    "heterrec": {"model": HETERREC},
    "heterrec_request_time": {"model": HETERREC, "features": {"request_time": True}},
    "two_tower": {"model": SMALL | {"name": "two_tower"}},
    "heterrec_without_mfk": {"model": HETERREC | {"ablation": "without_mfk"}},
}
OTHERS = ("hstu", "heterrec", "heterrec_without_mfk")  # whose graphs hold little that is new
NAMES = [pytest.param(name, marks=[pytest.mark.slow] * (name in OTHERS)) for name in CONFIGS]
SIGNATURES = {"serving_default", "recommend", "recommend_filtered", "encode_user", "encode_item", "similar_items"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Exports by name, each made once: run, version, the model as the export loaded it, what the C++ loader said."""
    root = tmp_path_factory.mktemp("models")

    @cache
    def make(name):
        run = make_run(root, name=name, config=CONFIGS[name], users=12, items=20, side_features=True)
        heard, loaded = [], []

        def listen(directory, requests, libraries):
            answers = ask(directory, requests, libraries)
            heard.extend(zip(requests, answers, strict=True))
            return answers

        def load(directory, stock=tf.saved_model.load):
            loaded.append(stock(directory))
            return loaded[-1]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tfrec.export, "ask", listen)
            patch.setattr(tf.saved_model, "load", load)
            (version,) = tfrec.export.export(run, root / "served" / name / name)
        (model,) = loaded
        return SimpleNamespace(run=run, version=version, model=model, heard=heard)

    return make


def assert_equal(got, expected):
    assert got.keys() == expected.keys()
    for name, values in got.items():
        if values.dtype == object:
            assert values.tolist() == expected[name].tolist()
        else:
            np.testing.assert_allclose(values, expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.conformance("L1", "L2")
def test_every_signature_answers_in_the_cpp_loader_as_in_python(exported, name):
    made = exported(name)
    assert {request.signature for request, _ in made.heard} == SIGNATURES
    for request, got in made.heard:
        if len(next(iter(request.inputs.values()))) < 32:  # the longest of the warm-up's requests repeat the others
            assert_equal(got, answer(made.model.signatures[request.signature], request.inputs))


@pytest.mark.parametrize("name", NAMES)
def test_items_have_the_vectors_of_the_run(exported, name):
    made = exported(name)
    for request, got in made.heard:
        if request.signature == "encode_item":
            ids = made.run.dataset.catalogue().item_ids
            items = np.array([ids.index(item) for item in request.inputs["item_id"]], np.int32)
            np.testing.assert_allclose(got["vector"], made.run.model.encode_items(items), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_export_holds_the_weights_that_answers_need(exported, name):
    made = exported(name)
    model = made.run.model
    variables = tf.train.list_variables(str(made.version / "variables" / "variables"))
    held = [tuple(shape) for key, shape in variables if key.startswith("weights_/")]
    outside = [*model.objective.variables, *(v for each in model.metrics for v in each.variables)]
    needless = {id(variable) for variable in outside}
    assert needless
    assert sorted(held) == sorted(tuple(v.shape) for v in model.variables if id(v) not in needless)


@pytest.mark.parametrize("name", NAMES)
def test_no_variable_is_gathered_from_and_read_which_would_copy_it_for_each_request(exported, name):
    assert_nothing_is_copied(exported(name).version)


@pytest.mark.parametrize("name", ["sasrec", "heterrec_request_time"])
@pytest.mark.conformance("L8")
def test_server_gives_the_lists_of_the_run_over_rest_and_grpc(exported, name):
    made = exported(name)
    run = made.run
    item_ids = run.dataset.catalogue().item_ids[2:]
    vectors = np.asarray(run.model.encode_items(np.arange(2, len(item_ids) + 2, dtype=np.int32)))
    by_loader = [got for request, got in made.heard if request.signature == "recommend"]
    with ModelServer(made.version.parents[1], rest_port=0, grpc_port=0) as server:
        client = Client(server.rest_port, server.grpc_port)
        for sample, expected in zip(parity.samples(run), by_loader, strict=False):
            inputs = {alias: values.tolist() for alias, values in sample.request.items()}
            outputs = client.ok(f"/v1/models/{name}:predict", {"inputs": inputs})["outputs"]
            by_rest = {
                "item_ids": np.array([[item.encode() for item in row] for row in outputs["item_ids"]], object),
                "scores": np.array(outputs["scores"]),
            }
            by_grpc = {
                alias: tf.make_ndarray(tensor)
                for alias, tensor in client.predict(name, **sample.request).outputs.items()
            }
            scores = parity.run_scores(run, sample.batch, vectors)
            for answered, who in ((by_rest, "REST"), (by_grpc, "gRPC")):
                assert_equal(answered, expected)
                assert parity.compare(scores, answered, item_ids, who).score <= parity.TOLERANCE
        narrow = inputs | {"user_tags": [row[:1] for row in inputs["user_tags"]]}
        assert "tags: give 3 values, padded with empty strings" in client.error(
            f"/v1/models/{name}:predict", {"inputs": narrow}
        )
        client.close()
