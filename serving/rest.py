"""TensorFlow Serving's REST API as an ASGI application.

Requests are read on the event loop and answered in a pool of threads, which parse, run the model and write JSON. With
batching small ones need no thread of their own: the loop parses them, and writes what the batch answers.
"""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from tensorflow_serving.apis import model_pb2, prediction_log_pb2

from serving import bodies, examples, json_tensor, request_log, routes, ui
from serving.bodies import Disconnected, HttpError, Message, Receive
from serving.core import Core
from serving.json_tensor import PredictInputs
from serving.routes import Target
from serving.signatures import DEFAULT_SIGNATURE, Arrays, Signature
from serving.status import HTTP_STATUS, Code, ServingError, invalid_argument
from serving.ui import Ui
from serving.versions import Handle, VersionStatus

_LOGGER = logging.getLogger("serving")
_ACCESS = logging.getLogger("serving.access")
_JSON = b"application/json"
_TEXT = b"text/plain"
_PROMETHEUS = b"text/plain; version=0.0.4"
_CORS = [
    (b"access-control-allow-origin", b"*"),
    (b"access-control-allow-methods", b"GET, POST"),
    (b"access-control-allow-headers", b"Content-Type"),
]

# What the loop may parse and write itself, without holding up others for long (about 1 ms).
_SMALL_BODY_BYTES = 64 << 10
_SMALL_ANSWER_VALUES = 4096

Send = Callable[[Message], Awaitable[None]]
Answer = tuple[int, bytes, bytes]


@dataclass(frozen=True)
class _Question:
    """What a predict request asks of the version that is pinned for it."""

    handle: Handle
    signature_name: str
    signature: Signature
    inputs: PredictInputs


