"""Sections C, D and E of the conformance checklist: predict over REST."""

import base64
import gzip
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.app import ModelServer
from serving.settings import Batching, Settings
from tests.serving.conftest import SERVER
from tests.serving.saved_models import Client

HALF = "/v1/models/half:predict"
ECHO = "/v1/models/echo:predict"


@pytest.fixture(scope="module", params=["alone", "batched"])
def client(request: pytest.FixtureRequest, server: Any, models: Path) -> Iterator[Client]:
    """Of a server whose threads answer a request each, and of one whose event loop waits for batches."""
    if request.param == "alone":
        client = Client(server.rest_port, server.grpc_port)
        yield client
        client.close()
        return
    if SERVER:
        pytest.skip("another server is asked as it was started")
    settings = Settings(batching=Batching(max_batch_size=64, batch_timeout_micros=100))
    with ModelServer(models, rest_port=0, grpc_port=0, settings=settings) as batching:
        client = Client(batching.rest_port, batching.grpc_port)
        yield client
        client.close()


def row(signature: str, instances: Any) -> dict[str, Any]:
    return {"signature_name": signature, "instances": instances}


def column(signature: str, inputs: Any) -> dict[str, Any]:
    return {"signature_name": signature, "inputs": inputs}


def b64(data: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(data).decode()}


def test_answers_and_questions_of_any_size(client: Client) -> None:
    """The event loop itself handles small ones alone."""
    for size in (10, 5_000, 40_000):
        values = list(range(size))
        assert client.ok(ECHO, column("int32", values)) == {"outputs": values}


# Section C, models and versions.


@pytest.mark.conformance("A28", "C1")
def test_c1_unknown_model_and_version(client: Client) -> None:
    good = {"instances": [1.0]}
    assert client.error("/v1/models/none:predict", good, 404) == "Servable not found for request: Latest(none)"
    assert client.error("/v1/models/half99:predict", good, 404) == "Servable not found for request: Latest(half99)"
    message = client.error("/v1/models/half/versions/5:predict", good, 404)
    assert message == "Servable not found for request: Specific(half, 5)"


@pytest.mark.conformance("C2", "C3", "C4", "C5", "C6")
def test_c2_c3_c4_c5_c6_bad_requests(client: Client) -> None:
    assert client.error(HALF, b"") == "JSON Parse error: The document is empty"
    assert client.error(HALF, b"instances = [1, 2]") == "JSON Parse error: Invalid value. at offset: 0"
    assert "not of expected type: float" in client.error(HALF, {"instances": ["x", "y"]})
    assert "Unrecognized servable version label: L" in client.error("/v1/models/half/labels/L:predict", {"inputs": 1})
    message = client.error(HALF, {"signature_name": 100, "instances": [1]})
    assert "'signature_name' key must be a string value." in message


@pytest.mark.conformance("A15", "A16", "A22", "A23", "C7")
def test_c7_predict_answers(client: Client) -> None:
    assert client.ok(HALF, {"instances": [1.0, 2.0]}) == {"predictions": [2.5, 3.0]}
    assert client.ok("/v1/models/half/versions/123:predict", {"instances": [2]}) == {"predictions": [3.0]}
    named = {"signature_name": "serving_default", "instances": [[1, 2], [3, 4]]}
    assert client.ok(HALF, named) == {"predictions": [[2.5, 3.0], [3.5, 4.0]]}
    assert client.ok(HALF, {"inputs": [2, 3, 4]}) == {"outputs": [3.0, 3.5, 4.0]}
    assert client.post(HALF, {"instances": [2, 3]}).text == '{\n    "predictions": [3.0, 3.5]\n}\n'


