"""What a server recorded, asked again: of a new version, of another server, or as a load."""

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import prediction_log_pb2, prediction_service_pb2_grpc

from serving.guard import read_token
from serving.status import ServingError
from serving.tensor_proto import from_proto
from tfrec.errors import UsageError, UserError

_METHODS = {
    "predict_log": "Predict",
    "classify_log": "Classify",
    "regress_log": "Regress",
    "multi_inference_log": "MultiInference",
}
_TOLERANCE = 1e-4
_DEADLINE_SECONDS = 60.0
_MAX_BYTES = 64 << 20


def read(files: Sequence[Path]) -> Iterator[Any]:
    """The PredictionLog records of some files.

    Raises:
        UserError: a file cannot be read, or holds something else.
    """
    for path in files:
        if not path.is_file():
            raise UserError(f"{path}: no such file; give the files of a server's request log.")
        try:
            for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
                yield prediction_log_pb2.PredictionLog.FromString(record)
        except (tf.errors.DataLossError, DecodeError):
            raise UserError(f"{path}: is no request log, or is damaged.") from None


class _Totals:
    """What came of the requests so far."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.seconds: list[float] = []
        self.errors: dict[str, int] = {}
        self.differing = 0
        self.compared = 0

    def add(self, seconds: float, error: str | None, same: bool | None) -> None:
        with self.lock:
            if error is not None:
                self.errors[error] = self.errors.get(error, 0) + 1
                return
            self.seconds.append(seconds)
            if same is not None:
                self.compared += 1
                self.differing += not same


def replay(
    files: Sequence[Path],
    address: str,
    *,
    model: str | None = None,
    rate: float = 0.0,
    clients: int = 8,
    token_file: Path | None = None,
    ca_file: Path | None = None,
    cert_file: Path | None = None,
    key_file: Path | None = None,
) -> dict[str, Any]:
    """Asks a server everything that some files recorded.

    Args:
        files: a server's request log.
        address: HOST:PORT of gRPC.
        model: the model to ask instead of the recorded one.
        rate: requests a second; 0 = as fast as they are answered.
        clients: requests at once.
        token_file: holds the token that the server wants.
        ca_file: holds the certificate of who signed the server's, or that itself; the connection is encrypted then.
        cert_file: holds the client's own certificate, for a server that asks for one.
        key_file: holds the private key of that certificate.

    Returns:
        How many were asked, answered, failed by code, differed from the recorded answer (numbers by more than 1e-4 of
        their size), and the quantiles of the times in milliseconds.

    Raises:
        UserError: the files hold no requests, or a certificate or key cannot be read.
        UsageError: of the certificate, its key and the authority one is missing.
    """
    credentials = _credentials(ca_file, cert_file, key_file)
    totals = _Totals()
    metadata = [("authorization", f"Bearer {read_token(token_file)}")] if token_file else []
    options = [("grpc.max_receive_message_length", _MAX_BYTES), ("grpc.max_send_message_length", _MAX_BYTES)]
    asked = 0
    started = time.perf_counter()
    with _channel(address, credentials, options) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        with ThreadPoolExecutor(clients) as pool:
            records = read(files)
            while window := list(islice(records, 8 * clients)):  # never more in memory than these
                running = []
                for log in window:
                    _wait_until(started + asked / rate if rate else 0.0)
                    running.append(pool.submit(_ask, stub, log, model, metadata, totals))
                    asked += 1
                for future in running:
                    future.result()
    if asked == 0:
        raise UserError(f"{', '.join(map(str, files))}: no requests there.")
    return _summary(totals, asked, time.perf_counter() - started)


def _credentials(ca_file: Path | None, cert_file: Path | None, key_file: Path | None) -> grpc.ChannelCredentials | None:
    """What the connection is encrypted with; None where it is not."""
    if (cert_file is None) != (key_file is None):
        raise UsageError("replay: a client's certificate and its key go together; give --cert-file and --key-file.")
    if ca_file is None:
        if cert_file is not None:
            raise UsageError("replay: a client's certificate is for a server with TLS; give --ca-file too.")
        return None
    key, certificate = (None if path is None else _read_pem(path) for path in (key_file, cert_file))
    return grpc.ssl_channel_credentials(_read_pem(ca_file), key, certificate)


def _read_pem(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from None


def _channel(address: str, credentials: grpc.ChannelCredentials | None, options: list[tuple[str, int]]) -> grpc.Channel:
    if credentials is None:
        return grpc.insecure_channel(address, options=options)
    return grpc.secure_channel(address, credentials, options=options)


def _wait_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.perf_counter()))


def _summary(totals: _Totals, asked: int, seconds: float) -> dict[str, Any]:
    milliseconds = 1000 * np.array(totals.seconds or [np.nan])
    quantiles = {f"p{q}_ms": round(float(np.percentile(milliseconds, q)), 3) for q in (50, 90, 99)}
    return {
        "asked": asked,
        "answered": len(totals.seconds),
        "errors": dict(sorted(totals.errors.items())),
        "compared": totals.compared,
        "differing": totals.differing,
        "requests_per_second": round(asked / seconds, 1),
        **quantiles,
    }


def _ask(stub: Any, log: Any, model: str | None, metadata: Any, totals: _Totals) -> None:
    kind = log.WhichOneof("log_type")
    if kind not in _METHODS:
        totals.add(0.0, f"unsupported {kind}", None)
        return
    request = getattr(log, kind).request
    for spec in [task.model_spec for task in request.tasks] if kind == "multi_inference_log" else [request.model_spec]:
        spec.ClearField("version_choice")  # whichever version answers now is the one to look at
        spec.name = model or spec.name
    started = time.perf_counter()
    try:
        answer = getattr(stub, _METHODS[kind])(request, timeout=_DEADLINE_SECONDS, metadata=metadata)
    except grpc.RpcError as error:
        totals.add(0.0, error.code().name, None)
        return
    seconds = time.perf_counter() - started
    recorded = log.predict_log.response.outputs if kind == "predict_log" else None
    totals.add(seconds, None, _same(recorded, answer.outputs) if recorded else None)


def _same(recorded: Any, answered: Any) -> bool:
    if set(recorded) != set(answered):
        return False
    try:
        pairs = [(from_proto(recorded[alias], alias), from_proto(answered[alias], alias)) for alias in recorded]
    except ServingError:
        return False
    return all(_equal(expected, found) for expected, found in pairs)


def _equal(expected: np.ndarray, found: np.ndarray) -> bool:
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return False
    if expected.dtype.kind == "f":
        return bool(np.allclose(found, expected, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True))
    return bool(np.array_equal(found, expected))
