"""Models and servers that tests share.

With TFREC_SERVER, a command such as `tensorflow_model_server` or `python -m serving`, the tests that ask over the
ports alone ask that server instead, and no others run: `make conformance SERVER=...`.
"""

import os
import shlex
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from serving import model_config
from serving.app import ModelServer
from tests.serving.saved_models import Client, save_echo, save_half_plus
from tests.serving.test_versions import wait_until

SERVER = os.environ.get("TFREC_SERVER")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if SERVER:
        items[:] = [item for item in items if "server" in getattr(item, "fixturenames", ())]


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


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def other_server(command: str, models: Path, config: Path) -> Iterator[Any]:
    """A server started as TensorFlow Serving is."""
    model_config.write(config, {"half": models / "half", "echo": models / "echo"})
    rest, rpc = free_port(), free_port()
    flags = [
        f"--port={rpc}",
        f"--rest_api_port={rest}",
        f"--model_config_file={config}",
        "--enable_grpc_healthcheck_service",
    ]
    process = subprocess.Popen([*shlex.split(command), *flags])

    def answers() -> bool:
        try:
            return all(
                "AVAILABLE" in httpx.get(f"http://127.0.0.1:{rest}/v1/models/{name}").text for name in ("half", "echo")
            )
        except httpx.TransportError:
            return False

    try:
        wait_until(answers, 120)
        yield SimpleNamespace(host="127.0.0.1", rest_port=rest, grpc_port=rpc)
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="session")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if SERVER:
        yield from other_server(SERVER, models, tmp_path_factory.mktemp("config") / "models.config")
    else:
        with ModelServer(models, rest_port=0, grpc_port=0) as server:
            yield server


@pytest.fixture(scope="session")
def client(server: Any) -> Iterator[Client]:
    client = Client(server.rest_port, server.grpc_port)
    yield client
    client.close()
