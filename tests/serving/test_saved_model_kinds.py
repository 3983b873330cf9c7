"""SavedModels as different people write them, each asked over REST and gRPC."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

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


# Written by another process, so that this one has none of its operations until the server brings them.
WORDS = """
import sys
import tensorflow as tf
import tensorflow_text as text

class Words(tf.Module):
    def __init__(self):
        super().__init__()
        vocabulary = ["[UNK]", "red", "shoe", "##s"]
        self.pieces = text.FastWordpieceTokenizer(vocabulary, token_out_type=tf.int64, no_pretokenization=True)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
    def words(self, text_):
        found = text.WhitespaceTokenizer().tokenize(text_)
        pieces = self.pieces.tokenize(found).merge_dims(-2, -1)
        return {"words": found.to_tensor(""), "pieces": pieces.to_tensor(-1)}

module = Words()
tf.saved_model.save(module, sys.argv[1], signatures={"serving_default": module.words})
"""


@pytest.mark.conformance("A27")
def test_a27_operations_of_tensorflow_text(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", WORDS, str(tmp_path / "words" / "1")], check=True, capture_output=True)
    with ModelServer(tmp_path, rest_port=0, grpc_port=0) as server:
        client = Client(server.rest_port, server.grpc_port)
        assert client.ok("/v1/models/words:predict", {"inputs": ["red  shoes", "shoe"]}) == {
            "outputs": {"words": [["red", "shoes"], ["shoe", ""]], "pieces": [[1, 2, 3], [2, -1, -1]]}
        }
        assert list(client.predict("words", text=["red"]).outputs["pieces"].int64_val) == [1]
        client.close()
