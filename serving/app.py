"""The model server as a whole: its two ports, its threads, its beginning and its end."""

import asyncio
import gc
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
from typing import TYPE_CHECKING, Literal, TextIO

import uvicorn

from serving import guard, model_config
from serving.http import Connection
from serving.models import Models
from serving.settings import Settings
from serving.status import ServingError
from serving.versions import ModelSource, find_models, find_versions
from tfrec.errors import UserError

if TYPE_CHECKING:
    from serving.rest import RestApplication

_DRAIN_SECONDS = 20.0
_CLOSING_SECONDS = 3.0  # for what comes after draining; both together are less than Kubernetes waits
_KEEP_ALIVE_SECONDS = 60
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
        rest_port: REST port, 0 for a free one, None for no REST.
        grpc_port: gRPC port, 0 for a free one, None for no gRPC.
        poll_seconds: how often new versions are looked for; 0 = never.
        settings: everything else.

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
        models: Path | Mapping[str, Path],
        *,
        host: str = "127.0.0.1",
        rest_port: int | None = 8501,
        grpc_port: int | None = 8500,
        poll_seconds: float = 1.0,
        settings: Settings | None = None,
    ) -> None:
        settings = settings or Settings()
        self.host = host
        listing = _Listing(models)
        self._socket = None if rest_port is None else _listen(host, rest_port, "REST")
        self._serving = False
        self._closing: list[Callable[[], object]] = []
        try:
            self._build(listing, settings, grpc_port, poll_seconds)
        except BaseException:
            if self._socket is not None:
                self._socket.close()
            raise

    def _build(self, listing: "_Listing", settings: Settings, grpc_port: int | None, poll_seconds: float) -> None:
        # TensorFlow comes in here, and not when this module is imported.
        from serving.batching import BatchScheduler
        from serving.core import Core
        from serving.grpc import GrpcServer
        from serving.inference import Inference
        from serving.loading import Loader
        from serving.metrics import Metrics
        from serving.request_log import RequestLog
        from serving.rest import RestApplication
        from serving.ui import Ui
        from serving.users import read_users

        metrics = Metrics()
        scheduler = None
        if settings.batching is not None or settings.per_model_batching:
            threads = settings.batching.num_batch_threads if settings.batching else os.cpu_count() or 1
            scheduler = BatchScheduler(threads, metrics)
            self._closing.append(scheduler.close)
        self.models = Models(
            listing.find,
            Loader(settings, scheduler, metrics),
            poll_seconds=poll_seconds,
            find_seconds=settings.config_poll_seconds if listing.complete else poll_seconds,
            complete=listing.complete,
            retries=settings.retries,
            allow_unavailable_labels=settings.allow_unavailable_labels,
            on_change=self._tell_health,
        )
        log = RequestLog(settings.request_logging) if settings.request_logging is not None else None
        if log is not None:
            self._closing.append(log.close)
        core = Core(
            self.models,
            settings,
            guard.Guard(settings.token),
            Inference(check_method_names=settings.check_method_names),
            metrics,
            log,
            settings.reload_roots or listing.roots,
        )
        if grpc_port:
            _listen(self.host, grpc_port, "gRPC").close()  # gRPC's own refusal comes with lines of its library
        self._grpc = GrpcServer(core, host=self.host, port=grpc_port)
        self.grpc_port = self._grpc.port
        self._rest: _RestServer | None = None
        if self._socket is not None:
            executor = ThreadPoolExecutor(settings.threads, "rest")
            self._closing.insert(0, executor.shutdown)
            page = settings.page
            ui = None if page is None else Ui(self.models, read_users(page.data) if page.data else [])
            self._rest = _RestServer(RestApplication(core, executor, self._is_ready, ui), self._socket, settings)

    @property
    def rest_port(self) -> int | None:
        """The port that answers REST, None where none does."""
        return None if self._rest is None else self._rest.port

    def start(self) -> None:
        """Loads the models, then answers.

        Raises:
            UserError: a model of a `models.config` has versions and none of them loads.
        """
        try:
            self.models.start()
        except ServingError as error:
            self.close()
            raise UserError(error.message) from None
        self._grpc.start()
        if self._rest is not None:
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
        if self._rest is not None:
            self._rest.begin_to_stop()  # both ports drain at once
        self._grpc.stop(_DRAIN_SECONDS)
        if self._rest is not None:
            self._rest.stop()
        for close in self._closing:
            close()
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

    def __init__(self, application: "RestApplication", listener: socket.socket, settings: Settings) -> None:
        tls = settings.tls
        context = None if tls is None else guard.ssl_context(tls)
        config = uvicorn.Config(
            application,
            # A connection of uvicorn's own kind, with one argument of ours.
            http=partial(Connection, header_seconds=settings.limits.deadline_seconds),  # type: ignore[arg-type]
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=_BACKLOG,
            limit_concurrency=settings.limits.max_connections,
            h11_max_incomplete_event_size=settings.limits.max_header_bytes,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=int(_DRAIN_SECONDS),
            ssl_context_factory=None if context is None else lambda config, default: context,
        )
        self._server = uvicorn.Server(config)
        self._socket = listener
        self.port: int = listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run, name="rest", daemon=True)

    def _run(self) -> None:
        asyncio.run(self._server.serve(sockets=[self._socket]))

    def start(self) -> None:
        self._socket.listen(_BACKLOG)
        self._thread.start()

    def begin_to_stop(self) -> None:
        self._server.should_exit = True

    def stop(self) -> None:
        self.begin_to_stop()
        if self._thread.ident is not None:
            self._thread.join()
        self._socket.close()


