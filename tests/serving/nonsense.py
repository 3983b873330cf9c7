"""Requests that are wrong in most ways there are, made from a seed."""

import gzip
import json
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2

HTTP_CODES = {200, 400, 404, 405, 408, 413, 415, 431, 501, 503, 504}
GRPC_CODES = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.UNIMPLEMENTED,
}
_SIGNATURES = ["serving_default", "again", "mixed", "string", "int32", "double", "bool", "half", "ratio", "?", ""]
_WORDS = ["", "x", "half", "b64", "NaN", "é", "\u0000", "../..", "a" * 300, "1e999", "-0", "%zz"]
_PATHS = [
    "/v1/models/half:predict", "/v1/models/echo:predict", "/v1/models/echo:classify", "/v1/models/half:regress",
    "/v1/models/half/versions/123:predict", "/v1/models/half/labels/x:predict", "/v1/models/half", "/v1/models",
    "/v1/models/none:predict", "/v1/models/half/metadata", "/v1/", "/readyz", "/ui", "/ui/models",
    "/ui/items?model=half&version=123&query=a", "/ui/users?a",
]  # fmt: skip
_VERBS = ["POST", "POST", "POST", "POST", "GET", "PUT", "DELETE", "OPTIONS", "PATCH"]


@dataclass(frozen=True)
class HttpRequest:
    """One request as a client would send it."""

    verb: str
    path: str
    body: bytes
    headers: dict[str, str]


def _choice(generator: np.random.Generator, options: Any) -> Any:
    return options[int(generator.integers(len(options)))]


def _value(generator: np.random.Generator, depth: int) -> Any:
    kind = int(generator.integers(10 if depth else 7))
    if kind == 0:
        return float(generator.normal()) * 10.0 ** int(generator.integers(-300, 300))
    if kind == 1:
        return int(generator.integers(-(2**63), 2**63 - 1))
    if kind in (2, 3):
        return _choice(generator, [None, True, False, 0, 1, -1, 2**70, float("nan"), float("inf"), 1.5])
    if kind == 4:
        return _choice(generator, _WORDS)
    if kind == 5:
        return {"b64": _choice(generator, ["AP8=", "%", "", "YQ", 5])}
    if kind == 6:
        return generator.integers(-5, 5, 3).tolist()
    if kind == 7:
        names = ["x", "a", "b", "c", "d", "b64"]
        return {_choice(generator, names): _value(generator, depth - 1) for _ in range(int(generator.integers(4)))}
    return [_value(generator, depth - 1) for _ in range(int(generator.integers(4)))]


def _document(generator: np.random.Generator) -> Any:
    document: dict[str, Any] = {}
    if generator.random() < 0.8:
        document[_choice(generator, ["instances", "inputs", "inputs", "examples"])] = _value(generator, 4)
    if generator.random() < 0.6:
        document["signature_name"] = _choice(generator, _SIGNATURES)
    if generator.random() < 0.2:
        document[_choice(generator, ["context", "more", "inputs", "signature_name"])] = _value(generator, 2)
    if generator.random() < 0.3:  # and some that are right
        document = {"instances": generator.normal(size=int(generator.integers(1, 5))).tolist()}
    return document


def _damaged(generator: np.random.Generator, data: bytes) -> bytes:
    """Some bytes cut, flipped, doubled, or put in between."""
    if not data or generator.random() < 0.5:
        return data
    at = int(generator.integers(len(data)))
    length = int(generator.integers(1, 9))
    way = int(generator.integers(5))
    if way == 0:
        return data[:at]
    if way == 1:
        return data[:at] + bytes([data[at] ^ (1 << int(generator.integers(8)))]) + data[at + 1 :]
    if way == 2:
        return data[:at] + data[at : at + length] * int(generator.integers(2, 200)) + data[at + length :]
    if way == 3:
        return data[:at] + generator.integers(0, 256, length, dtype=np.uint8).tobytes() + data[at:]
    return b"[" * int(generator.integers(1, 3000)) + data


def http_request(generator: np.random.Generator) -> HttpRequest:
    """A request to the REST port."""
    path = _choice(generator, _PATHS)
    if generator.random() < 0.15:
        at = int(generator.integers(len(path)))
        path = (
            path[:at] + _choice(generator, ["/", ":", "%2F", "%", "?", "a", "//", "99999999999999999999"]) + path[at:]
        )
    body = _damaged(generator, json.dumps(_document(generator)).encode())
    headers = {"Content-Type": "application/json"}
    if generator.random() < 0.2:
        body = _damaged(generator, gzip.compress(body, mtime=0))
        headers["Content-Encoding"] = _choice(generator, ["gzip", "gzip", "gzip", "br", ""])
    return HttpRequest(_choice(generator, _VERBS), path, body, headers)


def predict_request_bytes(generator: np.random.Generator) -> bytes:
    """A serialised PredictRequest, most of them wrong."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = _choice(generator, ["half", "half", "echo", "none", ""])
    request.model_spec.signature_name = _choice(generator, _SIGNATURES)
    for _ in range(int(generator.integers(3))):
        tensor = request.inputs[_choice(generator, ["x", "x", "x", "a", "b", "steps"])]
        tensor.CopyFrom(tf.make_tensor_proto(generator.normal(size=int(generator.integers(4))).astype(np.float32)))
        if generator.random() < 0.5:
            tensor.dtype = int(generator.integers(0, 30))
        if generator.random() < 0.3:
            tensor.tensor_shape.dim.add().size = int(_choice(generator, [-1, 0, 1, 3, 2**40, 2**62]))
        if generator.random() < 0.3:
            tensor.tensor_content = generator.integers(0, 256, 7, dtype=np.uint8).tobytes()
        if generator.random() < 0.3:
            tensor.string_val.append(b"\x00\xff")
    if generator.random() < 0.2:
        request.output_filter.append(_choice(generator, ["y", "z", ""]))
    return _damaged(generator, request.SerializeToString(deterministic=True))


def ask_grpc(channel: grpc.Channel, body: bytes, seconds: float) -> grpc.StatusCode:
    """Sends bytes as a PredictRequest; the code that comes back, which must be one of `GRPC_CODES` or OK."""
    call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
    try:
        call(body, timeout=seconds)
    except grpc.RpcError as error:
        if error.code() not in GRPC_CODES:
            raise
        return error.code()
    return grpc.StatusCode.OK
