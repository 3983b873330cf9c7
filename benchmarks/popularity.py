"""Popularity's HR@10 and NDCG@10 by which events are counted: training, all but the test, or the test's own as well.

    python benchmarks/popularity.py --events ${TFREC_DATA}/amazon-beauty/events.parquet

The last event of each user is the test, the one before it validation. Items of the history are left out, ties count by
their expectation. Needs none of tfrec, so it also checks `tfrec evaluate` of `popularity`. The last line of stdout is
one JSON document.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import polars as pl

HELD_OUT = {"training events": 2, "training and validation events": 1, "all events, the tested ones too": 0}
K = 10


def measure(histories: list[np.ndarray], counts: np.ndarray) -> tuple[float, float]:
    """HR@10 and NDCG@10 of ranking the items by `counts`."""
    gain = 1 / np.log2(np.arange(K) + 2)
    hits = gains = 0.0
    for history in histories:
        scores = counts.copy()
        target = scores[history[-1]]
        scores[history[:-1]] = -1
        better, equal = int((scores > target).sum()), int((scores == target).sum())  # the target is among the equal
        places = gain[better : better + equal]
        hits += len(places) / equal
        gains += places.sum() / equal
    return hits / len(histories), gains / len(histories)


def main() -> None:
    """Counts in three ways, prints a line each and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=Path, required=True)
    arguments = parser.parse_args()
    events = pl.read_parquet(arguments.events).sort("user_id", "position")
    events = events.with_columns(pl.col("item_id").rank("dense").cast(pl.Int64) - 1)
    histories = [np.array(row) for row in events.group_by("user_id", maintain_order=True).agg("item_id")["item_id"]]
    items = int(events["item_id"].max()) + 1
    document = {}
    for name, held_out in HELD_OUT.items():
        counted = np.concatenate([history[: len(history) - held_out] for history in histories])
        hit_rate, ndcg = measure(histories, np.bincount(counted, minlength=items))
        document[name] = {"hr@10": hit_rate, "ndcg@10": ndcg}
        print(f"{name}: HR@10 {hit_rate:.4f}  NDCG@10 {ndcg:.4f}")
    print(json.dumps(document))


if __name__ == "__main__":
    main()
