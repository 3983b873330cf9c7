"""Plain requests, read without h11: only such as h11 reads in the same way, answered one after the other."""

import asyncio
import re
from functools import partial
from typing import Any

import h11
import numpy as np
import pytest
import uvicorn
from uvicorn.server import ServerState

from serving.http import Connection, PlainRequest

BODY = b'{"inputs": 2}'


def raw(*fields: bytes, line: bytes = b"POST /v1/models/half:predict?x=%41 HTTP/1.1", body: bytes = BODY) -> bytes:
    return b"\r\n".join([line, *fields]) + b"\r\n\r\n" + body


LENGTH = b"Content-Length: %d" % len(BODY)
PLAIN = raw(b"Host: a", LENGTH, b"X-Trace:  a, b ", b"Accept:", b"Connection: Keep-Alive")


def by_h11(data: bytes) -> tuple[bytes, list[tuple[bytes, bytes]], bytes]:
    """What h11 makes of it; it must be one whole POST whose connection stays open."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data)
    request = connection.next_event()
    assert isinstance(request, h11.Request)
    assert (request.method, request.http_version) == (b"POST", b"1.1")
    body = b""
    while isinstance(event := connection.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert connection.their_state is h11.DONE  # not MUST_CLOSE
    assert connection.trailing_data == (b"", False)
    assert not connection.they_are_waiting_for_100_continue
    return request.target, list(request.headers), body


def test_plain_request_is_read_as_h11_reads_it() -> None:
    found = PlainRequest.read(PLAIN)
    assert found is not None
    assert found.target == b"/v1/models/half:predict?x=%41"
    assert found.headers[2:] == [(b"x-trace", b"a, b"), (b"accept", b""), (b"connection", b"Keep-Alive")]
    assert (found.target, found.headers, found.body) == by_h11(PLAIN)


@pytest.mark.parametrize(
    "data",
    [
        raw(b"Host: a", LENGTH, line=b"GET / HTTP/1.1"),
        raw(b"Host: a", LENGTH, line=b"POST / HTTP/1.0"),
        raw(b"Host: a", LENGTH, line=b"POST  / HTTP/1.1"),
        raw(b"Host: a", LENGTH, line=b"POST http://a/ HTTP/1.1"),
        raw(LENGTH),
        raw(b"Host: a", b"Host: a", LENGTH),
        raw(b"Host: a"),
        raw(b"Host: a", LENGTH, LENGTH),
        raw(b"Host: a", b"Content-Length: +13"),
        raw(b"Host: a", b"Content-Length: 13, 13"),
        raw(b"Host: a", b"Content-Length: " + b"0" * 30 + b"13"),
        raw(b"Host: a", b"Content-Length : 13"),
        raw(b"Host: a", b"Content-Length: 12"),
        raw(b"Host: a", b"Content-Length: 14"),
        raw(b"Host: a", LENGTH, b"Transfer-Encoding: chunked"),
        raw(b"Host: a", LENGTH, b"Expect: 100-continue"),
        raw(b"Host: a", LENGTH, b"Upgrade: h2c"),
        raw(b"Host: a", LENGTH, b"Connection: close"),
        raw(b"Host: a", LENGTH, b"Connection: keep-alive, close"),
        raw(b"Host: a", LENGTH, b"X: a", b" folded"),
        raw(b"Host: a", LENGTH, b"X: \x00"),
        raw(b"Host: a", LENGTH, b"X: \xe9"),
        raw(b"Host: a", LENGTH, b"X: a\nY: b"),
        raw(b"Host: a", LENGTH).replace(b"\r\n", b"\n"),
        PLAIN[:40],
        PLAIN + PLAIN,
    ],
)
def test_everything_else_is_left_to_h11(data: bytes) -> None:
    assert PlainRequest.read(data) is None


def test_what_is_read_of_damaged_requests_is_what_h11_reads() -> None:
    rng = np.random.default_rng(0)
    pieces = [
        b"\r\n",
        b"\n",
        b" ",
        b"\t",
        b":",
        b"0",
        b"Host: b\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"\x7f",
        b"\x80",
    ]
    accepted = 0
    for _ in range(3000):
        start, stop = np.sort(rng.integers(0, len(PLAIN), 2))
        stop = min(stop, start + int(rng.integers(3)))
        damaged = PLAIN[:start] + pieces[rng.integers(len(pieces))] * int(rng.integers(2)) + PLAIN[stop:]
        found = PlainRequest.read(damaged)
        if found is not None:
            accepted += 1
            assert (found.target, found.headers, found.body) == by_h11(damaged)
    assert 300 < accepted < 2700


class Wire(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__({"peername": ("a", 1), "sockname": ("b", 2)})
        self.written = b""
        self.closed = self.paused = self.aborted = False
        self.untaken = 0

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def abort(self) -> None:
        self.aborted = True

    def get_write_buffer_size(self) -> int:
        return self.untaken

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def statuses(self) -> list[bytes]:
        return re.findall(rb"HTTP/1\.1 (\d+)", self.written)


class Application:
    """Answers with the body that it was sent, each time that it may."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()
        self.heard: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = (await receive())["body"]
        self.heard.append(body)
        await self.may_answer.wait()
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def connect(application: Any, state: ServerState, *, limit: int = 9, seconds: float = 30) -> tuple[Connection, Wire]:
    http = partial(Connection, header_seconds=seconds)
    config = uvicorn.Config(application, http=http, limit_concurrency=limit, lifespan="off", log_config=None)  # type: ignore[arg-type]
    config.load()
    connection = Connection(
        header_seconds=seconds, config=config, server_state=state, app_state={}, _loop=asyncio.get_running_loop()
    )
    wire = Wire()
    connection.connection_made(wire)
    return connection, wire


