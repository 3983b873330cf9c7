"""Requests a second at many clients: the server with batching, without it, and a wrapper as people write it.

The wrapper is a FastAPI application that loads the SavedModel with `tf.saved_model.load` and calls its signature for
each request in the thread that it is given. All three answer the same JSON over HTTP with the same made-up model (50
events in, 10 of 100,000 items out), one after the other, each in a process of its own.

    python -m benchmarks.serving_throughput [--seconds 10] [--clients 32]

The last line is one JSON document: requests a second and p99 of each, and the ratio to the wrapper.
"""

import argparse
import http.client
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.serving_overhead import question, save_model, start_server

BATCHING = """max_batch_size { value: 32 } batch_timeout_micros { value: 1000 } max_enqueued_batches { value: 64 }
num_batch_threads { value: 2 } allowed_batch_sizes: 1 allowed_batch_sizes: 8 allowed_batch_sizes: 32"""


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


def start_wrapper(version: Path) -> tuple[subprocess.Popen[str], str]:
    """The wrapper in a process of its own, once it answers."""
    command = [sys.executable, "-m", "benchmarks.serving_throughput", "--wrap", str(version)]
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


def drive(address: str, body: bytes, clients: int, seconds: float) -> dict[str, float]:
    """Asks from many threads at once, warmed up; requests a second and their p99."""
    took: list[float] = []
    warm = threading.Barrier(clients)

    def ask() -> None:
        client = http.client.HTTPConnection(address, timeout=60)  # costs a third of what httpx costs
        for _ in range(5):
            post(client, body)
        warm.wait()
        end = time.perf_counter() + seconds
        while (started := time.perf_counter()) < end:
            post(client, body)
            took.append(time.perf_counter() - started)
        client.close()

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"per_second": round(len(took) / seconds, 1), "p99_ms": round(1000 * float(np.percentile(took, 99)), 1)}


def post(client: http.client.HTTPConnection, body: bytes) -> None:
    """Asks once; an error ends the script's figure."""
    client.request("POST", "/v1/models/made_up:predict", body, {"Content-Type": "application/json"})
    answer = client.getresponse()
    if answer.status != 200 or not json.loads(answer.read())["predictions"]:
        raise RuntimeError(f"answered {answer.status}")


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
    with tempfile.TemporaryDirectory() as folder:
        version = save_model(Path(folder) / "models" / "made_up" / "1")
        parameters = Path(folder) / "batching.txt"
        parameters.write_text(BATCHING)
        batching = ("--enable_batching", f"--batching_parameters_file={parameters}")
        found = {}
        for name, flags in (("batching", batching), ("no batching", ()), ("wrapper", None)):
            server, address = start_wrapper(version) if flags is None else start_server(version.parents[1], *flags)[:2]
            try:
                found[name] = drive(address, body, options.clients, options.seconds)
            finally:
                server.terminate()
                server.wait()
            print(f"{name:<12}{found[name]['per_second']:>10.1f} a second{found[name]['p99_ms']:>10.1f} ms p99")
    ratios = {name: round(each["per_second"] / found["wrapper"]["per_second"], 2) for name, each in found.items()}
    print(json.dumps({"measured": found, "ratio_to_wrapper": ratios}))


if __name__ == "__main__":
    main()
