"""The server's command line: its own options and TensorFlow Serving's flags."""

import logging
from pathlib import Path

import pytest

from serving import flags
from serving.settings import Batching, Limits, Page, RequestLogging, Settings
from serving.versions import Retries
from tfrec.errors import UsageError, UserError

SSL = 'server_key: "key" server_cert: "cert" custom_ca: "ca" client_verify: true'


def test_defaults_are_those_of_our_own() -> None:
    command = flags.parse(["models"])
    assert command.models == Path("models")
    assert command.serve == {
        "host": "127.0.0.1",
        "rest_port": 8501,
        "grpc_port": 8500,
        "poll_seconds": 1.0,
        "engine": "auto",
        "settings": Settings(),
    }


def test_a_deployment_of_the_binary_is_understood(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "batching.txt").write_text("max_batch_size { value: 8 }")
    (tmp_path / "monitoring.config").write_text('prometheus_config { enable: true path: "/metrics" }')
    (tmp_path / "ssl.config").write_text(SSL)
    with caplog.at_level(logging.INFO, "serving"):
        command = flags.parse(
            [
                "--port=1",
                "--rest_api_port=2",
                "--model_config_file=models.config",
                "--model_config_file_poll_wait_seconds=60",
                "--file_system_poll_wait_seconds=5",
                "--enable_batching",
                f"--batching_parameters_file={tmp_path}/batching.txt",
                "--enable_per_model_batching_parameters=true",
                f"--monitoring_config_file={tmp_path}/monitoring.config",
                f"--ssl_config_file={tmp_path}/ssl.config",
                "--rest_api_enable_cors_support=true",
                "--rest_api_timeout_in_ms=5000",
                "--rest_api_num_threads=6",
                "--grpc_max_threads=9",
                "--grpc_channel_arguments=grpc.max_connection_age_ms=2000,grpc.x=y",
                "--grpc_socket_path=/tmp/socket",
                "--allow_version_labels_for_unavailable_models",
                "--max_num_load_retries=2",
                "--load_retry_interval_micros=500000",
                "--enable_model_warmup=false",
                "--num_request_iterations_for_warmup=3",
                "--enable_signature_method_name_check=true",
                "--enable_serialization_as_tensor_content=true",
                "--tensorflow_session_parallelism=4",
                "--tensorflow_inter_op_parallelism=1",
                "--flush_filesystem_caches=false",
                "--num_load_threads=4",
            ]
        )
    assert command.models == Path("models.config")
    assert (command.serve["grpc_port"], command.serve["rest_port"], command.serve["poll_seconds"]) == (1, 2, 5.0)
    found = command.serve["settings"]
    assert found.tls is not None
    assert (found.tls.server_key, found.tls.custom_ca, found.tls.client_verify) == ("key", "ca", True)
    assert found == Settings(
        workers=9,
        limits=Limits(deadline_seconds=5.0),
        config_poll_seconds=60.0,
        retries=Retries(2, 0.5, 0.5),
        allow_unavailable_labels=True,
        check_method_names=True,
        warmup=False,
        warmup_iterations=3,
        cors=True,
        metrics_path="/metrics",
        batching=Batching(max_batch_size=8),
        per_model_batching=True,
        tls=found.tls,
        grpc_socket="/tmp/socket",
        grpc_arguments=(("grpc.max_connection_age_ms", 2000), ("grpc.x", "y")),
        tensor_content=True,
        intra_op_threads=4,
        inter_op_threads=1,
    )
    assert "--num_load_threads has no meaning here" in caplog.text


def test_one_model_by_its_path_and_ports_that_are_off() -> None:
    command = flags.parse(["--model_base_path=/m/half", "--rest_api_port=0"])
    assert command.models == {"default": Path("/m/half")}
    assert (command.serve["rest_port"], command.serve["grpc_port"]) == (None, 8500)
    named = flags.parse(["--model_name", "half", "--model_base_path", "/m/half", "--port", "0"])
    assert (named.models, named.serve["grpc_port"]) == ({"half": Path("/m/half")}, None)
    both = flags.parse(["--model_config_file=a", "--model_base_path=/m/half"])
    assert both.models == Path("a")  # as the binary: the configuration wins


