"""The model server as a whole: its two ports, its threads, its beginning and its end."""

import asyncio
import logging
import os
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType
from typing import Literal, TextIO

import uvicorn

from serving import model_config
from serving.rest import Limits, RestApplication
from serving.versions import Models, ModelSource, find_models, find_versions
from tfrec.errors import UserError

_DRAIN_SECONDS = 20.0
_BACKLOG = 2048
_BINARY = "tensorflow_model_server"

Engine = Literal["auto", "builtin", "tensorflow_model_server"]


class ModelServer:
    """A model server in background threads.

    Its ports are taken at once, so that a port in use is told before anything is loaded; answers come once every
    model's first load is done.

    Args:
        models: a directory MODELS of MODELS/NAME/VERSION/, or a `models.config` file.
        host: the address to listen on.
        rest_port: REST port, 0 for a free one.
        grpc_port: gRPC port, 0 for a free one.
        poll_seconds: how often new versions are looked for; 0 = never.
        workers: threads that answer on each port. Defaults to twice the processors, at least 4.
        limits: what a request may take.

    Attributes:
        rest_port: the port that answers REST.
        grpc_port: the port that answers gRPC.

    Raises:
        UserError: there is nothing to serve at `models`, or a port is in use.

    Example:
        >>> with ModelServer(Path("models"), rest_port=0, grpc_port=0) as server:  # doctest: +SKIP
        ...     httpx.get(f"http://127.0.0.1:{server.rest_port}/v1/models/shop")
    """

    def __init__(
        self,
        models: Path,
        *,
        host: str = "127.0.0.1",
        rest_port: int = 8501,
        grpc_port: int = 8500,
        poll_seconds: float = 1.0,
        workers: int | None = None,
        limits: Limits | None = None,
    ) -> None:
        limits = limits or Limits()
        workers = workers or max(4, 2 * (os.cpu_count() or 1))
        find = _sources(models)
        self.host = host
        self._socket = _listen(host, rest_port)
        self.rest_port: int = self._socket.getsockname()[1]
        self._serving = False
        self._rest_threads = ThreadPoolExecutor(workers, "rest")
        try:
            # TensorFlow comes in here, and not when this module is imported.
            from serving.grpc import GrpcServer, load

            self.models = Models(find, load, poll_seconds=poll_seconds, on_change=self._tell_health)
            self._grpc = GrpcServer(
                self.models,
                host=host,
                port=grpc_port,
                workers=workers,
                max_message_bytes=limits.max_body_bytes,
                max_concurrent_requests=limits.max_concurrent_requests,
            )
        except BaseException:
            self._socket.close()
            raise
        self.grpc_port: int = self._grpc.port
        application = RestApplication(self.models, self._rest_threads, limits, self._is_ready)
        self._rest = _RestServer(application, self._socket)

    def start(self) -> None:
        """Loads the models, then answers."""
        self.models.start()
        self._grpc.start()
        self._rest.start()
        self._serving = True
        self._tell_health()

    def _is_ready(self) -> bool:
        return self._serving and self.models.ready

    def _tell_health(self) -> None:
        self._grpc.set_serving(self._is_ready())

    def close(self) -> None:
        """Takes no new requests, ends those that run, unloads the models."""
        if self._serving:
            self._serving = False
            self._tell_health()
        self._rest.stop()
        self._grpc.stop(_DRAIN_SECONDS)
        self._rest_threads.shutdown()
        self.models.close()

    def __enter__(self) -> "ModelServer":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _RestServer:
    """uvicorn in a thread, on a socket that is open already."""

    def __init__(self, application: RestApplication, listener: socket.socket) -> None:
        config = uvicorn.Config(
            application,
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            backlog=_BACKLOG,
            timeout_graceful_shutdown=int(_DRAIN_SECONDS),
        )
        self._server = uvicorn.Server(config)
        self._socket = listener
        self._thread = threading.Thread(target=self._run, name="rest", daemon=True)

    def _run(self) -> None:
        asyncio.run(self._server.serve(sockets=[self._socket]))

    def start(self) -> None:
        self._socket.listen(_BACKLOG)
        self._thread.start()

    def stop(self) -> None:
        self._server.should_exit = True
        if self._thread.ident is not None:
            self._thread.join()
        self._socket.close()


