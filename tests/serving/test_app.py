"""The server as a whole: limits, ports, shutting down, swapping versions under load, TensorFlow's own binary."""

import gzip
import http.client
import io
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow_serving.config import model_server_config_pb2

from serving import app, json_tensor, model_config
from serving.app import ModelServer, serve, tensorflow_model_server_command
from serving.settings import Batching, Limits, Settings
from tests.serving.saved_models import Client, predict_request, publish, save_half_plus
from tests.serving.test_versions import wait_until
from tfrec.errors import UserError

NARROW = Limits(max_body_bytes=2000, max_concurrent_requests=2, deadline_seconds=0.5)
SLOW = b'{"signature_name": "slow", "instances": [%d]}'


@pytest.fixture(scope="module")
def small(models: Path) -> Iterator[ModelServer]:
    """A server with narrow limits."""
    with ModelServer(models, rest_port=0, grpc_port=0, settings=Settings(workers=2, limits=NARROW)) as server:
        yield server


@pytest.fixture
def small_batching(models: Path) -> Iterator[ModelServer]:
    """The same with batching: no thread waits for an answer."""
    settings = Settings(workers=2, limits=NARROW, batching=Batching(max_batch_size=1, num_batch_threads=2))
    with ModelServer(models, rest_port=0, grpc_port=None, settings=settings) as server:
        yield server


def post(server: ModelServer, body: bytes, model: str = "half") -> httpx.Response:
    url = f"http://127.0.0.1:{server.rest_port}/v1/models/{model}:predict"
    return httpx.post(url, content=body, timeout=20)


def padded(size: int) -> bytes:
    body = b'{"instances": [1.0]}'
    return body + b" " * (size - len(body))


def test_body_limit_counts_to_the_byte(small: ModelServer) -> None:
    assert post(small, padded(2000)).status_code == 200
    answer = post(small, padded(2001))
    assert (answer.status_code, answer.json()) == (
        413,
        {"error": "The request's body must not be larger than 2000 bytes."},
    )
    url = f"http://127.0.0.1:{small.rest_port}/v1/models/half:predict"
    assert httpx.post(url, content=iter([padded(1500), b" " * 501])).status_code == 413  # chunked: no length given
    bomb = gzip.compress(padded(1_000_000))
    assert httpx.post(url, content=bomb, headers={"Content-Encoding": "gzip"}).status_code == 413
    assert post(small, padded(2000)).status_code == 200


def test_grpc_message_limit(small: ModelServer) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{small.grpc_port}") as channel:
        stub = app_stub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Predict(predict_request("half", x=np.zeros(1000, np.float32)))
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert len(stub.Predict(predict_request("half", x=np.zeros(100, np.float32))).outputs["y"].float_val) == 100


def app_stub(channel: grpc.Channel) -> Any:
    from tensorflow_serving.apis import prediction_service_pb2_grpc

    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


