"""What both ports share: the models, and what happens around each request."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from serving import model_config
from serving.batching import time_limit
from serving.guard import Guard
from serving.inference import Inference
from serving.metrics import Metrics, Timed
from serving.models import Models
from serving.request_log import RequestLog
from serving.settings import Settings
from serving.status import Code, ServingError, invalid_argument
from serving.versions import Handle


@dataclass(frozen=True)
class Pinned(Handle):
    """A version pinned for one request, whose runs are measured."""

    servable: Timed


@dataclass(frozen=True)
class Core:
    """The models, and what happens around each request.

    Attributes:
        models: what is served.
        settings: how.
        guard: who may ask.
        inference: classify, regress and both at once.
        metrics: what is counted.
        log: where requests are recorded, None for nowhere.
        roots: directories below which a reload may place models.
    """

    models: Models
    settings: Settings
    guard: Guard
    inference: Inference
    metrics: Metrics = field(default_factory=Metrics)
    log: RequestLog | None = None
    roots: tuple[Path, ...] = ()

    @contextmanager
    def pinned(self, name: str, version: int | None, label: str | None, api: str) -> Iterator["Pinned"]:
        """Pins a version for one request, whose runs are measured."""
        with self.models.handle(name, version, label) as handle:
            timed = Timed(handle.servable, self.metrics, name, api)
            yield Pinned(handle.model, handle.version, timed, handle.directory)

    @contextmanager
    def counted(self, name: str, api: str, entrypoint: str, seconds: float | None) -> Iterator[None]:
        """Counts one request and takes its time.

        Args:
            name: the model; one that is not served is counted without its name, of which there is no end.
            api: what is asked, such as `Predict`.
            entrypoint: `REST` or `GRPC`.
            seconds: the time that the request still has.
        """
        started = time.perf_counter()
        time_limit.set(None if seconds is None else time.monotonic() + seconds)
        code = Code.INTERNAL
        try:
            yield
            code = Code.OK
        except ServingError as error:
            code = error.code
            raise
        finally:
            known = name if self.models.knows(name) else ""
            self.metrics.count("/tensorflow/serving/request_count", model_name=known, status=code.name)
            if code == Code.OK:
                micros = 1e6 * (time.perf_counter() - started)
                latency = "/tensorflow/serving/request_latency"
                self.metrics.observe(latency, micros, model_name=known, API=api, entrypoint=entrypoint)

    def check_sizes(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Refuses tensors with more values than a request may have."""
        limit = self.settings.limits.max_elements
        for alias, array in arrays.items():
            if array.size > limit:
                raise invalid_argument(f"Tensor {alias} has {array.size} values; at most {limit} are allowed.")

    def reload(self, config: Any) -> None:
        """Serves the models of a ModelServerConfig message, and no others, once those that are new answer.

        Raises:
            ServingError: the configuration is not valid, places a model where none may be, or cannot be in force.
        """
        if config.WhichOneof("config") != "model_config_list":
            raise invalid_argument(
                "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is currently "
                "supported"
            )
        sources = model_config.sources(config)
        for name, source in sources.items():
            resolved = source.base_path.resolve()
            if not any(resolved.is_relative_to(root.resolve()) for root in self.roots):
                raise ServingError(
                    Code.PERMISSION_DENIED,
                    f"`base_path` of {name} lies outside the directories from which a reload may serve.",
                )
        self.models.reload(sources)
