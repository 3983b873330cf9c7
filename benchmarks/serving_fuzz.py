"""Malformed requests by the hundred thousand: does every one get a documented code, in time, and does the server live?

The server is a process of its own; half of the requests go over REST, half over gRPC, made by the generators of the
tests from one seed. A code that is not documented, a 500, an answer slower than the deadline, or a dead server ends it.

    python -m benchmarks.serving_fuzz [--requests 100000] [--seed 0]

The last line is one JSON document: counts by code, the slowest answer, the growth of the server's memory.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path

import grpc
import httpx
import numpy as np
import psutil

from benchmarks.serving_overhead import start_server
from tests.serving.nonsense import HTTP_CODES, ask_grpc, http_request, predict_request_bytes
from tests.serving.saved_models import save_echo, save_half_plus

DEADLINE_SECONDS = 30.0
MAX_GROWTH_BYTES = 200 << 20


def main() -> None:
    """Asks and counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        save_half_plus(Path(folder) / "half" / "123")
        save_echo(Path(folder) / "echo" / "1")
        server, rest, rpc = start_server(Path(folder), "--ui")
        try:
            print(json.dumps(ask(psutil.Process(server.pid), rest, rpc, options.requests, options.seed)))
        finally:
            server.terminate()
            server.wait()


def ask(server: psutil.Process, rest: str, rpc: str, requests: int, seed: int) -> dict[str, object]:
    """Sends the requests in turn; raises at the first that is answered wrongly."""
    generator = np.random.default_rng(seed)
    codes: Counter[str] = Counter()
    slowest, before = 0.0, 0
    with (
        httpx.Client(base_url=f"http://{rest}", timeout=2 * DEADLINE_SECONDS) as http,
        grpc.insecure_channel(rpc) as channel,
    ):
        for number in range(requests):
            if number == min(1000, requests // 2):
                before = server.memory_info().rss  # once the first ones have warmed it up
            started = time.perf_counter()
            if number % 2:
                codes[ask_grpc(channel, predict_request_bytes(generator), 2 * DEADLINE_SECONDS).name] += 1
            else:
                made = http_request(generator)
                answer = http.request(made.verb, made.path, content=made.body, headers=made.headers)
                if answer.status_code not in HTTP_CODES:
                    raise SystemExit(f"request {number} got {answer.status_code}: {made}")
                codes[str(answer.status_code)] += 1
            seconds = time.perf_counter() - started
            if seconds > DEADLINE_SECONDS:
                raise SystemExit(f"request {number} took {seconds:.1f} s")
            slowest = max(slowest, seconds)
        alive = http.post("/v1/models/half:predict", content=b'{"inputs": 2}').json() == {"outputs": 3.0}
    growth = server.memory_info().rss - before
    if not alive or growth > MAX_GROWTH_BYTES:
        raise SystemExit(f"alive: {alive}, memory grew by {growth >> 20} MiB")
    return {
        "requests": requests,
        "codes": dict(sorted(codes.items())),
        "slowest_ms": round(1000 * slowest, 1),
        "memory_growth_mib": round(growth / 2**20, 1),
    }


if __name__ == "__main__":
    main()