@pytest.mark.parametrize("name", ["small", "small_batching"])
def test_deadline_and_concurrency(request: pytest.FixtureRequest, name: str) -> None:
    """Two slow requests end at their deadline; while they still run, a third finds no place."""
    small: ModelServer = request.getfixturevalue(name)
    steps = slow_steps(small, seconds=1.5)
    answers: list[httpx.Response] = []
    threads = [threading.Thread(target=lambda: answers.append(post(small, SLOW % steps, "echo"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in answers] == [504, 504]
    assert "deadline" in answers[0].json()["error"]
    refused = post(small, padded(100))
    assert (refused.status_code, "as many requests as it may" in refused.text) == (503, True)
    wait_until(lambda: post(small, padded(100)).status_code == 200, 30)


def slow_steps(server: ModelServer, seconds: float) -> int:
    """How many steps the slow signature takes that long for, here and now."""
    steps, elapsed = 0, 0.0
    while elapsed < 0.1:
        steps = 4 * steps or 1  # the first run is the slow one of every graph
        started = time.monotonic()
        with server.models.handle("echo") as handle:
            handle.servable.run("slow", {"steps": np.int32([steps])})
        elapsed = time.monotonic() - started if steps > 1 else 0.0
    return int(steps * seconds / elapsed)


def test_body_that_never_arrives(small: ModelServer) -> None:
    with socket.create_connection(("127.0.0.1", small.rest_port)) as connection:
        connection.sendall(b"POST /v1/models/half:predict HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{")
        assert connection.recv(1000).startswith(b"HTTP/1.1 408")


def test_surprise_of_a_batch_is_an_internal_error_without_its_text(
    small_batching: ModelServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def surprise(*arguments: Any, **options: Any) -> str:
        raise RuntimeError("/home/secret")

    monkeypatch.setattr(json_tensor, "predict_json", surprise)
    answer = post(small_batching, padded(100))
    assert (answer.status_code, answer.json()) == (500, {"error": "Internal error"})
    assert "/home/secret" in caplog.text


@pytest.mark.conformance("K9")
def test_connection_serves_on_after_an_error(server: ModelServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.rest_port)
    statuses = []
    for body in (b"{", b'{"instances": [1]}', b"", b'{"instances": [2]}'):
        connection.request("POST", "/v1/models/half:predict", body)
        response = connection.getresponse()
        response.read()
        statuses.append(response.status)
    assert statuses == [400, 200, 400, 200]


def test_port_in_use_is_one_line(models: Path, server: ModelServer, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=f"127.0.0.1:{server.rest_port}: cannot listen there for REST"):
        ModelServer(models, rest_port=server.rest_port, grpc_port=0)
    with pytest.raises(UserError, match=f"127.0.0.1:{server.grpc_port}: cannot listen there for gRPC"):
        ModelServer(models, rest_port=0, grpc_port=server.grpc_port)
    assert "add_port" not in capfd.readouterr().err  # a line of gRPC's library


def test_a_model_without_a_version_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "models" / "empty").mkdir(parents=True)
    with ModelServer(tmp_path / "models", rest_port=0, grpc_port=0):
        told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert told == ["no model has a version yet; looking again every 1 s"]


def test_listens_on_loopback_alone(server: ModelServer) -> None:
    assert server.host == "127.0.0.1"
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.2", server.rest_port), timeout=2)


def test_wrong_directories_are_told(tmp_path: Path, models: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        ModelServer(tmp_path / "none")
    with pytest.raises(UserError, match="holds versions, not models; give its parent directory"):
        ModelServer(models / "half")


def test_empty_directory_waits_for_models(tmp_path: Path, half_plus_two: Path) -> None:
    with ModelServer(tmp_path, rest_port=0, grpc_port=0, poll_seconds=0.05) as server:
        client = Client(server.rest_port, server.grpc_port)
        health = health_pb2_grpc.HealthStub(client.channel)
        assert health.Check(health_pb2.HealthCheckRequest()).status == 2
        assert client.http.get("/readyz").status_code == 503
        (tmp_path / "late").mkdir()
        publish(half_plus_two, tmp_path / "late", 4)
        wait_until(lambda: client.http.get("/readyz").status_code == 200)
        assert client.ok("/v1/models/late:predict", {"instances": [1.0]}) == {"predictions": [2.5]}
        assert health.Check(health_pb2.HealthCheckRequest()).status == 1
        client.close()


def test_serve_drains_and_returns_on_sigterm(models: Path) -> None:
    """A request that is running when the signal comes is answered; afterwards nothing listens."""
    before = signal.getsignal(signal.SIGTERM)
    output = io.StringIO()
    seen: dict[str, Any] = {}

    def ask() -> None:
        wait_until(lambda: output.getvalue().endswith("\n"), 60)
        port = int(output.getvalue().split("rest=127.0.0.1:")[1].split()[0])
        url = f"http://127.0.0.1:{port}/v1/models/echo:predict"
        slow = threading.Thread(target=lambda: seen.update(slow=httpx.post(url, content=SLOW % 50_000, timeout=60)))
        slow.start()
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGTERM)
        slow.join()
        seen["url"] = url

    asking = threading.Thread(target=ask)
    asking.start()
    serve(models, rest_port=0, grpc_port=0, output=output)
    asking.join()
    assert output.getvalue().startswith("Serving echo,half at rest=127.0.0.1:")
    assert " grpc=127.0.0.1:" in output.getvalue()
    assert seen["slow"].json() == {"predictions": [50_000.0]}
    with pytest.raises(httpx.ConnectError):
        httpx.get(seen["url"])
    assert signal.getsignal(signal.SIGTERM) == before


def test_both_ports_drain_at_once(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = ModelServer(models, rest_port=0, grpc_port=0)
    server.start()
    refused = []

    def stop(seconds: float) -> None:
        wait_until(lambda: not connects(), 5)
        refused.append(seconds)

    def connects() -> bool:
        try:
            socket.create_connection(("127.0.0.1", server.rest_port), timeout=1).close()
        except ConnectionError:
            return False
        return True

    grpc_stop = server._grpc.stop
    monkeypatch.setattr(server._grpc, "stop", stop)
    assert connects()
    server.close()
    grpc_stop(0)
    assert refused == [app._DRAIN_SECONDS]


def test_what_does_not_come_to_its_end_is_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ended, codes = threading.Event(), []
    monkeypatch.setattr(app, "_DRAIN_SECONDS", 0.1)
    monkeypatch.setattr(app, "_CLOSING_SECONDS", 0.0)
    monkeypatch.setattr(app.os, "_exit", codes.append)
    monkeypatch.setattr(app.logging, "shutdown", lambda: None)
    app._close_in_time(SimpleNamespace(close=lambda: None))  # type: ignore[arg-type]
    assert codes == []
    app._close_in_time(SimpleNamespace(close=ended.wait))  # type: ignore[arg-type]
    ended.set()
    assert codes == [1]
    assert "does not come to its end and is given up" in caplog.text


@pytest.mark.conformance("J19")
def test_swaps_under_load_lose_and_mix_nothing(tmp_path: Path) -> None:
    """J19: y(0) = the version's number, so an answer tells which weights gave it."""
    saved = {number: save_half_plus(tmp_path / "saved" / str(number), float(number)) for number in range(1, 5)}
    root = tmp_path / "models"
    (root / "m").mkdir(parents=True)
    publish(saved[1], root / "m", 1, manifest=True)
    with ModelServer(root, rest_port=0, grpc_port=0, poll_seconds=0.05) as server:
        stop = threading.Event()
        answers: Counter[tuple[str, float]] = Counter()
        failures: list[str] = []
        clients = [
            threading.Thread(target=asking, args=(server, stop, answers, failures))
            for asking in (ask_rest, ask_grpc)
            for _ in range(4)
        ]
        for thread in clients:
            thread.start()
        client = Client(server.rest_port, server.grpc_port)
        swap_about(root / "m", saved, client, answers)
        stop.set()
        for thread in clients:
            thread.join()
        client.close()
    assert failures == []
    versions = (1.0, 2.0, 3.0, 4.0)
    assert sorted(set(answers)) == [(kind, version) for kind in ("grpc", "rest") for version in versions]


def swap_about(base: Path, saved: dict[int, Path], client: Client, answers: Counter[Any]) -> None:
    """Up, a broken one, up, back by deleting, up: each until both kinds of clients have heard it answer."""

    def wait_for(version: int) -> None:
        before = answers["rest", version], answers["grpc", version]
        wait_until(lambda: (version, "AVAILABLE", "OK") in client.status("m"))
        wait_until(lambda: answers["rest", version] > before[0] and answers["grpc", version] > before[1])

    wait_for(1)
    publish(saved[2], base, 2, manifest=True)
    wait_for(2)
    whole = publish(saved[3], saved[3].parent, 30, manifest=True)
    (whole / "saved_model.pb").write_bytes(b"broken")
    broken = publish(whole, base, 3)
    wait_until(lambda: (3, "END", "DATA_LOSS") in client.status("m"))
    wait_for(2)
    os.rename(broken, base / "3.denied")
    publish(saved[3], base, 3, manifest=True)
    wait_for(3)
    os.rename(base / "3", base / "3.gone")
    wait_for(2)
    publish(saved[4], base, 4, manifest=True)
    wait_for(4)


def ask_rest(server: ModelServer, stop: threading.Event, answers: Counter[Any], failures: list[str]) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{server.rest_port}", timeout=60) as http:
        while not stop.is_set():
            response = http.post("/v1/models/m:predict", content=b'{"instances": [0, 0]}')
            first, second = response.json().get("predictions", [0, 1])
            if response.status_code == 200 and first == second:
                answers["rest", first] += 1
            else:
                failures.append(response.text)


def ask_grpc(server: ModelServer, stop: threading.Event, answers: Counter[Any], failures: list[str]) -> None:
    request = predict_request("m", x=tf.make_tensor_proto([0.0]))
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = app_stub(channel)
        while not stop.is_set():
            try:
                answer = stub.Predict(request)
            except grpc.RpcError as error:
                failures.append(str(error))
                continue
            value = answer.outputs["y"].float_val[0]
            if value == answer.model_spec.version.value:
                answers["grpc", value] += 1
            else:
                failures.append(f"version {answer.model_spec.version.value} answered {value}")


CONFIG = """
model_config_list {{
  config {{ name: "one" base_path: "{root}/half" model_platform: "tensorflow"
            version_labels {{ key: "stable" value: 123 }} }}
  config {{ name: "two" base_path: "{root}/half" model_version_policy {{ specific {{ versions: 7 }} }} }}
}}
"""


@pytest.mark.conformance("A8")
def test_a8_models_config_file(tmp_path: Path, models: Path) -> None:
    path = tmp_path / "models.config"
    path.write_text(CONFIG.format(root=models))
    with ModelServer(path, rest_port=0, grpc_port=0) as server:
        client = Client(server.rest_port, server.grpc_port)
        assert client.ok("/v1/models/one/labels/stable:predict", {"inputs": 2}) == {"outputs": 3.0}
        assert client.http.get("/v1/models/two").status_code == 404
        client.close()


@pytest.mark.conformance("A11")
def test_a11_rewritten_models_config_is_not_read_again_unless_asked(tmp_path: Path, models: Path) -> None:
    path = tmp_path / "models.config"
    path.write_text(CONFIG.format(root=models))
    with ModelServer(path, rest_port=0, grpc_port=0, poll_seconds=0.02) as server:
        client = Client(server.rest_port, server.grpc_port)
        path.write_text(CONFIG.format(root=models).replace('"one"', '"three"'))
        time.sleep(0.2)
        assert client.ok("/v1/models/one:predict", {"inputs": 2}) == {"outputs": 3.0}
        assert client.http.get("/v1/models/three").status_code == 404
        client.close()


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("model_config_list {", "cannot be parsed as a text-format ModelServerConfig"),
        ("", "must have a `model_config_list`"),
        ('model_config_list { config { base_path: "/a" } }', "must have a name of its own"),
        ('model_config_list { config { name: "a" base_path: "a" } }', "must be absolute"),
        ('model_config_list { config { name: "a" base_path: "/a" model_platform: "x" } }', "must be tensorflow"),
        (
            'model_config_list { config { name: "a" base_path: "/a" } config { name: "a" base_path: "/b" } }',
            "must have a name of its own",
        ),
    ],
)
@pytest.mark.conformance("A9", "J3", "J6")
def test_a9_j3_j6_bad_models_config(tmp_path: Path, text: str, fragment: str) -> None:
    path = tmp_path / "models.config"
    path.write_text(text)
    with pytest.raises(UserError, match=r"models\.config") as caught:
        model_config.read(path)
    assert fragment in str(caught.value)


def test_command_of_tensorflows_binary(tmp_path: Path, models: Path) -> None:
    config = tmp_path / "models.config"
    command = tensorflow_model_server_command(models, rest_port=1, grpc_port=2, poll_seconds=3, config=config)
    assert command == [
        "tensorflow_model_server",
        "--port=2",
        "--rest_api_port=1",
        f"--model_config_file={config}",
        "--file_system_poll_wait_seconds=3",
    ]
    parsed = text_format.Parse(config.read_text(), model_server_config_pb2.ModelServerConfig())
    described = [(model.name, model.base_path, model.model_platform) for model in parsed.model_config_list.config]
    assert described == [(name, f"{models}/{name}", "tensorflow") for name in ("echo", "half")]
    assert model_config.read(config).keys() == {"echo", "half"}
    again = tensorflow_model_server_command(config)
    assert f"--model_config_file={config}" in again


def test_command_leaves_scann_out(tmp_path: Path) -> None:
    for name, graph in (("m", b"MatMul"), ("m_scann", b"Scann>ScannSearchBatched")):
        (tmp_path / name / "1").mkdir(parents=True)
        (tmp_path / name / "1" / "saved_model.pb").write_bytes(graph)
    tensorflow_model_server_command(tmp_path)
    assert list(model_config.read(tmp_path / "models.config")) == ["m"]
    (tmp_path / "m" / "1" / "saved_model.pb").write_bytes(b"Scann>ScannSearchBatched")
    with pytest.raises(UserError, match="no model there that tensorflow_model_server could serve"):
        tensorflow_model_server_command(tmp_path)


def test_engine_of_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    graph = tmp_path / "models" / "shop" / "1" / "saved_model.pb"
    graph.parent.mkdir(parents=True)
    graph.write_bytes(b"MatMul")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="not on PATH"):
        serve(tmp_path / "models", engine="tensorflow_model_server")
    binary = tmp_path / "tensorflow_model_server"
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    with pytest.raises(UserError, match="finds no free ports by itself"):
        serve(tmp_path / "models", engine="tensorflow_model_server", rest_port=0)
    run: list[list[str]] = []

    def become(name: str, command: list[str]) -> None:
        run.append(command)
        raise SystemExit(0)

    monkeypatch.setattr(os, "execvp", become)
    with pytest.raises(SystemExit):
        serve(tmp_path / "models", engine="auto")
    assert run[0][0] == "tensorflow_model_server"
    assert "listens on every address" in capsys.readouterr().err
    assert list(model_config.read(tmp_path / "models" / "models.config")) == ["shop"]


@pytest.mark.parametrize(
    ("options", "operation"), [({"rest_port": 0}, b""), ({"host": "10.0.0.1"}, b""), ({}, b"Scann>Search")]
)
def test_auto_keeps_to_the_built_in_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], operation: bytes
) -> None:
    """Where the binary could not do what is asked."""
    graph = tmp_path / "models" / "shop" / "1" / "saved_model.pb"
    graph.parent.mkdir(parents=True)
    graph.write_bytes(operation)
    binary = tmp_path / "tensorflow_model_server"
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    chosen: list[str] = []

    class Stop(Exception):  # noqa: N818 - ends the call where the built-in server would begin
        pass

    def built_in(models: Path, **options: Any) -> ModelServer:
        chosen.append(models.name)
        raise Stop

    monkeypatch.setattr(app, "ModelServer", built_in)
    with pytest.raises(Stop):
        serve(tmp_path / "models", engine="auto", **options)
    assert chosen == ["models"]


def test_deployed_models_config_is_read() -> None:
    (source,) = model_config.read(Path(app.__file__).parent / "deploy" / "models.config").values()
    assert source.base_path == Path("/models/shop")
    assert source.policy([1, 7, 3]) == ([7, 3, 1], 1)
