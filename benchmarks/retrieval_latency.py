"""A user's history in, 100 items out, of a catalogue of a million: exact search against ScaNN, and where the time goes.

The graph is that of an export: ids are looked up, a sasrec of two blocks (D 64, the last 50 events) encodes the
history, the index is searched, seen items are left out, ids are gathered. The model is not trained and the catalogue's
vectors are made up (`benchmarks.embeddings`), which changes what is answered, not how long it takes; ScaNN's parameters
are chosen on made-up queries for the recall that is asked for. Requests are of one user, or of `--batch`.

    python -m benchmarks.retrieval_latency [--items 1000000] [--requests 300] [--batch 1] [--target 0.95]

Prints a table; the last line is one JSON document.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks.embeddings import items_and_queries
from serving.servable import SavedModelServable
from tfrec.index import build_search
from tfrec.models import build
from tfrec.schema import Feature, Schema, Split
from tfrec.signatures import RetrievalSignatures
from tfrec.transforms import FIRST_VALUE, Vocabulary

DIM, LENGTH, K = 64, 50, 100


def make_schema(directory: Path, items: int) -> Schema:
    """A catalogue of ids alone; its vocabulary is written."""
    (directory / "item_id.txt").write_text("".join(f"item-{number}\n" for number in range(items)))
    vocabulary = Vocabulary(file="item_id.txt", size=items + FIRST_VALUE)
    feature = Feature(name="item_id", side="item", kind="categorical", column="item_id", transform=vocabulary)
    counts = {"users": 1, "items": items, "events": 1, "train_events": 1, "impressions": 0}
    return Schema(
        features=(feature,), has_sessions=False, max_events=1000, repeats="first", split=Split(kind="leave_one_out"),
        counts=counts,
    )  # fmt: skip


def save(directory: Path, schema: Schema, model: Any, search: Any) -> None:
    """Writes the SavedModel with one kind of index beside its data."""
    items = np.arange(FIRST_VALUE, schema.num_items)
    module = RetrievalSignatures(
        schema, directory.parent, model, items=items, codes=items[:, None].astype(np.int32),
        item_ids=[f"item-{item - FIRST_VALUE}" for item in items], train_count=np.ones(len(items), np.int64),
        search=search, k=K, filter_seen=True,
    )  # fmt: skip
    options = tf.saved_model.SaveOptions(namespace_whitelist=["Scann"])
    tf.saved_model.save(module, str(directory), signatures=module.trace(model), options=options)


def times(servable: Any, signature: str, requests: list[Any]) -> dict[str, float]:
    """Median and 99th percentile of milliseconds."""
    for request in requests[:20]:
        servable.run(signature, request)
    taken = []
    for request in requests:
        started = time.perf_counter()
        servable.run(signature, request)
        taken.append(1000 * (time.perf_counter() - started))
    return {"median_ms": float(np.median(taken)), "p99_ms": float(np.percentile(taken, 99))}


def make_requests(rng: np.random.Generator, items: int, number: int, batch: int) -> list[dict[str, Any]]:
    """Histories of 1 to 50 events."""
    made = []
    for _ in range(number):
        length = int(rng.integers(1, LENGTH + 1))
        ids = [[f"item-{item}".encode() for item in row] for row in rng.integers(0, items, (batch, length))]
        seconds = 1_700_000_000 + 60 * np.arange(length)
        made.append(
            {
                "history_item_ids": np.array(ids, object),
                "history_length": np.full(batch, length, np.int32),
                "history_times": np.tile(seconds, (batch, 1)),
            }
        )
    return made


def main() -> None:
    """Builds both, asks them in turn, and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--target", type=float, default=0.95, help="recall@100 that ScaNN is tuned for")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    vectors, queries = items_and_queries(arguments.items, 256, dim=DIM)
    requests = make_requests(rng, arguments.items, arguments.requests, arguments.batch)
    rows, described = [], {}
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary)
        schema = make_schema(data, arguments.items)
        model = build(schema, {"name": "sasrec", "embedding_dim": DIM, "num_blocks": 2, "history_length": LENGTH})
        codes = np.arange(schema.num_items, dtype=np.int32)[:, None]
        model.set_catalogue(codes, np.zeros(schema.num_items, np.int64), {})
        for kind in ("exact", "scann"):
            search, described[kind] = build_search(vectors, queries, kind, k=K, target_recall=arguments.target)
            save(data / kind, schema, model, search)
            servable = SavedModelServable(data / kind)
            whole = times(servable, "recommend", requests)
            encoding = times(servable, "encode_user", requests)
            rows.append({"index": kind, **whole, "encode_ms": encoding["median_ms"]})
            servable.close()
    print(f"{'index':<8}{'median ms':>11}{'p99 ms':>9}{'of it: ids, encoder':>21}{'search, ids':>13}")
    for row in rows:
        rest = row["median_ms"] - row["encode_ms"]
        print(f"{row['index']:<8}{row['median_ms']:>11.2f}{row['p99_ms']:>9.2f}{row['encode_ms']:>21.2f}{rest:>13.2f}")
    print(json.dumps({"items": arguments.items, "batch": arguments.batch, "rows": rows, "index": described["scann"]}))


if __name__ == "__main__":
    main()
