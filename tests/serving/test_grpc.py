"""Section H of the conformance checklist: the gRPC services, by TensorFlow Serving's own stubs."""

from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    predict_pb2,
)

from serving.signatures import Signature, Tensor
from serving.status import Code, ServingError
from serving.tensor_proto import fill_proto, from_proto, run_predict
from tests.serving.saved_models import TYPES, Client, predict_request


def failure(call: Any, *arguments: Any, **options: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, **options)
    return caught.value.code(), caught.value.details()


def proto(dtype: Any, shape: list[int], **values: Any) -> tensor_pb2.TensorProto:
    made = tensor_pb2.TensorProto(dtype=dtype.as_datatype_enum, **values)
    for size in shape:
        made.tensor_shape.dim.add().size = size
    return made


@pytest.mark.conformance("H1")
def test_h1_model_spec_is_needed(client: Client) -> None:
    invalid, missing = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
    assert failure(client.prediction.Predict, predict_pb2.PredictRequest()) == (invalid, "Missing ModelSpec")
    assert failure(client.predict, "") == (invalid, "ModelSpec has no name specified.")
    assert failure(client.predict, "none", x=1.0) == (missing, "Servable not found for request: Latest(none)")
    assert failure(client.metadata, "", ["signature_def"])[0] == invalid
    assert failure(client.metadata, "none", ["signature_def"])[0] == missing
    assert failure(client.grpc_status, None)[0] == invalid
    assert failure(client.grpc_status, "none") == (missing, "Could not find any versions of model none")
    assert failure(client.grpc_status, "half", 5) == (missing, "Could not find version 5 of model half")


@pytest.mark.conformance("H2", "H3")
def test_h2_h3_inputs_must_match(client: Client) -> None:
    code, text = failure(client.predict, "half")
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert text.startswith("input size does not match signature: 0!=1")
    code, text = failure(client.predict, "half", wrong=1.0)
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "Sent extra: {wrong}. Missing but required: {x}." in text


@pytest.mark.conformance("A6", "H4")
def test_h4_output_filter(client: Client) -> None:
    inputs = {"a": np.int32([1]), "b": [b"x"], "c": [1.0], "d": np.float64([1])}
    answer = client.predict("echo", signature="mixed", outputs=("c", "text"), **inputs)
    assert set(answer.outputs) == {"c", "text"}
    code, text = failure(client.predict, "echo", signature="mixed", outputs=("z",), **inputs)
    assert (code, "output tensor alias not found in signature: z" in text) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    code, text = failure(client.predict, "echo", signature="mixed", outputs=("c", "c"), **inputs)
    assert (code, text) == (grpc.StatusCode.INVALID_ARGUMENT, "duplicate output tensor alias: c")


@pytest.mark.conformance("H5")
def test_h5_types_must_match(client: Client) -> None:
    expected = (grpc.StatusCode.INVALID_ARGUMENT, "Expects arg[0] to be float but bool is provided")
    assert failure(client.predict, "half", x=True) == expected


@pytest.mark.conformance("A6", "H6")
def test_h6_answer_of_a_scalar(client: Client) -> None:
    answer = client.predict("half", x=2.0)
    y = answer.outputs["y"]
    assert (list(y.float_val), y.tensor_content, len(y.tensor_shape.dim), y.dtype) == ([3.0], b"", 0, 1)
    spec = answer.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("half", 123, "serving_default")
    assert client.predict("half", signature="again", x=[1.0, 2.0]).model_spec.signature_name == "again"


def test_model_spec_names_a_version_or_a_label(client: Client) -> None:
    request = predict_request("half", x=2.0)
    request.model_spec.version.value = 123
    assert client.prediction.Predict(request).outputs["y"].float_val == [3.0]
    request.model_spec.version.value = 0
    message = "Servable not found for request: Specific(half, 0)"
    assert failure(client.prediction.Predict, request) == (grpc.StatusCode.NOT_FOUND, message)
    request.model_spec.version_label = "stable"
    message = "Unrecognized servable version label: stable"
    assert failure(client.prediction.Predict, request) == (grpc.StatusCode.INVALID_ARGUMENT, message)


