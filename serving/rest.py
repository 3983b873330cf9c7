"""TensorFlow Serving's REST API as an ASGI application.

Requests are read on the event loop and answered in a pool of threads, which parse, run the model and write JSON.
"""

import asyncio
import json
import logging
import re
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np

from serving import json_tensor
from serving.signatures import DEFAULT_SIGNATURE, Servable
from serving.status import HTTP_STATUS, Code, ServingError, invalid_argument
from serving.versions import Models, VersionStatus

_LOGGER = logging.getLogger("serving")
_PREDICT_PATH = re.compile(
    r"/v1/models/(?P<name>[^/:]+)(?:/versions/(?P<version>[0-9]+)|/labels/(?P<label>[^/:]+))?"
    r":(?P<method>classify|regress|predict)",
    re.IGNORECASE,
)
_STATUS_PATH = re.compile(
    r"/v1/models(?:/(?P<name>[^/:]+))?(?:/versions/(?P<version>[0-9]+)|/labels/(?P<label>[^/:]+))?"
    r"(?:/(?P<resource>metadata))?",
    re.IGNORECASE,
)
_API_PATH = re.compile(r"/v1/.*", re.IGNORECASE | re.DOTALL)
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_MAX_VERSION = 2**63 - 1
_JSON = b"application/json"

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


@dataclass(frozen=True)
class Limits:
    """What one request, and all together, may take.

    Attributes:
        max_body_bytes: size of a request's body, also after decompression; more is a 413.
        max_concurrent_requests: requests being answered or waiting for it; more is a 503.
        deadline_seconds: time for reading a request, and again for answering it; longer is a 408 and a 504.
    """

    max_body_bytes: int = 64 << 20
    max_concurrent_requests: int = 256
    deadline_seconds: float = 30.0


