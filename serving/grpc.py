"""TensorFlow Serving's gRPC services, health checks, and the port that they answer on."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from serving.core import Core
from serving.grpc_calls import Methods
from serving.guard import grpc_credentials
from serving.status import Code, ServingError, invalid_argument
from serving.tensor_proto import fill_proto, run_predict
from serving.versions import Handle
from tfrec.errors import UserError

_LOGGER = logging.getLogger("serving")
_ACCESS = logging.getLogger("serving.access")
_SERVICES = ("", "PredictionService", "ModelService")
_CODES = {code.value[0]: code for code in grpc.StatusCode}


def _check_spec(request: Any) -> None:
    if not request.HasField("model_spec"):
        raise invalid_argument("Missing ModelSpec")
    if not request.model_spec.name:
        raise invalid_argument("ModelSpec has no name specified.")


def _fill_spec(spec: Any, handle: Handle, signature_name: str = "") -> None:
    spec.name = handle.model
    spec.version.value = handle.version
    spec.signature_name = signature_name


class _Service:
    """What the methods of both services have around them."""

    def __init__(self, core: Core) -> None:
        self._core = core

    @contextmanager
    def _answering(self, context: grpc.ServicerContext, api: str, spec: Any = None) -> Iterator[None]:
        """Turns errors into gRPC's codes; what is not foreseen is logged and answered without a trace."""
        started = time.perf_counter()
        code, message = Code.OK, ""
        try:
            if spec is None:
                yield
            else:
                seconds = min(context.time_remaining() or math.inf, self._core.settings.limits.deadline_seconds)
                with self._core.counted(spec.name, api, "GRPC", seconds):
                    yield
        except ServingError as error:
            code, message = error.code, error.short_message
        except Exception:  # the last line of defence: the client gets no trace, the log does
            _LOGGER.exception("gRPC %s", api)
            code, message = Code.INTERNAL, "Internal error"
        if self._core.settings.access_log:
            seen = {"method": api, "status": code.name, "ms": round(1000 * (time.perf_counter() - started), 3)}
            _ACCESS.info("gRPC %(method)s %(status)s %(ms).3f ms", seen, extra={"request": seen})
        if code != Code.OK:
            context.abort(_CODES[code], message)

    @contextmanager
    def _pinned(self, spec: Any, api: str) -> Iterator[Handle]:
        """Pins the version that a ModelSpec names."""
        label = spec.version_label if spec.WhichOneof("version_choice") == "version_label" else None
        version = spec.version.value if spec.HasField("version") else None
        with self._core.pinned(spec.name, version, label, api) as handle:
            yield handle

    def _record(self, kind: str, request: Any, response: Any, spec: Any) -> None:
        """Offers a request and its answer to the request log."""
        if self._core.log is None or not self._core.log.wants_next():
            return
        log = prediction_log_pb2.PredictionLog()
        one = getattr(log, kind)
        one.request.CopyFrom(request)
        one.response.CopyFrom(response)
        log.log_metadata.model_spec.CopyFrom(spec)
        self._core.log.offer(log)


