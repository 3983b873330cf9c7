"""Tiny SavedModels, and the clients that ask for them."""

import json
import shutil
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
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


def _takes_examples(answer: Any) -> Any:
    """A signature over serialised tf.Example with a number x, 0 where an example lacks it."""

    def call(inputs: Any) -> Any:
        features = {"x": tf.io.FixedLenFeature([1], tf.float32, [0.0])}
        return answer(tf.io.parse_example(inputs, features)["x"])

    return tf.function(call, input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])


def _labels(x: Any) -> Any:
    return tf.strings.as_string(tf.cast(x, tf.int32))


def save_examples(directory: Path) -> Path:
    """Signatures of regression and classification, y = x / 2 + 2, and some that answer what they must not."""
    answers = {
        "regress_x_to_y": lambda x: {"outputs": 0.5 * x + 2.0},
        "regress_flat": lambda x: {"outputs": tf.reshape(0.5 * x + 2.0, [-1])},
        "classify_x_to_y": lambda x: {"scores": 0.5 * x + 2.0},
        "classify_two": lambda x: {
            "classes": tf.concat([_labels(x), _labels(-x)], axis=1),
            "scores": tf.concat([x, -x], axis=1),
        },
        "classes_alone": lambda x: {"classes": _labels(x)},
        "scores_cube": lambda x: {"scores": x[:, :, None]},
        "scores_short": lambda x: {"scores": x[:0]},
        "scores_double": lambda x: {"scores": tf.cast(x, tf.float64)},
        "classes_numbers": lambda x: {"classes": x},
        "uneven": lambda x: {"classes": _labels(x), "scores": tf.concat([x, x], axis=1)},
        "outputs_wide": lambda x: {"outputs": tf.concat([x, x], axis=1)},
        "outputs_short": lambda x: {"outputs": x[:0]},
        "outputs_double": lambda x: {"outputs": tf.cast(x, tf.float64)},
        "unnamed": lambda x: {"something": x},
        "failing": lambda x: {"outputs": tf.linalg.matmul(x, tf.ones((tf.size(x) + 1, 1)))},
    }
    module = tf.Module()
    module.calls = {name: _takes_examples(answer) for name, answer in answers.items()}
    tf.saved_model.save(module, str(directory), signatures=module.calls)
    return directory


class Counter(tf.Module):
    """A number that requests change: signatures without inputs, and state that survives a request."""

    def __init__(self) -> None:
        super().__init__()
        self.value = tf.Variable(0.0)

    @tf.function(input_signature=[])
    def get(self) -> dict[str, Any]:
        return {"output": self.value.read_value()}

    @tf.function(input_signature=[])
    def increase(self) -> dict[str, Any]:
        return {"output": self.value.assign_add(1.0)}

    @tf.function(input_signature=[tf.TensorSpec([], tf.float32, name="delta")])
    def add(self, delta: Any) -> dict[str, Any]:
        return {"output": self.value.assign_add(delta)}


def save_counter(directory: Path) -> Path:
    module = Counter()
    calls = {"get_counter": module.get, "increase_counter": module.increase, "add": module.add}
    tf.saved_model.save(module, str(directory), signatures=calls)
    return directory


def edit_signatures(directory: Path, change: Any) -> None:
    """Rewrites a SavedModel with `change` applied to its signatures by name."""
    path = directory / "saved_model.pb"
    document = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    change(document.meta_graphs[0].signature_def)
    path.write_bytes(document.SerializeToString())


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