class _HttpError(Exception):
    """A fault of HTTP itself, which has a status but no code of TensorFlow's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class _Disconnected(Exception):  # noqa: N818 - not an error: nobody is left to be told
    """The client went away before its request was complete."""


class RestApplication:
    """Answers `/v1/models...`, `/livez` and `/readyz`.

    Args:
        models: what is served.
        executor: the threads that run models.
        limits: see `Limits`.
        is_ready: what `/readyz` says.
    """

    def __init__(self, models: Models, executor: Executor, limits: Limits, is_ready: Callable[[], bool]) -> None:
        self._models = models
        self._executor = executor
        self._limits = limits
        self._is_ready = is_ready
        self._running = 0

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """The ASGI entry point."""
        method = scope["method"]
        path = scope["raw_path"].decode("latin-1")
        try:
            status, body, kind = await self._answer(scope, method, path, receive)
        except ServingError as error:
            status, body, kind = HTTP_STATUS[error.code], _error_body(error.message), _JSON
        except _HttpError as error:
            status, body, kind = error.status, _error_body(error.message), _JSON
        except _Disconnected:
            return
        headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if method == "HEAD" else body})

    async def _answer(self, scope: Any, method: str, path: str, receive: Receive) -> tuple[int, bytes, bytes]:
        if not _API_PATH.fullmatch(path) and path.lower() != "/v1/models":
            return self._answer_probe(path)
        if method == "OPTIONS":
            return (200 if dict(scope["headers"]).get(b"origin", b"").startswith(b"http") else 400), b"", _JSON
        path += "?" + scope["query_string"].decode("latin-1") if scope["query_string"] else ""
        if method == "POST" and (match := _PREDICT_PATH.fullmatch(path)):
            target = _target(match)
            body = await self._read_body(scope, receive)
            return 200, await self._in_thread(self._infer, match["method"], target, body), _JSON
        if method == "GET" and (match := _STATUS_PATH.fullmatch(path)):
            if not match["name"]:
                raise invalid_argument("Missing model name in request.")
            answer = self._metadata if match["resource"] else self._status
            return 200, answer(_target(match)).encode(), _JSON
        raise _malformed(method, path)

    def _answer_probe(self, path: str) -> tuple[int, bytes, bytes]:
        if path == "/livez":
            return 200, b"ok\n", b"text/plain"
        if path == "/readyz":
            return (200, b"ok\n", b"text/plain") if self._is_ready() else (503, b"not ready\n", b"text/plain")
        return 404, b"Not Found\n", b"text/plain"

    async def _read_body(self, scope: Any, receive: Receive) -> bytes:
        headers = dict(scope["headers"])
        limit = self._limits.max_body_bytes
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > limit:
            raise _too_large(limit)
        try:
            async with asyncio.timeout(self._limits.deadline_seconds):
                body = await _receive_all(receive, limit)
        except TimeoutError:
            raise _HttpError(408, "The request's body did not arrive in time.") from None
        encoding = headers.get(b"content-encoding", b"identity").strip().lower()
        if encoding == b"gzip":
            return _gunzip(body, limit)
        if encoding not in (b"identity", b""):
            raise _HttpError(415, "Content-Encoding must be gzip or identity.")
        return body

    async def _in_thread(self, answer: Callable[..., bytes], *arguments: Any) -> bytes:
        """Runs `answer` in a thread; the request counts as running until the thread is done, even past its deadline."""
        if self._running >= self._limits.max_concurrent_requests:
            raise ServingError(Code.UNAVAILABLE, "The server is handling as many requests as it may; try again.")
        self._running += 1
        future = asyncio.get_running_loop().run_in_executor(self._executor, answer, *arguments)
        future.add_done_callback(self._finished)
        done, _ = await asyncio.wait([future], timeout=self._limits.deadline_seconds)
        if not done:
            raise ServingError(Code.DEADLINE_EXCEEDED, "Timed out: the request took longer than its deadline.")
        return future.result()

    def _finished(self, future: "asyncio.Future[bytes]") -> None:
        self._running -= 1
        if not future.cancelled():
            future.exception()  # seen: one that came after the deadline has nobody left to tell

    def _infer(self, method: str, target: "_Target", body: bytes) -> bytes:
        try:
            if method == "predict":
                return self._predict(target, body).encode()
            if method in ("classify", "regress"):
                raise ServingError(Code.UNIMPLEMENTED, f"{method} is not implemented by this server; use predict.")
        except (ServingError, _HttpError):
            raise
        except Exception:  # the last line of defence: the client gets no trace, the log does
            _LOGGER.exception("%s of %s", method, target.name)
            raise ServingError(Code.INTERNAL, "Internal error") from None
        raise _malformed("POST", target.path)

    def _predict(self, target: "_Target", body: bytes) -> str:
        document = json_tensor.parse(body)
        name = json_tensor.signature_name(document)
        with self._models.handle(target.name, target.version, target.label) as handle:
            return predict(handle.servable, document, name)

    def _status(self, target: "_Target") -> str:
        statuses = self._models.status(target.name, target.version)
        return json.dumps({"model_version_status": [_status_json(status) for status in statuses]}, indent=4) + "\n"

    def _metadata(self, target: "_Target") -> str:
        with self._models.handle(target.name, target.version, target.label) as handle:
            spec = {"name": target.name, "signature_name": "", "version": str(handle.version)}
            metadata = {"signature_def": handle.servable.signature_def_json}
        return json.dumps({"model_spec": spec, "metadata": metadata}, indent=4) + "\n"


def predict(servable: Servable, document: dict[str, Any], signature_name: str) -> str:
    """Answers a parsed predict request from one loaded version."""
    name = signature_name or DEFAULT_SIGNATURE
    signature = servable.signatures.get(name)
    if signature is None:
        raise invalid_argument(f'Serving signature name: "{name}" not found in signature def')
    inputs = json_tensor.predict_inputs(document, signature.inputs, signature_name)
    outputs = {alias: np.asarray(array) for alias, array in servable.run(name, inputs.arrays).items()}
    return json_tensor.predict_json(outputs, by_row=inputs.by_row)


@dataclass(frozen=True)
class _Target:
    """The model that a path names."""

    path: str
    name: str
    version: int | None
    label: str | None


def _target(match: re.Match[str]) -> _Target:
    version = match["version"]
    if version is not None and (len(version) > 19 or int(version) > _MAX_VERSION):
        raise invalid_argument(f"Failed to convert version: {version[:40]} to numeric.")
    label = match["label"]
    return _Target(
        match.string,
        _decode(match["name"]),
        int(version) if version is not None else None,
        _decode(label) if label is not None else None,
    )


def _decode(text: str) -> str:
    if _BAD_ESCAPE.search(text):
        raise invalid_argument("Malformed request: a percent sign must be followed by two hexadecimal digits.")
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        raise invalid_argument("Malformed request: a percent-encoded name must be UTF-8.") from None


def _malformed(method: str, path: str) -> ServingError:
    return invalid_argument(f"Malformed request: {method} {path[:256]}")


async def _receive_all(receive: Receive, limit: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Disconnected
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        chunks.append(chunk)
        if not message.get("more_body"):
            return b"".join(chunks)


def _too_large(limit: int) -> _HttpError:
    return _HttpError(413, f"The request's body must not be larger than {limit} bytes.")


def _gunzip(body: bytes, limit: int) -> bytes:
    decompressor = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        text = decompressor.decompress(body, limit + 1)
    except zlib.error:
        raise invalid_argument("The request's body is not valid gzip.") from None
    if len(text) > limit:
        raise _too_large(limit)
    if not decompressor.eof:
        raise invalid_argument("The request's body is not valid gzip: it ends too early.")
    return text


def _error_body(message: str) -> bytes:
    return (json.dumps({"error": message}) + "\n").encode()


def _status_json(status: VersionStatus) -> dict[str, Any]:
    return {
        "version": str(status.version),
        "state": status.state.name,
        "status": {"error_code": status.code.name, "error_message": status.message},
    }
