"""Classify, Regress and MultiInference over REST and gRPC; sections A, C, F, G and H of the conformance checklist."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import tensorflow as tf
from tensorflow_serving.apis import classification_pb2, inference_pb2, prediction_log_pb2, regression_pb2

from serving import examples
from serving.app import ModelServer
from serving.loading import Loader
from serving.settings import Settings
from serving.status import Code, ServingError
from tests.serving.saved_models import (
    Client,
    edit_signatures,
    predict_request,
    publish,
    save_counter,
    save_examples,
    save_half_plus,
    write_warmup,
)
from tests.serving.test_grpc import failure

INVALID = grpc.StatusCode.INVALID_ARGUMENT
CLASSIFY = "/v1/models/examples:classify"
REGRESS = "/v1/models/examples:regress"
CONFIG = """
model_config_list {{ config {{
  name: "examples" base_path: "{base}" model_platform: "tensorflow" version_labels {{ key: "stable" value: 123 }}
}} config {{ name: "counter" base_path: "{counter}" }} }}
"""


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_examples(tmp_path_factory.mktemp("examples") / "examples" / "123")


@pytest.fixture(scope="module")
def asking(version: Path) -> Iterator[Client]:
    counter = save_counter(version.parents[1] / "counter" / "1").parent
    config = version.parents[1] / "models.config"
    config.write_text(CONFIG.format(base=version.parent, counter=counter))
    with ModelServer(config, rest_port=0, grpc_port=0) as server:
        client = Client(server.rest_port, server.grpc_port)
        yield client
        client.close()


def example(**features: float) -> tf.train.Example:
    made = tf.train.Example()
    for name, value in features.items():
        made.features.feature[name].float_list.value.append(value)
    return made


def request(kind: Any, signature: str, *xs: float, context: float | None = None) -> Any:
    made = kind()
    made.model_spec.name = "examples"
    made.model_spec.signature_name = signature
    fill_input(made.input, xs, context)
    return made


def fill_input(given: Any, xs: tuple[float, ...], context: float | None) -> None:
    rows = [example(x=x) for x in xs]
    if context is None:
        given.example_list.examples.extend(rows)
    else:
        given.example_list_with_context.context.CopyFrom(example(x=context))
        given.example_list_with_context.examples.extend(rows or [tf.train.Example()])


def regress(asking: Client, signature: str, *xs: float, context: float | None = None) -> Any:
    return asking.prediction.Regress(request(regression_pb2.RegressionRequest, signature, *xs, context=context))


def classify(asking: Client, signature: str, *xs: float) -> Any:
    return asking.prediction.Classify(request(classification_pb2.ClassificationRequest, signature, *xs))


@pytest.mark.conformance("A3", "H15")
def test_a3_h15_classify(asking: Client) -> None:
    answer = classify(asking, "classify_x_to_y", 2.0)
    ((one,),) = [row.classes for row in answer.result.classifications]
    assert (one.label, one.score) == ("", 3.0)
    spec = answer.model_spec
    assert (spec.name, spec.signature_name, spec.version.value) == ("examples", "classify_x_to_y", 123)
    rows = classify(asking, "classify_two", 7.0, 1.0).result.classifications
    assert [[(c.label, c.score) for c in row.classes] for row in rows] == [
        [("7", 7.0), ("-7", -7.0)],
        [("1", 1.0), ("-1", -1.0)],
    ]
    (row,) = classify(asking, "classes_alone", 5.0).result.classifications
    assert [(c.label, c.score) for c in row.classes] == [("5", 0.0)]
    (row,) = classify(asking, "classify_x_to_y", -4.0).result.classifications
    assert [c.score for c in row.classes] == [0.0]


@pytest.mark.conformance("A4", "H15")
def test_a4_h15_regress(asking: Client) -> None:
    answer = regress(asking, "regress_x_to_y", 2.0)
    assert [row.value for row in answer.result.regressions] == [3.0]
    spec = answer.model_spec
    assert (spec.name, spec.signature_name, spec.version.value) == ("examples", "regress_x_to_y", 123)
    assert [r.value for r in regress(asking, "regress_flat", 80.0, 4.0).result.regressions] == [42.0, 4.0]
    assert [r.value for r in regress(asking, "regress_flat", context=6.0).result.regressions] == [5.0]


@pytest.mark.conformance("H1", "H15")
@pytest.mark.parametrize(
    ("method", "signature", "fragment"),
    [
        ("Classify", "nothing", "No signature was found with the name: nothing"),
        ("Regress", "nothing", "No signature was found with the name: nothing"),
        ("Classify", "", "No signature was found with the name: serving_default"),
        ("Classify", "scores_cube", "Expected Tensor shape: [batch_size num_classes] but got [2,1,1]"),
        ("Classify", "scores_short", "Expected scores output batch size of 2. Got: 0"),
        ("Classify", "scores_double", "Expected scores Tensor of DT_FLOAT. Got: float64"),
        ("Classify", "classes_numbers", "Expected classes Tensor of DT_STRING. Got: float32"),
        ("Classify", "uneven", "should match in dim_size(1). Got 1 vs. 2"),
        ("Classify", "regress_flat", 'contain at least one of "classes" or "scores"'),
        ("Regress", "outputs_wide", "[batch_size, 1] but got [2,2]"),
        ("Regress", "outputs_short", "did not match output batch size: 2 vs. 0"),
        ("Regress", "outputs_double", "Expected output Tensor of DT_FLOAT.  Got: float64"),
        ("Regress", "unnamed", "No regression outputs found"),
        ("Regress", "classify_two", "Expected one output Tensor."),
        ("Regress", "failing", "Matrix size-incompatible"),
    ],
)
def test_h15_malformed_signatures_and_answers(asking: Client, method: str, signature: str, fragment: str) -> None:
    kind = classification_pb2.ClassificationRequest if method == "Classify" else regression_pb2.RegressionRequest
    code, text = failure(getattr(asking.prediction, method), request(kind, signature, 1.0, 2.0))
    assert code == INVALID
    assert fragment in text


@pytest.mark.conformance("H15")
def test_h15_empty_input_and_missing_spec(asking: Client) -> None:
    for kind, method in (
        (classification_pb2.ClassificationRequest, asking.prediction.Classify),
        (regression_pb2.RegressionRequest, asking.prediction.Regress),
    ):
        signature = "classify_x_to_y" if "Class" in kind.__name__ else "regress_x_to_y"
        assert failure(method, request(kind, signature)) == (INVALID, "Input is empty.")
        unset = request(kind, signature)
        unset.input.Clear()
        assert failure(method, unset) == (INVALID, "Input is empty.")
        assert failure(method, kind()) == (INVALID, "Missing ModelSpec")
        unknown = request(kind, signature, 1.0)
        unknown.model_spec.name = "none"
        assert failure(method, unknown)[0] == grpc.StatusCode.NOT_FOUND


def multi(*tasks: tuple[str, str, str], xs: tuple[float, ...] = (2.0,)) -> Any:
    made = inference_pb2.MultiInferenceRequest()
    fill_input(made.input, xs, None)
    for name, signature, method in tasks:
        task = made.tasks.add(method_name=f"tensorflow/serving/{method}")
        task.model_spec.name = name
        task.model_spec.signature_name = signature
    return made


BOTH = (("examples", "regress_x_to_y", "regress"), ("examples", "classify_x_to_y", "classify"))


@pytest.mark.conformance("A5", "H16")
def test_a5_h16_multi_inference(asking: Client) -> None:
    first, second = asking.prediction.MultiInference(multi(*BOTH)).results
    assert first.regression_result.regressions[0].value == 3.0
    assert second.classification_result.classifications[0].classes[0].score == 3.0
    for result, (name, signature, _) in zip((first, second), BOTH, strict=True):
        spec = result.model_spec
        assert (spec.name, spec.signature_name, spec.version.value) == (name, signature, 123)
    several = multi(BOTH[0], ("examples", "regress_flat", "regress"))
    assert [r.regression_result.regressions[0].value for r in asking.prediction.MultiInference(several).results] == [
        3.0,
        3.0,
    ]


@pytest.mark.conformance("H16")
@pytest.mark.parametrize(
    ("tasks", "xs", "code", "fragment"),
    [
        (BOTH, (), INVALID, "Input is empty."),
        ((), (2.0,), INVALID, "must have tasks"),
        ((("", "a", "regress"),), (2.0,), INVALID, "empty model name"),
        (
            (("examples", "nothing", "regress"),),
            (2.0,),
            INVALID,
            "not found in model graph: nothing",
        ),
        ((BOTH[0], ("other", "x", "regress")), (2.0,), INVALID, "must access the same model name"),
        ((BOTH[0], BOTH[0]), (2.0,), INVALID, "Duplicate evaluation of signature: regress_x_to_y"),
        ((("examples", "regress_flat", "predict"),), (2.0,), grpc.StatusCode.UNIMPLEMENTED, "Unsupported signature"),
    ],
)
def test_h16_refused(asking: Client, tasks: Any, xs: Any, code: Any, fragment: str) -> None:
    found, text = failure(asking.prediction.MultiInference, multi(*tasks, xs=xs))
    assert (found, fragment in text) == (code, True)


@pytest.mark.conformance("H7")
def test_h7_predict_by_signatures_of_examples(asking: Client) -> None:
    rows = [example(x=4.0).SerializeToString()]
    assert asking.predict("examples", signature="regress_flat", inputs=rows).outputs["outputs"].float_val == [4.0]
    assert asking.predict("examples", signature="classify_x_to_y", inputs=rows).outputs["scores"].float_val == [4.0]


@pytest.mark.conformance("H8")
def test_h8_state_and_signatures_without_inputs(asking: Client) -> None:
    def call(signature: str, **inputs: Any) -> float:
        return asking.predict("counter", signature=signature, **inputs).outputs["output"].float_val[0]

    calls = [call("get_counter"), call("increase_counter"), call("add", delta=0.0), call("add", delta=3.0)]
    assert calls == [0.0, 1.0, 1.0, 4.0]


# REST.


def asked(signature: str, *xs: float, **more: Any) -> dict[str, Any]:
    return {"signature_name": signature, "examples": [{"x": float(x)} for x in xs], **more}


@pytest.mark.conformance("A14", "C8", "F13")
def test_a14_c8_f13_regress_over_rest(asking: Client) -> None:
    for path in (REGRESS, "/v1/models/examples/versions/123:regress", "/v1/models/examples/labels/stable:regress"):
        assert asking.ok(path, asked("regress_x_to_y", 80.0)) == {"results": [42.0]}
    answer = asking.post(REGRESS, b'{"signature_name": "regress_flat", "examples": [{"x": 2.0}, {"x": Infinity}, {}]}')
    assert answer.text == '{\n    "results": [3.0, Infinity, 2.0]\n}\n'
    assert asking.ok(REGRESS, {"signature_name": "regress_flat", "context": {"x": 6.0}, "examples": [{}]}) == {
        "results": [5.0]
    }


@pytest.mark.conformance("A13", "C9", "F12")
def test_a13_c9_f12_classify_over_rest(asking: Client) -> None:
    for path in (CLASSIFY, "/v1/models/examples/labels/stable:classify"):
        assert asking.ok(path, asked("classify_x_to_y", 20.0)) == {"results": [[["", 12.0]]]}
    assert asking.ok(CLASSIFY, asked("classify_x_to_y", 10.0)) == {"results": [[["", 7.0]]]}
    assert asking.ok(CLASSIFY, asked("classify_two", 1.0, 3.0)) == {
        "results": [[["1", 1.0], ["-1", -1.0]], [["3", 3.0], ["-3", -3.0]]]
    }


@pytest.mark.conformance("G1", "G2")
def test_g1_g2_features_by_the_kind_of_their_values() -> None:
    document = {
        "context": {"query": "é", "raw": [{"b64": "AP8="}, "x"], "odd": [math.nan, -math.inf]},
        "examples": [{"names": ["a", "b"], "prices": [8.0, 9.0], "age": 20, "score": 6.0, "on": [1, True, False]}, {}],
    }
    found = examples.request_input(document).example_list_with_context
    context = found.context.features.feature
    assert list(context["query"].bytes_list.value) == ["é".encode()]
    assert list(context["raw"].bytes_list.value) == [b"\x00\xff", b"x"]
    assert math.isnan(context["odd"].float_list.value[0])
    assert context["odd"].float_list.value[1] == -math.inf
    first = found.examples[0].features.feature
    assert list(first["names"].bytes_list.value) == [b"a", b"b"]
    assert list(first["prices"].float_list.value) == [8.0, 9.0]
    assert list(first["age"].int64_list.value) == [20]
    assert list(first["score"].float_list.value) == [6.0]
    assert list(first["on"].int64_list.value) == [1, 1, 0]
    assert len(found.examples) == 2
    plain = examples.request_input({"examples": [{"a": 1}]})
    assert plain.WhichOneof("kind") == "example_list"


@pytest.mark.conformance("G3", "G4", "G5", "G6", "F14")
@pytest.mark.parametrize(
    ("body", "fragment"),
    [
        (b'{"signature_name": 5, "examples": [{}]}', "'signature_name' key must be a string"),  # G3
        (b'{"context": [], "examples": [{}]}', "Example must be JSON object but got JSON Array"),  # G4
        (b'{"examples": [10]}', "Example must be JSON object but got JSON Number"),
        (b'{"examples": {}}', "to be an list/array"),  # G5
        (b"{}", "key 'examples' is expected and was not found"),
        (b'{"examples": []}', "is an empty array"),
        (b'{"examples": [{"f": [10, null]}]}', "Feature: f has element with unexpected JSON type: Null"),  # G6
        (b'{"examples": [{"f": [10, 10.0]}]}', "feature: f expecting type: int64"),
        (b'{"examples": [{"f": ["x", 10]}]}', "feature: f expecting type: bytes"),
        (b'{"examples": [{"f": [10, {"test": 10}]}]}', "unexpected JSON type: Object"),
        (b'{"examples": [{"f": [[10], 20]}]}', "unexpected JSON type: Array"),
        (b'{"examples": [{"f": [20, 18446744073709551603]}]}', "Only int64_t is supported"),
        (b'{"examples": [{"f": {"b64": "%"}}]}', "Unable to base64 decode"),
        (b'{"examples": [{"f": "\\ud800"}]}', "surrogate"),
        (b'{"signature_name": "nothing", "examples": [{}]}', "No signature was found with the name: nothing"),
        (b"", "The document is empty"),
    ],
)
def test_g3_to_g6_refused(asking: Client, body: bytes, fragment: str) -> None:
    for path in (CLASSIFY, REGRESS):
        assert fragment in asking.error(path, body)


@pytest.mark.conformance("F14")
def test_f14_empty_results_are_refused() -> None:
    with pytest.raises(ServingError, match="Cannot convert empty ClassificationResults"):
        examples.classification_json(classification_pb2.ClassificationResult())
    with pytest.raises(ServingError, match="Cannot convert empty RegressionResults"):
        examples.regression_json(regression_pb2.RegressionResult())


# Signatures that say more.


@pytest.mark.conformance("H10", "H11")
def test_h10_h11_defaults_and_method_names(tmp_path: Path) -> None:
    version = save_half_plus(tmp_path / "half" / "1")

    def change(signatures: Any) -> None:
        signatures["serving_default"].defaults["x"].CopyFrom(tf.make_tensor_proto([6.0]))
        signatures["again"].method_name = "my/own"

    edit_signatures(version, change)
    for checked in (False, True):
        with ModelServer(tmp_path, rest_port=0, grpc_port=0, settings=Settings(check_method_names=checked)) as server:
            client = Client(server.rest_port, server.grpc_port)
            assert client.predict("half").outputs["y"].float_val == [5.0]
            assert client.predict("half", x=2.0).outputs["y"].float_val == [3.0]
            assert "Missing named input" in client.error("/v1/models/half:predict", {"inputs": {}})  # gRPC alone
            if checked:
                code, text = failure(client.predict, "half", signature="again", x=2.0)
                assert (code, "Was: my/own" in text) == (grpc.StatusCode.INTERNAL, True)
            else:
                assert client.predict("half", signature="again", x=2.0).outputs["y"].float_val == [3.0]
            client.close()


def warmup_logs() -> list[bytes]:
    logs = []
    for kind, made in (
        ("classify_log", request(classification_pb2.ClassificationRequest, "classify_x_to_y", 1.0)),
        ("regress_log", request(regression_pb2.RegressionRequest, "regress_x_to_y", 1.0)),
        ("multi_inference_log", multi(*BOTH)),
        (
            "predict_log",
            predict_request("examples", signature="regress_flat", inputs=[example(x=1.0).SerializeToString()]),
        ),
    ):
        log = prediction_log_pb2.PredictionLog()
        getattr(log, kind).request.CopyFrom(made)
        logs.append(log.SerializeToString())
    return logs


@pytest.mark.conformance("K8")
def test_k8_warmup_by_every_method(tmp_path: Path, version: Path) -> None:
    version = publish(version, tmp_path, 1)
    write_warmup(version, warmup_logs())
    Loader(Settings(warmup_iterations=2))(version).close()
    log = prediction_log_pb2.PredictionLog()
    log.regress_log.request.CopyFrom(request(regression_pb2.RegressionRequest, "failing", 1.0))
    write_warmup(version, [*warmup_logs(), log.SerializeToString()])
    with pytest.raises(ServingError, match=r"Warmup record 4 failed: .*Matrix size-incompatible") as caught:
        Loader()(version)
    assert caught.value.code == Code.INVALID_ARGUMENT
    Loader(Settings(warmup=False))(version).close()
