"""How fast histories are read for training, beside what models take: examples a second of each.

    python -m benchmarks.reading --events 1000000

A generated log (that of `benchmarks/preprocess.py`) is preprocessed; then are measured

- the opening of the dataset with all its checks, and the reading of its histories, in events a second;
- the making of batches (windows, negatives: all that training does before a step) by one thread;
- training steps on batches that lie in memory already, and the same steps fed by the input pipeline, as training feeds
  them. Times of equal batches are compared, so what is lost to the pipeline is the difference of the two.

An example is a window of one user; models learn by 2,048 negatives that a batch shares, the cheapest there are.
The last line of stdout is one JSON document.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

from benchmarks.preprocess import generate
from tfrec.config import parse
from tfrec.data import Batch, Dataset, prefetch, tf_dataset
from tfrec.runs import build_model
from tfrec.windows import Batches


def fit(model: keras.Model, batches: Any, steps: int) -> float:
    """Seconds of so many training steps."""
    start = time.perf_counter()
    model.fit(batches, steps_per_epoch=steps, epochs=1, verbose=0, shuffle=False)
    return time.perf_counter() - start


def measure_reading(directory: Path) -> tuple[Dataset, dict[str, float]]:
    """The dataset, and what reading it takes."""
    start = time.perf_counter()
    dataset = Dataset.open(directory)
    opened = time.perf_counter()
    events = int(dataset.histories().offsets[-1])
    done = time.perf_counter()
    return dataset, {"open_seconds": opened - start, "events_per_second": events / (done - opened)}


def measure_model(dataset: Dataset, model: dict[str, Any], steps: int, batch_size: int) -> dict[str, float]:
    """Examples a second of the input pipeline, of training on batches in memory, and of both together."""
    data = {"out": str(dataset.directory), "events": {"files": ["-"]}}
    objective = {"name": "sampled_softmax", "negatives": "shared", "num_negatives": 2048}
    config = parse({"data": data, "model": model, "objective": objective})
    built = build_model(config, dataset)
    options = {"history_length": built.history_length, "batch_size": batch_size, "length_buckets": False}
    batches = Batches(dataset.schema, dataset.histories(), "train", **options)
    steps = min(steps, len(batches))

    def prepare(index: int) -> Batch:
        return built.objective.prepare(batches[index], np.random.default_rng([0, index]))

    def pipeline() -> Iterator[Batch]:
        return prefetch(prepare, range(steps))

    start = time.perf_counter()
    held = [prepare(index) for index in range(steps)]
    made = time.perf_counter() - start
    built.compile(optimizer=keras.optimizers.Adam(1e-3), jit_compile=False)
    fit(built, tf_dataset(lambda: iter(held), held[:1], steps), steps)  # traced here
    in_memory = fit(built, tf_dataset(lambda: iter(held), held[:1], steps), steps)
    whole = fit(built, tf_dataset(pipeline, held[:1], steps), steps)
    examples = sum(len(batch["item"]) for batch in held)
    return {
        "pipeline_examples_per_second": examples / made,
        "model_examples_per_second": examples / in_memory,
        "training_examples_per_second": examples / whole,
        "lost_share": 1 - in_memory / whole,
    }


def main() -> None:
    """Measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--models", nargs="+", default=["sasrec", "hstu"])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--history-length", type=int, default=50)
    arguments = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        from beam_jobs.preprocess import run

        events = Path(folder) / "events.parquet"
        generate(events, arguments.events, seed=0)
        directory = run(parse({"data": {"out": f"{folder}/dataset", "events": {"files": [str(events)]}}}))
        dataset, found["reading"] = measure_reading(directory)
        print(
            f"opened in {found['reading']['open_seconds']:.2f} s; {found['reading']['events_per_second']:,.0f} events/s"
        )
        print(f"{'examples/s':12}{'pipeline':>12}{'model':>12}{'together':>12}{'lost':>8}")
        for name in arguments.models:
            options = {"name": name, "embedding_dim": 64, "history_length": arguments.history_length}
            row = found[name] = measure_model(dataset, options, arguments.steps, arguments.batch_size)
            pipeline, alone, together, lost = row.values()
            print(f"{name:12}{pipeline:>12,.0f}{alone:>12,.0f}{together:>12,.0f}{lost:>8.1%}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