def test_our_own_options(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("0123456789abcdef\n")
    command = flags.parse(
        ["m", "--host", "0.0.0.0", "--rest-port", "0", "--token-file", str(token), "--reload-root", "/a",
         "--request-log", "/logs/x", "--request-log-rate", "0.1", "--metrics", "--log-format", "json", "--access-log",
         "--max-body-bytes", "10", "--max-concurrent-requests", "3", "--engine", "builtin", "--ui", "--ui-data", "/d"]
    )  # fmt: skip
    settings = command.serve["settings"]
    assert (command.log_format, command.serve["host"], command.serve["rest_port"]) == ("json", "0.0.0.0", 0)
    assert settings.token == "0123456789abcdef"
    assert (settings.reload_roots, settings.metrics_path) == ((Path("/a"),), "/monitoring/prometheus/metrics")
    assert settings.request_logging == RequestLogging(Path("/logs/x"), 0.1)
    assert settings.limits == Limits(max_body_bytes=10, max_concurrent_requests=3)
    assert settings.access_log
    assert settings.page == Page(Path("/d"))


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ([], "give MODELS, or --model_config_file, or --model_base_path"),
        (["m", "--model_config_file=c"], "give MODELS, or"),
        (["m", "--nothing"], "unrecognized arguments: --nothing"),
        (["m", "--use_alts_credentials=true"], "--use_alts_credentials can only be 'false' here"),
        (["m", "--enable_batching=perhaps"], "must be true or false"),
        (["m", "--batching_parameters_file=b"], "needs --enable_batching"),
        (["m", "--grpc_channel_arguments=a"], "must be NAME=VALUE"),
        (["m", "--ui-data", "d"], "--ui-data needs --ui"),
        (["m", "--ui", "--rest_api_port=0"], "--ui needs the REST port"),
        (["m", "--rest-port", "70000"], "must be from 0 to 65535"),
        (["m", "--request-log-rate", "1.5"], "must be from 0 to 1"),
        (["m", "--request-log-rate", "nan"], "must be from 0 to 1"),
        (["m", "--rest", "1"], "unrecognized arguments"),  # nothing is abbreviated
    ],
)
def test_wrong_use_is_one_line(arguments: list[str], fragment: str) -> None:
    with pytest.raises(UsageError, match=r"^serve: ") as caught:
        flags.parse(arguments)
    assert fragment in str(caught.value)


@pytest.mark.parametrize(
    ("flag", "text", "fragment"),
    [
        ("--monitoring_config_file", 'prometheus_config { enable: true path: "metrics" }', "must begin with /"),
        ("--monitoring_config_file", 'prometheus_config { enable: true path: "/v1/m" }', "not with /v1/"),
        ("--monitoring_config_file", "enable: true", "cannot be parsed as a text-format MonitoringConfig"),
        ("--ssl_config_file", 'server_key: "k"', "must hold `server_key` and `server_cert`"),
        ("--ssl_config_file", 'server_key: "k" server_cert: "c" client_verify: true', "needs `custom_ca`"),
        ("--token-file", "short", "at least 16 characters"),
        ("--token-file", "with spaces and so on", "no spaces"),
    ],
)
def test_bad_files_are_one_line(tmp_path: Path, flag: str, text: str, fragment: str) -> None:
    path = tmp_path / "file"
    path.write_text(text)
    with pytest.raises(UserError, match=str(path)) as caught:
        flags.parse(["m", f"{flag}={path}"])
    assert fragment in str(caught.value)
    if flag == "--ssl_config_file":
        assert '"k"' not in str(caught.value)  # a key never stands in a message


def test_monitoring_that_is_off_or_names_no_path(tmp_path: Path) -> None:
    path = tmp_path / "monitoring.config"
    path.write_text("prometheus_config { enable: false }")
    assert flags.parse(["m", f"--monitoring_config_file={path}"]).serve["settings"].metrics_path is None
    deployed = Path(flags.__file__).parent / "deploy" / "monitoring.config"
    settings = flags.parse(["m", f"--monitoring_config_file={deployed}"]).serve["settings"]
    assert settings.metrics_path == "/monitoring/prometheus/metrics"


def test_every_flag_of_the_binary_is_known() -> None:
    """The flags of model_servers/main.cc."""
    names = [
        "port",
        "grpc_socket_path",
        "rest_api_port",
        "rest_api_num_threads",
        "rest_api_timeout_in_ms",
        "rest_api_enable_cors_support",
        "enable_batching",
        "allow_version_labels_for_unavailable_models",
        "batching_parameters_file",
        "enable_per_model_batching_parameters",
        "model_config_file",
        "model_config_file_poll_wait_seconds",
        "model_name",
        "model_base_path",
        "num_load_threads",
        "num_unload_threads",
        "max_num_load_retries",
        "load_retry_interval_micros",
        "file_system_poll_wait_seconds",
        "flush_filesystem_caches",
        "tensorflow_session_parallelism",
        "tensorflow_session_config_file",
        "tensorflow_intra_op_parallelism",
        "tensorflow_inter_op_parallelism",
        "use_alts_credentials",
        "ssl_config_file",
        "platform_config_file",
        "per_process_gpu_memory_fraction",
        "saved_model_tags",
        "grpc_channel_arguments",
        "grpc_max_threads",
        "enable_model_warmup",
        "num_request_iterations_for_warmup",
        "monitoring_config_file",
        "remove_unused_fields_from_bundle_metagraph",
        "prefer_tflite_model",
        "num_tflite_pools",
        "num_tflite_interpreters_per_pool",
        "enable_signature_method_name_check",
        "xla_cpu_compilation_enabled",
        "xla_gpu_compilation_enabled",
        "enable_profiler",
        "thread_pool_factory_config_file",
        "mixed_precision",
        "skip_initialize_tpu",
        "enable_grpc_healthcheck_service",
        "enable_serialization_as_tensor_content",
    ]
    parser = flags._Parser()
    flags._flags_of_the_binary(parser)
    known = {option.lstrip("-") for action in parser._actions for option in action.option_strings}
    assert set(names) == known - {"h", "help"}
