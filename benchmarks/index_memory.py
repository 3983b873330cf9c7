"""Exact search over a catalogue that is larger than the memory it may take: 10 million items x 64 in float16.

One process writes the vectors chunk by chunk and builds the index; another opens it and answers. The peak resident
memory of each (which counts the pages of the file that the system keeps mapped) must stay under 4 GiB.

    python -m benchmarks.index_memory [--items 10000000]

Prints a table; the last line is one JSON document. Exit code 1 where the limit is passed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.memory import resident_bytes
from tfrec.searcher import Searcher

DIM, QUERIES, K, LIMIT_GIB = 64, 64, 100, 4.0
_CHUNK = 1 << 17


def chunks(items: int) -> Iterator[Any]:
    """Vectors as a model would give them, a chunk at a time."""
    rng = np.random.default_rng(0)
    for start in range(0, items, _CHUNK):
        yield rng.standard_normal((min(_CHUNK, items - start), DIM), dtype=np.float32).astype(np.float16)


def work(step: str, directory: Path, items: int) -> None:
    """One step in this process; its figures as JSON."""
    started = time.perf_counter()
    if step == "build":
        Searcher.build(directory, [f"item-{number}" for number in range(items)], chunks(items))
    else:
        queries = np.random.default_rng(1).standard_normal((QUERIES, DIM), dtype=np.float32)
        searcher = Searcher.open(directory)
        positions, _ = searcher.search(queries, K)
        assert (positions >= 0).all()
        assert searcher.item_ids[int(positions[0, 0])].startswith("item-")
    seconds = time.perf_counter() - started
    peak = resident_bytes("VmHWM") / (1 << 30)
    print(json.dumps({"step": step, "seconds": round(seconds, 1), "peak_gib": round(peak, 2)}))


def main() -> None:
    """Runs both steps, each in a process of its own, and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=10_000_000)
    parser.add_argument("--step", choices=("build", "search"), help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        work(arguments.step, arguments.directory, arguments.items)
        return
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for step in ("build", "search"):
            command = [sys.executable, "-m", "benchmarks.index_memory", "--items", str(arguments.items)]
            command += ["--step", step, "--directory", f"{temporary}/index"]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
    print(f"{arguments.items} items x {DIM} float16: {arguments.items * DIM * 2 / (1 << 30):.2f} GiB on disk")
    print(f"{'step':<8}{'seconds':>9}{'peak GiB':>10}")
    for row in rows:
        print(f"{row['step']:<8}{row['seconds']:>9.1f}{row['peak_gib']:>10.2f}")
    held = all(row["peak_gib"] <= LIMIT_GIB for row in rows)
    print(json.dumps({"items": arguments.items, "under_4_gib": held, "rows": rows}))
    sys.exit(not held)


if __name__ == "__main__":
    main()
