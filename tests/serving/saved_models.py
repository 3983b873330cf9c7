"""Tiny SavedModels, and the clients that ask for them."""

import json
import shutil
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)

from tfrec.manifest import write_manifest

TYPES = {
    "float": tf.float32,
    "double": tf.float64,
    "int32": tf.int32,
    "int64": tf.int64,
    "int8": tf.int8,
    "uint8": tf.uint8,
    "uint32": tf.uint32,
    "uint64": tf.uint64,
    "bool": tf.bool,
    "string": tf.string,
    "half": tf.float16,
    "complex64": tf.complex64,
}


class HalfPlus(tf.Module):
    """y = x / 2 + bias."""

    def __init__(self, bias: float) -> None:
        super().__init__()
        self.scale = tf.Variable(0.5)
        self.bias = tf.Variable(bias)

    @tf.function(input_signature=[tf.TensorSpec(None, tf.float32, name="x")])
    def predict(self, x: Any) -> dict[str, Any]:
        return {"y": self.scale * x + self.bias}


def save_half_plus(directory: Path, bias: float = 2.0) -> Path:
    module = HalfPlus(bias)
    tf.saved_model.save(module, str(directory), signatures={"serving_default": module.predict, "again": module.predict})
    return directory


def _echo(name: str, dtype: Any) -> Any:
    alias = "y_bytes" if name == "bytes" else "y"
    return tf.function(lambda x: {alias: tf.identity(x)}, input_signature=[tf.TensorSpec(None, dtype, name="x")])


def save_echo(directory: Path) -> Path:
    """A signature for each type that gives back what it got; `mixed` takes and gives four; `slow` takes its time."""
    module = tf.Module()
    signatures = {name: _echo(name, dtype) for name, dtype in {**TYPES, "bytes": tf.string}.items()}

    @tf.function(
        input_signature=[
            tf.TensorSpec(None, tf.int32, name="a"),
            tf.TensorSpec(None, tf.string, name="b"),
            tf.TensorSpec(None, tf.float32, name="c"),
            tf.TensorSpec(None, tf.float64, name="d"),
        ]
    )
    def mixed(a: Any, b: Any, c: Any, d: Any) -> dict[str, Any]:
        same = {"a": tf.identity(a), "b_bytes": tf.identity(b), "c": tf.identity(c), "d": tf.identity(d)}
        return {**same, "text": tf.identity(b)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32, name="steps")])
    def slow(steps: Any) -> dict[str, Any]:
        count = tf.reduce_max(steps)
        total = tf.while_loop(lambda i, x: i < count, lambda i, x: (i + 1, tf.sin(x) + 1.0), (0, tf.constant(1.0)))[1]
        return {"y": tf.cast(steps, tf.float32) + 0.0 * total}

    @tf.function(input_signature=[tf.TensorSpec(None, tf.float32, name="x")])
    def ratio(x: Any) -> dict[str, Any]:
        return {"y": tf.linalg.matmul(x, tf.ones((2, 1))), "scalar": tf.constant(7)}

    module.signatures_ = {**signatures, "mixed": mixed, "slow": slow, "ratio": ratio}
    tf.saved_model.save(module, str(directory), signatures=module.signatures_)
    return directory


def save_vocabulary(directory: Path, words: list[str]) -> Path:
    """A string look-up from an asset, beside a variable, so that every part of a SavedModel is there."""
    source = directory.parent / f"words-{directory.name}.txt"
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text("".join(f"{word}\n" for word in words))

    class Lookup(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            kind = tf.lookup.TextFileIndex
            initializer = tf.lookup.TextFileInitializer(
                str(source), tf.string, kind.WHOLE_LINE, tf.int64, kind.LINE_NUMBER
            )
            self.table = tf.lookup.StaticHashTable(initializer, -1)
            self.offset = tf.Variable(np.arange(100.0), dtype=tf.float32)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="word")])
        def predict(self, word: Any) -> dict[str, Any]:
            return {"code": tf.cast(self.table.lookup(word), tf.float32) + self.offset[0]}

    module = Lookup()
    tf.saved_model.save(module, str(directory), signatures={"serving_default": module.predict})
    source.unlink()
    return directory


def write_warmup(version: Path, records: list[bytes]) -> None:
    path = version / "assets.extra" / "tf_serving_warmup_requests"
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)


def warmup_record(value: Any, alias: str = "x") -> bytes:
    log = prediction_log_pb2.PredictionLog()
    log.predict_log.request.model_spec.name = "any"
    log.predict_log.request.inputs[alias].CopyFrom(tf.make_tensor_proto(value))
    return log.SerializeToString()


def publish(source: Path, base_path: Path, version: int, *, manifest: bool = False) -> Path:
    """Copies a SavedModel beside its final name and renames it."""
    temporary = base_path / f".tmp-{version}"
    shutil.copytree(source, temporary)
    if manifest:
        write_manifest(temporary, {})
    return temporary.rename(base_path / str(version))


class Client:
    """REST and gRPC, each over one connection."""

    def __init__(self, rest_port: int, grpc_port: int) -> None:
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{rest_port}", timeout=30)
        self.channel = grpc.insecure_channel(f"127.0.0.1:{grpc_port}")
        self.prediction = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)
        self.model = model_service_pb2_grpc.ModelServiceStub(self.channel)

    def post(self, path: str, document: Any) -> httpx.Response:
        content = document if isinstance(document, bytes) else json.dumps(document).encode()
        return self.http.post(path, content=content)

    def ok(self, path: str, document: Any) -> Any:
        response = self.post(path, document)
        assert response.status_code == 200, response.text
        return response.json()

    def error(self, path: str, document: Any, status: int = 400) -> str:
        response = self.post(path, document)
        assert response.status_code == status, response.text
        answer = response.json()
        assert list(answer) == ["error"]
        return answer["error"]

    def status(self, model: str) -> list[tuple[int, str, str]]:
        versions = self.http.get(f"/v1/models/{model}").json().get("model_version_status", [])
        return [(int(v["version"]), v["state"], v["status"]["error_code"]) for v in versions]

    def predict(self, model: str, **options: Any) -> Any:
        return self.prediction.Predict(predict_request(model, **options), timeout=20)

    def grpc_status(self, model: str | None, version: int | None = None) -> Any:
        request = get_model_status_pb2.GetModelStatusRequest()
        if model is not None:
            request.model_spec.name = model
        if version is not None:
            request.model_spec.version.value = version
        return self.model.GetModelStatus(request, timeout=20)

    def metadata(self, model: str, fields: list[str]) -> Any:
        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=fields)
        if model:
            request.model_spec.name = model
        return self.prediction.GetModelMetadata(request, timeout=20)

    def close(self) -> None:
        self.http.close()
        self.channel.close()


def predict_request(model: str, signature: str = "", outputs: tuple[str, ...] = (), **inputs: Any) -> Any:
    request = predict_pb2.PredictRequest(output_filter=outputs)
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    for alias, value in inputs.items():
        request.inputs[alias].CopyFrom(value if hasattr(value, "tensor_shape") else tf.make_tensor_proto(value))
    return request