@pytest.mark.conformance("H9")
def test_h9_unknown_signature(client: Client) -> None:
    expected = (grpc.StatusCode.FAILED_PRECONDITION, 'Serving signature key "s" not found.')
    assert failure(client.predict, "half", signature="s", x=2.0) == expected


def test_signature_without_tensors_cannot_be_called(client: Client) -> None:
    code, text = failure(client.predict, "half", signature="__saved_model_init_op")
    assert (code, "cannot be called" in text) == (grpc.StatusCode.INVALID_ARGUMENT, True)


@pytest.mark.parametrize(
    "broken",
    [
        proto(tf.float32, [3], tensor_content=b"\0" * 8),  # too little
        proto(tf.float32, [1], tensor_content=b"\0" * 8),  # too much
        proto(tf.float32, [2], float_val=[1, 2, 3]),
        proto(tf.float32, [4], float_val=[1, 2, 3]),
        proto(tf.float32, [1]),
        proto(tf.float32, [0], float_val=[1.0]),
        proto(tf.float32, [-1], float_val=[1.0]),
        proto(tf.float32, [1 << 40, 1 << 40], float_val=[1.0]),  # 4 TiB from one value
        proto(tf.float32, [1 << 62, 8], float_val=[1.0]),  # 64-bit overflow
        proto(tf.float32, [0, 1 << 62]),  # nothing, and yet too large for an array
        proto(tf.float32, [1] * 300, float_val=[1.0]),
        proto(tf.resource, []),
        tensor_pb2.TensorProto(),
    ],
)
@pytest.mark.conformance("H12")
def test_h12_malformed_tensors(client: Client, broken: Any) -> None:
    code, text = failure(client.predict, "half", x=broken)
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert text.startswith("tensor parsing error: x")


@pytest.mark.conformance("H12")
def test_h12_strings_and_narrow_integers(client: Client) -> None:
    code, text = failure(client.predict, "echo", signature="string", x=proto(tf.string, [2], string_val=[b"a"] * 3))
    assert (code, "needs 2 values, string_val has 3" in text) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    code, text = failure(client.predict, "echo", signature="int8", x=proto(tf.int8, [1], int_val=[300]))
    assert (code, "outside the range of int8" in text) == (grpc.StatusCode.INVALID_ARGUMENT, True)


@pytest.mark.conformance("H12")
def test_h12_inputs_together_take_no_more_than_one_may() -> None:
    class Adding:
        signatures = {  # noqa: RUF012 - a fake
            "serving_default": Signature(
                {x: Tensor(f"{x}:0", "float", 1) for x in "abc"}, {"y": Tensor("y:0", "float", 1)}
            )
        }
        signature_def = None
        signature_def_json: dict[str, Any] = {}  # noqa: RUF012 - a fake

        def run(self, signature_name: str, inputs: Any) -> dict[str, np.ndarray]:
            return {"y": sum(array[:1] for array in inputs.values())}

        def close(self) -> None:
            pass

    def request(mebibytes: int) -> Any:
        one_value = proto(tf.float32, [mebibytes << 18], float_val=[1.0])
        return predict_request("any", a=one_value, b=one_value, c=one_value)

    assert run_predict(Adding(), request(85))[1]["y"].tolist() == [3.0]
    with pytest.raises(
        ServingError, match=r"tensor parsing error: c .*together take more than 268435456 bytes"
    ) as caught:
        run_predict(Adding(), request(86))
    assert caught.value.code == Code.INVALID_ARGUMENT


@pytest.mark.conformance("H13")
def test_h13_long_messages_are_cut(client: Client) -> None:
    code, text = failure(client.predict, "m" * 5000, x=1.0)
    assert code == grpc.StatusCode.NOT_FOUND
    assert len(text) == 1024 + len("...TRUNCATED")
    assert text.endswith("mm...TRUNCATED")


