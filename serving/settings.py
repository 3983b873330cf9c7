"""What a server is told beside its models and its addresses; nothing here imports TensorFlow."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from serving.versions import Retries


@dataclass(frozen=True)
class Limits:
    """What one request, and all together, may take.

    Attributes:
        max_body_bytes: size of a request's body, also after decompression; more is a 413.
        max_concurrent_requests: requests being answered or waiting for it; more is a 503.
        deadline_seconds: time for reading a request, and again for answering it; longer is a 408 and a 504.
        max_elements: values of one tensor of a JSON request; more is a 400.
        max_header_bytes: size of a request's line and headers; more is a 431, or a 400 and the end of the connection.
        max_connections: open HTTP connections; more are answered 503 and closed.
    """

    max_body_bytes: int = 64 << 20
    max_concurrent_requests: int = 256
    deadline_seconds: float = 30.0
    max_elements: int = 1 << 25
    max_header_bytes: int = 64 << 10
    max_connections: int = 4096


@dataclass(frozen=True)
class Batching:
    """How requests that arrive together run together; the names are those of TensorFlow Serving's parameters.

    Attributes:
        max_batch_size: rows of one batch, and of one request unless it may be split.
        batch_timeout_micros: how long a batch waits for more rows.
        max_enqueued_batches: so many full batches may wait for each signature; more is UNAVAILABLE.
        num_batch_threads: batches that run at once, over all models.
        allowed_batch_sizes: sizes that batches are filled up to, rising; the last is the largest batch.
        pad_variable_length_inputs: whether inputs of different lengths share a batch, filled up with the first value,
            where the answer's lengths do not depend on theirs.
        enable_large_batch_splitting: whether a request with more rows is split.
        max_execution_batch_size: rows of one batch where requests may be split; 0 = `max_batch_size`.
    """

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    allowed_batch_sizes: tuple[int, ...] = ()
    pad_variable_length_inputs: bool = False
    enable_large_batch_splitting: bool = False
    max_execution_batch_size: int = 0

    def __post_init__(self) -> None:
        for name in ("max_batch_size", "max_enqueued_batches", "num_batch_threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1. Received: {getattr(self, name)}.")
        if self.batch_timeout_micros < 0:
            raise ValueError(f"`batch_timeout_micros` must not be negative. Received: {self.batch_timeout_micros}.")
        if not 0 <= self.max_execution_batch_size <= self.max_batch_size:
            raise ValueError(
                f"`max_execution_batch_size` must not exceed max_batch_size ({self.max_batch_size}). "
                f"Received: {self.max_execution_batch_size}."
            )
        sizes = self.allowed_batch_sizes
        if sizes and (list(sizes) != sorted(set(sizes)) or sizes[0] < 1 or sizes[-1] != self.largest_batch):
            raise ValueError(
                f"`allowed_batch_sizes` must rise, and the last must be the largest batch ({self.largest_batch}). "
                f"Received: {list(sizes)}."
            )

    @property
    def largest_batch(self) -> int:
        """The rows that one batch may have."""
        if self.enable_large_batch_splitting and self.max_execution_batch_size:
            return self.max_execution_batch_size
        return self.max_batch_size


@dataclass(frozen=True)
class Tls:
    """The certificates of both ports, as PEM text.

    Attributes:
        server_key: the server's private key.
        server_cert: its certificate, with those of the authorities between.
        custom_ca: the authorities that may sign clients' certificates.
        client_verify: whether clients must have one.
    """

    server_key: str
    server_cert: str
    custom_ca: str = ""
    client_verify: bool = False


@dataclass(frozen=True)
class RequestLogging:
    """Where requests are recorded.

    Attributes:
        prefix: what the files' names begin with; the number of a file and `.tfrecord` follow.
        sampling_rate: the share of requests that are recorded, from 0 to 1.
        max_file_bytes: size at which the next file is begun.
        max_files: files of one server; then nothing more is recorded.
        seed: seeds the choice of requests.
    """

    prefix: Path
    sampling_rate: float = 1.0
    max_file_bytes: int = 64 << 20
    max_files: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.sampling_rate <= 1:
            raise ValueError(f"`sampling_rate` must be from 0 to 1. Received: {self.sampling_rate}.")


@dataclass(frozen=True)
class Page:
    """The page for people under `/ui` of the REST port.

    Attributes:
        data: a dataset directory some of whose users can be chosen; None = histories are built by hand.
    """

    data: Path | None = None


@dataclass(frozen=True)
class Settings:
    """How a server works; the defaults are those of `tfrec serve`.

    Attributes:
        workers: threads that answer on each port; 0 = twice the processors, at least 4, and with batching so many
            that batches fill up.
        limits: what requests may take.
        config_poll_seconds: how often a `models.config` is read again; 0 = never.
        retries: when versions that failed to load are tried again.
        allow_unavailable_labels: whether a new label may name a version that does not answer.
        check_method_names: whether classify and regress ask for the signature's method name.
        warmup: whether a version's warm-up requests are replayed before it answers.
        warmup_iterations: how often each is.
        cors: whether browsers' pages from elsewhere may read answers.
        metrics_path: where the REST port tells its metrics; None = nowhere.
        batching: how requests run together; None = each by itself.
        per_model_batching: whether a version's `batching_params.pbtxt` replaces `batching` for it.
        tls: the certificates of both ports; None = no encryption.
        token: what clients must show on both ports, as `Authorization: Bearer TOKEN`; None = nothing.
        reload_roots: directories below which a reload may place models; None = those beside the first ones.
        grpc_socket: a Unix socket that answers gRPC too.
        grpc_arguments: more arguments of gRPC's channel.
        tensor_content: whether gRPC answers carry raw bytes and not typed values.
        intra_op_threads: threads of one TensorFlow operation; 0 = one a processor.
        inter_op_threads: TensorFlow operations at once; 0 = one a processor.
        request_logging: where requests are recorded; None = nowhere.
        access_log: whether every request is a line of the log.
        page: the page for people; None = there is none.
    """

    workers: int = 0
    limits: Limits = field(default_factory=Limits)
    config_poll_seconds: float = 0.0
    retries: Retries = field(default_factory=Retries)
    allow_unavailable_labels: bool = False
    check_method_names: bool = False
    warmup: bool = True
    warmup_iterations: int = 1
    cors: bool = False
    metrics_path: str | None = None
    batching: Batching | None = None
    per_model_batching: bool = False
    tls: Tls | None = None
    token: str | None = None
    reload_roots: tuple[Path, ...] | None = None
    grpc_socket: str | None = None
    grpc_arguments: tuple[tuple[str, str | int], ...] = ()
    tensor_content: bool = False
    intra_op_threads: int = 0
    inter_op_threads: int = 0
    request_logging: RequestLogging | None = None
    access_log: bool = False
    page: Page | None = None

    @property
    def threads(self) -> int:
        """Threads that answer on each port."""
        if self.workers:
            return self.workers
        filling = min(128, 2 * self.batching.max_batch_size) if self.batching else 0
        return max(4, 2 * (os.cpu_count() or 1), filling)
