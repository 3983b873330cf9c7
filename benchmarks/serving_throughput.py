"""Requests a second at many clients: the server with batching, without it, and a wrapper as people write it.

The wrapper is a FastAPI application that loads the SavedModel with `tf.saved_model.load` and calls its signature for
each request in the thread that it is given. All three answer the same JSON over HTTP with the same made-up model (50
events in, 10 of 100,000 items out), one after the other, each in a process of its own on a core of its own. The clients
are connections that ask again as soon as they are answered, all from one thread on another core, so that they take
nothing from the server and next to nothing of their own core.

    python -m benchmarks.serving_throughput [--seconds 10] [--clients 32]

The last line is one JSON document: requests a second and p50 and p99 of each, how busy the two cores were, and the
ratio to the wrapper.
"""

import argparse
import json
import os
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from benchmarks.serving_overhead import cores, question, save_model, start_server

WARM_UP_SECONDS = 2.0
BATCHING = """max_batch_size { value: 32 } batch_timeout_micros { value: 1000 } max_enqueued_batches { value: 64 }
num_batch_threads { value: 1 } allowed_batch_sizes: 1 allowed_batch_sizes: 8 allowed_batch_sizes: 16
allowed_batch_sizes: 24 allowed_batch_sizes: 32"""


def wrap(version: str) -> None:
    """Serves the model the short way, until it is ended."""
    import tensorflow as tf
    import uvicorn
    from fastapi import FastAPI

    call = tf.saved_model.load(version).signatures["serving_default"]

    application = FastAPI()

    @application.post("/v1/models/made_up:predict")
    def predict(document: dict[str, Any]) -> dict[str, Any]:
        rows = document["instances"]
        ids = tf.constant([row["history_item_ids"] for row in rows])
        times = tf.constant([row["history_times"] for row in rows], tf.int64)
        found = call(history_item_ids=ids, history_times=times)
        items = [[item.decode() for item in row] for row in found["item_ids"].numpy()]
        scores = found["scores"].numpy().tolist()
        return {"predictions": [{"item_ids": i, "scores": s} for i, s in zip(items, scores, strict=True)]}

    print("Serving rest=127.0.0.1:18501 grpc=", flush=True)
    uvicorn.run(application, port=18501, log_level="error")


def start_wrapper(version: Path, on: set[int]) -> tuple[subprocess.Popen[str], str]:
    """The wrapper in a process of its own, on some cores alone, once it answers."""
    pinned = ["taskset", "--cpu-list", ",".join(map(str, on))]
    command = [*pinned, sys.executable, "-m", "benchmarks.serving_throughput", "--wrap", str(version)]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    assert server.stdout is not None
    address = dict(part.split("=", 1) for part in server.stdout.readline().split() if "=" in part)["rest"]
    while True:  # the line comes before it listens
        try:
            httpx.get(f"http://{address}/")
            return server, address
        except httpx.ConnectError:
            time.sleep(0.1)


class Client:
    """One connection that asks the same question again and again.

    Args:
        address: host and port.
        request: the bytes of the question.
    """

    def __init__(self, address: str, request: bytes) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._request = request
        self._received = b""
        self.started = 0.0

    def ask(self) -> None:
        """Sends the question."""
        self._received = b""
        self.started = time.perf_counter()
        self.socket.sendall(self._request)

    def hears_the_end(self) -> bool:
        """Reads what is there; whether the answer is complete. One that is no answer ends the script."""
        chunk = self.socket.recv(1 << 16)
        self._received += chunk
        head, separator, body = self._received.partition(b"\r\n\r\n")
        if not chunk or (separator and not head.startswith(b"HTTP/1.1 200")):
            raise RuntimeError(f"answered {head[:200]!r}")
        if not separator:
            return False
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        return len(body) >= length and bool(json.loads(body)["predictions"])


def drive(address: str, body: bytes, clients: int, seconds: float, server: psutil.Process) -> dict[str, float]:
    """Asks over many connections at once, warmed up; requests a second, their latencies, and what each side used."""
    head = f"POST /v1/models/made_up:predict HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    took: list[float] = []
    with selectors.DefaultSelector() as selector:
        for _ in range(clients):
            client = Client(address, request)
            selector.register(client.socket, selectors.EVENT_READ, client)
            client.ask()
        warm = time.perf_counter() + WARM_UP_SECONDS
        used = None
        while (now := time.perf_counter()) < warm + seconds:
            if used is None and now >= warm:
                used = sum(server.cpu_times()[:2]), time.process_time()
            for key, _ in selector.select(1):
                if key.data.hears_the_end():
                    if used is not None:
                        took.append(time.perf_counter() - key.data.started)
                    key.data.ask()
        assert used is not None
        of_server, of_client = sum(server.cpu_times()[:2]) - used[0], time.process_time() - used[1]
        for key in list(selector.get_map().values()):
            key.data.socket.close()
    p50, p99 = 1000 * np.percentile(took, [50, 99])
    return {
        "per_second": round(len(took) / seconds, 1),
        "p50_ms": round(float(p50), 1),
        "p99_ms": round(float(p99), 1),
        "server_core": round(of_server / seconds, 2),
        "client_core": round(of_client / seconds, 2),
    }


def main() -> None:
    """Measures one after the other and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--wrap", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.wrap:
        wrap(options.wrap)
        return
    body = json.dumps({"instances": [question()]}).encode()
    of_server, of_client = cores()
    os.sched_setaffinity(0, of_client)
    with tempfile.TemporaryDirectory() as folder:
        version = save_model(Path(folder) / "models" / "made_up" / "1")
        parameters = Path(folder) / "batching.txt"
        parameters.write_text(BATCHING)
        batching = ("--enable_batching", f"--batching_parameters_file={parameters}")
        found = {}
        for name, flags in (("batching", batching), ("no batching", ()), ("wrapper", None)):
            if flags is None:
                server, address = start_wrapper(version, of_server)
            else:
                server, address, _ = start_server(version.parents[1], *flags, on=of_server)
            try:
                found[name] = drive(address, body, options.clients, options.seconds, psutil.Process(server.pid))
            finally:
                server.terminate()
                server.wait()
            print(name.ljust(12), *(f"{value:>9} {key}" for key, value in found[name].items()))
    ratios = {name: round(each["per_second"] / found["wrapper"]["per_second"], 2) for name, each in found.items()}
    print(json.dumps({"measured": found, "ratio_to_wrapper": ratios}))


if __name__ == "__main__":
    main()
