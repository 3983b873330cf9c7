"""What the ports cost: one `recommend` at batch 1 over REST and over gRPC, against the call inside the process.

The server is a process of its own, as in use; the three kinds of calls take turns, so that what else the machine does
hits them alike. The model is made up (50 events in, 10 items out, 10,000 items): the ports' cost does not depend on it.

    python benchmarks/serving_overhead.py [--calls 500]

Prints a table; the last line is one JSON document of medians in ms and their ratio to the call inside the process.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from serving.servable import SavedModelServable

ITEMS, WIDTH, EVENTS, ANSWERS = 10_000, 64, 50, 10


def save_model(directory: Path) -> None:
    """A stand-in for an export: ids to vectors, their mean, the nearest items."""
    module = tf.Module()
    module.vectors = tf.Variable(np.random.default_rng(0).normal(size=(ITEMS, WIDTH)).astype(np.float32))
    module.names = tf.constant([f"item-{number}" for number in range(ITEMS)])

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None], tf.string, name="history_item_ids"),
            tf.TensorSpec([None, None], tf.int64, name="history_times"),
        ]
    )
    def recommend(history_item_ids: Any, history_times: Any) -> dict[str, Any]:
        codes = tf.strings.to_hash_bucket_fast(history_item_ids, ITEMS)
        recent = tf.cast(history_times > 0, tf.float32)[:, :, None]
        state = tf.reduce_mean(tf.gather(module.vectors, codes) * recent, axis=1)
        scores, items = tf.math.top_k(tf.matmul(state, module.vectors, transpose_b=True), ANSWERS)
        return {"item_ids": tf.gather(module.names, items), "scores": scores}

    tf.saved_model.save(module, str(directory), signatures={"serving_default": recommend})


def start_server(models: Path, *flags: str) -> tuple[subprocess.Popen[str], str, str]:
    """Starts `python -m serving` on free ports; returns it with its two addresses."""
    command = [sys.executable, "-m", "serving", str(models), "--rest-port", "0", "--grpc-port", "0", *flags]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    assert server.stdout is not None
    line = server.stdout.readline()
    addresses = dict(part.split("=", 1) for part in line.split() if "=" in part)
    return server, addresses["rest"], addresses["grpc"]


def measure(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each call, taken in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 50):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if number >= 50:  # the first ones warm up
                seconds[name].append(time.perf_counter() - started)
    return {name: 1000 * float(np.median(values)) for name, values in seconds.items()}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=500, help="calls of each kind (default 500)")
    rounds = parser.parse_args().calls
    with tempfile.TemporaryDirectory() as directory:
        version = Path(directory) / "made_up" / "1"
        save_model(version)
        server, rest, rpc = start_server(Path(directory))
        try:
            medians = measure(calls_of(version, rest, rpc), rounds)
        finally:
            server.terminate()
            server.wait()
    inside = medians["in the process"]
    print(f"{'call':<16}{'median ms':>10}{'over it, ms':>13}{'ratio':>8}")
    for name, milliseconds in medians.items():
        print(f"{name:<16}{milliseconds:>10.3f}{milliseconds - inside:>13.3f}{milliseconds / inside:>8.2f}")
    ratios = {name: round(milliseconds / inside, 3) for name, milliseconds in medians.items()}
    print(json.dumps({"median_ms": {name: round(ms, 4) for name, ms in medians.items()}, "ratio": ratios}))


def calls_of(version: Path, rest: str, rpc: str) -> dict[str, Callable[[], Any]]:
    """The same question asked in each way."""
    items = np.array([[f"item-{number}".encode() for number in range(EVENTS)]], dtype=object)
    times = np.arange(1, EVENTS + 1, dtype=np.int64)[None]
    inputs = {"history_item_ids": items, "history_times": times}
    loaded = SavedModelServable(version)
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "made_up"
    for alias, array in inputs.items():
        request.inputs[alias].CopyFrom(tf.make_tensor_proto(array))
    stub = prediction_service_pb2_grpc.PredictionServiceStub(grpc.insecure_channel(rpc))
    client = httpx.Client(base_url=f"http://{rest}")
    row = {"history_item_ids": [item.decode() for item in items[0]], "history_times": times[0].tolist()}
    body = json.dumps({"instances": [row]}).encode()
    return {
        "in the process": lambda: loaded.run("serving_default", inputs),
        "gRPC": lambda: stub.Predict(request),
        "REST": lambda: client.post("/v1/models/made_up:predict", content=body).raise_for_status().json(),
    }


if __name__ == "__main__":
    main()