@pytest.mark.conformance("H14")
def test_h14_deadline(client: Client) -> None:
    request = predict_request("echo", signature="slow", steps=np.int32([40_000]))
    assert failure(client.prediction.Predict, request, timeout=0.05)[0] == grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.conformance("A2", "H17")
def test_h17_metadata(client: Client) -> None:
    assert failure(client.metadata, "half", [])[0] == grpc.StatusCode.INVALID_ARGUMENT
    assert failure(client.metadata, "half", ["signature_def", "other"])[0] == grpc.StatusCode.INVALID_ARGUMENT
    answer = client.metadata("half", ["signature_def"])
    assert (answer.model_spec.name, answer.model_spec.version.value) == ("half", 123)
    assert list(answer.metadata) == ["signature_def"]
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert answer.metadata["signature_def"].Unpack(signatures)
    assert signatures.signature_def["serving_default"].inputs["x"].dtype == tf.float32.as_datatype_enum


@pytest.mark.conformance("A1", "H18")
def test_h18_status(client: Client) -> None:
    for version in (None, 123):
        (status,) = client.grpc_status("half", version).model_version_status
        assert (status.version, status.state, status.status.error_code) == (123, 30, 0)


@pytest.mark.conformance("H20")
def test_h20_health(client: Client) -> None:
    stub = health_pb2_grpc.HealthStub(client.channel)
    for service in ("", "PredictionService", "ModelService"):
        assert stub.Check(health_pb2.HealthCheckRequest(service=service)).status == 1


VALUES = {
    "string": np.array([[b"a"], [b"\x00\xff"]], dtype=object),
    "bool": np.array([[True], [False]]),
    "complex64": np.array([[1 + 2j], [-3j]], dtype=np.complex64),
}


@pytest.mark.parametrize("name", TYPES)
def test_every_type_comes_back(client: Client, name: str) -> None:
    sent = VALUES.get(name, np.array([[1], [100]], dtype=TYPES[name].as_numpy_dtype))
    y = client.predict("echo", signature=name, x=sent).outputs["y"]
    back = tf.make_ndarray(y)
    assert back.dtype == sent.dtype
    np.testing.assert_array_equal(back, sent)
    typed = tensor_pb2.TensorProto()
    fill_proto(typed, sent, TYPES[name].as_datatype_enum)
    np.testing.assert_array_equal(tf.make_ndarray(typed), sent)
    np.testing.assert_array_equal(from_proto(typed, "x"), sent)


def test_one_value_stands_for_all() -> None:
    filled = from_proto(proto(tf.float32, [2, 2], float_val=[7.0]), "x")
    np.testing.assert_array_equal(filled, np.full((2, 2), 7.0, np.float32))
    bfloat = from_proto(tf.make_tensor_proto(np.array([1.5], tf.bfloat16.as_numpy_dtype)), "x")
    assert float(bfloat[0]) == 1.5


def test_a_fake_servable_is_enough() -> None:
    class Doubling:
        signatures = {"serving_default": Signature({"x": Tensor("x:0", "float", 1)}, {"y": Tensor("y:0", "float", 1)})}  # noqa: RUF012 - a fake
        signature_def = None
        signature_def_json: dict[str, Any] = {}  # noqa: RUF012 - a fake

        def run(self, signature_name: str, inputs: Any) -> dict[str, np.ndarray]:
            return {"y": 2 * inputs["x"]}

        def close(self) -> None:
            pass

    name, outputs = run_predict(Doubling(), predict_request("any", x=[1.0, 4.0]))
    assert (name, outputs["y"].tolist()) == ("serving_default", [2.0, 8.0])
    with pytest.raises(ServingError, match="Expects arg"):
        run_predict(Doubling(), predict_request("any", x=[1]))
