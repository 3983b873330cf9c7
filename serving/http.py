"""HTTP connections: uvicorn's own, with a limit on how long a client may take to say what it wants and to be told.

Most requests come whole, in one piece and in the plainest form. Those are read and answered here at a fraction of what
h11 costs, which reads all others and has the last word on everything that is not plain.
"""

import asyncio
import re
from dataclasses import dataclass
from typing import Any

from h11 import IDLE
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol, RequestResponseCycle

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_HEAD = re.compile(rb"POST (/[!-~]*) HTTP/1\.1\r\n((?:%s:[ -~]*\r\n)+)\r\n" % _TOKEN)
_FIELD = re.compile(rb"(%s): *([!-~](?:[ -~]*[!-~])?)? *\r\n" % _TOKEN)
_NOT_PLAIN = {b"transfer-encoding", b"expect", b"upgrade"}
_MAX_LENGTH_DIGITS = 18

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True)
class PlainRequest:
    """A POST that came whole, with a body of a known length and a connection that stays open."""

    target: bytes
    headers: Headers
    body: bytes

    @classmethod
    def read(cls, data: bytes) -> "PlainRequest | None":
        """The request that `data` is, no more and no less; None where it is anything else, valid or not."""
        match = _HEAD.match(data)
        if match is None:
            return None
        headers = [(name.lower(), value) for name, value in _FIELD.findall(match[2])]
        names = [name for name, _ in headers]
        if names.count(b"host") != 1 or names.count(b"content-length") != 1 or not _NOT_PLAIN.isdisjoint(names):
            return None
        length = headers[names.index(b"content-length")][1]
        if not length.isdigit() or len(length) > _MAX_LENGTH_DIGITS or int(length) != len(data) - match.end():
            return None
        if any(name == b"connection" and value.lower() != b"keep-alive" for name, value in headers):
            return None
        return cls(match[1], headers, data[match.end() :])


class Connection(H11Protocol):
    """uvicorn's connection, closed where a request's line and headers do not arrive in time, or nobody takes an answer.

    Args:
        header_seconds: the time for them, and for a client to take some more of its answer.
        options: uvicorn's own.
    """

    def __init__(self, *, header_seconds: float, **options: Any) -> None:
        super().__init__(**options)
        self._header_seconds = header_seconds
        self._header_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._early = b""  # what came while a plain request was being answered

    def connection_made(self, transport: Any) -> None:
        """The time runs from the first moment."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """It runs again from the first byte of each further request."""
        if isinstance(self.cycle, _PlainCycle) and not self.cycle.response_complete:
            self._early += data
            self.flow.pause_reading()
            return
        request = PlainRequest.read(data) if self._is_between_requests() else None
        if request is not None:
            self._unset_keepalive_if_required()
            self._begin(request)
        else:
            super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._stop_watching()
        self._stop_watching_answer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client takes its answer more slowly than it is written."""
        super().pause_writing()
        self._watch_answer()

    def resume_writing(self) -> None:
        """It has taken nearly all."""
        super().resume_writing()
        self._stop_watching_answer()

    def timeout_keep_alive_handler(self) -> None:
        """A transport that is to close waits until all is taken."""
        super().timeout_keep_alive_handler()
        self._watch_answer()

    def on_response_complete(self) -> None:
        """What came early is read now."""
        super().on_response_complete()
        early, self._early = self._early, b""
        if early and not self.transport.is_closing():
            self.data_received(early)

    def _is_between_requests(self) -> bool:
        """Whether h11 has nothing half done, and may accept another request."""
        conn = self.conn
        is_idle = conn.our_state is IDLE and conn.their_state is IDLE and not conn.trailing_data[0]
        limit = self.limit_concurrency or 0
        return is_idle and len(self.connections) < limit and len(self.tasks) < limit

    def _begin(self, request: PlainRequest) -> None:
        path, _, query = request.target.partition(b"?")
        self.headers = request.headers
        self.scope = {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": "1.1",
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme or "http",
            "method": "POST",
            "root_path": "",
            "path": path.decode("ascii"),
            "raw_path": path,
            "query_string": query,
            "headers": request.headers,
            "state": self.app_state,
        }
        self.cycle = _PlainCycle(
            scope=self.scope,
            conn=self.conn,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            on_response=self.on_response_complete,
        )
        self.cycle.body = bytearray(request.body)
        self.cycle.more_body = False
        self.cycle.message_event.set()
        task = self.loop.create_task(self.cycle.run_asgi(self.app))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def _watch(self) -> None:
        is_answering = self.cycle is not None and not self.cycle.response_complete
        if is_answering:
            self._stop_watching()
        elif self._header_timer is None:
            self._header_timer = self.loop.call_later(self._header_seconds, self._give_up)

    def _stop_watching(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _watch_answer(self) -> None:
        left = self.transport.get_write_buffer_size()
        if left and self._write_timer is None:
            self._write_timer = self.loop.call_later(self._header_seconds, self._give_up_answer, left)

    def _stop_watching_answer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _give_up_answer(self, left: int) -> None:
        self._write_timer = None
        if self.transport.get_write_buffer_size() >= left:
            self.transport.abort()
        else:
            self._watch_answer()

    def _give_up(self) -> None:
        self._header_timer = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


class _PlainCycle(RequestResponseCycle):
    """The answer to a plain request, which the application gives with one body, in one write."""

    _start: Any = None

    async def send(self, message: Any) -> None:
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        if not self.response_started:
            self.response_started = True
            self._start = message
            return
        status, own = self._start["status"], list(self._start["headers"])
        if _CLOSE in own:  # uvicorn's answer to what the application did not foresee, which has no length
            own.remove(_CLOSE)
            self.keep_alive = False
        headers = [*self.default_headers, *own, *([] if self.keep_alive else [_CLOSE])]
        lines = b"".join(b"%s: %s\r\n" % field for field in headers)
        self.transport.write(b"HTTP/1.1 %d %s\r\n%s\r\n%s" % (status, STATUS_PHRASES[status], lines, message["body"]))
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()


_CLOSE = (b"connection", b"close")
