"""Bodies of HTTP requests, read within limits of size and time."""

import asyncio
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from serving.settings import Limits
from serving.status import invalid_argument

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]


class HttpError(Exception):
    """A fault of HTTP itself, which has a status but no code of TensorFlow's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Disconnected(Exception):  # noqa: N818 - not an error: nobody is left to be told
    """The client went away before its request was complete."""


async def read(headers: dict[bytes, bytes], receive: Receive, limits: Limits) -> bytes:
    """The body of a request, decompressed.

    Raises:
        HttpError: it is too large (413), too slow (408), or encoded in a way that is not known (415).
        Disconnected: the client is gone.
        ServingError: INVALID_ARGUMENT, it is no valid gzip.
    """
    limit = limits.max_body_bytes
    length = headers.get(b"content-length", b"0")
    if length.isdigit() and (len(length) > 19 or int(length) > limit):
        raise _too_large(limit)
    try:
        async with asyncio.timeout(limits.deadline_seconds):
            body = await _receive_all(receive, limit)
    except TimeoutError:
        raise HttpError(408, "The request's body did not arrive in time.") from None
    encoding = headers.get(b"content-encoding", b"identity").strip().lower()
    if encoding == b"gzip":
        return _gunzip(body, limit)
    if encoding not in (b"identity", b""):
        raise HttpError(415, "Content-Encoding must be gzip or identity.")
    return body


async def _receive_all(receive: Receive, limit: int) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        body += message.get("body", b"")
        if len(body) > limit:
            raise _too_large(limit)
        if not message.get("more_body"):
            return bytes(body)


def _too_large(limit: int) -> HttpError:
    return HttpError(413, f"The request's body must not be larger than {limit} bytes.")


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
    if decompressor.unused_data:
        raise invalid_argument("The request's body is not valid gzip: more follows behind its end.")
    return text
