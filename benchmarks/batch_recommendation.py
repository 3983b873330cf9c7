"""Recommendations for every user: users a second of `tfrec recommend --all-users` and of two plain ways.

All three answer the same histories by the same sasrec (not trained: what is answered does not change how long it takes)
with the 100 best of the catalogue, seen items left out. Ours reads a dataset, turns its codes into a client's strings,
asks the exported model and writes Parquet. The others get the encoded batches for nothing: TFRS's BruteForce takes
the users' vectors in batches and leaves the seen items out; the loop of NumPy takes them one by one.

    python -m benchmarks.batch_recommendation [--users 50000] [--items 100000] [--sample 2048]

`--sample` users are asked of the two others. Prints a table; the last line is one JSON document.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # what TFRS needs, before TensorFlow is imported

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs

from tests.exports import make_run
from tfrec.batch import BatchJob, recommend_all
from tfrec.data import Batches
from tfrec.export import export
from tfrec.ranks import encode_catalogue

K, BATCH = 100, 256


def brute_force(run: Any, vectors: Any, batches: Any, sample: int) -> float:
    """Users a second of TFRS's layer."""
    layer = tfrs.layers.factorized_top_k.BruteForce(k=K)
    layer.index(tf.constant(vectors), tf.range(2, len(vectors) + 2))
    answered, started = 0, 0.0
    for number in range(len(batches)):
        batch = batches[number]
        states = tf.constant(np.asarray(run.model.encode_users(batch), np.float32))
        layer.query_with_exclusions(states, tf.constant(batch["seen"]), k=K)
        if number == 0:  # the first one traces
            started = time.perf_counter()
            continue
        answered += len(batch["seen"])
        if answered >= sample:
            break
    return answered / (time.perf_counter() - started)


def numpy_loop(run: Any, vectors: Any, batches: Any, sample: int) -> float:
    """Users a second, one after another."""
    answered, started = 0, time.perf_counter()
    for number in range(len(batches)):
        batch = batches[number]
        for state, seen in zip(np.asarray(run.model.encode_users(batch)), batch["seen"], strict=True):
            scores = vectors @ state
            scores[seen[seen >= 2] - 2] = -np.inf
            best = np.argpartition(-scores, K)[:K]
            best[np.argsort(-scores[best])]
            answered += 1
            if answered >= sample:
                return answered / (time.perf_counter() - started)
    return answered / (time.perf_counter() - started)


def main() -> None:
    """Makes the dataset and the model, asks in each way, and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=50_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--sample", type=int, default=2048)
    arguments = parser.parse_args()
    model = {"name": "sasrec", "embedding_dim": 64, "num_blocks": 2, "history_length": 50}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        config = {"model": model, "export": {"k": K, "parity_users": 64}}
        run = make_run(root, config=config, users=arguments.users, items=arguments.items, files=8)
        (version,) = export(run, root / "models" / "shop")
        started = time.perf_counter()
        account = recommend_all(BatchJob(version, run.dataset.directory, root / "out"))
        ours = account["users"] / (time.perf_counter() - started)
        vectors = encode_catalogue(run.model, run.schema.num_items)
        batches = Batches(run.schema, run.dataset.histories(), "test", history_length=50, batch_size=BATCH)
        rates = {
            "tfrec recommend --all-users": ours,
            "TFRS BruteForce": brute_force(run, vectors, batches, arguments.sample),
            "NumPy, one by one": numpy_loop(run, vectors, batches, arguments.sample),
        }
    print(f"{arguments.users} users x {arguments.items} items, {K} answers each; {account}")
    print(f"{'way':<30}{'users/s':>10}{'ratio':>8}")
    for name, found in rates.items():
        print(f"{name:<30}{found:>10.0f}{ours / found:>8.2f}")
    print(
        json.dumps({"users_per_second": {name: round(found, 1) for name, found in rates.items()}, "account": account})
    )


if __name__ == "__main__":
    main()
