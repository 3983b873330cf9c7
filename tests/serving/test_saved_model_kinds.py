"""SavedModels as different people write them, each asked over REST and gRPC."""

from collections.abc import Iterator
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