class RestApplication:
    """Answers `/v1/models...`, `/livez`, `/readyz` and, where asked for, the path of metrics and `/ui`.

    Args:
        core: what is served, and how.
        executor: the threads that run models.
        is_ready: what `/readyz` says.
        page: the page for people.
    """

    def __init__(self, core: Core, executor: Executor, is_ready: Callable[[], bool], page: Ui | None = None) -> None:
        self._core = core
        self._limits = core.settings.limits
        self._executor = executor
        self._is_ready = is_ready
        self._page = page
        self._running = 0
        self._answers: set[asyncio.Future[bytes]] = set()  # a loop itself forgets those that nobody holds
        self._batches = core.settings.batching is not None or core.settings.per_model_batching

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """The ASGI entry point."""
        started = time.perf_counter()
        verb = scope["method"]
        path = scope["raw_path"].decode("latin-1")
        try:
            status, body, kind = await self._answer(scope, verb, path, receive)
        except ServingError as error:
            status, body, kind = HTTP_STATUS[error.code], _error_body(error.message), _JSON
        except HttpError as error:
            status, body, kind = error.status, _error_body(error.message), _JSON
        except Disconnected:
            return
        headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
        if status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        if self._page is not None and ui.is_page(path):
            headers += ui.HEADERS
        elif self._core.settings.cors:
            headers += _CORS
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if verb == "HEAD" else body})
        if self._core.settings.access_log:
            seen = {"verb": verb, "path": path[:256], "status": status, "bytes": len(body)}
            seen["ms"] = round(1000 * (time.perf_counter() - started), 3)
            _ACCESS.info("REST %(verb)s %(path)s %(status)d %(ms).3f ms", seen, extra={"request": seen})

    async def _answer(self, scope: Any, verb: str, path: str, receive: Receive) -> Answer:
        headers = dict(scope["headers"])
        self._check_head(scope)
        if self._page is not None and ui.is_page(path):
            return await self._answer_page(self._page, scope, verb, path, headers)
        if not routes.is_api(path):
            return self._answer_other(path, headers)
        if verb == "OPTIONS":
            return (200 if headers.get(b"origin", b"").startswith(b"http") else 400), b"", _JSON
        self._admit(headers)
        path += "?" + scope["query_string"].decode("latin-1") if scope["query_string"] else ""
        target = routes.parse(verb, path)
        if target.is_inference:
            body = await bodies.read(headers, receive, self._limits)
            if self._batches and target.method == "predict" and len(body) <= _SMALL_BODY_BYTES:
                return 200, await self._on_loop(self._predict_in_batch, target, body), _JSON
            return 200, await self._in_thread(self._infer, target, body), _JSON
        return 200, (self._metadata if target.method == "metadata" else self._status)(target).encode(), _JSON

    def _check_head(self, scope: Any) -> None:
        """Refuses a head that came at once and is too large; one that comes bit by bit ends in the parser."""
        limit = self._limits.max_header_bytes
        if sum(len(name) + len(value) for name, value in scope["headers"]) + len(scope["raw_path"]) > limit:
            raise HttpError(431, f"The request's line and headers must not be larger than {limit} bytes.")

    def _answer_other(self, path: str, headers: dict[bytes, bytes]) -> Answer:
        """Probes, which need no token, and metrics, which do."""
        if path == "/livez":
            return 200, b"ok\n", _TEXT
        if path == "/readyz":
            return (200, b"ok\n", _TEXT) if self._is_ready() else (503, b"not ready\n", _TEXT)
        if path == self._core.settings.metrics_path:
            self._admit(headers)
            return 200, self._core.metrics.text().encode(), _PROMETHEUS
        return 404, b"Not Found\n", _TEXT

    async def _answer_page(self, page: Ui, scope: Any, verb: str, path: str, headers: dict[bytes, bytes]) -> Answer:
        """The files of the page, which a browser fetches without a token, and its answers, which need it."""
        if verb not in ("GET", "HEAD"):
            raise HttpError(405, "The page can only be read.")
        found = ui.file(path)
        if found is not None:
            return 200, *found
        self._admit(headers)
        if not page.answers(path):
            return 404, b"Not Found\n", _TEXT
        return 200, await self._in_thread(page.answer, path, scope["query_string"].decode("latin-1")), _JSON

    def _admit(self, headers: dict[bytes, bytes]) -> None:
        if not self._core.guard.admits(headers.get(b"authorization", b"")):
            raise ServingError(
                Code.UNAUTHENTICATED, "The request must carry the server's token: Authorization: Bearer."
            )

    async def _in_thread(self, answer: Callable[..., bytes], *arguments: Any) -> bytes:
        loop = asyncio.get_running_loop()
        return await self._in_time(partial(loop.run_in_executor, self._executor, answer, *arguments))

    async def _on_loop(self, answer: Callable[..., Coroutine[Any, Any, bytes]], *arguments: Any) -> bytes:
        loop = asyncio.get_running_loop()
        return await self._in_time(lambda: loop.create_task(answer(*arguments)))

    async def _in_time(self, begin: Callable[[], asyncio.Future[bytes]]) -> bytes:
        """Waits for an answer; its request counts as running until it is there, even past the deadline."""
        if self._running >= self._limits.max_concurrent_requests:
            raise ServingError(Code.UNAVAILABLE, "The server is handling as many requests as it may; try again.")
        answer = begin()
        self._running += 1
        self._answers.add(answer)
        answer.add_done_callback(self._finished)
        done, _ = await asyncio.wait([answer], timeout=self._limits.deadline_seconds)
        if not done:
            raise ServingError(Code.DEADLINE_EXCEEDED, "Timed out: the request took longer than its deadline.")
        return answer.result()

    def _finished(self, answer: asyncio.Future[bytes]) -> None:
        self._running -= 1
        self._answers.discard(answer)
        if not answer.cancelled():
            answer.exception()  # seen: one that came after the deadline has nobody left to tell

    def _infer(self, target: Target, body: bytes) -> bytes:
        answer = self._predict if target.method == "predict" else self._classify_or_regress
        with self._counted(target):
            return answer(target, body).encode()

    @contextmanager
    def _counted(self, target: Target) -> Iterator[None]:
        """Counts one request, and keeps what nobody expected of it from the client."""
        try:
            with self._core.counted(target.name, _api(target), "REST", self._limits.deadline_seconds):
                yield
        except (ServingError, HttpError):
            raise
        except Exception:  # the last line of defence: the client gets no trace, the log does
            _LOGGER.exception("%s of %s", target.method, target.name)
            raise ServingError(Code.INTERNAL, "Internal error") from None

    def _predict(self, target: Target, body: bytes) -> str:
        document = json_tensor.parse(body)
        with self._core.pinned(target.name, target.version, target.label, _api(target)) as handle:
            question = self._question(handle, document)
            found = handle.servable.run(question.signature_name, question.inputs.arrays)
        outputs = {alias: np.asarray(values) for alias, values in found.items()}
        return self._reply(question, outputs)

    async def _predict_in_batch(self, target: Target, body: bytes) -> bytes:
        """As `_predict`, on the event loop but for what takes long."""
        with self._counted(target):
            document = json_tensor.parse(body)
            with self._core.pinned(target.name, target.version, target.label, _api(target)) as handle:
                question = self._question(handle, document)
                outputs = await handle.servable.run_async(
                    question.signature_name, question.inputs.arrays, self._executor
                )
            if sum(array.size for array in outputs.values()) <= _SMALL_ANSWER_VALUES:
                return self._reply(question, outputs).encode()
            loop = asyncio.get_running_loop()
            return (await loop.run_in_executor(self._executor, self._reply, question, outputs)).encode()

    def _question(self, handle: Handle, document: dict[str, Any]) -> _Question:
        given = json_tensor.signature_name(document)
        name = given or DEFAULT_SIGNATURE
        signature = handle.servable.signatures.get(name)
        if signature is None:
            raise invalid_argument(f'Serving signature name: "{name}" not found in signature def')
        self._core.inference.check_predict(handle.servable, name)
        inputs = json_tensor.predict_inputs(document, signature.inputs, given)
        self._core.check_sizes(inputs.arrays)
        return _Question(handle, name, signature, inputs)

    def _reply(self, question: _Question, outputs: Arrays) -> str:
        if self._core.log is not None and self._core.log.wants_next():
            spec, signature = _spec(question.handle, question.signature_name), question.signature
            arrays = question.inputs.arrays
            log = request_log.predict_log(spec, arrays, signature.inputs, outputs, signature.outputs)
            self._core.log.offer(log)
        return json_tensor.predict_json(outputs, by_row=question.inputs.by_row)

    def _classify_or_regress(self, target: Target, body: bytes) -> str:
        document = json_tensor.parse(body)
        name = json_tensor.signature_name(document)
        given = examples.request_input(document)
        run = self._core.inference.classify if target.method == "classify" else self._core.inference.regress
        with self._core.pinned(target.name, target.version, target.label, _api(target)) as handle:
            result = run(handle.servable, name, given)
        if self._core.log is not None and self._core.log.wants_next():
            log = prediction_log_pb2.PredictionLog()
            one = log.classify_log if target.method == "classify" else log.regress_log
            one.request.input.CopyFrom(given)
            one.response.result.CopyFrom(result)
            for message in (log.log_metadata, one.request, one.response):
                message.model_spec.CopyFrom(_spec(handle, name or DEFAULT_SIGNATURE))
            self._core.log.offer(log)
        write = examples.classification_json if target.method == "classify" else examples.regression_json
        return write(result)

    def _status(self, target: Target) -> str:
        statuses = self._core.models.status(target.name, target.version)
        return json.dumps({"model_version_status": [_status_json(status) for status in statuses]}, indent=4) + "\n"

    def _metadata(self, target: Target) -> str:
        with self._core.models.handle(target.name, target.version, target.label) as handle:
            spec = {"name": target.name, "signature_name": "", "version": str(handle.version)}
            metadata = {"signature_def": handle.servable.signature_def_json}
        return json.dumps({"model_spec": spec, "metadata": metadata}, indent=4) + "\n"


def _api(target: Target) -> str:
    """The method as metrics name it, such as `Predict`."""
    return target.method.capitalize()


def _spec(handle: Handle, signature_name: str) -> Any:
    spec = model_pb2.ModelSpec(name=handle.model, signature_name=signature_name)
    spec.version.value = handle.version
    return spec


def _error_body(message: str) -> bytes:
    return (json.dumps({"error": message}) + "\n").encode()


def _status_json(status: VersionStatus) -> dict[str, Any]:
    return {
        "version": str(status.version),
        "state": status.state.name,
        "status": {"error_code": status.code.name, "error_message": status.message},
    }
