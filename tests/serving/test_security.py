"""Who may ask, over which kind of connection, and how much (section K12 of the conformance checklist)."""

import gzip
import re
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow_serving.apis import prediction_log_pb2, prediction_service_pb2_grpc
from typer.testing import CliRunner

from serving.app import ModelServer
from serving.guard import Guard, ssl_context
from serving.replay import replay
from serving.request_log import RequestLog
from serving.settings import Limits, RequestLogging, Settings, Tls
from tests.serving.saved_models import Client, predict_request
from tests.serving.test_grpc import failure
from tfrec.cli import app
from tfrec.errors import UsageError, UserError

TOKEN = "a-token-of-24-characters"
PREDICT = "/v1/models/half:predict"


def openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate authority, and certificates of a server at localhost and of a client."""
    folder = tmp_path_factory.mktemp("tls")
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl(folder, "req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca", "-days", "2")
    (folder / "san").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
    for name in ("server", "client"):
        openssl(folder, "req", *curve, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "san")
        openssl(folder, "x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", *signed)
    return folder


def tls(folder: Path, **options: Any) -> Tls:
    return Tls((folder / "server.key").read_text(), (folder / "server.pem").read_text(), **options)


@pytest.mark.parametrize("mutual", [False, True])
def test_tls_on_both_ports(models: Path, authority: Path, mutual: bool) -> None:
    ca = (authority / "ca.pem").read_text()
    settings = Settings(tls=tls(authority, custom_ca=ca if mutual else "", client_verify=mutual))
    with ModelServer(models, rest_port=0, grpc_port=0, settings=settings) as server:
        context = ssl.create_default_context(cadata=ca)
        url = f"https://localhost:{server.rest_port}{PREDICT}"
        own = (None, None)
        if mutual:
            with pytest.raises(httpx.TransportError):
                httpx.post(url, content=b'{"inputs": 2}', verify=context)
            context.load_cert_chain(authority / "client.pem", authority / "client.key")
            own = ((authority / "client.key").read_bytes(), (authority / "client.pem").read_bytes())
        assert httpx.post(url, content=b'{"inputs": 2}', verify=context).json() == {"outputs": 3.0}
        with pytest.raises(httpx.TransportError):
            httpx.post(url.replace("https", "http"), content=b'{"inputs": 2}')
        credentials = grpc.ssl_channel_credentials(ca.encode(), *own)
        with grpc.secure_channel(f"localhost:{server.grpc_port}", credentials) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            assert stub.Predict(predict_request("half", x=2.0), timeout=20).outputs["y"].float_val == [3.0]
        with grpc.insecure_channel(f"localhost:{server.grpc_port}") as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            code, _ = failure(stub.Predict, predict_request("half", x=2.0), timeout=5)
            assert code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A request log of one question."""
    record = prediction_log_pb2.PredictionLog()
    record.predict_log.request.CopyFrom(predict_request("half", x=2.0))
    recorder = RequestLog(RequestLogging(tmp_path / "log"))
    recorder.offer(record)
    recorder.close()
    (path,) = tmp_path.glob("*.tfrecord")
    return path


def test_replay_asks_a_server_with_tls(models: Path, authority: Path, log: Path) -> None:
    with ModelServer(models, rest_port=None, grpc_port=0, settings=Settings(tls=tls(authority))) as server:
        found = replay([log], f"localhost:{server.grpc_port}", ca_file=authority / "ca.pem")
    assert (found["answered"], found["errors"]) == (1, {})


def test_replay_shows_its_certificate_to_a_server_that_asks(models: Path, authority: Path, log: Path) -> None:
    ca, certificate, key = (authority / name for name in ("ca.pem", "client.pem", "client.key"))
    settings = Settings(tls=tls(authority, custom_ca=ca.read_text(), client_verify=True))
    with ModelServer(models, rest_port=None, grpc_port=0, settings=settings) as server:
        address = f"localhost:{server.grpc_port}"
        command = ["replay", str(log), "--grpc", address, "--ca-file", str(ca)]
        shown = CliRunner().invoke(app, [*command, "--cert-file", str(certificate), "--key-file", str(key)])
        unknown = replay([log], address, ca_file=ca)
    assert shown.exit_code == 0, shown.output
    assert re.search(r"answered\s+.*\b1\b", shown.output)
    assert (unknown["answered"], unknown["errors"]) == (0, {"UNAVAILABLE": 1})


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        (["ca_file"], UserError, r"ca_file\.pem: cannot be read"),
        (["ca_file", "cert_file"], UsageError, "give --cert-file and --key-file"),
        (["ca_file", "key_file"], UsageError, "give --cert-file and --key-file"),
        (["cert_file", "key_file"], UsageError, "give --ca-file too"),
    ],
)
def test_replay_with_half_a_certificate_is_one_line(
    log: Path, tmp_path: Path, files: list[str], error: type[UserError], message: str
) -> None:
    with pytest.raises(error, match=message):
        replay([log], "localhost:1", **{name: tmp_path / f"{name}.pem" for name in files})


