"""SavedModels as different people write them, each asked over REST and gRPC."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from serving.app import ModelServer
from tests.serving.saved_models import Client


def linear() -> Any:
    """y = 2 x, so that [[2]] gives [[4]]."""
    model = keras.Sequential([keras.Input((1,), name="x"), keras.layers.Dense(1, use_bias=False)])
    model.layers[0].set_weights([np.array([[2.0]])])
    return model


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    root = tmp_path_factory.mktemp("kinds")
    linear().export(str(root / "keras" / "1"), verbose=False)
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        mirrored = linear()
    mirrored.export(str(root / "mirrored" / "1"), verbose=False)
    with ModelServer(root, rest_port=0, grpc_port=0) as server:
        client = Client(server.rest_port, server.grpc_port)
        yield client
        client.close()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("keras", marks=pytest.mark.conformance("A24")),
        pytest.param("mirrored", marks=pytest.mark.conformance("A25")),
    ],
)
def test_keras_exports_answer(kinds: Client, name: str) -> None:
    (alias,) = kinds.http.get(f"/v1/models/{name}/metadata").json()["metadata"]["signature_def"]["signature_def"][
        "serving_default"
    ]["inputs"]
    assert kinds.ok(f"/v1/models/{name}:predict", {"instances": [[2.0], [3.0]]}) == {"predictions": [[4.0], [6.0]]}
    (output,) = kinds.predict(name, **{alias: [[2.0]]}).outputs.values()
    assert list(output.float_val) == [4.0]


def save_words(directory: Path) -> None:
    """Words in small letters, by two operations of TensorFlow Text, one of which says in its name where it is from.

    Written node by node: importing the package would bring the operations, which is for the server to do.
    """
    saved = saved_model_pb2.SavedModel(saved_model_schema_version=1)
    meta_graph = saved.meta_graphs.add()
    meta_graph.meta_info_def.tags.append(tf.saved_model.SERVING)
    graph = meta_graph.graph_def
    graph.versions.producer = tf.version.GRAPH_DEF_VERSION
    text = graph.node.add(name="text", op="Placeholder")
    text.attr["dtype"].type = tf.string.as_datatype_enum
    text.attr["shape"].shape.dim.add(size=-1)
    space = bytes([0, 0, 0, 0, 1])  # a bit for each character that parts words: the 32nd alone
    spaces = graph.node.add(name="spaces", op="Const")
    spaces.attr["dtype"].type = tf.string.as_datatype_enum
    spaces.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(space))
    graph.node.add(name="small", op="CaseFoldUTF8", input=["text"])
    graph.node.add(name="words", op="TFText>WhitespaceTokenizeWithOffsetsV2", input=["small", "spaces"])
    signature = meta_graph.signature_def["serving_default"]
    signature.inputs["text"].name = "text:0"
    signature.inputs["text"].dtype = tf.string.as_datatype_enum
    for alias, name, dtype in (
        ("small", "small:0", tf.string),
        ("words", "words:0", tf.string),
        ("ends", "words:1", tf.int64),
    ):
        signature.outputs[alias].name = name
        signature.outputs[alias].dtype = dtype.as_datatype_enum
    directory.mkdir(parents=True)
    (directory / "saved_model.pb").write_bytes(saved.SerializeToString())


@pytest.mark.conformance("A27")
def test_a27_operations_of_tensorflow_text(tmp_path: Path) -> None:
    save_words(tmp_path / "words" / "1")
    with ModelServer(tmp_path, rest_port=0, grpc_port=0) as server:
        client = Client(server.rest_port, server.grpc_port)
        assert client.ok("/v1/models/words:predict", {"inputs": ["Red  SHOES", "Shoe"]}) == {
            "outputs": {"small": ["red  shoes", "shoe"], "words": ["red", "shoes", "shoe"], "ends": [0, 2, 3]}
        }
        assert list(client.predict("words", text=["A B"]).outputs["words"].string_val) == [b"a", b"b"]
        client.close()
