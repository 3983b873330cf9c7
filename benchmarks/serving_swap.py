"""Versions come, go back and fail while clients ask: does a request fail, an answer mix versions, how slow is it?

32 clients, half over REST and half over gRPC, ask a recommender (50 events in, 10 of 100,000 items out) a steady number
of questions a second. Of 20 swaps five publish a broken version, which must not answer, and six roll back. Each answer
carries the number of the weights that gave it: over gRPC it must be the version that the answer names, over REST both
rows must have the same, and it must be a version that was good. The server is a process of its own.

    python -m benchmarks.serving_swap [--swaps 20] [--clients 32] [--rate 64]

The last line is one JSON document: requests, failures, p99 while nothing changes and during swaps, and their ratio. A
failed request or a mixed answer ends it with an error.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np

from benchmarks.serving_overhead import arrays, question, save_model, start_server
from benchmarks.serving_soak import Load
from serving.rollback import rollback
from tests.serving.saved_models import predict_request
from tfrec.manifest import write_manifest

STEADY_SECONDS = 20.0
REST_SECONDS = 2.0


def prepare(base: Path, numbers: range) -> dict[int, Path]:
    """Versions that only a rename is missing from; every third is broken."""
    ready = {}
    for number in numbers:
        hidden = base / f".ready-{number}"
        save_model(hidden, float(number))
        if number % 3 == 0:
            (hidden / "variables" / "variables.index").write_bytes(b"broken")
        write_manifest(hidden, {})
        ready[number] = hidden
    return ready


def states(rest: str) -> dict[int, str]:
    """The state of each version."""
    found = httpx.get(f"http://{rest}/v1/models/m").json()["model_version_status"]
    return {int(each["version"]): each["state"] for each in found}


def wait_for(rest: str, version: int, state: str) -> None:
    """Until that version has that state and nothing is on its way."""
    end = time.monotonic() + 60
    while (seen := states(rest)).get(version) != state or {"LOADING", "UNLOADING"} & set(seen.values()):
        if time.monotonic() > end:
            raise SystemExit(f"version {version} is not {state} after a minute: {seen}")
        time.sleep(0.05)


def publish_next(base: Path, rest: str, ready: dict[int, Path], current: int) -> int:
    """Publishes the next version; returns the one that answers then."""
    number = min(ready)
    ready.pop(number).rename(base / str(number))
    if number % 3 == 0:
        wait_for(rest, number, "END")
        (base / str(number)).rename(base / f"{number}.withdrawn")
        return current
    wait_for(rest, number, "AVAILABLE")
    return number


def main() -> None:
    """Asks, swaps, and tells."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--rate", type=float, default=64.0, help="questions a second of all clients")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "models" / "m"
        base.mkdir(parents=True)
        save_model(base / "1", 1.0)
        ready = prepare(base, range(2, options.swaps - options.swaps // 3 + 2))
        server, rest, rpc = start_server(base.parent)
        load = Load(
            rest,
            rpc,
            options.clients,
            body=json.dumps({"instances": [question()] * 2}).encode(),
            request=predict_request("m", **arrays()),
            pause_seconds=options.clients / options.rate,
        )
        try:
            print(json.dumps(drive(load, base, rest, ready, options.swaps)))
        finally:
            server.terminate()
            server.wait()


def drive(load: Load, base: Path, rest: str, ready: dict[int, Path], swaps: int) -> dict[str, object]:
    """Runs the clients through a quiet time and all swaps."""
    for thread in load.threads:
        thread.start()
        time.sleep(load.pause_seconds / len(load.threads))  # so that they do not ask in step
    time.sleep(5.0)  # warms up
    quiet = [(time.monotonic(), time.monotonic() + STEADY_SECONDS)]
    time.sleep(STEADY_SECONDS)
    busy, current, good, back = [], 1, {1}, 0
    for number in range(swaps):
        began = time.monotonic()
        if number % 3 == 2 and current > 1:  # every third goes back
            current, back = int(rollback(base).name), back + 1
            wait_for(rest, current, "AVAILABLE")
        else:
            current = publish_next(base, rest, ready, current)
            good.add(current)
        busy.append((began, time.monotonic()))
        time.sleep(REST_SECONDS)
    load.stop.set()
    for thread in load.threads:
        thread.join()
    strangers = load.heard - good
    if load.failures or strangers:
        raise SystemExit(f"{len(load.failures)} failed: {load.failures[:3]}; never good, and heard: {strangers}")
    steady, during = (p99(load.samples, spans) for spans in (quiet, busy))
    return {
        "requests": len(load.samples),
        "failed_or_mixed": 0,
        "swaps": {"all": swaps, "rollbacks": back, "broken": swaps - back - len(good) + 1},
        "versions_heard": sorted(load.heard),
        "p99_steady_ms": round(steady, 1),
        "p99_during_swaps_ms": round(during, 1),
        "ratio": round(during / steady, 2),
        "seconds_in_swaps": round(sum(end - began for began, end in busy), 1),
    }


def p99(samples: list[tuple[float, float]], spans: list[tuple[float, float]]) -> float:
    """The 99th percentile, in ms, of what was in flight during some spans of time."""
    took = [
        seconds for began, seconds in samples if any(began < end and began + seconds > start for start, end in spans)
    ]
    return 1000 * float(np.percentile(took, 99))


if __name__ == "__main__":
    main()
