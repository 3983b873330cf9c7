"""How the preprocessing job grows: with the number of events, of worker processes, and of values.

    python -m benchmarks.preprocess_scaling --events 1000000 10000000 100000000
    python -m benchmarks.preprocess_scaling --workers --events 5000000
    python -m benchmarks.preprocess_scaling --values 10000000

The first runs the job on logs of several sizes (those of `benchmarks/preprocess.py`), each in a process of its own:
seconds of the job and of the whole process, microseconds an event of both, peak memory (VmHWM). Asked for are times
an event of at most 1.3 times those of the first size, and less than 8 GiB at 100 million events.

The second runs it in one and in two worker processes (Beam's multi_processing mode) of one thread each. Its three
pipelines are timed: read (check, shuffle, sort), arrange (sessions, splits, counts), write (codes, TFRecords); what is
between them, the fits, runs in the one process that submits. Each worker is started anew for each pipeline and imports
what it needs, which is part of these times. Asked for is 1.6 times in the pipelines together.

The third codes a log in which every item and every value of an event feature is one of so many and occurs once, a
fifth of them twice: two vocabularies of that size. Asked for is that it is done; seconds and memory are told.

100 million events need about 20 GB of disk. The last line of stdout is one JSON document.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.memory import resident_bytes
from benchmarks.preprocess import EVENTS_A_USER, FIRST_SECOND, generate

STAGES = ("read_logs", "arrange_buckets", "write_dataset")
MOST_GROWTH, MOST_BYTES, SPEED_UP = 1.3, 8 << 30, 1.6


def timed(function: Callable[..., Any], found: dict[str, float]) -> Callable[..., Any]:
    """The same function, which notes how long it takes."""

    @wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            found[function.__name__] = time.perf_counter() - start

    return call


def generate_values(path: Path, values: int, seed: int) -> None:
    """Events of which every item and every search is one of so many, in an order that says nothing."""
    rng = np.random.default_rng(seed)
    count = values + values // 5
    names = [np.append(rng.permutation(values), rng.integers(0, values, count - values)) for _ in range(2)]
    frame = pl.DataFrame(
        {
            "user_id": rng.integers(0, max(count // EVENTS_A_USER, 10), count),
            "item_id": names[0],
            "time": FIRST_SECOND + np.arange(count) // 10,
            "search": names[1],
        }
    )
    texts = [pl.format(f"{name[0]}{{}}", name).alias(name) for name in ("user_id", "item_id", "search")]
    frame.lazy().with_columns(texts).sink_parquet(path, row_group_size=1 << 19)


def run_job(events: Path, out: Path, workers: int) -> dict[str, Any]:
    """Runs the job in this process, or in that many worker processes; returns seconds and peak memory."""
    from beam_jobs import preprocess
    from tfrec.config import parse

    stages: dict[str, float] = {}
    for name in STAGES:
        setattr(preprocess, name, timed(getattr(preprocess, name), stages))
    options = ["--direct_running_mode=multi_processing", f"--direct_num_workers={workers}"] if workers else []
    config: dict[str, Any] = {"data": {"out": str(out), "events": {"files": [str(events)]}}}
    if "search" in pl.read_parquet_schema(events):
        search = {"name": "search", "kind": "categorical", "max_size": 100_000_000}
        config["features"] = {"events": [search], "item_id": {"max_size": 100_000_000}}
    start = time.perf_counter()
    preprocess.run(parse(config), options)
    return {"job_seconds": time.perf_counter() - start, "stages": stages, "peak_bytes": resident_bytes("VmHWM")}


def measure(events: Path, folder: Path, threads: int, workers: int = 0) -> dict[str, Any]:
    """One run in a process of its own."""
    out = folder / "out"
    environment = dict(os.environ, POLARS_MAX_THREADS=str(threads), OMP_NUM_THREADS=str(threads))
    command = [sys.executable, "-m", "benchmarks.preprocess_scaling", "--only", str(events), str(out), str(workers)]
    start = time.perf_counter()
    answer = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    seconds = time.perf_counter() - start
    subprocess.run(["rm", "-rf", str(out)], check=True)
    return {"seconds": seconds, **json.loads(answer.splitlines()[-1])}


def compare_sizes(sizes: list[int], folder: Path, threads: int, seed: int) -> dict[str, Any]:
    """Runs each size and says whether times an event and memory are as asked for."""
    rows = []
    print(f"{'events':>12}{'seconds':>10}{'job':>10}{'us/event':>10}{'job us/ev':>10}{'peak GiB':>10}")
    for size in sizes:
        events = folder / f"events-{size}.parquet"
        generate(events, size, seed)
        row = {"events": size, **measure(events, folder, threads)}
        events.unlink()
        rows.append(row)
        each = [1e6 * row[name] / size for name in ("seconds", "job_seconds")]
        peak = row["peak_bytes"] / 2**30
        print(
            f"{size:>12,}{row['seconds']:>10.1f}{row['job_seconds']:>10.1f}{each[0]:>10.2f}{each[1]:>10.2f}{peak:>10.2f}"
        )
    times = [row["job_seconds"] / row["events"] for row in rows]
    growth, peak = max(times) / times[0], max(row["peak_bytes"] for row in rows)
    spread = max(times) / min(times)
    print(f"an event takes at most {growth:.2f} times as long as at {sizes[0]:,} events (bar: {MOST_GROWTH})")
    print(f"times of the job an event lie within {spread:.2f} of each other: small jobs pay for their start")
    print(f"peak memory {peak / 2**30:.2f} GiB (bar: {MOST_BYTES / 2**30:.0f} at 100 million events)")
    return {"sizes": rows, "growth": growth, "spread": spread, "peak_bytes": peak}


def measure_values(values: int, folder: Path, threads: int, seed: int) -> dict[str, Any]:
    """Runs the job on two vocabularies of so many values."""
    events = folder / "events.parquet"
    generate_values(events, values, seed)
    found = {"values": values, **measure(events, folder, threads)}
    seconds, peak = found["job_seconds"], found["peak_bytes"] / 2**30
    print(f"two vocabularies of {values:,} values: {seconds:.1f} s, peak memory {peak:.2f} GiB")
    return found


def compare_workers(size: int, folder: Path, seed: int, repeats: int) -> dict[str, Any]:
    """Runs one and two worker processes and compares their stages; of each the fastest run counts."""
    events = folder / "events.parquet"
    generate(events, size, seed)
    best: dict[int, dict[str, Any]] = {}
    for _ in range(repeats):
        for workers in (1, 2):
            found = measure(events, folder, threads=1, workers=workers)
            if workers not in best or found["job_seconds"] < best[workers]["job_seconds"]:
                best[workers] = found
    print(f"{'':18}{'1 worker':>10}{'2 workers':>10}{'times':>8}")
    rows = {name: [best[workers]["stages"][name] for workers in (1, 2)] for name in STAGES}
    rows["these three"] = [sum(best[workers]["stages"].values()) for workers in (1, 2)]
    rows["the whole job"] = [best[workers]["job_seconds"] for workers in (1, 2)]
    for name, (one, two) in rows.items():
        print(f"{name:18}{one:>10.2f}{two:>10.2f}{one / two:>8.2f}")
    print(f"bar: {SPEED_UP} times in the three pipelines")
    return {"events": size, "speed_up": {name: one / two for name, (one, two) in rows.items()}, "seconds": rows}


def main() -> None:
    """Runs what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, nargs="+", default=[1_000_000, 10_000_000], help="sizes of logs")
    parser.add_argument("--workers", action="store_true", help="compare two workers with one, on the first size")
    parser.add_argument("--values", type=int, help="measure vocabularies of so many values")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads, where sizes are compared")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each number of workers")
    parser.add_argument("--seed", type=int, default=0, help="seed of the events")
    parser.add_argument("--folder", type=Path, help="where to work; by default a temporary folder")
    parser.add_argument("--only", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        events, out, workers = arguments.only
        print(json.dumps(run_job(Path(events), Path(out), int(workers))))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        if arguments.workers:
            found = compare_workers(arguments.events[0], Path(folder), arguments.seed, arguments.repeats)
        elif arguments.values:
            found = measure_values(arguments.values, Path(folder), arguments.threads, arguments.seed)
        else:
            found = compare_sizes(arguments.events, Path(folder), arguments.threads, arguments.seed)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
