"""Counts and times of requests, told as TensorFlow Serving tells them, in Prometheus' text format."""

import asyncio
import bisect
import re
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager

import numpy as np

from serving.signatures import Arrays, Servable, Signature

_BOUNDS = [10 * 1.8**power for power in range(33)]  # microseconds, up to 20 minutes
_NO_NAME = re.compile(r"[^a-zA-Z0-9_:]")

Labels = tuple[tuple[str, str], ...]


def metric_name(path: str) -> str:
    """TensorFlow's name of a metric, such as /tensorflow/serving/request_count, as Prometheus allows it."""
    name = _NO_NAME.sub("_", path.replace("/", ":"))
    return f"_{name}" if name[:1].isdigit() else name


def escape(value: str) -> str:
    """A label's value between quotes."""
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


class Metrics:
    """Counters, gauges and histograms by name and labels; many threads may write."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: dict[str, dict[Labels, int]] = {}
        self._gauges: dict[str, dict[Labels, float]] = {}
        self._histograms: dict[str, dict[Labels, tuple[list[int], list[float]]]] = {}

    def count(self, name: str, amount: int = 1, **labels: str) -> None:
        """Adds to a counter."""
        key = tuple(labels.items())
        with self._lock:
            series = self._counters.setdefault(name, {})
            series[key] = series.get(key, 0) + amount

    def gauge(self, name: str, value: float, **labels: str) -> None:
        """Sets a gauge."""
        with self._lock:
            self._gauges.setdefault(name, {})[tuple(labels.items())] = value

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Adds a value to a histogram."""
        with self._lock:
            series = self._histograms.setdefault(name, {})
            buckets, total = series.setdefault(tuple(labels.items()), ([0] * (len(_BOUNDS) + 1), [0.0]))
            buckets[bisect.bisect_left(_BOUNDS, value)] += 1
            total[0] += value

    def text(self) -> str:
        """Everything, in Prometheus' text format."""
        with self._lock:
            lines = _simple("counter", self._counters) + _simple("gauge", self._gauges)
            for name, histograms in sorted(self._histograms.items()):
                lines.append(f"# TYPE {metric_name(name)} histogram")
                for key, (buckets, total) in sorted(histograms.items()):
                    lines += _histogram(metric_name(name), key, buckets, total[0])
        return "\n".join(lines) + "\n"


def _simple(kind: str, metrics: Mapping[str, Mapping[Labels, float]]) -> list[str]:
    lines: list[str] = []
    for name, series in sorted(metrics.items()):
        lines.append(f"# TYPE {metric_name(name)} {kind}")
        lines += [f"{metric_name(name)}{_labels(key)} {value}" for key, value in sorted(series.items())]
    return lines


def _histogram(name: str, key: Labels, buckets: list[int], total: float) -> list[str]:
    cumulative = np.cumsum(buckets).tolist()
    bounds = [f"{bound:g}" for bound in _BOUNDS] + ["+Inf"]
    lines = [
        f"{name}_bucket{_labels((*key, ('le', bound)))} {count}"
        for bound, count in zip(bounds, cumulative, strict=True)
    ]
    return [*lines, f"{name}_sum{_labels(key)} {total:g}", f"{name}_count{_labels(key)} {cumulative[-1]}"]


def _labels(key: Labels) -> str:
    inside = ",".join(f'{_NO_NAME.sub("_", name)}="{escape(value)}"' for name, value in key)
    return f"{{{inside}}}" if inside else ""


class Timed:
    """A servable whose runs are measured.

    Args:
        servable: what runs.
        metrics: where the times go.
        model: the model's name.
        api: what is asked, such as `Predict`.
    """

    def __init__(self, servable: Servable, metrics: Metrics, model: str, api: str) -> None:
        self._servable = servable
        self._metrics = metrics
        self._model = model
        self._api = api
        self.signatures: Mapping[str, Signature] = servable.signatures
        self.signature_def = servable.signature_def
        self.signature_def_json = servable.signature_def_json

    def run(self, signature_name: str, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """Runs it and takes the time."""
        with self._measured():
            return self._servable.run(signature_name, inputs)

    async def run_async(self, signature_name: str, inputs: Mapping[str, np.ndarray], executor: Executor) -> Arrays:
        """Runs it from an event loop, in a batch or else in a thread of `executor`, and takes the time."""
        run_async = getattr(self._servable, "run_async", None)
        with self._measured():
            if run_async is not None:
                return await run_async(signature_name, inputs, executor)
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(executor, self._servable.run, signature_name, inputs)

    @contextmanager
    def _measured(self) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            micros = 1e6 * (time.perf_counter() - started)
            name = "/tensorflow/serving/runtime_latency"
            self._metrics.observe(name, micros, model_name=self._model, API=self._api, runtime="TF1")

    def close(self) -> None:
        """Not for a request to decide: the version is closed by who loaded it."""
