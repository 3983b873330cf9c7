"""How calls over gRPC are let in: who may call, and the one message of a call, waited for and parsed."""

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from serving.guard import Guard
from serving.settings import Limits

_HEALTH = "/grpc.health.v1.Health/"
_LOOKS_WITHIN_ITS_TIME = 4  # a call is let go after its time and at most a quarter of it


class Methods(grpc.GenericRpcHandler):
    """The methods of all services, whose calls are let in, waited for and parsed here.

    Interceptors, which are made for that, are put together anew for every call. And gRPC's library, where it waits and
    parses itself, waits for ever, in a thread of those that answer, and never frees the calls whose bytes are no
    message (16 KB each).

    Health checks are open to everyone. They have threads of their own, so that they are answered while models run and
    cannot hold up those who ask models; to watch the health takes none once it has begun.

    Args:
        guard: who may call.
        limits: the time for a call's message, and how many calls there may be.
    """

    def __init__(self, guard: Guard, limits: Limits) -> None:
        self._guard = guard
        self._services: list[grpc.GenericRpcHandler] = []
        self._handlers: dict[str, grpc.RpcMethodHandler] = {}
        self._waits = _Waits(limits.deadline_seconds)
        self._health_threads = ThreadPoolExecutor(limits.max_concurrent_requests, "grpc-health")
        self._watches: set[Any] = set()

    def add_generic_rpc_handlers(self, services: Iterable[grpc.GenericRpcHandler]) -> None:
        """Takes a service, as generated code gives it to a server."""
        self._services.extend(services)

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, grpc.RpcMethodHandler]) -> None:
        """Newer generated code gives a service a second time, to a server that tells its methods apart itself."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """Chooses the handler of a call, None for a method that no service has."""
        method = handler_call_details.method
        if not method.startswith(_HEALTH) and not self._guard.admits(_authorization(handler_call_details)):
            return _NOT_ADMITTED
        if method not in self._handlers:
            found = (service.service(handler_call_details) for service in self._services)
            handler = next((handler for handler in found if handler is not None), None)
            if handler is None:
                return None
            self._handlers[method] = self._reading(handler, method)
        return self._handlers[method]

    def _reading(self, handler: grpc.RpcMethodHandler, method: str) -> grpc.RpcMethodHandler:
        """The same handler, given a stream of bytes."""
        threads = self._health_threads if method.startswith(_HEALTH) else None
        if handler.unary_stream is not None:
            watch = _Watch(handler.unary_stream, handler.request_deserializer, self._waits, threads, self._watches)
            return grpc.stream_stream_rpc_method_handler(watch, None, handler.response_serializer)
        call = _Call(handler.unary_unary, handler.request_deserializer, self._waits, threads)
        return grpc.stream_unary_rpc_method_handler(call, None, handler.response_serializer)

    def start(self) -> None:
        """Ends calls whose message does not come in time from now on."""
        self._waits.start()

    def end_watches(self) -> None:
        """Ends the streams of those who watch the health."""
        for send in tuple(self._watches):
            send(None)

    def close(self) -> None:
        """Waits for nothing any more."""
        self._waits.close()
        self._health_threads.shutdown(wait=False)


def _authorization(details: grpc.HandlerCallDetails) -> bytes:
    shown = next((value for name, value in details.invocation_metadata if name == "authorization"), "")
    return shown.encode("latin-1", "replace") if isinstance(shown, str) else shown


def _turn_away(messages: Any, context: grpc.ServicerContext) -> None:
    context.abort(grpc.StatusCode.UNAUTHENTICATED, "The request must carry the server's token: authorization: Bearer.")


_NOT_ADMITTED = grpc.stream_unary_rpc_method_handler(_turn_away)  # which reads none of the stream


class _Waits:
    """Ends calls whose message does not come in time.

    Args:
        seconds: the time for it.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since: dict[grpc.ServicerContext, float] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def start(self) -> None:
        """Ends calls from now on."""
        threading.Thread(target=self._watch, name="grpc-waits", daemon=True).start()

    def message(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes | None:
        """The first of a call's messages, None where it has none."""
        with self._lock:
            self._since[context] = time.monotonic()
        try:
            return next(messages, None)
        finally:
            with self._lock:
                del self._since[context]

    def close(self) -> None:
        """Ends no more calls."""
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(self._seconds / _LOOKS_WITHIN_ITS_TIME):
            latest = time.monotonic() - self._seconds
            with self._lock:
                late = [context for context, since in self._since.items() if since < latest]
            for context in late:
                context.cancel()


class _Call:
    """A method that is given a stream of bytes and takes one message of it.

    Args:
        answer: the method, as a service has it.
        parse: makes a message of bytes.
        waits: waits for the message.
        threads: where it runs; None = where all others do.
    """

    def __init__(self, answer: Any, parse: Any, waits: _Waits, threads: Executor | None) -> None:
        self._answer = answer
        self._parse = parse
        self._waits = waits
        self.experimental_thread_pool = threads  # gRPC's library looks for it

    def __call__(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> Any:
        return self._answer(self._request(messages, context), context)

    def _request(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> Any:
        message = self._waits.message(messages, context)
        if message is None:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "The call has no message.")
        try:
            return self._parse(message)
        except DecodeError:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "The request's bytes are no message of this method.")


class _Watch(_Call):
    """A method that goes on answering, of which nothing but `send_response_callback` stays behind.

    Args:
        answer: the method, as a service has it.
        parse: makes a message of bytes.
        waits: waits for the message.
        threads: where it begins; None = where all others do.
        open_ones: the callbacks of the streams that are open.
    """

    experimental_non_blocking = True  # gRPC's library looks for it

    def __init__(self, answer: Any, parse: Any, waits: _Waits, threads: Executor | None, open_ones: set[Any]) -> None:
        super().__init__(answer, parse, waits, threads)
        self._open_ones = open_ones

    def __call__(
        self, messages: Iterator[bytes], context: grpc.ServicerContext, send_response_callback: Any = None
    ) -> Any:
        request = self._request(messages, context)
        self._open_ones.add(send_response_callback)
        if not context.add_callback(lambda: self._open_ones.discard(send_response_callback)):
            self._open_ones.discard(send_response_callback)
        return self._answer(request, context, send_response_callback)
