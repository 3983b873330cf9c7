"""What a search finds where filters leave a part of the catalogue: items that come back, recall@100, time.

    python -m benchmarks.filtered_search [--items 200000] [--vectors vectors.npz]

ScaNN, tuned for a recall of .95 of the whole catalogue, and exact search, as `tfrec.searcher` does both, against the
true top 100 among the allowed ones, by NumPy. Either any items are allowed, drawn uniformly, or the ones least
like what is asked for (the smallest dot products with the mean of the queries), which an index of the whole catalogue
ranks last. 64 queries at once; ends with an error where fewer than 100 items come back, or one that is not allowed.
The last line of stdout is one JSON document.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.embeddings import Matrix, items_and_queries
from tfrec.searcher import Searcher

K, QUERIES = 100, 64
SHARES = (1.0, 0.5, 0.3, 0.1, 0.01)


def true_top(vectors: Matrix, queries: Matrix, allowed: Any) -> list[set[int]]:
    """Positions of the K best of the allowed items, for each query."""
    scores = queries @ vectors[allowed].T
    return [set(allowed[row].tolist()) for row in np.argpartition(-scores, K - 1, axis=1)[:, :K]]


def main() -> None:
    """Builds both, asks them, and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=200_000)
    parser.add_argument("--vectors", type=Path, help="a file of benchmarks.embeddings; by default vectors are made up")
    arguments = parser.parse_args()
    vectors, queries = items_and_queries(arguments.items, QUERIES + 500, vectors=arguments.vectors)
    asked, tuned = queries[:QUERIES], queries[QUERIES:]
    rng = np.random.default_rng(0)
    orders = {"any": rng.permutation(len(vectors)), "least alike": np.argsort(vectors @ asked.mean(axis=0))}
    ids = [str(position) for position in range(len(vectors))]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        exact = Searcher.build(Path(folder) / "exact", ids, [vectors])
        scann = Searcher.build(Path(folder) / "scann", ids, [vectors], kind="scann", queries=tuned, k=K)
        stored = np.asarray(exact.vectors, np.float32)
        for (kind, order), share in ((one, share) for one in orders.items() for share in SHARES):
            allowed = np.sort(order[: round(share * len(order))])
            allow = None if share == 1 else [ids[position] for position in allowed]
            truth = true_top(stored, asked, allowed)
            row: dict[str, Any] = {"allowed": kind, "share": share}
            for name, searcher in (("exact", exact), ("scann", scann)):
                searcher.search(asked, K, allow=allow)
                started = time.perf_counter()
                found, _ = searcher.search(asked, K, allow=allow)
                row[f"{name}_ms"] = round(1000 * (time.perf_counter() - started), 1)
                if not np.isin(found, allowed).all() or any(len(set(one)) < K for one in found.tolist()):
                    raise SystemExit(f"{name}: of {len(allowed)} allowed items, some of the {K} found are none.")
                right = [len(best & set(one)) for best, one in zip(truth, found.tolist(), strict=True)]
                row[f"{name}_recall"] = round(float(np.mean(right)) / K, 4)
            rows.append(row)
    print(f"{'allowed':14}{'share':>7}{'exact':>9}{'ScaNN':>9}{'exact ms':>11}{'ScaNN ms':>11}")
    for row in rows:
        recalls = f"{row['exact_recall']:>9.4f}{row['scann_recall']:>9.4f}"
        print(f"{row['allowed']:14}{row['share']:>7.2f}{recalls}{row['exact_ms']:>11.1f}{row['scann_ms']:>11.1f}")
    print(json.dumps({"items": len(vectors), "rows": rows}))


if __name__ == "__main__":
    main()