def _listen(host: str, port: int, protocol: str) -> socket.socket:
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
            f"{host}:{port}: cannot listen there for {protocol} ({error.strerror}); stop what uses the port or give "
            "another."
        ) from None
    return listener


class _Listing:
    """How to list the models: of a directory, of a `models.config`, or of a mapping of names to base paths.

    Attributes:
        find: lists them.
        complete: whether what it leaves out is to be unloaded.
        roots: directories below which a reload may place models.
    """

    def __init__(self, models: Path | Mapping[str, Path]) -> None:
        self.complete = True
        self.find: Callable[[], Mapping[str, ModelSource]]
        if isinstance(models, Mapping):
            sources = {name: ModelSource(Path(os.path.abspath(path))) for name, path in models.items()}
            self.find = lambda: sources
            self.roots = tuple(source.base_path.parent for source in sources.values())
            return
        models = Path(os.path.abspath(models))
        if models.is_file():
            self.find = partial(model_config.read, models)
            self.roots = tuple({source.base_path.parent for source in self.find().values()})
            return
        if not models.is_dir():
            raise UserError(
                f"{models}: does not exist; give a directory of models (MODELS/NAME/VERSION) or a models.config."
            )
        if find_versions(models):
            raise UserError(f"{models}: holds versions, not models; give its parent directory, {models.parent}.")
        self.find = partial(find_models, models)
        self.complete = False
        self.roots = (models,)


def serve(
    models: Path | Mapping[str, Path],
    *,
    host: str = "127.0.0.1",
    rest_port: int | None = 8501,
    grpc_port: int | None = 8500,
    poll_seconds: float = 1.0,
    engine: Engine = "builtin",
    settings: Settings | None = None,
    output: TextIO | None = None,
) -> None:
    """Serves until SIGTERM or SIGINT, then lets the requests that run come to their end.

    They have a limited time: where a model does not return, no thread of Python's can be ended, and the process ends
    with code 1.

    Once it answers it prints one line, `Serving NAME,NAME at rest=HOST:PORT grpc=HOST:PORT`, to `output`
    (default stdout). Must be called from the main thread. With TensorFlow's binary as the engine it does not return:
    the process becomes that binary.

    Args:
        models: see `ModelServer`, as are the others.
        host: the address to listen on.
        rest_port: REST port, 0 for a free one, None for no REST.
        grpc_port: gRPC port, 0 for a free one, None for no gRPC.
        poll_seconds: how often new versions are looked for; 0 = never.
        engine: `builtin` is this server, `tensorflow_model_server` TensorFlow's binary; `auto` is the binary if it is
            on PATH and can do what is asked, else this server.
        settings: everything else; the binary is not told of them, so `auto` is this server where there are any.
        output: where the line goes.
    """
    if engine != "builtin" and _wants_binary(engine, models, host, rest_port, grpc_port, settings):
        assert isinstance(models, Path)  # and the ports are numbers: `_wants_binary` has seen to it
        command = tensorflow_model_server_command(
            models, rest_port=rest_port or 0, grpc_port=grpc_port or 0, poll_seconds=poll_seconds
        )
        sys.stderr.write(f"{_BINARY} listens on every address; --engine builtin keeps to {host}.\n")
        os.execvp(command[0], command)
    stop = threading.Event()

    def ask_to_stop(number: int, frame: FrameType | None) -> None:
        stop.set()

    server = ModelServer(
        models, host=host, rest_port=rest_port, grpc_port=grpc_port, poll_seconds=poll_seconds, settings=settings
    )
    before = {number: signal.signal(number, ask_to_stop) for number in (signal.SIGTERM, signal.SIGINT)}
    gc.collect()
    gc.freeze()  # what was imported stays: the collector need not look at it while requests are answered
    try:
        server.start()
        names = ",".join(server.models.names) or "nothing yet"
        ports = (("rest", server.rest_port), ("grpc", server.grpc_port))
        where = " ".join(f"{kind}={host}:{port}" for kind, port in ports if port is not None)
        print(f"Serving {names} at {where}", file=output or sys.stdout, flush=True)
        stop.wait()
        logging.getLogger("serving").info("draining")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)  # a second signal ends it at once
        _close_in_time(server)


def _close_in_time(server: ModelServer) -> None:
    closing = threading.Thread(target=server.close, daemon=True)
    closing.start()
    closing.join(_DRAIN_SECONDS + _CLOSING_SECONDS)
    if closing.is_alive():
        logging.getLogger("serving").error("what still runs does not come to its end and is given up")
        logging.shutdown()
        os._exit(1)  # at a plain exit Python itself would wait for it


def _wants_binary(
    engine: Engine,
    models: Path | Mapping[str, Path],
    host: str,
    rest_port: int | None,
    grpc_port: int | None,
    settings: Settings | None,
) -> bool:
    """Whether to serve with TensorFlow's binary, which takes no free ports and lacks ScaNN."""
    installed = shutil.which(_BINARY) is not None
    free_ports = 0 in (rest_port, grpc_port)
    if engine == _BINARY:
        if not installed:
            raise UserError(f"{_BINARY}: not on PATH; install it or use the built-in server (--engine builtin).")
        if free_ports:
            raise UserError(f"{_BINARY}: finds no free ports by itself; give both, or use --engine builtin.")
        if settings not in (None, Settings()) or not isinstance(models, Path):
            raise UserError(f"{_BINARY}: takes its own flags alone; start it directly, or use --engine builtin.")
        return True
    if not installed or free_ports or host not in ("127.0.0.1", "0.0.0.0"):
        return False
    if settings not in (None, Settings()) or not isinstance(models, Path):
        return False
    return not any(_uses_scann(source.base_path) for source in _Listing(models).find().values())


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
    find = _Listing(models).find
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