class PredictionService(_Service, prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict, Classify, Regress, MultiInference and GetModelMetadata."""

    def Predict(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 - the service's name
        """Runs one signature of one version."""
        response = predict_pb2.PredictResponse()
        with self._answering(context, "Predict", request.model_spec):
            _check_spec(request)
            with self._pinned(request.model_spec, "Predict") as handle:
                self._core.inference.check_predict(handle.servable, request.model_spec.signature_name)
                name, outputs = run_predict(handle.servable, request)
                types = handle.servable.signatures[name].outputs
            as_content = self._core.settings.tensor_content
            for alias, array in outputs.items():
                fill_proto(response.outputs[alias], array, types[alias].type_code, as_content=as_content)
            _fill_spec(response.model_spec, handle, name)
            self._record("predict_log", request, response, response.model_spec)
        return response

    def Classify(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 - the service's name
        """Labels and scores of examples."""
        response = classification_pb2.ClassificationResponse()
        with self._answering(context, "Classify", request.model_spec):
            self._run(request, response, "Classify", self._core.inference.classify)
            self._record("classify_log", request, response, response.model_spec)
        return response

    def Regress(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 - the service's name
        """A value of each example."""
        response = regression_pb2.RegressionResponse()
        with self._answering(context, "Regress", request.model_spec):
            self._run(request, response, "Regress", self._core.inference.regress)
            self._record("regress_log", request, response, response.model_spec)
        return response

    def _run(self, request: Any, response: Any, api: str, run: Callable[..., Any]) -> None:
        _check_spec(request)
        with self._pinned(request.model_spec, api) as handle:
            signature_name = request.model_spec.signature_name
            response.result.CopyFrom(run(handle.servable, signature_name, request.input))
        _fill_spec(response.model_spec, handle, signature_name or "serving_default")

    def MultiInference(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 - the service's name
        """Several classifications and regressions of the same examples, by one version."""
        response = inference_pb2.MultiInferenceResponse()
        spec = request.tasks[0].model_spec if request.tasks else None
        with self._answering(context, "MultiInference", spec):
            if spec is None:
                raise invalid_argument("The request must have tasks.")
            if any(not task.model_spec.name for task in request.tasks):
                raise invalid_argument("Found ModelSpec with an empty model name.")
            if any(task.model_spec.name != spec.name for task in request.tasks):
                raise invalid_argument("All ModelSpecs in a MultiInferenceRequest must access the same model name.")
            with self._pinned(spec, "MultiInference") as handle:
                response.CopyFrom(self._core.inference.multi(handle.servable, request))
            for result in response.results:
                _fill_spec(result.model_spec, handle, result.model_spec.signature_name)
            self._record("multi_inference_log", request, response, response.results[0].model_spec)
        return response

    def GetModelMetadata(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 - the service's name
        """The signatures of one version."""
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        with self._answering(context, "GetModelMetadata"):
            _check_spec(request)
            if not request.metadata_field:
                raise invalid_argument("GetModelMetadataRequest must specify at least one metadata_field")
            for name in request.metadata_field:
                if name != "signature_def":
                    raise invalid_argument(f"Metadata field {name} is not supported")
            with self._pinned(request.model_spec, "GetModelMetadata") as handle:
                response.metadata["signature_def"].Pack(handle.servable.signature_def)
            _fill_spec(response.model_spec, handle)
        return response


class ModelService(_Service, model_service_pb2_grpc.ModelServiceServicer):
    """GetModelStatus and HandleReloadConfigRequest."""

    def GetModelStatus(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 - the service's name
        """The state of one version or of all."""
        response = get_model_status_pb2.GetModelStatusResponse()
        with self._answering(context, "GetModelStatus"):
            if not request.HasField("model_spec"):
                raise invalid_argument("Missing ModelSpec")
            spec = request.model_spec
            version = spec.version.value if spec.HasField("version") else None
            for known in self._core.models.status(spec.name, version):
                status = response.model_version_status.add(version=known.version, state=int(known.state))
                status.status.error_code = int(known.code)
                status.status.error_message = known.message
        return response

    def HandleReloadConfigRequest(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 - its name
        """Serves the models of another configuration; says what is wrong with it in the answer as well."""
        response = model_management_pb2.ReloadConfigResponse()
        with self._answering(context, "HandleReloadConfigRequest"):
            try:
                self._core.reload(request.config)
            except ServingError as error:
                response.status.error_code = int(error.code)
                response.status.error_message = error.short_message
                _LOGGER.error("the new configuration is not in force: %s", error.message)
                context.set_code(_CODES[error.code])
                context.set_details(error.short_message)
        return response


class GrpcServer:
    """The gRPC port.

    Args:
        core: what is served, and how.
        host: the address to listen on.
        port: the port, 0 for a free one, None for a Unix socket alone.

    Raises:
        UserError: the port is in use.
    """

    def __init__(self, core: Core, *, host: str, port: int | None) -> None:
        settings = core.settings
        options = {
            "grpc.max_receive_message_length": settings.limits.max_body_bytes,
            "grpc.max_send_message_length": settings.limits.max_body_bytes,
            "grpc.max_metadata_size": settings.limits.max_header_bytes,
            "grpc.so_reuseport": 0,  # else two servers share a port and neither notices
            **dict(settings.grpc_arguments),
        }
        self._server = grpc.server(
            ThreadPoolExecutor(settings.threads, "grpc"),
            options=list(options.items()),
            maximum_concurrent_rpcs=settings.limits.max_concurrent_requests,
        )
        self._health = health.HealthServicer()
        self._methods = methods = Methods(core.guard, settings.limits)
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(PredictionService(core), methods)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(core), methods)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, methods)
        self._server.add_generic_rpc_handlers((methods,))
        self.set_serving(False)
        self.port: int | None = None
        if port is not None:
            self.port = self._listen(f"[{host}]:{port}" if ":" in host else f"{host}:{port}", core)
        if settings.grpc_socket is not None:
            self._listen(f"unix:{settings.grpc_socket}", core)

    def _listen(self, address: str, core: Core) -> int:
        tls = core.settings.tls
        try:
            if tls is not None and not address.startswith("unix:"):
                return self._server.add_secure_port(address, grpc_credentials(tls))
            return self._server.add_insecure_port(address)
        except RuntimeError:
            raise UserError(
                f"{address}: cannot listen there for gRPC; stop what uses the port or give another."
            ) from None

    def set_serving(self, serving: bool) -> None:
        """What health checks are told from now on."""
        state = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in _SERVICES:
            self._health.set(service, state)

    def start(self) -> None:
        """Answers from now on."""
        self._methods.start()
        self._server.start()

    def stop(self, grace_seconds: float) -> None:
        """Takes no new requests and gives those that run this long to end."""
        self._health.enter_graceful_shutdown()
        stopped = self._server.stop(grace_seconds)
        self._methods.end_watches()
        stopped.wait()
        self._methods.close()