def test_request_that_comes_early_waits_for_its_turn_and_reading_pauses() -> None:
    async def talk() -> None:
        application, state = Application(), ServerState()
        connection, wire = connect(application, state)
        connection.data_received(raw(b"Host: a", b"Content-Length: 5", body=b"first"))
        await settle()
        connection.data_received(raw(b"Host: a", b"Content-Length: 6", body=b"second")[:30])
        assert wire.paused
        connection.data_received(raw(b"Host: a", b"Content-Length: 6", body=b"second")[30:])
        await settle()
        assert (application.heard, wire.written) == ([b"first"], b"")
        application.may_answer.set()
        await settle()
        assert (application.heard, wire.statuses()) == ([b"first", b"second"], [b"200", b"200"])
        assert wire.written.endswith(b"\r\n\r\nsecond")
        assert not wire.paused
        connection.data_received(raw(b"Host: a", b"Content-Length: 1", b"Connection: close", body=b"3"))  # by h11
        await settle()
        assert (wire.statuses(), wire.closed) == ([b"200"] * 3, True)
        assert state.total_requests == 3

    asyncio.run(talk())


def test_connection_that_is_to_end_says_so_and_ends_after_its_answer() -> None:
    async def talk() -> None:
        application = Application()
        connection, wire = connect(application, ServerState())
        connection.data_received(PLAIN)
        await settle()
        connection.shutdown()
        assert not wire.closed
        application.may_answer.set()
        await settle()
        head, _, body = wire.written.partition(b"\r\n\r\n")
        assert (head.splitlines()[-1], body, wire.closed) == (b"connection: close", BODY, True)

    asyncio.run(talk())


def test_client_that_leaves_is_not_written_to() -> None:
    async def talk() -> None:
        application, state = Application(), ServerState()
        connection, wire = connect(application, state)
        connection.data_received(PLAIN)
        await settle()
        connection.connection_lost(None)
        application.may_answer.set()
        await settle()
        assert (wire.written, state.tasks, state.connections) == (b"", set(), set())

    asyncio.run(talk())


def test_connections_beyond_the_limit_are_refused() -> None:
    async def talk() -> None:
        application, state = Application(), ServerState()
        connect(application, state, limit=2)
        connection, wire = connect(application, state, limit=2)
        connection.data_received(PLAIN)
        await settle()
        assert (application.heard, wire.statuses()) == ([], [b"503"])

    asyncio.run(talk())


def test_answer_that_nobody_takes_is_given_up() -> None:
    async def talk() -> None:
        connection, wire = connect(Application(), ServerState(), seconds=0.1)
        wire.untaken = 100_000
        connection.pause_writing()
        for _ in range(4):  # as long as some of it is taken, however long that is
            await asyncio.sleep(0.06)
            wire.untaken -= 10_000
        assert not wire.aborted
        wire.untaken = 0
        connection.resume_writing()
        await asyncio.sleep(0.15)
        assert not wire.aborted
        wire.untaken = 100  # less than what makes a transport complain
        connection.timeout_keep_alive_handler()
        assert (wire.closed, wire.aborted) == (True, False)
        await asyncio.sleep(0.15)
        assert wire.aborted

    asyncio.run(talk())


def test_what_the_application_did_not_foresee_ends_the_connection() -> None:
    async def fail(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("a surprise")

    async def talk() -> None:
        connection, wire = connect(fail, ServerState())
        connection.data_received(PLAIN)
        await settle()
        head, _, body = wire.written.partition(b"\r\n\r\n")
        assert (wire.statuses(), body, wire.closed) == ([b"500"], b"Internal Server Error", True)
        assert head.lower().count(b"connection: close") == 1

    asyncio.run(talk())