def _listen(host: str, port: int) -> socket.socket:
    """A socket bound to the port; it takes connections once it listens."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off (40 ms an answer) only where the protocol is named.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(1)  # else a second server could bind the same port
    except OSError as error:
        listener.close()
        raise UserError(
            f"{host}:{port}: cannot listen there for REST ({error.strerror}); stop what uses the port or give another."
        ) from None
    return listener


def _sources(models: Path) -> Callable[[], Mapping[str, ModelSource]]:
    """How to list the models at `models`."""
    models = Path(os.path.abspath(models))
    if models.is_file():
        return partial(_constant, model_config.read(models))
    if not models.is_dir():
        raise UserError(f"{models}: no such directory; give a directory of models (MODELS/NAME/VERSION).")
    if find_versions(models):
        raise UserError(f"{models}: holds versions, not models; give its parent directory, {models.parent}.")
    return partial(find_models, models)


def _constant(sources: Mapping[str, ModelSource]) -> Mapping[str, ModelSource]:
    return sources


def serve(
    models: Path,
    *,
    host: str = "127.0.0.1",
    rest_port: int = 8501,
    grpc_port: int = 8500,
    poll_seconds: float = 1.0,
    engine: Engine = "builtin",
    limits: Limits | None = None,
    output: TextIO | None = None,
) -> None:
    """Serves until SIGTERM or SIGINT, then lets the requests that run come to their end.

    Once it answers it prints one line, `Serving NAME,NAME at rest=HOST:PORT grpc=HOST:PORT`, to `output`
    (default stdout). Must be called from the main thread. With TensorFlow's binary as the engine it does not return:
    the process becomes that binary.

    Args:
        models: see `ModelServer`, as are the others.
        host: the address to listen on.
        rest_port: REST port, 0 for a free one.
        grpc_port: gRPC port, 0 for a free one.
        poll_seconds: how often new versions are looked for; 0 = never.
        engine: `builtin` is this server, `tensorflow_model_server` TensorFlow's binary; `auto` is the binary if it is
            on PATH and can do what is asked, else this server.
        limits: what a request may take.
        output: where the line goes.
    """
    if engine != "builtin" and _wants_binary(engine, models, host, rest_port, grpc_port):
        command = tensorflow_model_server_command(
            models, rest_port=rest_port, grpc_port=grpc_port, poll_seconds=poll_seconds
        )
        sys.stderr.write(f"{_BINARY} listens on every address; --engine builtin keeps to {host}.\n")
        os.execvp(command[0], command)
    stop = threading.Event()

    def ask_to_stop(number: int, frame: FrameType | None) -> None:
        stop.set()

    server = ModelServer(
        models, host=host, rest_port=rest_port, grpc_port=grpc_port, poll_seconds=poll_seconds, limits=limits
    )
    before = {number: signal.signal(number, ask_to_stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.start()
        names = ",".join(server.models.names) or "nothing yet"
        line = f"Serving {names} at rest={host}:{server.rest_port} grpc={host}:{server.grpc_port}"
        print(line, file=output or sys.stdout, flush=True)
        stop.wait()
        logging.getLogger("serving").info("draining")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)  # a second signal ends it at once
        server.close()


def _wants_binary(engine: Engine, models: Path, host: str, rest_port: int, grpc_port: int) -> bool:
    """Whether to serve with TensorFlow's binary, which takes no free ports and lacks ScaNN."""
    installed = shutil.which(_BINARY) is not None
    if engine == _BINARY:
        if not installed:
            raise UserError(f"{_BINARY}: not on PATH; install it or use the built-in server (--engine builtin).")
        if 0 in (rest_port, grpc_port):
            raise UserError(f"{_BINARY}: finds no free ports by itself; give both, or use --engine builtin.")
        return True
    if not installed or 0 in (rest_port, grpc_port) or host not in ("127.0.0.1", "0.0.0.0"):
        return False
    return not any(_uses_scann(source.base_path) for source in _sources(models)().values())


def tensorflow_model_server_command(
    models: Path,
    *,
    rest_port: int = 8501,
    grpc_port: int = 8500,
    poll_seconds: float = 1.0,
    config: Path | None = None,
) -> list[str]:
    """The command that serves the same models with TensorFlow's own binary, for whoever has it.

    Args:
        models: a directory of models or a `models.config` file.
        rest_port: REST port.
        grpc_port: gRPC port.
        poll_seconds: how often new versions are looked for.
        config: where the `models.config` is written if `models` is a directory. Defaults to MODELS/models.config.

    Raises:
        UserError: there is nothing that the binary could serve. Models with ScaNN operations are left out: the binary
            does not have them.
    """
    find = _sources(models)
    if models.is_dir():
        sources = {name: source.base_path for name, source in find().items() if not _uses_scann(source.base_path)}
        if not sources:
            raise UserError(f"{models}: no model there that tensorflow_model_server could serve.")
        config = config or models / "models.config"
        model_config.write(config, sources)
    else:
        config = models
    return [
        _BINARY,
        f"--port={grpc_port}",
        f"--rest_api_port={rest_port}",
        f"--model_config_file={Path(os.path.abspath(config))}",
        f"--file_system_poll_wait_seconds={max(0, round(poll_seconds))}",
    ]


def _uses_scann(base_path: Path) -> bool:
    versions = find_versions(base_path)
    graph = versions[max(versions)] / "saved_model.pb" if versions else base_path
    return graph.is_file() and b"Scann>" in graph.read_bytes()
