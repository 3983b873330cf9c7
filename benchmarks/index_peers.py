"""Our ScaNN index against faiss (IVF-PQ, IVF-PQ fast scan, HNSW) and hnswlib: QPS at a recall, build time, memory.

Inner products, recall@100 against exact search, two threads. Each library builds in a process of its own and is then
asked under every setting of its search; reported is the fastest setting that reaches a recall, one query at a time and
64 at once. IVF-PQ scores its candidates again with the whole vectors, as ScaNN does. faiss and hnswlib come from
benchmarks/requirements-peers.in
(`uv venv .venv-peers && uv pip install -p .venv-peers -r benchmarks/requirements-peers.in`). Imports do not count into
build times; the choice of ScaNN's parameters for the lowest recall does.

    python -m benchmarks.index_peers [--items 200000] [--peers .venv-peers] [--vectors v.npz] [--picture p.svg]

`--items 1000000` takes about six times as long. Prints a table; the last line is one JSON document.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.embeddings import items_and_queries
from benchmarks.memory import resident_bytes

ROOT = Path(__file__).resolve().parents[1]
K, THREADS, QUERIES, BATCH = 100, 2, 512, 64
LEAST = 0.8  # recall below which a setting is not timed
TARGETS = (0.90, 0.95, 0.99)
LIBRARIES = {
    "scann (ours)": "scann",
    "faiss IVF-PQ": "faiss",
    "faiss IVF-PQ fast scan": "faiss",
    "faiss HNSW": "faiss",
    "hnswlib": "hnswlib",
}
"""What is compared, and the module that it needs."""

Search = Callable[[Any], Any]
Settings = Iterator[tuple[str, Search]]
"""What a library can be told at query time, cheapest first, and a search `(Q, D) -> (Q, 100)` under it."""


def scann_ours(items: Any, queries: Any, directory: Path) -> Settings:
    """The index of `tfrec.searcher`, its parameters chosen for each recall by measuring."""
    from tfrec.searcher import Searcher

    tuning, ids = queries[QUERIES:], [str(number) for number in range(len(items))]
    searcher = Searcher.build(
        directory / "index", ids, [items], kind="scann", queries=tuning, k=K, target_recall=0.9, min_recall=0
    )
    for target in (0.91, 0.955, 0.9915):
        searcher.tune(tuning, K, target)
        chosen = f"{searcher.index['leaves_to_search']} leaves, {searcher.index['reorder']} again"
        yield chosen, lambda part: searcher.search(part, K)[0]


def faiss_ivf(items: Any, queries: Any, directory: Path, *, codes: str) -> Settings:
    """Inverted lists, product codes, the best candidates scored again."""
    import faiss

    faiss.omp_set_num_threads(THREADS)
    lists = round(2 * len(items) ** 0.5)
    index = faiss.index_factory(items.shape[1], f"IVF{lists},{codes},RFlat", faiss.METRIC_INNER_PRODUCT)
    index.train(items[np.random.default_rng(0).permutation(len(items))[:100_000]])
    index.add(items)
    inside = faiss.extract_index_ivf(index.base_index)
    for factor in (2, 4, 8, 16):
        for probes in (8, 16, 32, 64, 128, 256, 512):
            if probes > lists:
                break
            index.k_factor, inside.nprobe = factor, probes
            yield f"{probes} lists, {factor * K} again", lambda part: index.search(part, K)[1]


def faiss_hnsw(items: Any, queries: Any, directory: Path) -> Settings:
    """A graph of 32 neighbours."""
    import faiss

    faiss.omp_set_num_threads(THREADS)
    index = faiss.IndexHNSWFlat(items.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 100
    index.add(items)
    for width in (100, 150, 200, 300, 500, 800, 1600):
        index.hnsw.efSearch = width
        yield f"ef {width}", lambda part: index.search(part, K)[1]


def hnswlib_graph(items: Any, queries: Any, directory: Path) -> Settings:
    """The same graph by the library of its authors."""
    import hnswlib

    index = hnswlib.Index("ip", items.shape[1])
    index.init_index(len(items), M=32, ef_construction=100, random_seed=0)
    index.set_num_threads(THREADS)
    index.add_items(items)
    for width in (100, 150, 200, 300, 500, 800, 1600):
        index.set_ef(width)
        yield f"ef {width}", lambda part: index.knn_query(part, K)[0]


def start(library: str, items: Any, queries: Any, directory: Path) -> Settings:
    """The settings of a library; the first is yielded once it is built."""
    match library:
        case "scann (ours)":
            return scann_ours(items, queries, directory)
        case "faiss IVF-PQ":
            return faiss_ivf(items, queries, directory, codes=f"PQ{items.shape[1] // 2}")
        case "faiss IVF-PQ fast scan":
            return faiss_ivf(items, queries, directory, codes=f"PQ{items.shape[1] // 2}x4fs")
        case "faiss HNSW":
            return faiss_hnsw(items, queries, directory)
        case _:
            return hnswlib_graph(items, queries, directory)


def work(library: str, directory: Path) -> None:
    """One library in this process; its figures as JSON."""
    items, queries, truth = (np.load(directory / f"{name}.npy") for name in ("items", "queries", "truth"))
    asked = queries[:QUERIES]
    importlib.import_module(LIBRARIES[library])
    before = resident_bytes("VmRSS")
    started = time.perf_counter()
    points: list[dict[str, Any]] = []
    build, peak = None, 0.0
    for setting, search in start(library, items, queries, directory):
        if build is None:
            build = time.perf_counter() - started
            peak = (resident_bytes("VmHWM") - before) / (1 << 20)
        found = np.concatenate([search(asked[row : row + BATCH]) for row in range(0, QUERIES, BATCH)])
        reached = float(np.mean([len(np.intersect1d(a, b)) / K for a, b in zip(found, truth, strict=True)]))
        if reached < LEAST:
            continue
        qps = {f"qps_{size}": round(rate(search, asked, size), 1) for size in (1, BATCH)}
        points.append({"setting": setting, "recall": round(reached, 4), **qps})
    seconds = round(build or 0.0, 1)
    print(json.dumps({"library": library, "build_seconds": seconds, "peak_mib": round(peak), "points": points}))


def rate(search: Search, queries: Any, size: int, seconds: float = 1.0) -> float:
    """Queries a second, asked `size` at a time: the better of two runs of half of `seconds`."""
    best = 0.0
    for _ in range(2):
        asked, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds / 2:
            row = asked % (len(queries) - size + 1)
            search(queries[row : row + size])
            asked += size
        best = max(best, asked / (time.perf_counter() - started))
    return best


def table(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The fastest setting of each library that reaches each recall, by batch size."""
    rows = []
    for result in results:
        row: dict[str, Any] = {name: result[name] for name in ("library", "build_seconds", "peak_mib")}
        for target in TARGETS:
            for size in (1, BATCH):
                reaching = [point[f"qps_{size}"] for point in result["points"] if point["recall"] >= target]
                row[f"qps_{size}@{target}"] = max(reaching, default=None)
        rows.append(row)
    return rows


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """QPS over recall, a line a library, a panel a batch size: only settings that no other one of it dominates."""
    from tfrec.charts import line_charts, write_chart

    panels: dict[str, Any] = {}
    for size in (1, BATCH):
        lines = panels.setdefault(f"queries a second, {size} at once", {})
        for result in results:
            points = [(point["recall"], point[f"qps_{size}"]) for point in result["points"]]
            front = sorted(p for p in points if not any(o[0] >= p[0] and o[1] > p[1] for o in points))
            if front:
                lines[result["library"]] = tuple(zip(*front, strict=True))
    write_chart(path, line_charts(panels, x="recall@100", logarithmic="y"))