@pytest.mark.conformance("A17", "C10")
def test_c10_status(client: Client) -> None:
    available = {"version": "123", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    for path in ("/v1/models/half", "/v1/models/half/versions/123", "/v1/models/half/labels/any"):
        assert client.http.get(path).json() == {"model_version_status": [available]}
    missing = client.http.get("/v1/models/none")
    assert missing.status_code == 404
    assert missing.json() == {"error": "Could not find any versions of model none"}


@pytest.mark.conformance("A18", "C11")
def test_c11_metadata(client: Client) -> None:
    document = client.http.get("/v1/models/half/versions/123/metadata").json()
    assert document["model_spec"] == {"name": "half", "signature_name": "", "version": "123"}
    signatures = document["metadata"]["signature_def"]["signature_def"]
    x = {"dtype": "DT_FLOAT", "tensor_shape": {"dim": [], "unknown_rank": True}, "name": "serving_default_x:0"}
    y = {"dtype": "DT_FLOAT", "tensor_shape": {"dim": [], "unknown_rank": True}, "name": "StatefulPartitionedCall_1:0"}
    assert signatures["serving_default"] == {
        "inputs": {"x": x},
        "outputs": {"y": y},
        "method_name": "tensorflow/serving/predict",
        "defaults": {},
    }
    echo = client.http.get("/v1/models/echo/metadata").json()["metadata"]["signature_def"]["signature_def"]
    steps = echo["slow"]["inputs"]["steps"]["tensor_shape"]
    assert steps == {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False}


@pytest.mark.conformance("C12")
def test_c12_unknown_signature(client: Client) -> None:
    message = client.error(HALF, row("s", [1.0]))
    assert message == 'Serving signature name: "s" not found in signature def'


@pytest.mark.conformance("C13")
def test_c13_order_of_checks(client: Client) -> None:
    assert "JSON Parse error" in client.error("/v1/models/none:predict", b"{")
    assert "Servable not found" in client.error("/v1/models/none:predict", {"signature_name": "s"}, 404)
    assert "not found in signature def" in client.error(HALF, {"signature_name": "s"})


# Section D, what is accepted.


@pytest.mark.conformance("D1", "D15")
def test_d1_d15_rows_and_columns_give_the_same_arrays(client: Client) -> None:
    values = [[1, 2], [3, 4], [5, 6]]
    assert client.ok(ECHO, row("int32", values)) == {"predictions": values}
    assert client.ok(ECHO, row("int32", [{"x": value} for value in values])) == {"predictions": values}
    assert client.ok(ECHO, column("int32", values)) == {"outputs": values}
    assert client.ok(ECHO, column("int32", {"x": values})) == {"outputs": values}


@pytest.mark.conformance("D2", "D3", "D4")
def test_d2_d3_d4_deep_nesting_is_a_400(client: Client) -> None:
    nest = b"[" * 500_000 + b"]" * 500_000
    assert "nested too deeply" in client.error(HALF, b'{"extra": ' + nest + b', "instances": [1]}')
    assert len(client.error(HALF, b'{"signature_name": ' + nest + b"}")) < 1000
    for depth in (50_000, 900, 66, 65):
        nest = b"[" * depth + b"]" * depth
        assert len(client.error(HALF, b'{"instances": ' + nest + b"}")) < 1000
    assert len(client.error(HALF, b'{"signature_name": ' + b"[" * 500 + b"]" * 500 + b"}")) < 1000
    assert client.ok(HALF, {"instances": [1.0]}) == {"predictions": [2.5]}


@pytest.mark.parametrize("signature", ["float", "double"])
@pytest.mark.conformance("D5")
def test_d5_integers_and_decimals_mix(client: Client, signature: str) -> None:
    assert client.ok(ECHO, row(signature, [1, 2.5, -3])) == {"predictions": [1.0, 2.5, -3.0]}


@pytest.mark.conformance("D6", "D7", "D8")
def test_d6_d7_d8_floats_lose_precision_and_range(client: Client) -> None:
    answer = client.ok(ECHO, row("float", [1435774380, 1435774380.0]))["predictions"]
    assert np.float32(answer).tolist() == [1435774336.0] * 2  # the nearest of float32's, 128 apart there
    largest, smallest = 1.7976931348623157e308, 2.2250738585072014e-308
    answer = client.ok(ECHO, row("float", [largest, -largest, smallest, -smallest]))["predictions"]
    assert answer == [math.inf, -math.inf, 0.0, 0.0]
    assert [math.copysign(1, value) for value in answer[2:]] == [1, -1]


@pytest.mark.conformance("D9", "D21")
def test_d9_d21_signature_names(client: Client) -> None:
    assert client.ok(HALF, {"signature_name": "", "instances": [1.0]}) == {"predictions": [2.5]}
    assert client.ok(HALF, row("again", [1.0])) == {"predictions": [2.5]}


@pytest.mark.conformance("D10", "D26")
def test_d10_d26_trailing_bytes_and_double_keys_are_refused(client: Client) -> None:
    message = client.error(HALF, b'{"instances": [1]} x')
    assert message == "JSON Parse error: The document root must not be followed by other values. at offset: 19"
    assert 'The name "instances" occurs twice' in client.error(HALF, b'{"instances": [1], "instances": [2]}')


@pytest.mark.conformance("D11", "D12", "D13")
def test_d11_d12_d13_base64_in(client: Client) -> None:
    data = [b64(b"\x00\xff"), b64(b"ab")]
    assert client.ok(ECHO, row("bytes", data)) == {"predictions": data}
    assert client.ok(ECHO, row("bytes", [[item] for item in data])) == {"predictions": [[item] for item in data]}
    nested = [{"x": [[item] for item in data]}]
    assert client.ok(ECHO, row("bytes", nested)) == {"predictions": [[[item] for item in data]]}
    assert client.ok(ECHO, row("bytes", [{"b64": "YQ"}])) == {"predictions": [{"b64": "YQ=="}]}


@pytest.mark.conformance("D14")
def test_d14_four_inputs_with_non_finite_numbers(client: Client) -> None:
    rows = [
        {"a": [[1, 2], [3, 4], [5, 6]], "b": ["x", b64(b"\x01")], "c": [math.nan, math.inf], "d": [1.5]},
        {"a": [[7, 8], [9, 10], [11, 12]], "b": ["", "é"], "c": [-math.inf, 0], "d": [math.nan]},
    ]
    answer = client.ok(ECHO, row("mixed", rows))["predictions"]
    assert [item["a"] for item in answer] == [item["a"] for item in rows]
    assert [item["b_bytes"] for item in answer] == [[b64(b"x"), b64(b"\x01")], [b64(b""), b64("é".encode())]]
    assert [item["text"] for item in answer] == [["x", "\x01"], ["", "é"]]
    assert math.isnan(answer[0]["c"][0])
    assert answer[0]["c"][1] == math.inf
    assert answer[1]["c"] == [-math.inf, 0.0]
    assert answer[0]["d"] == [1.5]
    assert math.isnan(answer[1]["d"][0])


@pytest.mark.conformance("D16", "D17", "D18")
def test_d16_d17_d18_columns_of_any_shape(client: Client) -> None:
    columns = {"a": [[1], [2], [3]], "b": b64(b"q"), "c": [], "d": 0.5, "more": "ignored"}
    answer = client.ok(ECHO, column("mixed", columns))["outputs"]
    assert answer == {"a": [[1], [2], [3]], "b_bytes": b64(b"q"), "c": [], "d": 0.5, "text": "q"}
    assert client.ok(HALF, {"inputs": 3}) == {"outputs": 3.5}


@pytest.mark.conformance("D19", "D20")
def test_d19_d20_empty_rows_and_unknown_keys(client: Client) -> None:
    assert client.ok(ECHO, {**row("int32", [[]]), "more": [1, {}]}) == {"predictions": [[]]}


@pytest.mark.conformance("D22", "D23")
def test_d22_d23_byte_order_mark_and_tokens(client: Client) -> None:
    body = b'\xef\xbb\xbf{"instances": [NaN, Infinity, -Infinity]}'
    answer = client.post(HALF, body)
    assert "[NaN, Infinity, -Infinity]" in answer.text


@pytest.mark.conformance("D24", "D25")
def test_d24_d25_text(client: Client) -> None:
    words = ["naïve", "日本", 'a"b\\', "nul\x00inside", "\u2028"]
    assert client.ok(ECHO, row("string", words)) == {"predictions": words}
    assert client.ok(ECHO, row("bytes", ["nul\x00é"])) == {"predictions": [b64("nul\x00é".encode())]}
    assert "Invalid encoding" in client.error(ECHO, b'{"signature_name": "string", "instances": ["\xff"]}')
    assert "surrogate" in client.error(ECHO, b'{"signature_name": "string", "instances": ["\\ud800"]}')


@pytest.mark.conformance("K10")
def test_gzip_bodies(client: Client) -> None:
    headers = {"Content-Encoding": "gzip"}
    body = gzip.compress(b'{"instances": [1.0]}')
    assert client.http.post(HALF, content=body, headers=headers).json() == {"predictions": [2.5]}
    for broken in (b"not gzip", body[:-9], body + b"more", body + body):
        answer = client.http.post(HALF, content=broken, headers=headers)
        assert (answer.status_code, "not valid gzip" in answer.text) == (400, True)
    assert client.http.post(HALF, content=b"{}", headers={"Content-Encoding": "br"}).status_code == 415


# Section E, what is rejected.


@pytest.mark.parametrize(
    ("body", "fragment"),
    [
        (b"", "document is empty"),  # E1
        (b"[1]", "Is not object"),  # E2
        (b"1", "Is not object"),
        (b'"x"', "Is not object"),
        (b'{"signature_name": [], "instances": [1]}', "must be a string value"),  # E3
        (b'{"instances": [1], "inputs": [1]}', "Not formatted correctly expecting only one of"),  # E4
        (b"{}", "Missing 'inputs' or 'instances' key"),  # E5
        (b'{"instances": {}}', "to be an list/array"),  # E6
        (b'{"instances": 3}', "to be an list/array"),
        (b'{"instances": []}', "No values in 'instances' array"),  # E7
        (b'{"instances": [[1,2],[3,4],[5,6,7]]}', "Expecting tensor size: 2 but got: 3"),  # E8
        (b'{"instances": [[1,2],[3,4],[[5,6]]]}', "Expecting shape [2] but got: [1,2]"),  # E9
        (b'{"instances": [1,[1]]}', "Expecting shape [] but got: [1]"),
        (b'{"instances": [[1,2],["a","b"]]}', "not of expected type"),  # E10
        (b'{"inputs": [[1,2],[3]]}', "Encountered list at unexpected size: 1 at level: 1 expected size: 2"),  # E11
        (b'{"instances": [[[1,2],[3]]]}', "Encountered list at unexpected size"),
        (b'{"inputs": [[1,2],3]}', "found at incorrect level: 2 in the JSON DOM. Expected at level: 2"),  # E12
        (b'{"inputs": [1,[2]]}', "Encountered list at unexpected level: 1 expected < 1"),
        (b'{"instances": [[1],{"x": [1]}]}', "Expecting value/list but got object at item 1"),  # E15
        (b'{"instances": [{"x": 1},[1]]}', "Expecting object but got list at item 1"),
        (b'{"instances": [{"x": 1, "y": 2}]}', "does not have named input: y"),  # E17
        (b'{"instances": [{}]}', "keys must be equal to: x"),
        (b'{"inputs": {"y": 1}}', "Missing named input: x in 'inputs' object"),  # E20
        (b'{"instances": [{"b64": "YQ=="}]}', "not of expected type: float"),  # E21
        (b'{"instances": [1', "JSON Parse error: Missing a comma"),  # E27
        (b'{"instances": [1,]}', "at offset: 17"),
        (b"{'instances': [1]}", "Missing a name for object member. at offset: 1"),
        (b'{"instances": [1] /* no */}', "JSON Parse error"),
        (b'{"instances": [' + b"1" * 5000 + b"]}", "Number too big"),
    ],
)
@pytest.mark.conformance(
    "E1", "E2", "E3", "E4", "E5", "E6", "E7", "E8", "E9", "E10", "E11", "E12", "E14", "E15", "E17", "E20", "E21", "E27"
)
def test_e1_to_e27_rejected(client: Client, body: bytes, fragment: str) -> None:
    assert fragment in client.error(HALF, body)


@pytest.mark.conformance("E13", "E14", "E16", "E17", "E19")
def test_e13_e14_e16_e19_rows_of_several_inputs(client: Client) -> None:
    first = {"a": [1, 2], "b": "x", "c": 1, "d": 1}
    message = client.error(ECHO, row("mixed", [first, {**first, "a": [1, 2, 3]}]))
    assert message == (
        "Failed to process element: 1 key: a of 'instances' list. Error: INVALID_ARGUMENT: "
        "Expecting tensor size: 2 but got: 3"
    )
    assert "Expecting shape [2] but got: [2,1]" in client.error(ECHO, row("mixed", [first, {**first, "a": [[1], [2]]}]))
    assert "Expecting object but got list at item 1" in client.error(ECHO, row("mixed", [first, [1]]))
    assert "plain list, but expecting list of objects" in client.error(ECHO, row("mixed", [1, 2]))
    assert "plain value/list, but expecting an object" in client.error(ECHO, column("mixed", [1, 2]))
    assert "keys must be equal to: a,b,c,d" in client.error(ECHO, row("mixed", [first, {"a": [1, 2]}]))


@pytest.mark.conformance("E18")
def test_e18_messages_name_the_item(client: Client) -> None:
    assert "Failed to process element: 2 of 'instances' list" in client.error(HALF, {"instances": [1, 2, "x"]})


@pytest.mark.parametrize(
    ("value", "fragment"),
    [
        ({"b64": "YQ==", "more": 1}, "not formatted correctly for base64"),  # E21
        ({"b64": 5}, "not formatted correctly for base64"),
        ({"b64": "%%%"}, "Unable to base64 decode"),  # E22
        ({"b64": "YQ==YQ=="}, "Unable to base64 decode"),
        (5, "not of expected type: string"),  # E23
        (None, "Type: Null is not of expected type: string"),
    ],
)
@pytest.mark.conformance("E21", "E22")
def test_e21_e22_strings(client: Client, value: Any, fragment: str) -> None:
    assert fragment in client.error(ECHO, column("string", [value]))


@pytest.mark.parametrize(
    ("signature", "token"),
    [
        *[("int32", token) for token in ("1.0", "2147483648", "-2147483649", "true", "null", '"1"', "NaN")],
        *[("int64", token) for token in ("9223372036854775808", "1e3")],
        *[("uint32", token) for token in ("-1", "4294967296")],
        *[("uint64", token) for token in ("-1", "18446744073709551616")],
        ("int8", "300"),  # E24: TensorFlow Serving takes it and wraps it round
        ("bool", "1"),
        ("float", "true"),
        ("double", "null"),
    ],
)
@pytest.mark.conformance("E23", "E24")
def test_e23_e24_values_of_another_type(client: Client, signature: str, token: str) -> None:
    for key in ("instances", "inputs"):
        body = json.dumps({"signature_name": signature, key: ["VALUE"]}).replace('"VALUE"', token)
        assert f"not of expected type: {signature}" in client.error(ECHO, body.encode())


@pytest.mark.conformance("E25")
def test_e25_types_that_json_cannot_carry(client: Client) -> None:
    assert "to type: half" in client.error(ECHO, column("half", [1]), 501)
    assert "to type: complex64" in client.error(ECHO, row("complex64", [1]))


@pytest.mark.conformance("E26")
def test_e26_signature_without_inputs(client: Client) -> None:
    message = client.error(HALF, row("__saved_model_init_op", [1]))
    assert message == "Failed to get input map for signature: __saved_model_init_op"


@pytest.mark.conformance("F15")
def test_f15_errors_are_json_whatever_stands_in_them(client: Client) -> None:
    assert client.error('/v1/models/a"b\\c%0A:predict', {"inputs": 1}, 404).endswith('Latest(a"b\\c\n)')


def test_kernel_errors_are_400(client: Client) -> None:
    message = client.error(ECHO, column("ratio", [[1.0, 2.0, 3.0]]))
    assert "Matrix size-incompatible" in message
    assert "Traceback" not in message
    assert ".py" not in message


@pytest.mark.conformance("F7")
def test_f7_f9_row_replies_need_one_batch(client: Client) -> None:
    assert "scalar has no shape information" in client.error(ECHO, row("ratio", [[1.0, 2.0]]))
    assert client.ok(ECHO, column("ratio", [[1.0, 2.0]])) == {"outputs": {"scalar": 7, "y": [[3.0]]}}