def test_certificates_that_cannot_be_used_are_one_line() -> None:
    with pytest.raises(UserError, match="cannot be used; check the PEM") as caught:
        ssl_context(Tls("secret", "cert"))
    assert "secret" not in str(caught.value)


@pytest.fixture(scope="module")
def guarded(models: Path) -> Iterator[ModelServer]:
    settings = Settings(token=TOKEN, metrics_path="/metrics", cors=True)
    with ModelServer(models, rest_port=0, grpc_port=0, settings=settings) as server:
        yield server


@pytest.mark.parametrize(
    ("shown", "status"),
    [
        (f"Bearer {TOKEN}", 200),
        (f"bearer {TOKEN}", 200),
        (f"Basic {TOKEN}", 401),
        (TOKEN, 401),
        (f"Bearer {TOKEN}x", 401),
        ("Bearer", 401),
        ("Bearer é", 401),
        (None, 401),
    ],
)
def test_token_is_wanted_on_both_ports(guarded: ModelServer, shown: str | None, status: int) -> None:
    url = f"http://127.0.0.1:{guarded.rest_port}"
    headers = {} if shown is None else {b"Authorization": shown.encode()}
    for verb, path in (("POST", PREDICT), ("GET", "/v1/models/half"), ("GET", "/metrics")):
        answer = httpx.request(verb, url + path, content=b'{"inputs": 2}' if verb == "POST" else None, headers=headers)
        assert answer.status_code == status
        assert ("www-authenticate" in answer.headers) == (status == 401)
    if shown is not None and not shown.isascii():
        return  # gRPC's client does not send it
    with grpc.insecure_channel(f"127.0.0.1:{guarded.grpc_port}") as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        metadata = [] if shown is None else [("authorization", shown)]
        if status == 200:
            assert stub.Predict(predict_request("half", x=2.0), metadata=metadata).outputs["y"].float_val == [3.0]
        else:
            code, message = failure(stub.Predict, predict_request("half", x=2.0), metadata=metadata)
            assert (code, TOKEN in message) == (grpc.StatusCode.UNAUTHENTICATED, False)


def test_probes_need_no_token(guarded: ModelServer) -> None:
    assert httpx.get(f"http://127.0.0.1:{guarded.rest_port}/readyz").status_code == 200
    with grpc.insecure_channel(f"127.0.0.1:{guarded.grpc_port}") as channel:
        assert health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest()).status == 1


def test_guard_without_a_token_admits_everyone() -> None:
    assert Guard(None).admits(b"")
    assert not Guard("x").admits(b"")


@pytest.mark.conformance("B17")
def test_b17_cors_headers_where_they_were_asked_for(guarded: ModelServer, client: Client) -> None:
    path = f"http://127.0.0.1:{guarded.rest_port}{PREDICT}"
    answer = httpx.options(path, headers={"Origin": "https://page"})
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert httpx.post(path).headers["access-control-allow-origin"] == "*"  # and on errors
    assert "access-control-allow-origin" not in client.post(PREDICT, {"inputs": 1}).headers


# Limits.


@pytest.fixture(scope="module")
def narrow(models: Path) -> Iterator[ModelServer]:
    limits = Limits(
        max_body_bytes=4000, deadline_seconds=0.8, max_elements=100, max_header_bytes=4096, max_connections=20
    )
    with ModelServer(models, rest_port=0, grpc_port=0, settings=Settings(limits=limits)) as server:
        yield server


def send(server: ModelServer, data: bytes, *, wait: float = 1.0) -> bytes:
    """Everything that comes back for some bytes, until the server closes or nothing comes any more."""
    answer = b""
    with socket.create_connection(("127.0.0.1", server.rest_port), timeout=wait) as connection:
        try:
            connection.sendall(data)
            while chunk := connection.recv(65536):
                answer += chunk
        except (TimeoutError, ConnectionError):
            pass
    return answer


