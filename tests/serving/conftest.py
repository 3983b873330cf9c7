from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.app import ModelServer
from tests.serving.saved_models import Client, save_echo, save_half_plus


@pytest.fixture(scope="session")
def half_plus_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_half_plus(tmp_path_factory.mktemp("half_plus_two") / "saved")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """half (123: y = x/2 + 2) and echo (1), which no test changes."""
    root = tmp_path_factory.mktemp("models")
    save_half_plus(root / "half" / "00000123")
    save_echo(root / "echo" / "1")
    return root


@pytest.fixture(scope="session")
def server(models: Path) -> Iterator[ModelServer]:
    with ModelServer(models, rest_port=0, grpc_port=0) as server:
        yield server


@pytest.fixture(scope="session")
def client(server: ModelServer) -> Iterator[Client]:
    client = Client(server.rest_port, server.grpc_port)
    yield client
    client.close()
