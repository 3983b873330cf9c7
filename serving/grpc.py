"""TensorFlow Serving's gRPC services, health checks, and the warm-up that replays recorded requests."""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)

from serving import servable as saved_model
from serving.signatures import Servable
from serving.status import Code, ServingError, invalid_argument
from serving.tensor_proto import fill_proto, run_predict
from serving.versions import Models
from tfrec.errors import UserError

_LOGGER = logging.getLogger("serving")
_MAX_WARMUP_RECORDS = 1000
_SERVICES = ("", "PredictionService", "ModelService")
_CODES = {code.value[0]: code for code in grpc.StatusCode}


@contextmanager
def _answering(context: grpc.ServicerContext) -> Iterator[None]:
    """Turns errors into gRPC's codes; what is not foreseen is logged and answered without a trace."""
    try:
        yield
    except ServingError as error:
        context.abort(_CODES[error.code], error.short_message)
    except Exception:  # the last line of defence: the client gets no trace, the log does
        _LOGGER.exception("gRPC")
        context.abort(grpc.StatusCode.INTERNAL, "Internal error")


def _unimplemented(context: grpc.ServicerContext, method: str) -> NoReturn:
    context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{method} is not implemented by this server.")
    raise AssertionError  # abort has raised


def _pinned(models: Models, spec: Any) -> Any:
    """Pins the version that a ModelSpec names."""
    label = spec.version_label if spec.WhichOneof("version_choice") == "version_label" else None
    version = spec.version.value if spec.HasField("version") else None
    return models.handle(spec.name, version, label)


def _check_spec(request: Any) -> None:
    if not request.HasField("model_spec"):
        raise invalid_argument("Missing ModelSpec")
    if not request.model_spec.name:
        raise invalid_argument("ModelSpec has no name specified.")


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict and GetModelMetadata; what else the service has is answered UNIMPLEMENTED."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def Predict(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 - the service's name
        """Runs one signature of one version."""
        response = predict_pb2.PredictResponse()
        with _answering(context):
            _check_spec(request)
            with _pinned(self._models, request.model_spec) as handle:
                name, outputs = run_predict(handle.servable, request)
                types = handle.servable.signatures[name].outputs
            for alias, array in outputs.items():
                fill_proto(response.outputs[alias], array, types[alias].type_code)
            _fill_spec(response.model_spec, handle)
            response.model_spec.signature_name = name
        return response

    def GetModelMetadata(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 - the service's name
        """The signatures of one version."""
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        with _answering(context):
            _check_spec(request)
            if not request.metadata_field:
                raise invalid_argument("GetModelMetadataRequest must specify at least one metadata_field")
            for name in request.metadata_field:
                if name != "signature_def":
                    raise invalid_argument(f"Metadata field {name} is not supported")
            with _pinned(self._models, request.model_spec) as handle:
                response.metadata["signature_def"].Pack(handle.servable.signature_def)
            _fill_spec(response.model_spec, handle)
        return response

    def Classify(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 - the service's name
        """Not implemented."""
        _unimplemented(context, "Classify")

    def Regress(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 - the service's name
        """Not implemented."""
        _unimplemented(context, "Regress")

    def MultiInference(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 - the service's name
        """Not implemented."""
        _unimplemented(context, "MultiInference")


def _fill_spec(spec: Any, handle: Any) -> None:
    spec.name = handle.model
    spec.version.value = handle.version


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """GetModelStatus; reloading the configuration is answered UNIMPLEMENTED."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def GetModelStatus(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 - the service's name
        """The state of one version or of all."""
        response = get_model_status_pb2.GetModelStatusResponse()
        with _answering(context):
            if not request.HasField("model_spec"):
                raise invalid_argument("Missing ModelSpec")
            spec = request.model_spec
            version = spec.version.value if spec.HasField("version") else None
            for known in self._models.status(spec.name, version):
                status = response.model_version_status.add(version=known.version, state=int(known.state))
                status.status.error_code = int(known.code)
                status.status.error_message = known.message
        return response

    def HandleReloadConfigRequest(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 - its name
        """Not implemented."""
        _unimplemented(context, "HandleReloadConfigRequest")


class GrpcServer:
    """The gRPC port.

    Args:
        models: what is served.
        host: the address to listen on.
        port: the port, 0 for a free one.
        workers: threads that answer.
        max_message_bytes: size of a request or an answer.
        max_concurrent_requests: requests being answered or waiting; more is RESOURCE_EXHAUSTED.

    Raises:
        UserError: the port is in use.
    """

    def __init__(
        self,
        models: Models,
        *,
        host: str,
        port: int,
        workers: int,
        max_message_bytes: int,
        max_concurrent_requests: int,
    ) -> None:
        options = [
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_send_message_length", max_message_bytes),
            ("grpc.so_reuseport", 0),  # else two servers share a port and neither notices
        ]
        self._server = grpc.server(
            ThreadPoolExecutor(workers, "grpc"), options=options, maximum_concurrent_rpcs=max_concurrent_requests
        )
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(PredictionService(models), self._server)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(models), self._server)
        self._health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self.set_serving(False)
        try:
            self.port: int = self._server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        except RuntimeError:
            raise UserError(
                f"{host}:{port}: cannot listen there for gRPC; stop what uses the port or give another."
            ) from None

    def set_serving(self, serving: bool) -> None:
        """What health checks are told from now on."""
        state = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in _SERVICES:
            self._health.set(service, state)

    def start(self) -> None:
        """Answers from now on."""
        self._server.start()

    def stop(self, grace_seconds: float) -> None:
        """Takes no new requests and gives those that run this long to end."""
        self._health.enter_graceful_shutdown()
        self._server.stop(grace_seconds).wait()


def load(directory: Path) -> Servable:
    """Loads a version directory and replays its warm-up requests; a failing one fails the load."""
    loaded = saved_model.SavedModelServable(directory)
    try:
        warm_up(loaded, saved_model.read_warmup(directory))
    except BaseException:
        loaded.close()
        raise
    return loaded


def warm_up(servable: Servable, records: Iterator[bytes]) -> None:
    """Replays serialised PredictionLog records.

    Raises:
        ServingError: a record cannot be parsed, is of a kind that is not replayed, fails, or is one too many.
    """
    for number, record in enumerate(records):
        if number == _MAX_WARMUP_RECORDS:
            raise invalid_argument(f"Number of warmup records exceeds the maximum ({_MAX_WARMUP_RECORDS}).")
        log = prediction_log_pb2.PredictionLog()
        try:
            log.ParseFromString(record)
        except DecodeError:
            raise invalid_argument(f"Failed to parse warmup record {number}.") from None
        kind = log.WhichOneof("log_type")
        if kind != "predict_log":
            raise ServingError(Code.UNIMPLEMENTED, f"Unsupported log_type for warmup: {kind} (record {number}).")
        try:
            run_predict(servable, log.predict_log.request)
        except ServingError as error:
            raise ServingError(error.code, f"Warmup record {number} failed: {error.message}") from None
