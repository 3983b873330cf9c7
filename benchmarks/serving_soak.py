"""A server under load for long while versions come and go: does it fail, mix, slow down, or grow?

The server is a process of its own. Clients ask for y(0), which is the number of the version's weights, over REST and
gRPC; meanwhile versions are published, broken ones among them, withdrawn and deleted. A request that fails, or a gRPC
answer whose version is not the one whose weights answered, ends it.

    python -m benchmarks.serving_soak [--requests 100000] [--cycles 200] [--clients 32]

The last line is one JSON document: requests, versions heard, p99 while nothing changes and around the swaps, and what
memory, threads and file descriptors have grown by since the first tenth. Memory that grew by 100 MB, or more threads or
descriptors than a leak of one in ten cycles would leave, end it with an error.
"""

import argparse
import json
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import psutil
import tensorflow as tf
from tensorflow_serving.apis import prediction_service_pb2_grpc

from benchmarks.serving_overhead import start_server
from tests.serving.saved_models import predict_request, publish, save_half_plus

SWAP_SECONDS = 0.5  # an answer that began this long after a swap counts as around it


class Load:
    """Clients that ask model m until they are told to stop; its answer `y` is the number of the version.

    Args:
        rest: address.
        rpc: address.
        clients: half of them over REST, half over gRPC.
        body: of a REST request with two rows.
        request: of gRPC.
        pause_seconds: of a client between two questions.
    """

    def __init__(
        self, rest: str, rpc: str, clients: int, *, body: bytes, request: Any, pause_seconds: float = 0.0
    ) -> None:
        self.rest, self.rpc = rest, rpc
        self.body, self.request, self.pause_seconds = body, request, pause_seconds
        self.stop = threading.Event()
        self.lock = threading.Lock()
        self.samples: list[tuple[float, float]] = []  # when it began, how long it took
        self.heard: set[float] = set()
        self.failures: list[str] = []
        asking = [self._ask_rest if number % 2 else self._ask_grpc for number in range(clients)]
        self.threads = [threading.Thread(target=ask, daemon=True) for ask in asking]

    def _note(self, began: float, version: float | None, failure: str | None) -> None:
        with self.lock:
            if failure is None:
                self.samples.append((began, time.monotonic() - began))
                self.heard.add(float(version or 0))
            else:
                self.failures.append(failure)
        self.stop.wait(self.pause_seconds)

    def _ask_rest(self) -> None:
        with httpx.Client(base_url=f"http://{self.rest}", timeout=60) as http:
            while not self.stop.is_set():
                began = time.monotonic()
                answer = http.post("/v1/models/m:predict", content=self.body)
                rows = answer.json().get("predictions", [0, 1])
                first, second = (row["y"] if isinstance(row, dict) else row for row in rows)
                good = answer.status_code == 200 and first == second
                self._note(began, first, None if good else answer.text)

    def _ask_grpc(self) -> None:
        with grpc.insecure_channel(self.rpc) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            while not self.stop.is_set():
                began = time.monotonic()
                try:
                    answer = stub.Predict(self.request, timeout=60)
                except grpc.RpcError as error:
                    self._note(began, None, str(error.code()))
                    continue
                value = answer.outputs["y"].float_val[0]
                mixed = value != answer.model_spec.version.value
                self._note(began, value, f"version {answer.model_spec.version.value} gave {value}" if mixed else None)


def swap(base: Path, saved: Path, number: int) -> None:
    """Publishes a version with its number as its weights; every fifth is broken and taken away again."""
    source = save_half_plus(saved / str(number), float(number))
    if number % 5 == 0:
        (source / "saved_model.pb").write_bytes(b"broken")
    version = publish(source, base, number, manifest=number % 2 == 0)
    shutil.rmtree(source)
    time.sleep(0.4)
    if number % 5 == 0:
        version.rename(base / f"{number}.withdrawn")
    for old in sorted((path for path in base.iterdir() if path.name.isdecimal()), key=lambda path: int(path.name))[:-3]:
        shutil.rmtree(old)


def measure(server: psutil.Process) -> tuple[int, int, int]:
    """Memory, threads, file descriptors."""
    return server.memory_info().rss, server.num_threads(), server.num_fds()


def main() -> None:
    """Loads, swaps, and tells."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--cycles", type=int, default=200)
    parser.add_argument("--clients", type=int, default=32)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "models" / "m"
        base.mkdir(parents=True)
        publish(save_half_plus(Path(folder) / "saved" / "1", 1.0), base, 1)
        server, rest, rpc = start_server(base.parent)
        try:
            request = predict_request("m", x=tf.make_tensor_proto([0.0]))
            load = Load(rest, rpc, options.clients, body=b'{"instances": [0, 0]}', request=request)
            result = soak(psutil.Process(server.pid), load, base, options)
            print(json.dumps(result))
            check_growth(result, options.cycles)
        finally:
            server.terminate()
            server.wait()


def soak(server: psutil.Process, load: Load, base: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Runs the clients until both the requests and the cycles are done."""
    for thread in load.threads:
        thread.start()
    time.sleep(3.0)  # what the clients hear while nothing changes
    swaps: list[float] = []
    before = measure(server)
    cycle = 1
    while cycle <= options.cycles or len(load.samples) < options.requests:
        cycle += 1
        if cycle <= options.cycles + 1:
            swaps.append(time.monotonic())
            swap(base, base.parents[1] / "saved", cycle)
        else:
            time.sleep(0.2)
        if cycle == max(2, options.cycles // 10):
            before = measure(server)
        if load.failures:
            break
    load.stop.set()
    for thread in load.threads:
        thread.join()
    if load.failures:
        raise SystemExit(f"{len(load.failures)} requests failed: {load.failures[:3]}")
    return summary(load, swaps, before, measure(server))


def check_growth(result: dict[str, Any], cycles: int) -> None:
    """Ends the script with an error where the server grew."""
    limits = {
        "memory_growth_mib": 100,
        "thread_growth": max(8, cycles // 10),
        "descriptor_growth": max(8, cycles // 10),
    }
    if grown := [name for name, limit in limits.items() if result[name] > limit]:
        raise SystemExit(f"the server grew: {', '.join(grown)}")


def summary(
    load: Load, swaps: list[float], before: tuple[int, int, int], after: tuple[int, int, int]
) -> dict[str, Any]:
    """What the last line says."""
    began, took = np.array(load.samples).T
    last = np.searchsorted(swaps, began, side="right") - 1
    since = np.where(last >= 0, began - np.array(swaps)[np.maximum(last, 0)], np.inf)
    around = since < SWAP_SECONDS
    steady = took[~around & (began < swaps[0])]
    return {
        "requests": len(took),
        "versions_heard": len(load.heard),
        "p99_steady_ms": round(1000 * float(np.percentile(steady, 99)), 1),
        "p99_around_swaps_ms": round(1000 * float(np.percentile(took[around], 99)), 1),
        "memory_growth_mib": round((after[0] - before[0]) / 2**20, 1),
        "thread_growth": after[1] - before[1],
        "descriptor_growth": after[2] - before[2],
    }


if __name__ == "__main__":
    main()
