"""What the ports cost: one `recommend` at batch 1 over REST and over gRPC, against the call inside the process.

The server is a process of its own on a core of its own, the client and the call inside the process are on another;
the three kinds of calls take turns, so that what else the machine does hits them alike. The model is made up: 50 events
in, 10 of 100,000 items out.

    python -m benchmarks.serving_overhead [--calls 500]

Counted is what such a call takes in Python, from the question to the answer in hand: the server's work, the way between
the two cores, and the client's own work, that of gRPC's stub or of httpx and its JSON; the TensorProtos of the question
are made beforehand. How long the client's thread is on the processor for a call stands beside it; inside the process
that includes the model.

Prints a table; the last line is one JSON document of medians in ms, by how much they exceed the call inside the
process, and of the client's thread.
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
from tensorflow_serving.apis import prediction_log_pb2, prediction_service_pb2_grpc

from serving.servable import SavedModelServable
from tests.serving.saved_models import predict_request, write_warmup
from tfrec.index import ExactSearch

ITEMS, WIDTH, EVENTS, ANSWERS = 100_000, 64, 50, 10


def save_model(directory: Path, number: float | None = None) -> Path:
    """A stand-in for an export, its warm-up requests included: ids to vectors, their mean, the nearest items.

    Its search is that of an export, and leaves out the history as that does. With a number of its weights, which it
    answers as `y`.
    """
    module = tf.Module()
    module.search = ExactSearch(np.random.default_rng(0).normal(size=(ITEMS, WIDTH)).astype(np.float32))
    module.number = tf.Variable(number or 0.0)
    module.names = tf.Variable([f"item-{number}" for number in range(ITEMS)])

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None], tf.string, name="history_item_ids"),
            tf.TensorSpec([None, None], tf.int64, name="history_times"),
        ]
    )
    def recommend(history_item_ids: Any, history_times: Any) -> dict[str, Any]:
        codes = tf.cast(tf.strings.to_hash_bucket_fast(history_item_ids, ITEMS), tf.int32)
        recent = tf.cast(history_times > 0, tf.float32)[:, :, None]
        state = tf.reduce_mean(tf.gather(module.search.vectors.read_value(), codes) * recent, axis=1)
        items, scores = module.search(state, ANSWERS, codes)
        answer = {"item_ids": tf.gather(module.names, items), "scores": scores}
        return answer if number is None else answer | {"y": tf.fill([tf.shape(scores)[0]], module.number.read_value())}

    tf.saved_model.save(module, str(directory), signatures={"serving_default": recommend})
    logs = [prediction_log_pb2.PredictionLog() for _ in (1, 2)]
    for rows, log in enumerate(logs, start=1):
        inputs = {name: np.repeat(values, rows, axis=0) for name, values in arrays().items()}
        log.predict_log.request.CopyFrom(predict_request("made_up", **inputs))
    write_warmup(directory, [log.SerializeToString() for log in logs])
    return directory


def question() -> dict[str, Any]:
    """A history as one row of a request."""
    return {"history_item_ids": [f"item-{n}" for n in range(EVENTS)], "history_times": list(range(1, EVENTS + 1))}


def cores() -> tuple[set[int], set[int]]:
    """A core for the server and the others for the client; the same one where there is but one."""
    allowed = sorted(os.sched_getaffinity(0))
    return {allowed[0]}, set(allowed[1:] or allowed)


def start_server(models: Path, *flags: str, on: set[int] | None = None) -> tuple[subprocess.Popen[str], str, str]:
    """Starts `python -m serving` on free ports, and on some cores alone; returns it with its two addresses."""
    command = [sys.executable, "-m", "serving", str(models), "--rest-port", "0", "--grpc-port", "0", *flags]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    if on is not None:
        command = ["taskset", "--cpu-list", ",".join(map(str, on)), *command]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    assert server.stdout is not None
    line = server.stdout.readline()
    addresses = dict(part.split("=", 1) for part in line.split() if "=" in part)
    return server, addresses["rest"], addresses["grpc"]


def measure(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, tuple[float, float]]:
    """Median milliseconds of each call, taken in turns, and those that this thread was on the processor for it."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for number in range(rounds + 50):
        for name, call in calls.items():
            started, busy = time.perf_counter(), time.thread_time()
            call()
            if number >= 50:  # the first ones warm up
                seconds[name].append((time.perf_counter() - started, time.thread_time() - busy))
    return {name: tuple(1000 * np.median(values, axis=0)) for name, values in seconds.items()}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=500, help="calls of each kind (default 500)")
    rounds = parser.parse_args().calls
    of_server, of_client = cores()
    os.sched_setaffinity(0, of_client)
    with tempfile.TemporaryDirectory() as directory:
        version = save_model(Path(directory) / "made_up" / "1")
        server, rest, rpc = start_server(Path(directory), on=of_server)
        try:
            medians = measure(calls_of(version, rest, rpc), rounds)
        finally:
            server.terminate()
            server.wait()
    inside, _ = medians["in the process"]
    print(f"{'call':<16}{'median ms':>10}{'over it, ms':>13}{'ratio':>8}{'client, ms':>12}")
    for name, (all_of_it, client) in medians.items():
        print(f"{name:<16}{all_of_it:>10.3f}{all_of_it - inside:>13.3f}{all_of_it / inside:>8.2f}{client:>12.3f}")
    document = {
        "median_ms": {name: round(all_of_it, 3) for name, (all_of_it, _) in medians.items()},
        "over_ms": {name: round(all_of_it - inside, 3) for name, (all_of_it, _) in medians.items()},
        "client_ms": {name: round(client, 3) for name, (_, client) in medians.items()},
    }
    print(json.dumps(document))


def arrays() -> dict[str, Any]:
    """The same history as arrays of a batch of one."""
    items = np.array([question()["history_item_ids"]], dtype=object)
    return {"history_item_ids": np.vectorize(str.encode, otypes=[object])(items),
            "history_times": np.array([question()["history_times"]])}  # fmt: skip


def calls_of(version: Path, rest: str, rpc: str) -> dict[str, Callable[[], Any]]:
    """The same question asked in each way."""
    inputs = arrays()
    loaded = SavedModelServable(version)
    request = predict_request("made_up", **inputs)
    stub = prediction_service_pb2_grpc.PredictionServiceStub(grpc.insecure_channel(rpc))
    client = httpx.Client(base_url=f"http://{rest}")
    body = json.dumps({"instances": [question()]}).encode()
    return {
        "in the process": lambda: loaded.run("serving_default", inputs),
        "gRPC": lambda: stub.Predict(request),
        "REST": lambda: client.post("/v1/models/made_up:predict", content=body).raise_for_status().json(),
    }


if __name__ == "__main__":
    main()
