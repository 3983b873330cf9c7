"""Section F of the conformance checklist: arrays to JSON."""

import json
import math
import struct

import numpy as np
import pytest

from serving.json_tensor import predict_json
from serving.status import HTTP_STATUS, Code, ServingError


def value(array: np.ndarray, alias: str = "y", *, by_row: bool = True) -> object:
    document = json.loads(predict_json({alias: array}, by_row=by_row))
    return document["predictions" if by_row else "outputs"]


@pytest.mark.conformance("F1", "F2")
def test_f1_f2_nested_and_flat_lists() -> None:
    cube = np.arange(12, dtype=np.int32).reshape(2, 3, 2)
    expected = [[[0, 1], [2, 3], [4, 5]], [[6, 7], [8, 9], [10, 11]]]
    assert value(cube) == expected
    assert value(cube, by_row=False) == expected
    assert value(np.arange(5, dtype=np.int64)) == [0, 1, 2, 3, 4]
    assert value(np.array(3, dtype=np.int64), by_row=False) == 3


@pytest.mark.conformance("F3")
def test_f3_bytes_by_the_alias() -> None:
    array = np.array([[b"ab", b"\xff"]], dtype=object)
    assert value(array, "str_tensor_bytes") == [[{"b64": "YWI="}, {"b64": "/w=="}]]
    assert value(array, "str_tensor") == [["ab", "�"]]


@pytest.mark.conformance("F4")
def test_f4_floats_are_written_as_upstream_writes_them() -> None:
    array = np.array([9000000, 999999, 0.5, 0.0003, 0.00003, 555557.5], dtype=np.float32)
    text = predict_json({"y": array}, by_row=True)
    assert "[9e+06, 999999.0, 0.5, 0.0003, 3e-05, 555557.5]" in text


@pytest.mark.conformance("F5")
def test_f5_non_finite_tokens() -> None:
    array = np.array([math.nan, math.inf, -math.inf, 1.0], dtype=np.float64)
    assert "[NaN, Infinity, -Infinity, 1.0]" in predict_json({"y": array}, by_row=True)


@pytest.mark.parametrize(("dtype", "pack"), [(np.float32, "<f"), (np.float64, "<d")])
@pytest.mark.conformance("F6")
def test_f6_every_float_reads_back_the_same(dtype: type, pack: str) -> None:
    bits = np.random.default_rng(1).integers(0, 256, 40_000, dtype=np.uint8).tobytes()
    array = np.frombuffer(bits, dtype=dtype)
    array = np.concatenate([array[np.isfinite(array)], np.array([0.2, -0.0, 1e-45, 3.4028235e38], dtype=dtype)])
    back = value(array)
    assert [struct.pack(pack, number) for number in back] == [number.tobytes() for number in array]
    assert "[0.2]" in predict_json({"y": np.array([0.2], dtype=dtype)}, by_row=True)


@pytest.mark.conformance("F7", "F9")
def test_f7_f9_what_cannot_be_written() -> None:
    with pytest.raises(ServingError, match="empty tensor map"):
        predict_json({}, by_row=True)
    with pytest.raises(ServingError, match="tensor type: complex64"):
        predict_json({"y": np.zeros(2, np.complex64)}, by_row=True)
    with pytest.raises(ServingError, match="no shape information"):
        predict_json({"y": np.array(1)}, by_row=True)
    uneven = {"a": np.zeros(2), "b": np.zeros(1)}
    with pytest.raises(ServingError, match="inconsistent batch size"):
        predict_json(uneven, by_row=True)
    assert json.loads(predict_json(uneven, by_row=False)) == {"outputs": {"a": [0.0, 0.0], "b": [0.0]}}


@pytest.mark.conformance("F8")
def test_f8_several_outputs() -> None:
    outputs = {
        "ids": np.array([[1, 2], [3, 4]]),
        "on": np.array([True, False]),
        "score": np.array([0.5, 2], dtype=np.float32),
        "text": np.array([b"x", b'"'], dtype=object),
        "raw_bytes": np.array([b"x", b"y"], dtype=object),
    }
    rows = json.loads(predict_json(outputs, by_row=True))["predictions"]
    assert rows == [
        {"ids": [1, 2], "on": True, "score": 0.5, "text": "x", "raw_bytes": {"b64": "eA=="}},
        {"ids": [3, 4], "on": False, "score": 2.0, "text": '"', "raw_bytes": {"b64": "eQ=="}},
    ]
    columns = json.loads(predict_json(outputs, by_row=False))["outputs"]
    assert columns["ids"] == [[1, 2], [3, 4]]
    assert columns["raw_bytes"] == [{"b64": "eA=="}, {"b64": "eQ=="}]


@pytest.mark.conformance("F10")
def test_f10_empty_batches() -> None:
    assert value(np.zeros((0, 3))) == []
    assert json.loads(predict_json({"a": np.zeros(0), "b": np.zeros((0, 2))}, by_row=True)) == {"predictions": []}
    with pytest.raises(ServingError, match="inconsistent batch size"):
        predict_json({"a": np.zeros(0), "b": np.zeros(1)}, by_row=True)
    assert value(np.zeros((2, 0, 3))) == [[], []]
    assert value(np.zeros((2, 2, 0)), by_row=False) == [[[], []], [[], []]]
    assert value(np.zeros((1, 2, 0))) == [[[], []]]


@pytest.mark.conformance("F11")
def test_f11_extremes_of_integers() -> None:
    assert value(np.array([-(2**63), 2**63 - 1])) == [-9223372036854775808, 9223372036854775807]
    assert value(np.array([2**64 - 1], dtype=np.uint64)) == [18446744073709551615]


def test_status_codes_map_to_http() -> None:
    assert {code: HTTP_STATUS[code] for code in Code} == {
        Code.OK: 200,
        Code.INVALID_ARGUMENT: 400,
        Code.FAILED_PRECONDITION: 400,
        Code.OUT_OF_RANGE: 400,
        Code.UNAUTHENTICATED: 401,
        Code.PERMISSION_DENIED: 403,
        Code.NOT_FOUND: 404,
        Code.ALREADY_EXISTS: 409,
        Code.ABORTED: 409,
        Code.RESOURCE_EXHAUSTED: 429,
        Code.CANCELLED: 499,
        Code.UNKNOWN: 500,
        Code.INTERNAL: 500,
        Code.DATA_LOSS: 500,
        Code.UNIMPLEMENTED: 501,
        Code.UNAVAILABLE: 503,
        Code.DEADLINE_EXCEEDED: 504,
    }