def post(body: bytes, *headers: str, length: int | None = None) -> bytes:
    size = () if length == -1 else (f"Content-Length: {len(body) if length is None else length}",)
    lines = [f"POST {PREDICT} HTTP/1.1", "Host: a", *size, *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def is_alive(server: ModelServer) -> bool:
    url = f"http://127.0.0.1:{server.rest_port}{PREDICT}"
    return httpx.post(url, content=b'{"inputs": 2}').json() == {"outputs": 3.0}


GOOD = b'{"inputs": 2}'


@pytest.mark.conformance("K12")
def test_k12_elements_at_the_limit_and_beyond(narrow: ModelServer) -> None:
    url = f"http://127.0.0.1:{narrow.rest_port}{PREDICT}"
    assert httpx.post(url, json={"inputs": [1] * 100}).status_code == 200
    answer = httpx.post(url, json={"inputs": [1] * 101})
    assert (answer.status_code, answer.json()["error"]) == (400, "Tensor x has 101 values; at most 100 are allowed.")


@pytest.mark.conformance("K12")
def test_k12_headers(narrow: ModelServer) -> None:
    few = [f"X-{number}: {'a' * 30}" for number in range(50)]
    assert send(narrow, post(GOOD, *few, "Connection: close")).startswith(b"HTTP/1.1 200")
    assert send(narrow, post(GOOD, *few, *few, *few, "Connection: close")).startswith(b"HTTP/1.1 431")
    assert send(narrow, b"GET /" + b"a" * 10_000).startswith(b"HTTP/1.1 400")
    assert send(narrow, b"\x16\x03\x01nonsense\r\n\r\n").startswith(b"HTTP/1.1 400")
    assert is_alive(narrow)


@pytest.mark.conformance("H12")
def test_h12_bytes_that_are_no_message_leave_nothing_behind(narrow: ModelServer) -> None:
    def ask(times: int) -> None:
        for number in range(times):
            with pytest.raises(grpc.RpcError, match="are no message of this method") as refused:
                calls[number % 2](b"\xff\xff")
            assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT

    methods = ("tensorflow.serving.PredictionService/Predict", "grpc.health.v1.Health/Check")
    with grpc.insecure_channel(f"127.0.0.1:{narrow.grpc_port}") as channel:
        calls = [channel.unary_unary(f"/{method}") for method in methods]
        ask(200)
        before = psutil.Process().memory_info().rss
        ask(1500)
        assert psutil.Process().memory_info().rss - before < 8 << 20  # with the library's own parsing 24 MiB


@pytest.mark.conformance("K12")
def test_k12_slow_clients_are_let_go(narrow: ModelServer) -> None:
    started = time.monotonic()
    with socket.create_connection(("127.0.0.1", narrow.rest_port), timeout=10) as connection:
        for _ in range(50):
            try:
                connection.sendall(b"X")  # a request line that never ends
                time.sleep(0.05)
            except ConnectionError:
                break
        assert time.monotonic() - started < 2.4
    assert send(narrow, b"") == b""  # nor may a client say nothing
    assert send(narrow, post(b"{", length=100)).startswith(b"HTTP/1.1 408")
    assert is_alive(narrow)


@pytest.fixture
def channels(narrow: ModelServer) -> Iterator[list[grpc.Channel]]:
    """More of them than the server has threads."""
    own = [("grpc.use_local_subchannel_pool", 1)]
    count = Settings().threads + 2
    channels = [grpc.insecure_channel(f"127.0.0.1:{narrow.grpc_port}", options=own) for _ in range(count)]
    yield channels
    for channel in channels:
        channel.close()


def answers_grpc(channel: grpc.Channel, seconds: float) -> bool:
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    return stub.Predict(predict_request("half", x=2.0), timeout=seconds).outputs["y"].float_val == [3.0]


@pytest.mark.conformance("H20")
def test_h20_watching_the_health_takes_no_thread(narrow: ModelServer, channels: list[grpc.Channel]) -> None:
    watches = [health_pb2_grpc.HealthStub(each).Watch(health_pb2.HealthCheckRequest()) for each in channels]
    assert [next(watch).status for watch in watches] == [1] * len(channels)
    assert answers_grpc(channels[0], 5)


@pytest.mark.conformance("K12")
@pytest.mark.parametrize("method", ["tensorflow.serving.PredictionService/Predict", "grpc.health.v1.Health/Check"])
def test_k12_calls_without_their_message_are_let_go(
    narrow: ModelServer, channels: list[grpc.Channel], method: str
) -> None:
    silent = threading.Event()

    def messages() -> Iterator[bytes]:
        silent.wait(10)
        yield b""

    calls = [channel.stream_unary(f"/{method}").future(messages()) for channel in channels]
    assert answers_grpc(channels[0], 5)
    assert {call.code() for call in calls if call.done()} <= {grpc.StatusCode.CANCELLED}
    assert failure(calls[0].result)[0] == grpc.StatusCode.CANCELLED
    silent.set()
    code, _ = failure(channels[0].stream_unary(f"/{method}"), iter([]))
    assert code == grpc.StatusCode.INVALID_ARGUMENT


def test_call_without_a_token_is_turned_away_before_its_message(guarded: ModelServer) -> None:
    silent = threading.Event()

    def messages() -> Iterator[bytes]:
        silent.wait(10)
        yield b""

    with grpc.insecure_channel(f"127.0.0.1:{guarded.grpc_port}") as channel:
        call = channel.stream_unary("/tensorflow.serving.PredictionService/Predict")
        assert failure(call, messages(), timeout=5)[0] == grpc.StatusCode.UNAUTHENTICATED
        silent.set()


def test_those_who_watch_the_health_do_not_hold_up_the_end(models: Path) -> None:
    server = ModelServer(models, rest_port=None, grpc_port=0)
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == 1
        started = time.monotonic()
        server.close()
        assert time.monotonic() - started < 5  # draining has 20
        assert {answer.status for answer in watch} == {2}


@pytest.mark.conformance("K12")
def test_k12_lengths_that_lie(narrow: ModelServer) -> None:
    assert b" 400 " in send(narrow, post(GOOD, length=5)).splitlines()[0]  # less than the body: JSON that breaks off
    assert send(narrow, post(GOOD, length=10**30)).startswith(b"HTTP/1.1 4")
    assert send(narrow, post(GOOD, "Content-Length: 7")).startswith(b"HTTP/1.1 400")  # two that differ
    assert send(narrow, post(GOOD, "Content-Length: x", length=-1)).startswith(b"HTTP/1.1 400")
    assert is_alive(narrow)


@pytest.mark.conformance("K12")
def test_k12_chunks_pipelines_and_expectations(narrow: ModelServer) -> None:
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in GOOD) + b"0\r\n\r\n"
    chunked = post(chunks, "Transfer-Encoding: chunked", "Connection: close", length=-1)
    assert b'"outputs": 3.0' in send(narrow, chunked)
    endless = post(b"1\r\n \r\n" * 5000, "Transfer-Encoding: chunked", length=-1)
    assert send(narrow, endless).startswith(b"HTTP/1.1 413")
    piped = send(narrow, post(GOOD) + post(b"{") + post(GOOD, "Connection: close"))
    assert [line.split()[1] for line in piped.splitlines() if line.startswith(b"HTTP/1.1")] == [b"200", b"400", b"200"]
    expecting = send(narrow, post(GOOD, "Expect: 100-continue", "Connection: close"))
    assert b'"outputs": 3.0' in expecting
    assert is_alive(narrow)


