"""Where a job's pipelines run: what Beam's options say, and worker processes of this machine that last for the job."""

import json
import logging
import re
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import apache_beam as beam
import grpc
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import endpoints_pb2
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.runners.portability.fn_api_runner.worker_handlers import GrpcWorkerHandler, WorkerHandler
from apache_beam.transforms.environments import Environment, python_sdk_capabilities
from google.protobuf import json_format, text_format

from tfrec.errors import UserError

_BEAM_SUFFIX = " [while running"  # Beam adds the step to the message of whatever a worker raises
_LOST = "Channel closed prematurely"
_URN = "tfrec:env:worker_processes:v1"
_SOCKET = "workers"


class Engine:
    """Runs the pipelines of one job; a context, since worker processes end with it.

    Args:
        options: as `pipeline_options` gives them.
    """

    def __init__(self, options: PipelineOptions) -> None:
        self.options = options
        self._environment: WorkerProcesses | None = None
        self._resources = ExitStack()

    def __enter__(self) -> Self:
        found = self.options.get_all_options(drop_default=True)
        if found["runner"] == "FnApiRunner" and found.get("direct_running_mode") == "multi_processing":
            self._environment = WorkerProcesses(self._resources.enter_context(_forking_process()))
        return self

    def __exit__(self, *error: object) -> None:
        self._resources.close()

    def pipeline(self) -> beam.Pipeline:
        """An empty pipeline."""
        if self._environment is None:
            return beam.Pipeline(options=self.options)
        found = self.options.get_all_options(drop_default=True)
        found["direct_running_mode"] = "in_memory"  # Beam's name for an environment that is given
        runner = FnApiRunner(default_environment=self._environment)
        return beam.Pipeline(runner, options=PipelineOptions.from_dictionary(found))

    @contextmanager
    def running(self) -> Iterator[beam.Pipeline]:
        """A pipeline that runs at the end; a worker's `UserError` comes out as one, whatever the runner made of it."""
        beam_logger = logging.getLogger("apache_beam")
        level, hook = beam_logger.level, threading.excepthook
        beam_logger.setLevel(logging.CRITICAL)  # it logs tracebacks of errors that are told by who catches them
        threading.excepthook = _tell_all_but_lost_connections
        try:
            with self.pipeline() as pipeline:
                yield pipeline
        except (UserError, RuntimeError) as error:
            text = str(error)
            found = [text] if isinstance(error, UserError) else re.findall(r"UserError: (.*)", text)
            if not found and self._environment is not None and _LOST in text:
                found = ["a worker process was killed, for want of memory perhaps: fewer of them need less."]
            if not found:
                raise
            raise UserError(found[-1].split(_BEAM_SUFFIX)[0]) from None
        finally:
            beam_logger.setLevel(level)
            threading.excepthook = hook


def _tell_all_but_lost_connections(failure: threading.ExceptHookArgs) -> None:
    """The runner's threads that listen to workers end with an error once these are gone."""
    if not isinstance(failure.exc_value, grpc.RpcError):
        threading.__excepthook__(failure)


@contextmanager
def _forking_process() -> Iterator[str]:
    """A process that forks workers (see `beam_jobs.worker`); the path of its socket, which only this user may use."""
    with tempfile.TemporaryDirectory(prefix="tfrec-") as folder, socket.socket(socket.AF_UNIX) as listener:
        path = str(Path(folder) / _SOCKET)
        try:
            listener.bind(path)
        except OSError as error:
            raise UserError(
                f"{folder}: no socket can be made there ({error}); set `TMPDIR` to another folder."
            ) from None
        listener.listen(256)
        command = [sys.executable, "-m", "beam_jobs.worker", str(listener.fileno())]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[listener.fileno()])
        listener.close()  # so that nobody waits at it once that process is gone
        try:
            yield path
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()


@Environment.register_urn(_URN, bytes)
class WorkerProcesses(Environment):
    """Workers are processes that the owner of a socket forks.

    Args:
        path: of the socket.
    """

    def __init__(self, path: str) -> None:
        super().__init__(python_sdk_capabilities(), (), None)
        self.path = path

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WorkerProcesses) and self.path == other.path

    def __hash__(self) -> int:
        return hash((WorkerProcesses, self.path))

    def to_runner_api_parameter(self, context: Any) -> tuple[str, bytes]:
        """The name under which Beam finds `_WorkerProcess`, and what that is told."""
        return _URN, self.path.encode()

    @staticmethod
    def from_runner_api_parameter(payload: bytes, *_: Any) -> "WorkerProcesses":
        """The inverse."""
        return WorkerProcesses(payload.decode())


@WorkerHandler.register_environment(_URN, bytes)
class _WorkerProcess(GrpcWorkerHandler):
    """The runner's side of one worker."""

    def __init__(self, payload: bytes, state: Any, provision_info: Any, grpc_server: Any) -> None:
        super().__init__(state, provision_info, grpc_server)
        self._path = payload.decode()
        self._connection = socket.socket(socket.AF_UNIX)

    def start_worker(self) -> None:
        """Has the worker forked and waits until it begins."""
        control = endpoints_pb2.ApiServiceDescriptor(url=self.control_address)
        variables = {
            "WORKER_ID": self.worker_id,
            "CONTROL_API_SERVICE_DESCRIPTOR": text_format.MessageToString(control),
            "PIPELINE_OPTIONS": json_format.MessageToJson(self.provision_info.provision_info.pipeline_options),
        }
        try:
            self._connection.connect(self._path)
            self._connection.sendall(json.dumps(variables).encode() + b"\n")
            begun = self._connection.recv(1)
        except OSError:
            begun = b""
        if not begun:
            raise UserError("a worker process could not be started; what it said last stands above.")

    def stop_worker(self) -> None:
        """Waits until the worker, whose connections to the runner are closed, has ended."""
        with self._connection:
            self._connection.recv(1)
