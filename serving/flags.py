"""The command line of the server: its own options, and the flags of TensorFlow Serving's binary beside them.

A deployment moves between the two by changing the program: every flag of tensorflow_model_server is known here, and
does what it does there, or has no meaning here and says so, or is refused.
"""

import argparse
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, get_args

from serving.app import Engine
from serving.guard import read_token
from serving.settings import Batching, Limits, Page, RequestLogging, Settings
from serving.text_protos import METRICS_PATH, read_batching, read_metrics_path, read_tls
from serving.versions import Retries
from tfrec.errors import UsageError

# Flags of the binary that change nothing a client sees; the reason is logged where one is given.
WITHOUT_EFFECT = {
    "flush_filesystem_caches": "nothing is flushed here",
    "num_load_threads": "each model loads in a thread of its own",
    "num_unload_threads": "each version unloads in a thread of its own",
    "remove_unused_fields_from_bundle_metagraph": "nothing is kept of the graph's description",
    "enable_grpc_healthcheck_service": "health checks are always answered",
    "skip_initialize_tpu": "there is no TPU",
    "num_tflite_pools": "there is no TFLite",
    "num_tflite_interpreters_per_pool": "there is no TFLite",
}
# Flags of the binary that can do one thing here, given as the one value that asks for it.
ONE_VALUE = {
    "use_alts_credentials": "false",
    "platform_config_file": "",
    "tensorflow_session_config_file": "",
    "thread_pool_factory_config_file": "",
    "per_process_gpu_memory_fraction": "0",
    "saved_model_tags": "serve",
    "prefer_tflite_model": "false",
    "xla_cpu_compilation_enabled": "false",
    "xla_gpu_compilation_enabled": "false",
    "mixed_precision": "",
    "enable_profiler": "false",
}
_LOGGER = logging.getLogger("serving")


@dataclass(frozen=True)
class Command:
    """What the command line asks for.

    Attributes:
        models: what to serve, as `serving.app.serve` takes it.
        serve: its keyword arguments.
        log_format: `text` or `json`.
    """

    models: Path | Mapping[str, Path]
    serve: Mapping[str, Any]
    log_format: str


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def format_help(self) -> str:
        """The help as the other commands begin it."""
        return super().format_help().replace("usage:", "Usage:", 1)

    def error(self, message: str) -> NoReturn:
        """Raises instead of printing the usage."""
        raise UsageError(f"serve: {message}")


