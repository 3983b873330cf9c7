"""TensorFlow Serving's other configuration files: batching parameters, monitoring, certificates.

The wheel of its API does not carry these messages, so their few fields are declared here.
"""

from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, wrappers_pb2

from serving.model_config import parse_text
from serving.settings import Batching, Tls
from tfrec.errors import UserError

METRICS_PATH = "/monitoring/prometheus/metrics"
_FILE = "tfrec/serving_files.proto"
_PACKAGE = "tfrec.serving_files"
_FIELD = descriptor_pb2.FieldDescriptorProto
_WRAPPED = {int: ".google.protobuf.Int64Value", str: ".google.protobuf.StringValue", bool: ".google.protobuf.BoolValue"}
_PLAIN = {int: _FIELD.TYPE_INT64, str: _FIELD.TYPE_STRING, bool: _FIELD.TYPE_BOOL}

# Message -> (field, number, type, whether it is wrapped). A type that is text names another message.
_MESSAGES: dict[str, list[tuple[str, int, Any, bool]]] = {
    "BatchingParameters": [
        ("max_batch_size", 1, int, True),
        ("batch_timeout_micros", 2, int, True),
        ("max_enqueued_batches", 3, int, True),
        ("num_batch_threads", 4, int, True),
        ("thread_pool_name", 5, str, True),
        ("allowed_batch_sizes", 6, list, False),
        ("pad_variable_length_inputs", 7, bool, False),
        ("enable_large_batch_splitting", 8, bool, True),
        ("max_execution_batch_size", 9, int, True),
    ],
    "PrometheusConfig": [("enable", 1, bool, False), ("path", 2, str, False)],
    "MonitoringConfig": [("prometheus_config", 1, "PrometheusConfig", False)],
    "SSLConfig": [
        ("server_key", 1, str, False),
        ("server_cert", 2, str, False),
        ("custom_ca", 3, str, False),
        ("client_verify", 4, bool, False),
    ],
}


def _pool() -> descriptor_pool.DescriptorPool:
    file = descriptor_pb2.FileDescriptorProto(name=_FILE, package=_PACKAGE, syntax="proto3")
    file.dependency.append(wrappers_pb2.DESCRIPTOR.name)
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field_name, number, kind, wrapped in fields:
            field = message.field.add(name=field_name, number=number, label=_FIELD.LABEL_OPTIONAL)
            if kind is list:
                field.type, field.label = _FIELD.TYPE_INT64, _FIELD.LABEL_REPEATED
            elif isinstance(kind, str):
                field.type, field.type_name = _FIELD.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
            elif wrapped:
                field.type, field.type_name = _FIELD.TYPE_MESSAGE, _WRAPPED[kind]
            else:
                field.type = _PLAIN[kind]
    pool = descriptor_pool.DescriptorPool()
    wrappers = descriptor_pb2.FileDescriptorProto()
    wrappers_pb2.DESCRIPTOR.CopyToProto(wrappers)
    pool.Add(wrappers)
    pool.Add(file)
    return pool


def _message(name: str) -> Any:
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{_PACKAGE}.{name}"))()


_POOL = _pool()


def read_batching(path: Path) -> Batching:
    """The parameters of a BatchingParameters file; what it leaves out has the default.

    Raises:
        UserError: the file cannot be parsed, or a value breaks its rule.
    """
    message = _message("BatchingParameters")
    parse_text(path, message)
    given: dict[str, Any] = {}
    for name, _, _, wrapped in _MESSAGES["BatchingParameters"]:
        if wrapped and message.HasField(name) and name != "thread_pool_name":  # threads need no name
            given[name] = getattr(message, name).value
    given["allowed_batch_sizes"] = tuple(message.allowed_batch_sizes)
    given["pad_variable_length_inputs"] = message.pad_variable_length_inputs
    try:
        return Batching(**given)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def read_metrics_path(path: Path) -> str | None:
    """Where a MonitoringConfig file wants Prometheus' metrics; None where it does not."""
    message = _message("MonitoringConfig")
    parse_text(path, message)
    if not message.prometheus_config.enable:
        return None
    where = message.prometheus_config.path or METRICS_PATH
    if not where.startswith("/") or where.lower().startswith("/v1/"):
        raise UserError(f"{path}: `path` must begin with / and not with /v1/. Received: {where!r}.")
    return where


def read_tls(path: Path) -> Tls:
    """The certificates of an SSLConfig file.

    Raises:
        UserError: the file cannot be parsed, or has no key, no certificate, or no authority for clients' certificates.
    """
    message = _message("SSLConfig")
    parse_text(path, message)
    if not message.server_key or not message.server_cert:
        raise UserError(f"{path}: must hold `server_key` and `server_cert`, as PEM text.")
    if message.client_verify and not message.custom_ca:
        raise UserError(f"{path}: `client_verify` needs `custom_ca`, which signs clients' certificates.")
    return Tls(message.server_key, message.server_cert, message.custom_ca, message.client_verify)