@pytest.mark.conformance("K12")
def test_k12_too_many_connections(narrow: ModelServer) -> None:
    idle = [socket.create_connection(("127.0.0.1", narrow.rest_port)) for _ in range(25)]
    time.sleep(0.1)
    assert send(narrow, post(GOOD, "Connection: close")).startswith(b"HTTP/1.1 503")
    time.sleep(1.0)  # those that say nothing are let go
    assert is_alive(narrow)
    for connection in idle:
        connection.close()


@pytest.mark.conformance("K12")
@pytest.mark.parametrize("size", [10**6, 10**8])
def test_k12_gzip_that_unpacks_to_much(narrow: ModelServer, size: int) -> None:
    bomb = gzip.compress(b" " * size, 1)[:3900]
    assert send(narrow, post(bomb, "Content-Encoding: gzip")).split()[1] in (b"413", b"400")
    assert is_alive(narrow)


@pytest.mark.parametrize(
    "name", ["../half", "..%2Fhalf", "%2e%2e%2Fetc%2Fpasswd", "%00", "/etc/passwd", "half%2F..%2Fecho", "a" * 3000]
)
def test_names_never_reach_the_file_system(narrow: ModelServer, name: str) -> None:
    for verb, path in (("GET", f"/v1/models/{name}"), ("POST", f"/v1/models/{name}:predict")):
        data = f"{verb} {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 13\r\nConnection: close\r\n\r\n".encode() + GOOD
        answer = send(narrow, data)
        assert answer.split()[1] in (b"400", b"404")
        assert b"root:" not in answer


@pytest.mark.conformance("A12", "A20")
def test_unix_socket_and_channel_arguments_and_raw_answers(models: Path, tmp_path: Path) -> None:
    settings = Settings(
        grpc_socket=str(tmp_path / "socket"),
        grpc_arguments=(("grpc.max_connection_age_ms", 60_000),),
        tensor_content=True,
    )
    with (
        ModelServer(models, rest_port=None, grpc_port=0, settings=settings) as server,
        grpc.insecure_channel(f"unix:{tmp_path / 'socket'}") as channel,
    ):
        assert server.rest_port is None
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        y = stub.Predict(predict_request("half", x=[2.0, 4.0]), timeout=20).outputs["y"]
        assert (y.tensor_content, list(y.float_val)) == (b"\x00\x00\x40\x40\x00\x00\x80\x40", [])