def main() -> None:
    """Asks every library in turn and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=200_000)
    parser.add_argument("--peers", type=Path, default=ROOT / ".venv-peers", help="their environment")
    parser.add_argument("--vectors", type=Path, help="written by benchmarks.embeddings; default: made up")
    parser.add_argument("--picture", type=Path, help="an .svg for the plot")
    parser.add_argument("--library", choices=LIBRARIES, help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.library:
        work(arguments.library, arguments.directory)
        return
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        items, queries = items_and_queries(arguments.items, 2 * QUERIES, vectors=arguments.vectors)
        save(Path(temporary), items, queries)
        for library in LIBRARIES:
            python = sys.executable if "ours" in library else str(arguments.peers.resolve() / "bin/python")
            command = [python, "-m", "benchmarks.index_peers", "--library", library, "--directory", temporary]
            environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS), "TF_CPP_MIN_LOG_LEVEL": "3"}
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT, env=environment)
            results.append(json.loads(done.stdout.splitlines()[-1]))
    rows = table(results)
    print(f"{'':<24}{'build s':>8}{'MiB':>7}" + "".join(f"{f'{s}@{t:g}':>10}" for t in TARGETS for s in (1, BATCH)))
    for row in rows:
        rates = [row[f"qps_{size}@{target}"] for target in TARGETS for size in (1, BATCH)]
        shown = "".join(f"{'-' if value is None else round(value):>10}" for value in rates)
        print(f"{row['library']:<24}{row['build_seconds']:>8.1f}{row['peak_mib']:>7}{shown}")
    if arguments.picture:
        draw(results, arguments.picture)
    print(json.dumps({"items": arguments.items, "rows": rows, "points": {r["library"]: r["points"] for r in results}}))


def save(directory: Path, items: Any, queries: Any) -> None:
    """What every library reads: vectors, queries, and the true answers to the first half of them."""
    from tfrec.exact import exact_search

    np.save(directory / "items.npy", items)
    np.save(directory / "queries.npy", queries)
    np.save(directory / "truth.npy", exact_search(items, queries[:QUERIES], K)[0])


if __name__ == "__main__":
    main()