def _yes_or_no(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0"):
        raise argparse.ArgumentTypeError(f"must be true or false. Received: {text!r}")
    return text.lower() in ("true", "1")


def _number(lowest: float, highest: float | None = None, kind: type = int) -> Any:
    def parse(text: str) -> Any:
        value = kind(text)
        if not value >= lowest or (highest is not None and not value <= highest):
            limits = f"at least {lowest}" if highest is None else f"from {lowest} to {highest}"
            raise argparse.ArgumentTypeError(f"must be {limits}. Received: {text}")
        return value

    parse.__name__ = "number"
    return parse


_PORT = _number(0, 65535)


def _own_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("models", nargs="?", type=Path, help="a directory MODELS of MODELS/NAME/VERSION, or a models.config file")
    add("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    add("--rest-port", type=_PORT, default=8501, help="REST port, 0 for a free one (default 8501)")
    add("--grpc-port", type=_PORT, default=8500, help="gRPC port, 0 for a free one (default 8500)")
    add(
        "--engine",
        default="auto",
        choices=get_args(Engine),
        help="auto (default): the binary where it is on PATH and can",
    )
    add("--token-file", type=Path, help="file with the token that clients must show on both ports")
    add("--reload-root", type=Path, action="append", help="directory from which a reload may serve; repeatable")
    add("--request-log", type=Path, metavar="PREFIX", help="record requests to PREFIX-00000.tfrecord and so on")
    add("--request-log-rate", type=_number(0, 1, float), default=1.0, help="share of requests recorded (default 1)")
    add("--ui", action="store_true", help="a page for people at /ui of the REST port: search, recommend, compare")
    add("--ui-data", type=Path, metavar="DATASET", help="with --ui: some users of this dataset can be chosen")
    add("--metrics", action="store_true", help=f"tell Prometheus metrics at {METRICS_PATH} of the REST port")
    add("--log-format", choices=("text", "json"), default="text", help="form of the log on stderr (default text)")
    add("--access-log", action="store_true", help="log every request")
    add("--max-body-bytes", type=_number(1), help="size of a request (default 64 MiB)")
    add("--max-concurrent-requests", type=_number(1), help="requests at once on each port (default 256)")


def _flags_of_the_binary(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("flags of tensorflow_model_server, as there")

    def add(name: str, kind: Any = str, **options: Any) -> None:
        if kind is bool:
            options |= {"nargs": "?", "const": True, "type": _yes_or_no}
        else:
            options["type"] = kind
        group.add_argument(f"--{name}", **options)

    add("port", _PORT, help="gRPC port, 0 = none")
    add("rest_api_port", _PORT, help="REST port, 0 = none")
    add("grpc_socket_path", help="a Unix socket that answers gRPC too")
    add("grpc_max_threads", _number(1))
    add("grpc_channel_arguments", help="NAME=VALUE,NAME=VALUE for gRPC")
    add("rest_api_num_threads", _number(1))
    add("rest_api_timeout_in_ms", _number(1))
    add("rest_api_enable_cors_support", bool)
    add("model_config_file", Path)
    add("model_config_file_poll_wait_seconds", _number(0, None, float))
    add("model_name", help="with --model_base_path: one model (default: default)")
    add("model_base_path", Path)
    add("allow_version_labels_for_unavailable_models", bool)
    add("file_system_poll_wait_seconds", _number(0, None, float), help="how often versions are looked for, 0 = once")
    add("max_num_load_retries", _number(0))
    add("load_retry_interval_micros", _number(0))
    add("enable_batching", bool)
    add("batching_parameters_file", Path)
    add("enable_per_model_batching_parameters", bool)
    add("enable_model_warmup", bool)
    add("num_request_iterations_for_warmup", _number(0))
    add("enable_signature_method_name_check", bool)
    add("enable_serialization_as_tensor_content", bool)
    add("monitoring_config_file", Path)
    add("ssl_config_file", Path, help="here it encrypts both ports")
    add("tensorflow_session_parallelism", _number(0))
    add("tensorflow_intra_op_parallelism", _number(0))
    add("tensorflow_inter_op_parallelism", _number(0))
    for name in (*WITHOUT_EFFECT, *ONE_VALUE):
        add(name, help=argparse.SUPPRESS, nargs="?", const="true")


def parse(arguments: list[str], program: str = "python -m serving") -> Command:
    """Reads a command line.

    Raises:
        UserError: a file that it names cannot be used.
        UsageError: an option is unknown or its value breaks a rule.
    """
    parser = _Parser(prog=program, description="Serves models over REST and gRPC.", allow_abbrev=False)
    _own_options(parser)
    _flags_of_the_binary(parser)
    given = parser.parse_args(arguments)
    _check_rest(given)
    serve = {
        "host": given.host,
        "rest_port": given.rest_port if given.rest_api_port is None else given.rest_api_port or None,
        "grpc_port": given.grpc_port if given.port is None else given.port or None,
        "poll_seconds": _first(given.file_system_poll_wait_seconds, 1.0),
        "engine": given.engine,
        "settings": _settings(given),
    }
    return Command(_models(given), serve, given.log_format)


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _check_rest(given: argparse.Namespace) -> None:
    for name, reason in WITHOUT_EFFECT.items():
        if getattr(given, name) is not None:
            _LOGGER.info("--%s has no meaning here: %s", name, reason)
    for name, only in ONE_VALUE.items():
        if getattr(given, name) not in (None, only):
            raise UsageError(f"serve: --{name} can only be {only!r} here. Received: {getattr(given, name)!r}.")


def _models(given: argparse.Namespace) -> Path | Mapping[str, Path]:
    sources = [given.models, given.model_config_file, given.model_base_path]
    if given.model_config_file is not None:
        sources[2] = None  # as in the binary, which then does not look at it
    if sum(source is not None for source in sources) != 1:
        raise UsageError("serve: give MODELS, or --model_config_file, or --model_base_path.")
    if sources[2] is not None:
        return {given.model_name or "default": sources[2]}
    models: Path = _first(*sources)
    return models


def _settings(given: argparse.Namespace) -> Settings:
    limits = Limits()
    limits = replace(
        limits,
        max_body_bytes=_first(given.max_body_bytes, limits.max_body_bytes),
        max_concurrent_requests=_first(given.max_concurrent_requests, limits.max_concurrent_requests),
        deadline_seconds=_first(given.rest_api_timeout_in_ms, 1000 * limits.deadline_seconds) / 1000,
    )
    retries = Retries()
    if given.load_retry_interval_micros is not None:
        seconds = given.load_retry_interval_micros / 1e6
        retries = replace(retries, first_seconds=min(seconds, retries.first_seconds), longest_seconds=seconds)
    if given.max_num_load_retries is not None:
        retries = replace(retries, count=given.max_num_load_retries)
    session = given.tensorflow_session_parallelism
    return Settings(
        workers=max(given.grpc_max_threads or 0, given.rest_api_num_threads or 0),
        limits=limits,
        config_poll_seconds=given.model_config_file_poll_wait_seconds or 0.0,
        retries=retries,
        allow_unavailable_labels=bool(given.allow_version_labels_for_unavailable_models),
        check_method_names=bool(given.enable_signature_method_name_check),
        warmup=given.enable_model_warmup is not False,
        warmup_iterations=given.num_request_iterations_for_warmup or 1,
        cors=bool(given.rest_api_enable_cors_support),
        metrics_path=_metrics_path(given),
        batching=_batching(given),
        per_model_batching=bool(given.enable_batching and given.enable_per_model_batching_parameters),
        tls=read_tls(given.ssl_config_file) if given.ssl_config_file else None,
        token=read_token(given.token_file) if given.token_file else None,
        reload_roots=tuple(given.reload_root) if given.reload_root else None,
        grpc_socket=given.grpc_socket_path or None,
        grpc_arguments=_channel_arguments(given.grpc_channel_arguments or ""),
        tensor_content=bool(given.enable_serialization_as_tensor_content),
        intra_op_threads=_first(given.tensorflow_intra_op_parallelism, session, 0),
        inter_op_threads=_first(given.tensorflow_inter_op_parallelism, session, 0),
        request_logging=RequestLogging(given.request_log, given.request_log_rate) if given.request_log else None,
        access_log=given.access_log,
        page=_page(given),
    )


def _page(given: argparse.Namespace) -> Page | None:
    if given.ui_data and not given.ui:
        raise UsageError("serve: --ui-data needs --ui.")
    if given.ui and given.rest_api_port == 0:
        raise UsageError("serve: --ui needs the REST port, which --rest_api_port=0 leaves out.")
    return Page(given.ui_data) if given.ui else None


def _metrics_path(given: argparse.Namespace) -> str | None:
    if given.monitoring_config_file:
        return read_metrics_path(given.monitoring_config_file)
    return METRICS_PATH if given.metrics else None


def _batching(given: argparse.Namespace) -> Batching | None:
    if not given.enable_batching:
        if given.batching_parameters_file:
            raise UsageError("serve: --batching_parameters_file needs --enable_batching.")
        return None
    return read_batching(given.batching_parameters_file) if given.batching_parameters_file else Batching()


def _channel_arguments(text: str) -> tuple[tuple[str, str | int], ...]:
    found: list[tuple[str, str | int]] = []
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if not equals:
            raise UsageError(f"serve: --grpc_channel_arguments must be NAME=VALUE,... Received: {part!r}.")
        found.append((name, int(value) if value.lstrip("-").isdigit() else value))
    return tuple(found)
